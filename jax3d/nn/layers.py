"""Linear, convolution and normalisation layers as diffusers' networks have them, in any dtype."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def dense(features: int, dtype: Any, use_bias: bool = True, name: str | None = None) -> nn.Dense:
    """A linear layer that stores and multiplies in `dtype`."""
    return nn.Dense(features, use_bias, dtype=dtype, param_dtype=dtype, name=name)


def conv(features: int, kernel: int, dtype: Any, name: str | None = None) -> nn.Conv:
    """A square convolution padded by half its kernel on every side."""
    pad = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        padding=((pad, pad), (pad, pad)),
        dtype=dtype,
        param_dtype=dtype,
        name=name,
    )


def layer_norm(name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm in float32 whatever its input."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def group_norm(groups: int, epsilon: float, name: str) -> nn.GroupNorm:
    """GroupNorm in float32 whatever its input."""
    return nn.GroupNorm(
        groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )
