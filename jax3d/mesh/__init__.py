"""From a density field to a textured mesh on disk (host side).

The stages, one a file: `extract` (marching cubes), `simplify`, `unwrap`, `bake`, `export`; and
`compare`, which holds the result against renders of the field.
"""

from dataclasses import dataclass
from typing import Annotated

from jax3d.bounds import Count, Positive, Range, Share
from jax3d.mesh.bake import bake
from jax3d.mesh.compare import Likeness, compare
from jax3d.mesh.export import load_glb, write_glb, write_obj, write_ply
from jax3d.mesh.extract import (
    EmptyFieldError,
    Field,
    drop_floaters,
    extract_surface,
    sample_density,
    silhouette_level,
)
from jax3d.mesh.simplify import simplify
from jax3d.mesh.unwrap import unwrap
from jax3d.types import Mesh

__all__ = [
    "EmptyFieldError",
    "Likeness",
    "MeshConfig",
    "bake",
    "build",
    "compare",
    "drop_floaters",
    "extract_surface",
    "load_glb",
    "sample_density",
    "silhouette_level",
    "simplify",
    "unwrap",
    "write_glb",
    "write_obj",
    "write_ply",
]


@dataclass(frozen=True)
class MeshConfig:
    """How finely a field is meshed."""

    resolution: Annotated[int, Range(8, 2048)] = 128
    """Grid points along an axis; time and memory grow with the cube."""
    level: Positive | None = None
    """Density of the surface, 1/metre; `None` finds the one that keeps the renders' outline."""
    min_area: Share = 0.01
    """Loose parts are dropped below this fraction of the largest part's area."""
    faces: Annotated[int, Range(4, 2**31 - 1)] = 6000
    """Face budget; unwrapping takes 0.6 s at 5,000 faces and grows faster than they do."""
    texture: Annotated[int, Range(8, 16384)] = 512
    """Side of the square texture, pixels."""
    chunk: Count = 1 << 16
    """Points per call of the field."""


def build(density: Field, color: Field, bound: float, config: MeshConfig) -> Mesh:
    """A closed, textured mesh, metres in world axes, of the field in the cube [-bound, bound]^3.

    `density(x[n, 3]) -> [n]` in 1/metre and `color(x[n, 3]) -> [n, 3]` in sRGB are always called
    with `config.chunk` points, so a jitted function of params and x, partially applied, compiles
    once for all assets. Raises `EmptyFieldError` (a `ValueError`) where there is no surface.
    """
    mesh = _surface(density, bound, config)
    mesh = unwrap(mesh, config.texture)
    four_cells = 8 * bound / (config.resolution - 1)
    return bake(mesh, density, color, config.texture, four_cells, config.chunk)


def _surface(density: Field, bound: float, config: MeshConfig) -> Mesh:
    """The field's closed surface within the face budget.

    Fog frays into thousands of small sheets that no budget keeps closed: it is then seen on a
    coarser grid, where they are too small to appear.
    """
    for resolution in (config.resolution, config.resolution // 2, config.resolution // 4):
        grid = sample_density(density, bound, resolution, config.chunk)
        level = silhouette_level(grid, bound) if config.level is None else config.level
        mesh = extract_surface(density, grid, level, bound, config.chunk)
        try:
            return simplify(drop_floaters(mesh, config.min_area), config.faces)
        except ValueError as error:
            refusal = error
    raise refusal
