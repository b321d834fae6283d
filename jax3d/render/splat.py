"""3D Gaussian splatting (Kerbl et al. 2023), with the conventions of gsplat.

Along a pixel's ray, nearest centre first: alpha_i = min(0.99, o_i exp(-sigma_i)), skipped below
1/255, with sigma_i = (a dx^2 + c dy^2) / 2 + b dx dy of the footprint's conic; T_i is the product
of 1 - alpha_j over those before; what is shown is sum_i T_i alpha_i x_i. A pixel stops before the
Gaussian that would bring T to 1e-4 or less. There is no gradient to o and sigma through the bound
of 0.99, and none through the choice of who is shown.

`splat_reference` says just that. `splat` does it fast, in stock JAX:

    sort by depth; find the pairs ("hits") of a tile of 8 x 8 pixels and a Gaussian that reaches it;
    sort them by tile; take some tiles at a time, of lists about as long, and walk along their
    lists, a block of Gaussians at a time, until the lists or the light end.

The backward pass lists back from where the light ended and undoes the products (as gsplat's does),
so that nothing is kept but the pictures. In a block, the gradients of mean and conic are moments of
dsigma over the tile's pixels, one product of matrices. All loops are as long as a scene needs; the
one thing of fixed size is the list of hits. Hits beyond it, those of the farthest Gaussians of a
view, are left out and counted.

Letters: v views, n Gaussians, c channels, t tiles of all views, m hits of a view, g tiles at a
time, b Gaussians of a block, p = 64 pixels of a tile.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d.bounds import Count, NonNegative, Positive
from jax3d.render import ewa, tiles
from jax3d.render.ewa import CUT, Footprints, View
from jax3d.render.sparse import largest_of_batch
from jax3d.render.tiles import SIDE, Lists
from jax3d.types import Gaussians

MOST = 0.99
"""The greatest opacity of a Gaussian in a pixel."""
DARK = 1e-4
"""The transmittance at which a pixel stops."""


@dataclass(frozen=True)
class Plan:
    """What is fast depends on the machine; the numbers are the same but for rounding."""

    tiles: Count
    """At a time: so many lists are walked along together, to the end of the longest."""
    block: Count = 16
    """Gaussians of each list in flight."""
    unroll: bool = False
    """Write a block's Gaussians out one by one, which makes fewer and longer kernels."""


CPU = Plan(tiles=8)
ACCELERATOR = Plan(tiles=4096, unroll=True)


def plan(backend: str | None = None) -> Plan:
    """The plan of a backend, by default the one that JAX runs on."""
    return CPU if (backend or jax.default_backend()) == "cpu" else ACCELERATOR


@dataclass(frozen=True)
class SplatConfig:
    """How Gaussians are shown."""

    antialiased: bool = False
    """Dim footprints by what the blur adds to them, instead of letting small ones grow."""
    blur: NonNegative = 0.3
    """Added to the variances of every footprint, pixels^2."""
    near: Positive = 0.01
    """Centres nearer than this are not shown, metres along the view axis."""
    hits: Count | None = None
    """Pairs of a tile of 8 x 8 pixels and a Gaussian that there is room for, a view; None: 16 for
    each Gaussian and 16384 more, or all where they are fewer."""
    plan: Plan | None = None
    """Code path; None takes that of the backend."""


class Splats(NamedTuple):
    """Pictures of Gaussians, not over any background."""

    rgb: Float[Array, "v H W 3"]
    """Colour times opacity, >= 0."""
    alpha: Float[Array, "v H W"]
    """Opacity, [0, 1)."""
    depth: Float[Array, "v H W"]
    """Depth along the view axis times opacity, metres."""
    normal: Float[Array, "v H W 3"]
    """Normals times opacity, world space, on the camera's side."""
    overflow: Int[Array, " v"]
    """Hits that were left out for want of room; 0: the picture is right."""


class Blend(NamedTuple):
    """Any channels blended along rays."""

    values: Float[Array, "v H W c"]
    """sum_i T_i alpha_i x_i."""
    alpha: Float[Array, "v H W"]
    overflow: Int[Array, " v"]


def splat(
    gaussians: Gaussians, view: View, size: tuple[int, int], config: SplatConfig | None = None
) -> Splats:
    """Pictures of a scene, differentiable in it and in the cameras; `size` is static, (H, W)."""
    return _pictures(blend, gaussians, view, size, config or SplatConfig())


def splat_reference(
    gaussians: Gaussians, view: View, size: tuple[int, int], config: SplatConfig | None = None
) -> Splats:
    """As `splat`, by the formulas alone: every Gaussian at every pixel, in memory."""
    return _pictures(blend_reference, gaussians, view, size, config or SplatConfig())


def _pictures(blend, gaussians, view, size, config) -> Splats:
    prints = footprints(gaussians, view, size, config)
    channels = jnp.concatenate([prints.rgb, prints.depths[..., None], prints.normals], axis=-1)
    values, alpha, overflow = blend(prints, channels, size, config)
    return Splats(values[..., :3], alpha, values[..., 3], values[..., 4:], overflow)


def footprints(
    gaussians: Gaussians, view: View, size: tuple[int, int], config: SplatConfig
) -> Footprints:
    """The footprints that a config asks for."""
    return ewa.project(
        gaussians,
        view,
        size,
        antialiased=config.antialiased,
        blur=config.blur,
        near=config.near,
    )


def blend_reference(
    prints: Footprints, channels: Float[Array, "v n c"], size: tuple[int, int], config: SplatConfig
) -> Blend:
    """As `blend`, by the formulas alone."""
    del config
    height, width = size
    row, column = jnp.mgrid[:height, :width] + 0.5
    pixels = jnp.stack([column, row], axis=-1).reshape(-1, 1, 2)

    def one(prints: Footprints, channels):
        order = jnp.argsort(prints.depths)
        prints, channels = jax.tree.map(lambda x: x[order], (prints, channels))
        d = prints.means2d - pixels
        a, b, c = jnp.moveaxis(prints.conics, -1, 0)
        sigma = 0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
        alpha = jnp.minimum(MOST, prints.opacities * jnp.exp(-sigma))
        alpha = jnp.where(prints.shown & (sigma >= 0) & (alpha >= CUT), alpha, 0.0)
        after = jnp.cumprod(1 - alpha, axis=-1)
        # T falls: once it is dark, it stays dark.
        alpha = jnp.where(lax.stop_gradient(after) > DARK, alpha, 0.0)
        after = jnp.cumprod(1 - alpha, axis=-1)
        before = jnp.concatenate([jnp.ones_like(after[:, :1]), after[:, :-1]], axis=-1)
        values = jnp.einsum("pn,nc->pc", before * alpha, channels, precision="highest")
        return values.reshape(*size, -1), 1 - after[:, -1].reshape(size)

    values, alpha = jax.vmap(one)(prints, channels)
    return Blend(values, alpha, jnp.zeros(len(values), jnp.int32))


def blend(
    prints: Footprints, channels: Float[Array, "v n c"], size: tuple[int, int], config: SplatConfig
) -> Blend:
    """Channels of footprints blended along the rays of pictures of `size` (H, W), static.

    Differentiable in means2d, conics, opacities and channels.
    """
    table = jnp.concatenate(
        [prints.means2d, prints.conics, prints.opacities[..., None], channels], axis=-1
    )
    order = jnp.argsort(jnp.where(prints.shown, prints.depths, jnp.inf), axis=-1)[..., None]
    table = jnp.take_along_axis(table, order, axis=1)
    extents = jnp.take_along_axis(prints.extents, order, axis=1)
    shown = jnp.take_along_axis(prints.shown[..., None], order, axis=1)[..., 0]
    most = _room(config, table.shape[1], size)
    still = lax.stop_gradient((table[..., :6], extents))
    lists, overflow = tiles.lists_of(*still, shown, size, most)
    nobody = jnp.zeros_like(table[0, :1])
    flat = jnp.concatenate([table.reshape(-1, table.shape[-1]), nobody])
    values, light = _walk(config.plan or plan(), size, flat, lists)
    return Blend(tiles.untiled(values, size), 1 - tiles.untiled(light, size), overflow)


def room(config: SplatConfig, n: int) -> int:
    """Pairs of a tile and one of n Gaussians that a view has room for."""
    return config.hits or 16 * n + 16384


def _room(config: SplatConfig, n: int, size: tuple[int, int]) -> int:
    return min(room(config, n), math.prod(tiles.tiles_of(size)) * n)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _walk(plan: Plan, size, table: Float[Array, "r q"], lists: Lists):
    """Channels `[t p c]` and the light that is left `[t p]`, of every tile.

    Rows of the table are (x, y, a, b, c, opacity, channels), the last one is of opacity 0.
    """
    return _forward(plan, size, table, lists)[0]


def _forward(plan, size, table, lists):
    count, channels = len(lists.tile), table.shape[1] - 6

    def group(i, out):
        tile, begin, length = _some(lists, i, min(plan.tiles, count))

        def more(j, light):
            """Whether some list goes on where there still is light."""
            on = jnp.any(light > 0, axis=-1) & (j * plan.block < length)
            return largest_of_batch(jnp.any(on).astype(jnp.int32))

        def block(carry):
            _, j, *state = carry
            _, rows = _rows(table, lists, begin, length, j, plan.block, _middles(tile, size))

            def one(k, state):
                light, values, last = state
                row = rows[k]
                alpha = _opacity(row)[0]
                after = light * (1 - alpha)
                on = after > DARK  # never again once it is not: light then turns negative
                weight = jnp.where(on, light * alpha, 0.0)
                last = jnp.where(on & (alpha > 0), j * plan.block + k, last)
                values = values + weight * row[:, 6:].T[..., None]
                return jnp.where(on, after, -jnp.abs(light)), values, last

            state = lax.fori_loop(0, plan.block, one, tuple(state), unroll=plan.unroll)
            return more(j + 1, state[0]), j + 1, *state

        pixels = (len(tile), SIDE**2)
        light, last = jnp.ones(pixels, table.dtype), jnp.full(pixels, -1, jnp.int32)
        values = jnp.zeros((channels, *pixels), table.dtype)
        j = jnp.int32(0)
        start = (more(j, light), j, light, values, last)
        _, _, light, values, last = lax.while_loop(lambda carry: carry[0] > 0, block, start)
        found = jnp.moveaxis(values, 0, -1), jnp.abs(light), last
        return jax.tree.map(lambda o, x: o.at[tile].set(x, mode="drop"), out, found)

    shape = (count, SIDE**2)
    out = (
        jnp.zeros((*shape, channels), table.dtype),
        jnp.ones(shape, table.dtype),
        jnp.full(shape, -1, jnp.int32),
    )
    values, light, last = lax.fori_loop(0, _groups(plan, count), group, out)
    return (values, light), (table, lists, light, last)


def _backward(plan, size, saved, cotangents):
    (table, lists, light, last), (dvalues, dlight) = saved, cotangents
    count = len(lists.tile)

    def group(i, dtable):
        tile, begin, length = _some(lists, i, min(plan.tiles, count))
        dv, dt, left = (x.at[tile].get(mode="fill", fill_value=0) for x in (dvalues, dlight, light))
        dv = jnp.moveaxis(dv, -1, 0)
        end = last.at[tile].get(mode="fill", fill_value=-1)
        blocks = (largest_of_batch(jnp.max(end)) + plan.block) // plan.block

        def block(k, carry):
            light, behind, dtable = carry
            j = blocks - 1 - k
            index, rows = _rows(table, lists, begin, length, j, plan.block, _middles(tile, size))

            def one(k, state):
                light, behind, dlogs, weights = state
                k = plan.block - 1 - k
                row = rows[k]
                alpha, free = _opacity(row)
                alpha = jnp.where(j * plan.block + k <= end, alpha, 0.0)
                light = light / (1 - alpha)
                weight = light * alpha
                pull = jnp.sum(row[:, 6:].T[..., None] * dv, axis=0)
                dlog = jnp.where(free, weight * pull - behind * alpha / (1 - alpha), 0.0)
                return (
                    light,
                    behind + weight * pull,
                    dlogs.at[k].set(dlog),
                    weights.at[k].set(weight),
                )

            kept = jnp.zeros((plan.block, *light.shape), table.dtype)
            light, behind, dlogs, weights = lax.fori_loop(
                0, plan.block, one, (light, behind, kept, kept), unroll=plan.unroll
            )
            dchannels = jnp.einsum("bgp,cgp->bgc", weights, dv, precision="highest")
            drows = jnp.concatenate([_moments(rows, dlogs), dchannels], axis=-1)
            return light, behind, dtable.at[index].add(drows)

        return lax.fori_loop(0, blocks, block, (left, dt * left, dtable))[2]

    return lax.fori_loop(0, _groups(plan, count), group, jnp.zeros_like(table)), None


_walk.defvjp(_forward, _backward)


def _groups(plan: Plan, count: int) -> int:
    return -(-count // plan.tiles)


def _some(lists: Lists, i, count: int):
    """Tiles of group i, and their lists; beyond the last, places without a list."""
    place = i * count + jnp.arange(count, dtype=jnp.int32)
    tile = lists.tile.at[place].get(mode="fill", fill_value=len(lists.tile))
    return tile, *(x.at[place].get(mode="fill", fill_value=0) for x in lists[1:3])


def _middles(tile: Int[Array, " g"], size: tuple[int, int]) -> Float[Array, "g 2"]:
    """The middles of tiles of all views, pixels."""
    rows, columns = tiles.tiles_of(size)
    tile = tile % (rows * columns)
    return SIDE * (jnp.stack([tile % columns, tile // columns], axis=-1) + 0.5)


def _rows(table, lists: Lists, begin, length, j, count: int, middles):
    """Rows `[b g q]` of the j-th block of lists, means seen from the tile's middle; and which."""
    place = j * count + jnp.arange(count, dtype=jnp.int32)[:, None]
    row = lists.rows.at[begin + place].get(mode="clip")
    row = jnp.where(place < length, row, len(table) - 1)
    rows = table.at[row].get(mode="promise_in_bounds")
    return row, rows.at[..., :2].add(-middles.astype(table.dtype))


_ALONG = np.arange(SIDE) + 0.5 - SIDE / 2
_X, _Y = np.tile(_ALONG, SIDE), np.repeat(_ALONG, SIDE)
_BASIS = np.stack([np.ones(SIDE**2), _X, _Y, _X**2, _X * _Y, _Y**2], axis=-1)
"""[p 6]: the monomials of a pixel's place, seen from the tile's middle."""


def _opacity(row: Float[Array, "g q"]):
    """alpha `[g p]` of a Gaussian for each tile, and where it feels its opacity and sigma."""
    x, y, a, b, c, opacity = (row[:, i, None] for i in range(6))
    dx, dy = x - jnp.asarray(_X, row.dtype), y - jnp.asarray(_Y, row.dtype)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * jnp.exp(-sigma)
    alpha = jnp.where((sigma >= 0) & (raw >= CUT), jnp.minimum(MOST, raw), 0.0)
    return alpha, raw <= MOST


def _moments(rows: Float[Array, "b g q"], dlogs: Float[Array, "b g p"]) -> Float[Array, "b g 6"]:
    """From the gradients in ln(alpha) to those in means2d, conics and opacities."""
    basis = jnp.asarray(_BASIS, dlogs.dtype)
    m = jnp.matmul(dlogs, basis, precision="highest")
    m, mx, my, mxx, mxy, myy = jnp.moveaxis(m, -1, 0)
    x, y, a, b, c, opacity = (rows[..., i] for i in range(6))
    # Sums of dlog dx, and so on, with dx = x - the pixel's.
    sx, sy = x * m - mx, y * m - my
    sxx = x * x * m - 2 * x * mx + mxx
    sxy = x * y * m - x * my - y * mx + mxy
    syy = y * y * m - 2 * y * my + myy
    some = jnp.where(opacity > 0, opacity, 1.0)
    return jnp.stack(
        [-(a * sx + b * sy), -(b * sx + c * sy), -0.5 * sxx, -sxy, -0.5 * syy, m / some], axis=-1
    )
