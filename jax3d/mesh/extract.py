"""From a density field to a closed triangle mesh: marching cubes, floaters dropped.

The surface is a level set of the density, sigma. Two choices make the mesh match the renders:

- The level. A picture shows each ray with an opacity, alpha; a mesh shows it or does not.
  `silhouette_level` takes the sigma whose level set, seen along rays in several directions, has
  the outline with the least squared error to those alphas. A crisp field has its edge there; a
  soft one keeps its outline, which a level set by hand would shrink or swell.
- The place. Sigma is far from linear inside a cell, so vertices are not left at its linear
  interpolation: each is moved along its grid edge by bisection on the field itself.

Letters: R grid points along an axis, V vertices, F faces, n points.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage import measure

from jax3d.types import Mesh

Field = Callable[..., object]
"""A field at points: `[n, 3] -> [n]` or `[n, 3] -> [n, c]`."""

_BISECTIONS = 5
"""Vertices end within 1/64 of a grid cell of the surface."""


_DIRECTIONS, _PROBES = 6, 64
"""`silhouette_level` looks along so many directions, at up to so many by so many rays each."""


class EmptyFieldError(ValueError):
    """The field has no surface to extract."""


def evaluate(
    field: Field, x: Float[np.ndarray, "*n 3"], chunk: int = 1 << 14
) -> Float[np.ndarray, "..."]:
    """`field(x)` in calls of `chunk` points each, so memory is bounded.

    The last call is padded: a jitted field compiles once.
    """
    if chunk < 1:
        raise ValueError(f"mesh.chunk is {chunk}; a call of the field takes at least 1 point")
    flat = np.asarray(x, np.float32).reshape(-1, 3)
    count = len(flat)
    flat = np.pad(flat, [(0, -count % chunk), (0, 0)])
    parts = [np.asarray(field(flat[i : i + chunk])) for i in range(0, len(flat), chunk)]
    values = np.concatenate(parts)[:count] if parts else np.asarray(field(flat))
    return values.reshape(*np.shape(x)[:-1], *values.shape[1:]).astype(np.float32)


def sample_density(
    density: Field, bound: float, resolution: int, chunk: int = 1 << 14
) -> Float[np.ndarray, "R R R"]:
    """Density, 1/metre, on a grid that spans the cube [-bound, bound]^3, indexed x, y, z.

    The outermost layer is zero, so every surface closes inside the cube. Values that are not
    finite raise `ValueError`, as does a resolution below 3, of which nothing would be left.
    """
    if resolution < 3:
        raise ValueError(f"mesh.resolution is {resolution}; the grid needs 3 points along an axis")
    axis = np.linspace(-bound, bound, resolution, dtype=np.float32)[1:-1]
    shape = (resolution - 2,) * 3
    values = np.empty(math.prod(shape), np.float32)
    for begin in range(0, len(values), max(chunk, 1)):
        index = np.arange(begin, min(begin + chunk, len(values)))
        points = axis[np.stack(np.unravel_index(index, shape), axis=-1)]
        values[index] = evaluate(density, points, chunk)
    if not np.isfinite(values).all():
        raise ValueError(
            f"the density is not finite at {np.sum(~np.isfinite(values))} of {len(values)} points; "
            "the optimisation has diverged: lower the learning rate or the guidance scale"
        )
    return np.pad(values.reshape(shape), 1)


def silhouette_level(grid: Float[np.ndarray, "R R R"], bound: float) -> float:
    """The density, 1/metre, whose level set has the outline that renders show (module text).

    A ray crosses the level set if its greatest density passes the level. Taking rays in the order
    of that density, each adds (1 - alpha)^2 - alpha^2 to the squared error of the outline; the
    level is where the sum is least. Raises `EmptyFieldError` where no ray is opaque.
    """
    densest, alpha = _probe(grid, bound)
    order = np.argsort(-densest, kind="stable")
    error = np.cumsum(1.0 - 2.0 * alpha[order])
    if error.min() >= 0.0:
        raise EmptyFieldError(
            "the field is empty: no line through it is opaque (density between "
            f"{grid.min():.3g} and {grid.max():.3g} 1/m, greatest opacity {alpha.max():.2f}); "
            "train longer, lower the regularisers that make the object small or transparent, or "
            f"raise mesh.resolution ({len(grid)}) if it is thin"
        )
    return min(float(densest[order[error.argmin()]]), 0.5 * float(grid.max()))


def extract_surface(
    density: Field,
    grid: Float[np.ndarray, "R R R"],
    level: float,
    bound: float,
    chunk: int = 1 << 14,
) -> Mesh:
    """The level set `density = level` as a closed mesh with outward faces, metres.

    `grid` is `sample_density` of the same density and bound. Raises `EmptyFieldError` where the
    grid does not pass the level.
    """
    if not grid.min() < level < grid.max():
        raise EmptyFieldError(
            f"the field has no surface at level {level:.3g} 1/m: its density lies between "
            f"{grid.min():.3g} and {grid.max():.3g} 1/m; ask for a mesh.level in "
            "between"
        )
    # Opacity of a step whose opacity is 1/2 at the level: it has the same level set, and does not
    # overflow where sigma spans many orders of magnitude.
    opacity = -np.expm1(-grid * (math.log(2) / level))
    vertices, faces, _, _ = measure.marching_cubes(opacity, 0.5, gradient_direction="ascent")
    vertices = _bisect(density, grid, vertices, level, bound, chunk)
    mesh = Mesh(_to_world(vertices, len(grid), bound), faces.astype(np.int64))
    return mesh if signed_volume(mesh) > 0 else mesh.replace(faces=mesh.faces[:, ::-1])


def drop_floaters(mesh: Mesh, min_area: float = 0.01) -> Mesh:
    """Keep the parts whose area is at least `min_area` of the largest part's.

    A sphere of a tenth of the size has a hundredth of the area. Closed surfaces that face
    inwards, the walls of hollows that no picture shows, are dropped as well. Raises `ValueError`
    for a share outside [0, 1].
    """
    if not 0.0 <= min_area <= 1.0:
        raise ValueError(f"mesh.min_area is {min_area}; give a share of the largest part, 0 to 1")
    a, b, c = mesh.faces.T
    edges = (np.ones(2 * len(a), bool), (np.concatenate([a, b]), np.concatenate([b, c])))
    count = len(mesh.vertices)
    parts, of_vertex = connected_components(coo_array(edges, shape=(count, count)), directed=False)
    of_face = of_vertex[a]
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(of_face, np.linalg.norm(cross, axis=-1), parts)
    volume = np.bincount(of_face, np.einsum("fi,fi->f", cross, corners[:, 0]), parts)
    solid = volume > 0
    keep = solid & (area >= min_area * area[solid].max(initial=0.0))
    return compact(mesh.replace(faces=mesh.faces[keep[of_face]]))


def compact(mesh: Mesh) -> Mesh:
    """Leave out the vertices that no face uses, with their colours and texture coordinates."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    return mesh.replace(
        vertices=mesh.vertices[used],
        faces=faces.reshape(mesh.faces.shape),
        colors=None if mesh.colors is None else mesh.colors[used],
        uvs=None if mesh.uvs is None else mesh.uvs[used],
    )


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Several meshes with texture coordinates as one, in their order."""
    first = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    faces = [mesh.faces + k for mesh, k in zip(meshes, first, strict=True)]
    vertices, uvs = ([getattr(mesh, name) for mesh in meshes] for name in ("vertices", "uvs"))
    return Mesh(np.concatenate(vertices), np.concatenate(faces), uvs=np.concatenate(uvs))


def signed_volume(mesh: Mesh) -> float:
    """Cubic metres enclosed by a closed mesh; negative where its faces look inwards."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(np.float64), 1, 0)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def _probe(grid, bound):
    """Greatest density and opacity along parallel rays in evenly spread, oblique directions."""
    probes = min(_PROBES, 2 * len(grid))  # more say nothing new of a coarse grid
    along = np.linspace(-1.75, 1.75, 2 * probes) * bound  # the cube's half diagonal is 1.73
    across = np.linspace(-1.5, 1.5, probes) * bound
    densest, alpha = [], []
    for i in range(_DIRECTIONS):
        height, angle = (i + 0.5) / _DIRECTIONS, i * math.pi * (3 - math.sqrt(5))
        ring = math.sqrt(1 - height**2)
        d = np.array([ring * math.cos(angle), ring * math.sin(angle), height])
        u = np.array([-math.sin(angle), math.cos(angle), 0.0])
        x = (
            across[:, None, None, None] * u
            + across[:, None, None] * np.cross(d, u)
            + along[:, None] * d
        )
        index = (x.reshape(-1, 3).T + bound) * ((len(grid) - 1) / (2 * bound))
        sigma = map_coordinates(grid, index, order=1).reshape(-1, len(along))
        densest.append(sigma.max(axis=-1))
        alpha.append(-np.expm1(-sigma.sum(axis=-1) * (along[1] - along[0])))
    return np.concatenate(densest), np.concatenate(alpha)


def _bisect(density, grid, vertices, level, bound, chunk):
    """Move vertices, in grid units, along their grid edges onto the level set."""
    low, high = np.floor(vertices).astype(int), np.ceil(vertices).astype(int)
    low_inside, high_inside = (grid[tuple(i.T)] > level for i in (low, high))
    # The few vertices that marching cubes puts inside a cell, not on an edge, stay.
    on_edge = (low_inside != high_inside) & ((high - low).sum(axis=-1) == 1)
    inside = np.where(low_inside[:, None], low, high)[on_edge].astype(np.float64)
    outside = np.where(low_inside[:, None], high, low)[on_edge].astype(np.float64)
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        dense = evaluate(density, _to_world(middle, len(grid), bound), chunk) > level
        inside = np.where(dense[:, None], middle, inside)
        outside = np.where(dense[:, None], outside, middle)
    moved = vertices.astype(np.float64)
    moved[on_edge] = (inside + outside) / 2
    return moved


def _to_world(vertices, resolution, bound):
    return (vertices * (2 * bound / (resolution - 1)) - bound).astype(np.float32)
