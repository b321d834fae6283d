"""How near pictures are to others: PSNR and SSIM.

SSIM is that of Wang et al. 2004 ("Image quality assessment") for values in [0, 1], with a Gaussian
window of 11 pixels and a standard deviation of 1.5, where the window lies in the picture.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_WINDOW, _DEVIATION = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def squared_error(
    a: Float[Array, "v H W 3"], b: Float[Array, "v H W 3"], known: Bool[Array, "v H W"]
) -> Float[Array, ""]:
    """Mean over the known pixels; where none is known, 0. Of the others `a` and `b` are equal."""
    return jnp.sum((a - b) ** 2) / (3 * jnp.maximum(jnp.sum(known), 1))


def decibels(mean_squared_error: Float[Array, "*v"]) -> Float[Array, "*v"]:
    """PSNR of values in [0, 1]; at most 100."""
    return -10 / math.log(10) * jnp.log(jnp.maximum(mean_squared_error, 1e-10))


def ssim(a: Float[Array, "*v H W c"], b: Float[Array, "*v H W c"]) -> Float[Array, "*v h w c"]:
    """Structural similarity at each place of the window, which shrinks for small pictures."""
    window = min(_WINDOW, *a.shape[-3:-1])
    mean_a, mean_b = _blurred(a, window), _blurred(b, window)
    of_a = _blurred(a * a, window) - mean_a**2
    of_b = _blurred(b * b, window) - mean_b**2
    of_both = _blurred(a * b, window) - mean_a * mean_b
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return light * (2 * of_both + _C2) / (of_a + of_b + _C2)


def _blurred(x: Float[Array, "*v H W c"], window: int) -> Float[Array, "*v h w c"]:
    away = np.arange(window) - (window - 1) / 2
    weight = np.exp(-0.5 * (away / _DEVIATION) ** 2)
    weight = (weight / weight.sum()).tolist()
    # Sums of shifted pictures: a convolution of each channel by itself is slow on CPUs.
    for axis in (x.ndim - 3, x.ndim - 2):
        length = x.shape[axis] - window + 1
        parts = (jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(window))
        x = sum(w * part for w, part in zip(weight, parts, strict=True))
    return x
