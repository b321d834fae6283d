"""Marching cubes by a given table, as networks that learnt to be meshed by it were.

Letters: g points of a grid along an axis, V vertices, F faces.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

CASES, SLOTS, EDGES = 256, 5, 12
"""States of a cube's corners, triangles in one cube at most, edges of a cube."""


def corners_of(edge: int) -> tuple[int, int]:
    """The two corners of a cube that an edge joins.

    Corner 1 x + 2 y + 4 z stands at (x, y, z). Edges 0 to 3 run along x, 4 to 7 along y, 8 to 11
    along z; of the four, those at the lower end of the other two axes come first, and of these
    axes the first is the faster.
    """
    axis, place = divmod(edge, 4)
    first, second = (1 << other for other in range(3) if other != axis)
    low = first * (place & 1) + second * (place >> 1)
    return low, low | 1 << axis


def mistake(cases: Int[np.ndarray, "256 5 3"], masks: Bool[np.ndarray, "256 5"]) -> str | None:
    """What is wrong with a table, of which `masks` tells the triangles in use; None if nothing is.

    Every vertex has to lie on an edge whose corners are on different sides.
    """
    if not ((cases >= 0) & (cases < EDGES)).all():
        return (
            f"edges are numbered 0 to {EDGES - 1}, its own go from {cases.min()} to {cases.max()}"
        )
    states = np.arange(CASES)[:, None]
    inside = states >> np.arange(8) & 1
    ends = np.array([corners_of(edge) for edge in range(EDGES)])
    cut = inside[:, ends[:, 0]] != inside[:, ends[:, 1]]
    on_cut = cut[states[:, None], cases] | ~masks[..., None]
    if not on_cut.all():
        return f"case {np.argwhere(~on_cut)[0][0]} has a vertex on an edge that is not cut"
    return None


def march(
    values: Float[np.ndarray, "x y z"],
    cases: Int[np.ndarray, "256 5 3"],
    masks: Bool[np.ndarray, "256 5"],
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """The surface between points of a grid that are above 0 and those that are not.

    Args:
      values: at the grid's points.
      cases: the three edges of each triangle, by which corners are above 0 (bit `corner`).
      masks: which of the triangles there are.

    Returns:
      Vertices in units of the grid, where the values are 0 if they are linear along its edges:
      those on edges along x first, then y, then z, each sorted by place, z fastest. And faces, in
      the order of their cubes and as the table winds them.
    """
    above = values > 0
    state = np.zeros([n - 1 for n in values.shape], np.uint8)
    for corner in range(8):
        state |= above[_window(corner, values.shape)].astype(np.uint8) << corner
    cube = np.argwhere((state > 0) & (state < CASES - 1))
    state = state[tuple(cube.T)]
    edges = _edges(cube, values.shape)
    corners = np.take_along_axis(edges, cases[state].reshape(len(cube), SLOTS * 3), axis=1)
    corners = corners.reshape(-1, 3)[masks[state].reshape(-1)]
    used, faces = np.unique(corners, return_inverse=True)
    return _cut(used, values), faces.reshape(corners.shape)


def _window(corner: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The points that are this corner of some cube."""
    bits = [corner >> axis & 1 for axis in range(3)]
    return tuple(slice(bit, n - 1 + bit) for bit, n in zip(bits, shape, strict=True))


def _edge_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """How many edges there are along each axis, as grids of their lower ends."""
    return [tuple(n - (a == axis) for a, n in enumerate(shape)) for axis in range(3)]


def _edges(cube: Int[np.ndarray, "c 3"], shape: tuple[int, ...]) -> Int[np.ndarray, "c 12"]:
    """The number of each edge of cubes among all edges."""
    shapes = _edge_shapes(shape)
    begin = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
    numbers = []
    for edge in range(EDGES):
        low, axis = corners_of(edge)[0], edge // 4
        at = cube + [low >> a & 1 for a in range(3)]
        numbers.append(begin[axis] + np.ravel_multi_index(tuple(at.T), shapes[axis]))
    return np.stack(numbers, axis=1)


def _cut(edge: Int[np.ndarray, " V"], values: Float[np.ndarray, "x y z"]):
    """Where the values are 0 along numbered edges, units of the grid."""
    points, begin = [], 0
    for axis, shape in enumerate(_edge_shapes(values.shape)):
        count = int(np.prod(shape))
        own = edge[(edge >= begin) & (edge < begin + count)] - begin
        low = np.stack(np.unravel_index(own, shape), axis=1)
        high = low + np.eye(3, dtype=int)[axis]
        first, second = values[tuple(low.T)], values[tuple(high.T)]
        points.append(low + (first / (first - second))[:, None] * (high - low))
        begin += count
    return np.concatenate(points)
