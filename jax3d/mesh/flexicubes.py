"""FlexiCubes (Shen et al. 2023, https://arxiv.org/abs/2308.05371): a mesh from signed distances.

Dual marching cubes (Nielson 2004) whose vertices are averages, with weights of their own, of the
zero crossings around them. Which vertices and faces there are depends on signs alone and is found
on the host (`topology`); where they lie (`vertices`) is differentiable in points, distances and
weights. Surfaces that leave the lattice are open there.

Letters: g points along an axis, p = g^3 lattice points with x slowest, k = (g - 1)^3 cubes, e pairs
of a vertex and a zero crossing around it, V vertices, F faces. Bit 0 of a cube's corner is x, bit 1
y, bit 2 z.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax3d.mesh.extract import EmptyFieldError
from jax3d.types import Numbers

EDGES = (
    (0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4),
)  # fmt: skip
"""Corners of a cube's edges, in the order of `Weights.beta`; edges along x and z go up, along y
down, so that the four cubes around an edge name its ends alike."""
BETA, ALPHA, GAMMA = 12, 8, 1
"""Weights of a cube: of its edges, its corners and the splitting of its faces."""
RAW = BETA + ALPHA + GAMMA
"""Numbers of a network that become them."""


class Weights(NamedTuple):
    """What moves a cube's vertices and splits its faces; all positive."""

    beta: Float[Numbers, "k 12"]
    """Of each zero crossing in the average."""
    alpha: Float[Numbers, "k 8"]
    """Factor of the distance at each corner."""
    gamma: Float[Numbers, " k"]
    """A quad is cut along the diagonal whose ends have the greater product."""


class Topology(NamedTuple):
    """Which vertices and faces the signs of a lattice ask for; host arrays of indices."""

    vertex: Int[np.ndarray, " e"]
    """The vertex, ascending."""
    cube: Int[np.ndarray, " e"]
    """The cube that the vertex is in."""
    edge: Int[np.ndarray, " e"]
    """The crossed edge of the cube, 0 to 11."""
    ends: Int[np.ndarray, "e 2"]
    """The lattice points at its ends."""
    home: Int[np.ndarray, " V"]
    """The cube of each vertex."""
    quads: Int[np.ndarray, "Q 4"]
    """Vertices around each crossed edge, counter-clockwise seen from outside."""


def lattice(resolution: int, side: float) -> Float[np.ndarray, "p 3"]:
    """The corners of `resolution`^3 cubes that fill a cube around the origin.

    Args:
      resolution: cubes along an axis.
      side: of the whole, metres.
    """
    axis = np.linspace(-0.5, 0.5, resolution + 1, dtype=np.float32) * np.float32(side)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def cubes(resolution: int) -> Int[np.ndarray, "k 8"]:
    """The lattice points at the corners of each cube."""
    points = np.arange((resolution + 1) ** 3).reshape((resolution + 1,) * 3)
    shifted = []
    for corner in range(8):
        x, y, z = corner & 1, corner >> 1 & 1, corner >> 2 & 1
        shifted.append(
            points[x : x + resolution, y : y + resolution, z : z + resolution].reshape(-1)
        )
    return np.stack(shifted, -1)


def activated(raw: Float[Numbers, "k 21"], scale: float = 0.5) -> Weights:
    """Weights of a network's numbers, in the order beta, alpha, gamma.

    Args:
      raw: any numbers; zeros are plain dual marching cubes.
      scale: how far weights go from 1 (beta, alpha) and from 1/2 (gamma), below 1.
    """
    near_one = scale * jnp.tanh(raw[:, : BETA + ALPHA]) + 1.0
    gamma = scale * jax.nn.sigmoid(raw[:, BETA + ALPHA]) + (1.0 - scale) / 2
    return Weights(near_one[:, :BETA], near_one[:, BETA:], gamma)


def topology(sdf: Float[Numbers, "a b c"]) -> Topology:
    """The vertices and faces between negative (inside) and other distances.

    Raises:
      EmptyFieldError: no two neighbours differ in sign.
      ValueError: the lattice is no cube of at least 2 points an axis, or a value is not a number.
    """
    sdf = np.asarray(sdf)
    g = sdf.shape[0] if sdf.ndim else 0
    if sdf.shape != (g, g, g) or g < 2:
        raise ValueError(f"distances of shape {sdf.shape}; expected [g, g, g] with g from 2 on")
    if np.isnan(sdf).any():
        raise ValueError("the distances hold NaN")
    inside = sdf.reshape(-1) < 0
    corners = cubes(g - 1)
    case = (inside[corners] << np.arange(8)).sum(-1)
    surface = np.flatnonzero((case > 0) & (case < 255))
    if not len(surface):
        raise EmptyFieldError(
            f"the lattice of distances has no surface: they lie between {sdf.min():.3g} and "
            f"{sdf.max():.3g}"
        )
    patch, count = _tables()[:2]
    case = _inverted(case.reshape((g - 1,) * 3)).reshape(-1)[surface]
    # Cubes with fewer vertices come first.
    order = np.argsort(count[case], kind="stable")
    first = np.empty(len(surface), np.int64)
    first[order] = np.cumsum(count[case][order]) - count[case][order]
    row, edge = np.nonzero(patch[case] >= 0)
    vertex = first[row] + patch[case][row, edge]
    ends = corners[surface[row][:, None], np.array(EDGES)[edge]]
    quads = _quads(vertex, ends, inside)
    home = np.empty(count[case].sum(), np.int64)
    home[vertex] = surface[row]
    by = np.lexsort((edge, vertex))
    return Topology(vertex[by], surface[row][by], edge[by], ends[by], home, quads)


def vertices(
    found: Topology, x: Float[Numbers, "p 3"], sdf: Float[Numbers, " p"], weights: Weights
) -> Float[Array, "V 3"]:
    """Where the vertices lie; differentiable in all but `found`.

    Args:
      found: the topology of these signs.
      x: the lattice's points, which may be moved, in any unit.
      sdf: distances at them, negative inside.
      weights: of all k cubes.
    """
    corners = np.array(EDGES)[found.edge]
    alpha = weights.alpha[found.cube[:, None], corners]
    crossing = _crossing(x[found.ends], sdf[found.ends] * alpha)
    beta = weights.beta[found.cube, found.edge]
    return _sum(found, beta[:, None] * crossing) / _sum(found, beta)[:, None]


def deviation(
    found: Topology,
    x: Float[Numbers, "p 3"],
    sdf: Float[Numbers, " p"],
    placed: Float[Numbers, "V 3"],
) -> Float[Array, " e"]:
    """How far each vertex is from being equally far from its zero crossings.

    Their mean is the regulariser L_dev. Arguments are those of `vertices`, and its result.
    """
    away = (
        _crossing(jnp.asarray(x)[found.ends], jnp.asarray(sdf)[found.ends]) - placed[found.vertex]
    )
    # The small constant keeps the gradient of a distance of zero finite.
    distance = jnp.sqrt(jnp.sum(away**2, -1) + 1e-20)
    mean = _sum(found, distance) / np.bincount(found.vertex)
    return jnp.abs(distance - mean[found.vertex])


def faces(found: Topology, gamma: Float[Numbers, " k"]) -> Int[np.ndarray, "F 3"]:
    """Two triangles for each quad, cut as `Weights.gamma` says; on the host."""
    ends = np.asarray(gamma)[found.home][found.quads]
    even = ends[:, 0] * ends[:, 2] > ends[:, 1] * ends[:, 3]
    cut = np.where(even[:, None], [0, 1, 2, 0, 2, 3], [0, 1, 3, 3, 1, 2])
    return np.take_along_axis(found.quads, cut, 1).reshape(-1, 3)


def _crossing(x: Float[Numbers, "e 2 3"], sdf: Float[Numbers, "e 2"]) -> Float[Array, "e 3"]:
    """The zero of a linear function between two points."""
    a, b = sdf[:, :1], sdf[:, 1:]
    return (b * x[:, 0] - a * x[:, 1]) / (b - a)


def _sum(found: Topology, values: Float[Numbers, "e *c"]) -> Float[Array, "V *c"]:
    return jax.ops.segment_sum(values, found.vertex, len(found.home), indices_are_sorted=True)


def _quads(vertex, ends, inside: Bool[np.ndarray, " p"]) -> Int[np.ndarray, "Q 4"]:
    """The vertices around each crossed edge that four cubes share."""
    key = ends[:, 0] * len(inside) + ends[:, 1]
    _, which, shared = np.unique(key, return_inverse=True, return_counts=True)
    full = np.flatnonzero(shared[which] == 4)
    by = full[np.argsort(which[full], kind="stable")]
    around = vertex[by].reshape(-1, 4)
    begins_inside = inside[ends[by[::4], 0]]
    # Cubes come in the order (0, 0), (0, 1), (1, 0), (1, 1) across the edge.
    return np.concatenate(
        [around[~begins_inside][:, [0, 1, 3, 2]], around[begins_inside][:, [2, 3, 1, 0]]]
    )


# Cases of a cube by the signs of its corners; bit i: corner i is inside.


@lru_cache(1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each case: the vertex of each edge or -1, their number, and the face in doubt or -1.

    Each closed line of the surface around the cube has one vertex. On a face whose insides are
    diagonal, the insides are apart. If that joins both lines of the only such face, so that the
    cube has one line, the face is in doubt: should the cube behind it be of the same kind, an
    edge between the two would belong to four faces (cases 16 and 19 of Nielson).
    """
    patch = np.full((256, 12), -1)
    doubt = np.full(256, -1)
    for case in range(256):
        links, diagonal = _links(case)
        crossed = [e for e, ends in enumerate(EDGES) if (case >> ends[0] ^ case >> ends[1]) & 1]
        for edge in crossed:
            if patch[case, edge] < 0:
                patch[case, _reach(edge, links)] = patch[case].max() + 1
        if len(diagonal) == 1 and len({patch[case, e] for e in _face(diagonal[0])[1]}) == 1:
            doubt[case] = diagonal[0]
    return patch, patch.max(1) + 1, doubt


def _face(face: int) -> tuple[list[int], list[int]]:
    """Corners and edges of face 2 axis + side."""
    corners = [c for c in range(8) if c >> face // 2 & 1 == face % 2]
    return corners, [e for e, ends in enumerate(EDGES) if set(ends) <= set(corners)]


def _links(case: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of edges that the surface joins across faces, and the faces of diagonal insides."""
    links, diagonal = [], []
    for face in range(6):
        corners, edges = _face(face)
        crossed = [e for e in edges if (case >> EDGES[e][0] ^ case >> EDGES[e][1]) & 1]
        if len(crossed) == 2:
            links.append((crossed[0], crossed[1]))
        if len(crossed) == 4:
            diagonal.append(face)
            for corner in corners:
                if case >> corner & 1:
                    a, b = (e for e in edges if corner in EDGES[e])
                    links.append((a, b))
    return links, diagonal


def _reach(edge: int, links: list[tuple[int, int]]) -> list[int]:
    found = {edge}
    while more := {e for pair in links if set(pair) & found for e in pair} - found:
        found |= more
    return sorted(found)


def _inverted(case: Int[np.ndarray, "a b c"]) -> Int[np.ndarray, "a b c"]:
    """The cases, with the complement's where two cubes are in doubt about the face they share."""
    doubt = _tables()[2][case]
    padded = np.pad(doubt, 1, constant_values=-1)
    both = np.zeros(case.shape, bool)
    for face in range(6):
        behind = np.roll(padded, 1 - 2 * (face % 2), face // 2)[1:-1, 1:-1, 1:-1]
        both |= (doubt == face) & (behind == face ^ 1)
    return np.where(both, 255 - case, case)
