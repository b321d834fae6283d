"""Networks on the occupied places of a grid, in arrays of fixed size.

A set of voxels has room for n; those that are there come first, sorted with x slowest, and rows
after them are nobody's: nothing reads them. Neighbours are found once for each set, by a table of
the whole grid, so that a submanifold convolution (Graham & van der Maaten 2017,
https://arxiv.org/abs/1706.01307) is 27 products and gathers. All functions are of one asset;
`vmap` makes them of many.

Letters: r voxels along an axis of the grid, n rows of a set, m of the next coarser one, b copies of
an asset, c and f channels, h heads, d their width.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

OFFSETS = np.indices((3, 3, 3)).reshape(3, 27).T - 1
"""Of the neighbours, x slowest."""
CHILDREN = np.indices((2, 2, 2)).reshape(3, 8).T
"""Of a place of half the resolution, x slowest."""


class Voxels(NamedTuple):
    """The occupied places of a grid."""

    place: Int[Array, " n"]
    """Their number in the grid, x slowest, ascending; r^3 for rows that are nobody's."""
    coords: Int[Array, "n 3"]
    """x, y and z."""
    there: Bool[Array, " n"]
    """Which rows are somebody's."""
    near: Int[Array, "27 n"]
    """Rows of the neighbours at `OFFSETS`; n where there is none."""


class Links(NamedTuple):
    """How a set and the next coarser one belong together."""

    parent: Int[Array, " n"]
    """Row of the coarse place that holds a fine one; m where there is none."""
    children: Int[Array, "8 m"]
    """Rows of the fine places in a coarse one, at `CHILDREN`; n where there is none."""


class Levels(NamedTuple):
    """A set of voxels and coarser ones, each of half the resolution."""

    voxels: tuple[Voxels, ...]
    links: tuple[Links, ...]
    """One fewer."""
    overflow: Int[Array, ""]
    """Coarse places for which there was no room; 0: nothing is lost."""


def occupied(grid: Bool[Array, "r r r"], room: int) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """The places of a grid that are True, as `Voxels.place`, and how many more there were."""
    flat = grid.reshape(-1)
    (place,) = jnp.nonzero(flat, size=room, fill_value=flat.size)
    return place.astype(jnp.int32), jnp.maximum(jnp.sum(flat, dtype=jnp.int32) - room, 0)


def voxels(place: Int[Array, " n"], side: int) -> Voxels:
    """The set of given places in a grid of `side`^3."""
    there = place < side**3
    coords = _coords(place, side)
    near = _rows(place, side, coords + OFFSETS[:, None])
    return Voxels(place, coords, there, jnp.where(there, near, len(place)))


def levels(place: Int[Array, " n"], side: int, rooms: tuple[int, ...]) -> Levels:
    """The set of given places and a coarser one for each of `rooms`, which tell their sizes.

    Raises:
      ValueError: the side cannot be halved as often.
    """
    if side % 2 ** len(rooms):
        raise ValueError(f"a grid of side {side} cannot be halved {len(rooms)} times")
    found, links, overflow = [voxels(place, side)], [], jnp.zeros((), jnp.int32)
    for room in rooms:
        fine, side = found[-1], side // 2
        inside = _place(fine.coords // 2, fine.there, side)
        grid = jnp.zeros(side**3, bool).at[inside].set(True, mode="drop")
        where, more = occupied(grid.reshape(side, side, side), room)
        coarse = voxels(where, side)
        links.append(_link(fine, coarse, side))
        found.append(coarse)
        overflow += more
    return Levels(tuple(found), tuple(links), overflow)


def split(found: Voxels, side: int) -> Voxels:
    """All eight voxels in each of a set's, of twice the resolution; child after child, unsorted."""
    coords = (2 * found.coords[:, None] + CHILDREN).reshape(-1, 3)
    return voxels(_place(coords, jnp.repeat(found.there, 8), 2 * side), 2 * side)


def _link(fine: Voxels, coarse: Voxels, side: int) -> Links:
    """`side` is that of the coarse grid."""
    parent = _rows(coarse.place, side, fine.coords // 2)
    parent = jnp.where(fine.there, parent, len(coarse.place))
    children = _rows(fine.place, 2 * side, 2 * coarse.coords + CHILDREN[:, None])
    return Links(parent, jnp.where(coarse.there, children, len(fine.place)))


def _coords(place: Int[Array, " n"], side: int) -> Int[Array, "n 3"]:
    place = jnp.minimum(place, side**3 - 1)
    return jnp.stack([place // side**2, place // side % side, place % side], axis=-1)


def _place(coords: Int[Array, "n 3"], there: Bool[Array, " n"], side: int) -> Int[Array, " n"]:
    x, y, z = coords.T
    return jnp.where(there, (x * side + y) * side + z, side**3)


def _rows(place: Int[Array, " n"], side: int, coords: Int[Array, "*k 3"]) -> Int[Array, "*k"]:
    """Rows of places at coordinates in the grid or in a border of a voxel; n where none is."""
    n, inner = len(place), _coords(place, side) + 1
    wide = side + 2
    at = _place(inner, place < side**3, wide)
    table = jnp.full(wide**3, n, jnp.int32).at[at].set(jnp.arange(n), mode="drop")
    x, y, z = jnp.moveaxis(coords + 1, -1, 0)
    return table[(x * wide + y) * wide + z]


def rows(x: Float[Array, "b n c"], index: Int[Array, " k"]) -> Float[Array, "b k c"]:
    """Rows of features; zeros for the row n."""
    return x.at[:, index].get(mode="fill", fill_value=0)


def coarsened(x: Float[Array, "b n c"], links: Links) -> Float[Array, "b m c"]:
    """The sum of each place's children over their number and one more.

    TRELLIS averages into zeros that count as one more child.
    """
    b, n, c = x.shape
    total = rows(x, links.children.reshape(-1)).reshape(b, 8, -1, c).sum(axis=1)
    count = jnp.sum(links.children < n, axis=0) + 1
    return total / count[:, None]


class SparseConv(nn.Module):
    """A submanifold convolution of 3^3: its places are those that it reads."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], near: Int[Array, "27 n"]) -> Float[Array, "b n f"]:
        """Features of the same places, float32."""
        c = x.shape[-1]
        start = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3))
        kernel = self.param("kernel", start, (3, 3, 3, c, self.features), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        x = x.astype(self.dtype)

        def tap(total, given):
            weight, index = given
            # Outputs are seldom wider than inputs: they are what is moved.
            y = jnp.matmul(x, weight, preferred_element_type=jnp.float32)
            return total + rows(y, index), None

        start = jnp.zeros((*x.shape[:-1], self.features), jnp.float32)
        total, _ = lax.scan(tap, start, (kernel.reshape(27, c, self.features), near))
        return total + bias


# Attention.


def attend_first(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    count: Int[Array, ""],
    block: int = 1024,
) -> Float[Array, "b n h d"]:
    """Attention of all rows to the first `count`, some rows at a time."""
    b, n, h, d = q.shape
    block = block if n % block == 0 else n
    lengths = jnp.broadcast_to(count, (b,))

    def some(q):
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths)

    y = lax.map(some, jnp.moveaxis(q.reshape(b, -1, block, h, d), 1, 0))
    return jnp.moveaxis(y, 0, 1).reshape(b, n, h, d)


class Windows(NamedTuple):
    """A set of voxels by the cubes of a coarser grid that hold them."""

    order: Int[Array, " n"]
    """Rows, cube by cube; those that are nobody's last."""
    back: Int[Array, " n"]
    """Where each row is in that order."""
    window: Int[Array, " n"]
    """Cube of each row, in that order."""


def windows(found: Voxels, side: int, size: int, shift: int) -> Windows:
    """Cubes of `size`^3 of a grid of `side`^3, of which each begins `shift` voxels earlier."""
    along = (side + shift - 1) // size + 1
    cube = _place((found.coords + shift) // size, found.there, along)
    order = jnp.argsort(cube, stable=True)
    return Windows(order, jnp.argsort(order), cube[order])


def attend_windows(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    found: Windows,
    most: int,
) -> Float[Array, "b n h d"]:
    """Attention of each row to those in its window, of which none holds more than `most`.

    In the order of windows, all that a block of `most` rows can look at is in the blocks before,
    at and after it.
    """
    b, n, h, d = q.shape
    block = min(most, n)
    pad = -n % block

    def blocks(x):
        x = jnp.pad(x[:, found.order], ((0, 0), (block, block + pad), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(b, -1, block, h, d), 1, 0)

    window = jnp.pad(found.window, (block, block + pad), constant_values=-1).reshape(-1, block)
    q, k, v = (blocks(x) for x in (q, k, v))

    def one(i):
        near = [jnp.concatenate([x[i], x[i + 1], x[i + 2]], axis=1) for x in (k, v)]
        seen = jnp.concatenate([window[i], window[i + 1], window[i + 2]])
        mask = window[i + 1][:, None] == seen
        return jax.nn.dot_product_attention(q[i + 1], *near, mask=mask[None, None])

    y = lax.map(one, jnp.arange(len(q) - 2), batch_size=8)
    return jnp.moveaxis(y, 0, 1).reshape(b, -1, h, d)[:, found.back]
