"""Elementary functions whose value and gradient are finite everywhere."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_norm(x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Euclidean length along the last axis; at zero the value and the gradient are zero."""
    squared = jnp.sum(x * x, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def normalize(x: Float[Array, "*n d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """Unit vectors along the last axis; `x / eps` for vectors shorter than `eps`."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, eps * eps))


def laplace_density(distance: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Density, 1/metre, at signed distances (metres, negative inside) from a soft surface.

    sigma = Psi(-d / beta) / beta with Psi the Laplace distribution's cumulative (VolSDF, Yariv et
    al. 2021, eq. 2 and 3, with alpha = 1 / beta): 1 / (2 beta) at the surface.
    """
    tail = 0.5 * jnp.exp(-jnp.abs(distance) / beta)
    return jnp.where(distance > 0, tail, 1.0 - tail) / beta


def safe_exp(x: Float[Array, "*n"], limit: float = 15.0) -> Float[Array, "*n"]:
    """Return `exp(x)` up to `limit` and its tangent line from there on.

    The continuation keeps the slope, so an overshooting optimiser finds its way back, which a
    clipped exponential (slope 0) does not allow.
    """
    inside = jnp.exp(jnp.minimum(x, limit))
    return inside * (1.0 + jnp.maximum(x - limit, 0.0))
