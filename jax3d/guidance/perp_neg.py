"""Perp-Neg: push away from the wrong views without hurting the object (arXiv:2304.04968).

A negative text's direction counts only where it is perpendicular to the positive one's. Views
between two words are asked by the mixture of both, and pushed away from each by as much as the
camera is away from it; the curves are threestudio's.

Letters: v views, k negatives of a view.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.camera import from_front
from jax3d.types import Camera


def wordings(
    camera: Camera,
) -> tuple[Float[Array, "v 4"], Float[Array, "v 2 4"], Float[Array, "v 2"]]:
    """What each view is asked by, its two negatives, and their weights (not positive).

    The weights over wordings are in the order of `prompts.VIEWS`. Overhead views have no
    negatives: their weights are 0.
    """
    azimuth = jnp.degrees(from_front(camera.azimuth))
    ahead = azimuth < 90
    side, front, back, overhead = jnp.eye(4)
    # The share of the first word of the pair: front to side, then side to back.
    r = jnp.where(ahead, 1 - azimuth / 90, 2 - azimuth / 90)[:, None]
    positive = jnp.where(ahead[:, None], r * front + (1 - r) * side, r * side + (1 - r) * back)
    above = jnp.degrees(camera.elevation) > 60
    positive = jnp.where(above[:, None], overhead, positive)
    negatives = jnp.where(ahead[:, None, None], jnp.stack([front, side]), jnp.stack([side, front]))
    r = r[:, 0]
    weights = jnp.where(
        ahead,
        jnp.stack([_decay(4.0, r, -2.426), _decay(4.0, 1 - r, -2.426)]),
        jnp.stack([_decay(1.0, r, -0.606), _decay(1.0, r, 0.967)]),
    )
    return positive, negatives, jnp.where(above, 0.0, -weights).T


def _decay(scale, r, shift):
    return scale * jnp.exp(-0.5 * r) + shift


def combine(
    null: Float[Array, "v *z"],
    positive: Float[Array, "v *z"],
    negatives: Float[Array, "v k *z"],
    weights: Float[Array, "v k"],
    scale,
) -> Float[Array, "v *z"]:
    """eps_hat = null + s (d + sum_i w_i perp(n_i, d)), d and n_i as seen from null."""
    towards = positive - null
    away = perpendicular(negatives - null[:, None], towards[:, None])
    weights = weights.reshape(*weights.shape, *(1,) * (null.ndim - 1))
    return null + scale * (towards + jnp.sum(weights * away, axis=1))


def perpendicular(x: Float[Array, "v k *z"], y: Float[Array, "v #k *z"]) -> Float[Array, "v k *z"]:
    """The part of x perpendicular to y, over all axes but the first two."""
    axes = tuple(range(2, x.ndim))
    dot = jnp.sum(x * y, axis=axes, keepdims=True)
    return x - y * dot / jnp.maximum(jnp.sum(y * y, axis=axes, keepdims=True), 1e-6)
