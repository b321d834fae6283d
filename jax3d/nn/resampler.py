"""The picture's tokens of IP-Adapter-plus: a few learnt queries that read a tower's hidden states.

A perceiver (https://arxiv.org/abs/2308.06721; Alayrac et al. 2022, section 3.1) under its authors'
parameter names. Letters: b pictures, m tokens of the tower of width e, n queries, d their width
inside, o width of the tokens made.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.bounds import Count
from jax3d.nn.attention import attend
from jax3d.nn.layers import dense, layer_norm
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError

HEAD = 64
"""Width of a head in all published checkpoints."""


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of the network."""

    queries: Count
    dim: Count
    layers: Count
    heads: Count
    out: Count


class Resampler(nn.Module):
    """From a tower's hidden states to tokens for a denoiser."""

    config: ResamplerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "b m e"]) -> Float[Array, "b n o"]:
        """The tokens of pictures."""
        c = self.config
        x = dense(c.dim, self.dtype, True, "proj_in")(states)
        start = nn.initializers.normal(c.dim**-0.5)
        queries = self.param("latents", start, (1, c.queries, c.dim), self.dtype)
        z = jnp.broadcast_to(queries, (len(states), c.queries, c.dim))
        for i in range(c.layers):
            z = z + Perceiver(c.heads, c.dim, self.dtype, name=f"layers_{i}_0")(x, z)
            y = layer_norm(f"layers_{i}_1_0")(z)
            y = dense(4 * c.dim, self.dtype, False, f"layers_{i}_1_1")(y)
            y = nn.gelu(y, approximate=False)
            z = z + dense(c.dim, self.dtype, False, f"layers_{i}_1_3")(y)
        return layer_norm("norm_out")(dense(c.out, self.dtype, True, "proj_out")(z))


class Perceiver(nn.Module):
    """Attention from queries to tokens and queries."""

    heads: int
    dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"], z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """What the queries find."""
        inner = self.heads * HEAD
        x, z = layer_norm("norm1")(x), layer_norm("norm2")(z)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, HEAD)  # noqa: E731
        q = dense(inner, self.dtype, False, "to_q")(z)
        both = dense(2 * inner, self.dtype, False, "to_kv")(jnp.concatenate([x, z], axis=1))
        k, v = jnp.split(both, 2, axis=-1)
        found = attend(split(q), split(k), split(v)).reshape(*z.shape[:-1], inner)
        return dense(self.dim, self.dtype, False, "to_out")(found)


def abstract_params(resampler: Resampler, width: int) -> Params:
    """The shapes of its parameters where the tower's states are so wide; nothing is computed."""
    states = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    return jax.eval_shape(resampler.init, jax.random.key(0), states)["params"]


def infer_config(tensors: Flat) -> tuple[ResamplerConfig, int]:
    """The sizes that tensors have, and the width of the states that they read.

    Raises:
      WeightsError: they are no resampler's.
    """
    try:
        queries, dim = tensors["latents"].shape[1:]
        (out, _), (_, width) = tensors["proj_out.weight"].shape, tensors["proj_in.weight"].shape
        heads = tensors["layers.0.0.to_q.weight"].shape[0] // HEAD
    except (KeyError, ValueError) as error:
        raise WeightsError(f"no resampler of a picture's tokens ({error})") from error
    layers = len({k.split(".")[1] for k in tensors if re.match(r"layers\.\d+\.", k)})
    return ResamplerConfig(queries, dim, layers, heads, out), width
