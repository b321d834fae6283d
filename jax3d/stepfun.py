"""Step functions along rays: intervals, and resampling them by a histogram.

An interval function is a row of ascending edges `t[n, s + 1]`, metres; a histogram adds one
non-negative weight per interval. One random number per ray shifts all its samples together
(mip-NeRF 360), which costs nothing and lets an image be rendered in any tiling with the same
result. Letters: n rays, s samples, c bins of the histogram.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def even_edges(near: Float[Array, " n"], far: Float[Array, " n"], s: int) -> Float[Array, "n e"]:
    """`s` intervals of equal length between near and far."""
    u = jnp.linspace(0.0, 1.0, s + 1, dtype=near.dtype)
    return near[:, None] + (far - near)[:, None] * u


def points(edges: Float[Array, "n e"], u: Float[Array, " n"]) -> Float[Array, "n s"]:
    """One point in each interval, a fraction `u` in [0, 1] past its start."""
    return edges[:, :-1] + u[:, None] * jnp.diff(edges, axis=-1)


def running_sum(x: Float[Array, "n s"]) -> Float[Array, "n s"]:
    """The sum of each row up to and including each entry.

    As a product with a triangle of ones: along short rows that is fast everywhere, and its
    transpose is as fast.
    """
    ones = jnp.triu(jnp.ones((x.shape[-1],) * 2, x.dtype))
    return jnp.matmul(x, ones, precision="highest")


def resample(
    edges: Float[Array, "n e"], weights: Float[Array, "n c"], s: int, floor: float = 0.02
) -> Float[Array, "n f"]:
    """Edges of `s` intervals of equal mass under a histogram; the ends stay where they are.

    `floor` is the share of the mass that is spread evenly in t, so that a wrong histogram
    leaves no place unseen and an empty one gives even intervals. Not differentiated.
    """
    edges, weights = jax.lax.stop_gradient((edges, weights))
    width = jnp.diff(edges, axis=-1)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    span = jnp.maximum(edges[:, -1:] - edges[:, :1], 1e-12)
    share = jnp.where(total > 1e-12, (1 - floor) * weights / jnp.maximum(total, 1e-12), 0.0)
    spare = jnp.where(total > 1e-12, floor, 1.0)
    mass = share + spare * jnp.maximum(width, 1e-12) / span
    cdf = jnp.cumsum(mass, axis=-1)
    cdf = jnp.concatenate([jnp.zeros_like(total), cdf / cdf[:, -1:]], axis=-1)
    inner = jnp.linspace(0.0, 1.0, s + 1, dtype=edges.dtype)[1:-1]
    inner = jax.vmap(jnp.interp, (None, 0, 0))(inner, cdf, edges)
    return jnp.concatenate([edges[:, :1], inner, edges[:, -1:]], axis=-1)
