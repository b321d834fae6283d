"""From a representation to a textured mesh on disk (host side).

The stages, one a file: `extract` (marching cubes), `simplify`, `unwrap`, `bake` (colours of the
field) or `paint` (those of pictures), `export`; `hull`, what a game asks beside; and `compare`,
which holds the result against renders of the field.
"""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jax3d.bounds import Count, Positive, Range, Share
from jax3d.fields.base import Representation
from jax3d.mesh.bake import bake, bake_together
from jax3d.mesh.compare import Likeness, compare
from jax3d.mesh.export import (
    glb_faces,
    load_glb,
    with_texture,
    write_glb,
    write_obj,
    write_ply,
)
from jax3d.mesh.extract import (
    EmptyFieldError,
    Field,
    drop_floaters,
    extract_surface,
    sample_density,
    silhouette_level,
)
from jax3d.mesh.hull import Placement, convex_hull, placement
from jax3d.mesh.paint import Views, paint, photograph
from jax3d.mesh.simplify import simplify
from jax3d.mesh.unwrap import unwrap, unwrap_together
from jax3d.types import Mesh, Params

__all__ = [
    "EmptyFieldError",
    "Likeness",
    "MeshConfig",
    "Placement",
    "Views",
    "bake",
    "build",
    "compare",
    "convex_hull",
    "demand_levels",
    "drop_floaters",
    "extract_surface",
    "glb_faces",
    "levels",
    "load_glb",
    "of",
    "paint",
    "painted",
    "photograph",
    "placement",
    "sample_density",
    "silhouette_level",
    "simplify",
    "unwrap",
    "with_texture",
    "write_glb",
    "write_obj",
    "write_ply",
]

_COARSEST = 8
"""Points along an axis of the coarsest grid that is tried in place of the asked one."""


Faces = Annotated[int, Range(4, 2**31 - 1)]
Side = Annotated[int, Range(8, 16384)]
Lods = Annotated[int, Range(0, 8)]


@dataclass(frozen=True)
class MeshConfig:
    """How finely a field is meshed."""

    resolution: Annotated[int, Range(8, 2048)] = 128
    """Grid points along an axis; time and memory grow with the cube."""
    level: Positive | None = None
    """Density of the surface, 1/metre; `None` finds the one that keeps the renders' outline."""
    min_area: Share = 0.01
    """Loose parts are dropped below this fraction of the largest part's area."""
    faces: Faces = 6000
    """Face budget; unwrapping takes 1 s at 5,000 faces and grows faster than they do."""
    texture: Side = 512
    """Side of the square texture, pixels."""
    lods: Lods = 0
    """Coarser meshes beside it, for when it is seen from afar: each has half the faces of the one
    before. All share one texture."""
    hull: Faces | None = None
    """Face budget of a convex hull for collisions; engines take 255 or so. None makes no hull."""
    height: Positive | None = None
    """Of the real object, metres: the mesh is scaled to it and stands on the middle of its base.
    None leaves the field's scale and origin."""
    chunk: Count = 1 << 14
    """Points per call of the field."""


def of(representation: Representation, params: Params, config: MeshConfig) -> Mesh:
    """One asset's mesh, metres in world axes: its own if it makes one, else that of its field.

    A field's functions are compiled once for all its assets. Raises `ValueError` where there is
    no surface (`build`), or where the representation is neither mesh nor coloured field.
    """
    return levels(representation, params, dataclasses.replace(config, lods=0))[0]


def levels(representation: Representation, params: Params, config: MeshConfig) -> tuple[Mesh, ...]:
    """The mesh `of` an asset, and coarser ones after it, on one texture.

    They are fewer than the config asks where one cannot be made coarser and stay closed. Raises
    `ValueError` as `of` and `demand_levels` do.
    """
    demand_levels(representation, config)
    if representation.mesh is not None:
        return (representation.mesh(params),)
    if representation.density is None or representation.color is None:
        raise ValueError(
            "the representation has no mesh of its own and no field to make one from: it needs "
            "`mesh`, or `density` and `color`"
        )
    density, shade = _compiled(representation.density, representation.color)
    params = jax.device_put(params)
    bound = representation.bound
    return _build(partial(density, params), partial(shade, params), bound, config)


def demand_levels(representation: Representation, config: MeshConfig) -> None:
    """Raises `ValueError` where coarser levels are asked of what is a mesh, and no field."""
    if config.lods and representation.mesh is not None:
        raise ValueError("mesh.lods: coarser levels are made of fields, and this is a mesh")


def painted(
    representation: Representation, params: Params, config: MeshConfig, views: Views
) -> Mesh:
    """One asset's mesh, within the face budget, whose texture is made from pictures of it.

    So it also shows what a field at a point does not say: colours that depend on the view, in the
    mean. A representation that is a mesh gives the surface itself. Raises `ValueError` as `of`.
    """
    if representation.mesh is not None:
        surface = representation.mesh(params)
        surface = simplify(Mesh(surface.vertices, surface.faces), config.faces)
    elif representation.density is not None:
        density = partial(_jitted(representation.density), jax.device_put(params))
        surface = _surface(density, representation.bound, config)
    else:
        raise ValueError("the representation has neither a mesh of its own nor a density")
    return paint(unwrap(surface, config.texture), views, config.texture)


def build(density: Field, color: Field, bound: float, config: MeshConfig) -> Mesh:
    """A closed, textured mesh, metres in world axes, of the field in the cube [-bound, bound]^3.

    `density(x[n, 3]) -> [n]` in 1/metre and `color(x[n, 3]) -> [n, 3]` in sRGB are always called
    with `config.chunk` points, so a jitted function of params and x, partially applied, compiles
    once for all assets. Raises `EmptyFieldError` (a `ValueError`) where there is no surface, and
    `ValueError` where it cannot be had within the config, whose field is named.
    """

    def shade(x):
        return np.concatenate([np.asarray(density(x))[:, None], np.asarray(color(x))], axis=-1)

    return _build(density, shade, bound, dataclasses.replace(config, lods=0))[0]


@lru_cache(maxsize=8)
def _compiled(density, color):
    """Density alone, and with the colour: the network that they share is then evaluated once."""

    def shade(params, x):
        return jnp.concatenate([density(params, x)[:, None], color(params, x)], axis=-1)

    return jax.jit(density), jax.jit(shade)


_jitted = lru_cache(maxsize=8)(jax.jit)


def _build(density, shade, bound, config):
    meshes = [_surface(density, bound, config)]
    while len(meshes) <= config.lods and len(meshes[-1].faces) >= 8:
        try:
            meshes.append(simplify(meshes[-1], len(meshes[-1].faces) // 2))
        except ValueError:
            break
    four_cells = 8 * bound / (config.resolution - 1)
    unwrapped = unwrap_together(meshes, config.texture)
    return bake_together(unwrapped, shade, config.texture, four_cells, config.chunk)


def _surface(density: Field, bound: float, config: MeshConfig) -> Mesh:
    """The field's closed surface within the face budget.

    Fog frays into thousands of small sheets that no budget keeps closed: it is then seen on a
    coarser grid, where they are too small to appear.
    """
    refusal = None
    for resolution in (config.resolution, config.resolution // 2, config.resolution // 4):
        if refusal is not None and resolution < _COARSEST:
            break
        try:
            mesh = _level_set(density, bound, resolution, config)
        except EmptyFieldError as error:
            raise refusal or error from None
        mesh = drop_floaters(mesh, config.min_area)
        try:
            return simplify(mesh, config.faces)
        except ValueError as error:
            refusal = refusal or error
    raise refusal


def _level_set(density, bound, resolution, config):
    grid = sample_density(density, bound, resolution, config.chunk)
    level = silhouette_level(grid, bound) if config.level is None else config.level
    return extract_surface(density, grid, level, bound, config.chunk)
