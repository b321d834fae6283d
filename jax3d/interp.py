"""Lookups in regular grids and encodings of positions.

Grids are channels-last and corner-aligned: coordinate 0 is the first sample, 1 the last; outside
they hold their border values. Letters: n points, c channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PLANES = ((0, 1), (0, 2), (1, 2))
"""The axes that span the three planes of a triplane: xy, xz, yz (TripoSR's order)."""


def corners(u: Float[Array, " n"], size: int) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The lower neighbour `[0, size - 2]` of a coordinate in [0, 1], and the way past it [0, 1]."""
    u = jnp.clip(u, 0.0, 1.0) * (size - 1)
    low = jnp.clip(jnp.floor(u).astype(jnp.int32), 0, size - 2)
    return low, u - low


def bilinear(plane: Float[Array, "h w c"], uv: Float[Array, "n 2"]) -> Float[Array, "n c"]:
    """Interpolate at `uv`; the first coordinate runs along the first axis."""
    height, width, channels = plane.shape
    i, fi = corners(uv[:, 0], height)
    j, fj = corners(uv[:, 1], width)
    flat = plane.reshape(-1, channels)
    index = i * width + j

    def row(offset):
        return flat.at[index + offset].get(mode="promise_in_bounds")

    fi, fj = fi[:, None], fj[:, None]
    upper = (1 - fj) * row(0) + fj * row(1)
    lower = (1 - fj) * row(width) + fj * row(width + 1)
    return (1 - fi) * upper + fi * lower


def triplane(planes: Float[Array, "3 r r c"], x: Float[Array, "n 3"]) -> Float[Array, "n 3 c"]:
    """Features of points with coordinates in [0, 1] on each of the three planes."""
    return jnp.stack(
        [
            bilinear(plane, x[:, jnp.array(axes)])
            for plane, axes in zip(planes, PLANES, strict=True)
        ],
        axis=1,
    )


def nearest(grid: Float[Array, "g g g"], x: Float[Array, "n 3"]) -> Float[Array, " n"]:
    """The grid's sample nearest to each point."""
    size = grid.shape[0]
    i = jnp.round(jnp.clip(x, 0.0, 1.0) * (size - 1)).astype(jnp.int32)
    flat = (i[:, 0] * size + i[:, 1]) * size + i[:, 2]
    return grid.reshape(-1).at[flat].get(mode="promise_in_bounds")


def positional_encoding(x: Float[Array, "*n d"], levels: int) -> Float[Array, "*n k"]:
    """`x` followed by sin and cos of `2^l pi x`, l < levels (NeRF, eq. 4)."""
    phase = x[..., None, :] * (jnp.pi * 2.0 ** jnp.arange(levels))[:, None]
    waves = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    return jnp.concatenate([x, waves.reshape(*x.shape[:-1], -1)], axis=-1)
