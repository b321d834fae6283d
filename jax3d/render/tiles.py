"""Which Gaussians reach which tiles of a picture, as lists in the order of depth.

A list of fixed size holds the pairs ("hits") of a tile and a Gaussian whose box reaches it. Pairs
that the ellipse does not reach are dropped, and the others sorted by tile.

Letters: v views, n Gaussians, m hits of a view, t tiles.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax3d.render.ewa import CUT

SIDE = 8
"""Of a tile, pixels."""
_MANY = 2**30 - 1
"""Hits of a view that are told apart from more."""


def tiles_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles that cover a picture."""
    return -(-size[0] // SIDE), -(-size[1] // SIDE)


class Lists(NamedTuple):
    """For each tile of all views the Gaussians that reach it, nearest first.

    The longest list comes first.
    """

    tile: Int[Array, " t"]
    """In rows of the first view's picture, then the next one's."""
    begin: Int[Array, " t"]
    """Of the tile's list in `rows`."""
    length: Int[Array, " t"]
    rows: Int[Array, " m"]
    """Of the table `[v n]`, flattened."""


def lists_of(
    table: Float[Array, "v n 6"],
    extents: Float[Array, "v n 2"],
    shown: Bool[Array, "v n"],
    size: tuple[int, int],
    room: int,
) -> tuple[Lists, Int[Array, " v"]]:
    """The lists, and how many hits of each view, its farthest, had no room.

    Args:
      table: (x, y, a, b, c, opacity) of footprints, nearest first.
      extents: Half sides of their boxes, pixels.
      shown: Which are in the picture.
      size: Of the pictures, (H, W).
      room: For the hits of one view.
    """
    views, n, _ = table.shape
    find = partial(_of_view, size=size, room=room)
    (ranks, begin), overflow = jax.vmap(find)(table, extents, shown)
    view = jnp.arange(views, dtype=jnp.int32)[:, None]
    length = jnp.diff(begin, axis=-1).reshape(-1)
    begin = (begin[:, :-1] + view * room).reshape(-1)
    tile = jnp.argsort(-length).astype(jnp.int32)
    return Lists(tile, begin[tile], length[tile], (ranks + view * n).reshape(-1)), overflow


def _of_view(table: Float[Array, "n 6"], extents, shown, size, room: int):
    """Ranks of one view tile by tile, where each tile begins, and how many hits had no room."""
    n, (rows, columns) = len(table), tiles_of(size)
    first, count = _boxes(table[:, :2], extents, shown, size)
    boxes = count[:, 0] * count[:, 1]
    # Held where int32 would turn round.
    end = lax.associative_scan(lambda a, b: jnp.minimum(a + b, _MANY), boxes)
    # Who owns each place of the list: marks at the owners' first places, carried on.
    begin = jnp.where((boxes > 0) & (end - boxes < room), end - boxes, room)
    marks = jnp.zeros(room, jnp.int32).at[begin].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    owner = lax.cummax(marks)
    place = jnp.arange(room, dtype=jnp.int32) - (end - boxes)[owner]
    width = jnp.maximum(count[owner, 0], 1)
    column, row = first[owner, 0] + place % width, first[owner, 1] + place // width
    reached = _reaches(table[owner], column, row) & (jnp.arange(room) < end[-1])
    tile = jnp.where(reached, row * columns + column, rows * columns)
    return _by_tile(tile, owner, rows * columns, n), jnp.maximum(end[-1] - room, 0)


def _boxes(means2d, extents, shown, size):
    """First tile (column, row) of each Gaussian's box, and how many tiles it has each way."""
    slack = 1e-4 * extents + 1e-3  # against rounding: who looks at the pixels decides
    limit = jnp.array([size[1], size[0]], means2d.dtype)
    low = jnp.clip(jnp.ceil(means2d - extents - slack - 0.5), 0, limit)
    high = jnp.clip(jnp.floor(means2d + extents + slack - 0.5), -1, limit - 1)
    some = shown & jnp.all((low <= high) & (extents > 0), axis=-1)
    low, high = low.astype(jnp.int32) // SIDE, high.astype(jnp.int32) // SIDE
    return low, jnp.where(some[:, None], high - low + 1, 0)


def _reaches(table: Float[Array, "m 6"], column, row):
    """Whether a Gaussian has an opacity of `CUT` somewhere between a tile's pixel centres."""
    x, y, a, b, c, opacity = table.T
    left, top = column * SIDE + 0.5, row * SIDE + 0.5
    right, bottom = left + SIDE - 1, top + SIDE - 1
    # The least sigma lies on a side that faces the centre, where the other derivative is zero.
    dx, dy = x - jnp.clip(x, left, right), y - jnp.clip(y, top, bottom)
    along_y = y - jnp.clip(y + b / c * dx, top, bottom)
    along_x = x - jnp.clip(x + b / a * dy, left, right)
    sigma = jnp.minimum(
        0.5 * (a * dx * dx + c * along_y**2) + b * dx * along_y,
        0.5 * (a * along_x**2 + c * dy * dy) + b * along_x * dy,
    )
    return sigma <= 1.001 * jnp.log(jnp.maximum(opacity, CUT) / CUT) + 1e-3


def _by_tile(tile: Int[Array, " m"], rank: Int[Array, " m"], tiles: int, n: int):
    """Ranks sorted by tile and then by rank, and where each tile begins, and where all end."""
    if (tiles + 1) * n < 2**31:  # one key sorts several times as fast as two
        keys = lax.sort(tile * n + rank)
        return keys % n, jnp.searchsorted(keys, jnp.arange(tiles + 1) * n).astype(jnp.int32)
    tile, rank = lax.sort((tile, rank), num_keys=2)
    return rank, jnp.searchsorted(tile, jnp.arange(tiles + 1)).astype(jnp.int32)


def untiled(x: Float[Array, "t p *c"], size: tuple[int, int]) -> Float[Array, "v H W *c"]:
    """Pictures of `size` (H, W) from the pixels of their tiles."""
    rows, columns = tiles_of(size)
    x = x.reshape(-1, rows, columns, SIDE, SIDE, *x.shape[2:])
    x = jnp.moveaxis(x, 3, 2).reshape(-1, rows * SIDE, columns * SIDE, *x.shape[5:])
    return x[:, : size[0], : size[1]]
