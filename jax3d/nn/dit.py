"""The flow transformer of Hunyuan3D 2 (https://arxiv.org/abs/2501.12202, section 3.2).

It says the velocity of latents, a sequence of vectors without positions, at a time, told tokens of
a picture. Blocks of two streams come first, where latents and tokens have weights of their own and
attend together (https://arxiv.org/abs/2403.03206, section 4), then blocks of one stream with
attention and perceptron side by side (https://arxiv.org/abs/2302.05442). The time scales, shifts
and gates each branch (https://arxiv.org/abs/2212.09748). Parameters have the names of its authors'
code. Letters: b samples, n latents, d their width, m tokens, e their width, l tokens of a block, h
heads, c width of the transformer.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.bounds import Count, Natural, Positive
from jax3d.nn.attention import attend
from jax3d.nn.layers import dense
from jax3d.nn.unet_blocks import timestep_embedding
from jax3d.types import Params

FREQUENCIES = 256
"""Sines and cosines of a time."""
UNIT = 1000.0
"""By which times are multiplied, and the longest period of their sinusoids: the authors' code has
one number in both places, and their networks learnt with it."""


@dataclasses.dataclass(frozen=True)
class DitConfig:
    """The transformer as `model.params` of a `config.yaml` describes it."""

    in_channels: Count = 64
    """Width of the latents."""
    context_in_dim: Count = 1536
    """Width of the tokens."""
    hidden_size: Count = 1024
    mlp_ratio: Positive = 4.0
    """Hidden width of the perceptrons, in widths of the transformer."""
    num_heads: Count = 16
    depth: Natural = 16
    """Blocks of two streams."""
    depth_single_blocks: Natural = 32
    """Blocks of one."""
    qkv_bias: bool = True
    """Of the projections in blocks of two streams; those of one always have biases."""
    guidance_embed: bool = False
    """Whether it is told a guidance scale, as distilled networks are, in place of being guided."""


class Dit(nn.Module):
    """A transformer of latents."""

    config: DitConfig = DitConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        t: Float[Array, " b"],
        told: Float[Array, "b m e"],
        guidance: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b n d"]:
        """The velocity dx/dt, float32.

        Args:
          x: noise at t = 0, clean latents at t = 1.
          t: [0, 1].
          told: tokens of a picture; zeros stand for none.
          guidance: scale of the guidance that a network with `guidance_embed` was distilled with.
        """
        c, dtype, told_by = self.config, self.dtype, told.shape[1]
        vec = Embedder(c.hidden_size, dtype, name="time_in")(t)
        if c.guidance_embed:
            vec = vec + Embedder(c.hidden_size, dtype, name="guidance_in")(guidance)
        x = dense(c.hidden_size, dtype, True, "latent_in")(x)
        told = dense(c.hidden_size, dtype, True, "cond_in")(told)
        for i in range(c.depth):
            x, told = DoubleStreamBlock(c, dtype, name=f"double_blocks_{i}")(x, told, vec)
        x = jnp.concatenate([told, x], axis=1)
        for i in range(c.depth_single_blocks):
            x = SingleStreamBlock(c, dtype, name=f"single_blocks_{i}")(x, vec)
        return LastLayer(c.in_channels, dtype, name="final_layer")(x[:, told_by:], vec)


class Embedder(nn.Module):
    """Sinusoids of a number between 0 and about 10 through two layers; float32 arithmetic."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b c"]:
        """A vector for each number."""
        waves = timestep_embedding(UNIT * t.astype(jnp.float32), FREQUENCIES, max_period=UNIT)
        hidden = nn.silu(_exact(self.width, self.dtype, "in_layer")(waves))
        return _exact(self.width, self.dtype, "out_layer")(hidden)


def _exact(features: int, dtype: Any, name: str) -> nn.Dense:
    """A linear layer that stores in `dtype` and multiplies in float32."""
    return nn.Dense(features, dtype=jnp.float32, param_dtype=dtype, name=name)


class Modulation(nn.Module):
    """Shift, scale and gate of each of some branches."""

    branches: int
    dtype: Any

    @nn.compact
    def __call__(self, vec: Float[Array, "b c"]) -> list[Float[Array, "b 1 c"]]:
        """Three numbers a channel and branch, those of a branch side by side."""
        count = 3 * self.branches
        out = _exact(count * vec.shape[-1], self.dtype, "lin")(nn.silu(vec))
        return jnp.split(out[:, None], count, axis=-1)


def modulated(
    x: Float[Array, "b l c"], shift: Float[Array, "b 1 c"], scale: Float[Array, "b 1 c"]
) -> Float[Array, "b l c"]:
    """Normalised tokens, scaled and shifted, float32."""
    norm = nn.LayerNorm(
        1e-6, dtype=jnp.float32, use_bias=False, use_scale=False, use_fast_variance=False
    )
    return (1 + scale) * norm(x) + shift


class QKNorm(nn.Module):
    """Queries and keys of unit mean square, each channel of a head with a scale of its own."""

    dtype: Any

    @nn.compact
    def __call__(self, qkv: Float[Array, "b l q"], heads: int) -> list[Float[Array, "b l h d"]]:
        """Queries, keys and values of a joint projection; heads are the faster axis in each."""
        qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = (
            nn.RMSNorm(1e-6, dtype=jnp.float32, name=f"{name}_norm")(x).astype(self.dtype)
            for name, x in (("query", q), ("key", k))
        )
        return [q, k, v]


class StreamAttention(nn.Module):
    """One stream's part in a joint attention: before it, and after."""

    config: DitConfig
    dtype: Any

    def setup(self):
        """Layers under the authors' names."""
        c = self.config
        self.qkv = dense(3 * c.hidden_size, self.dtype, c.qkv_bias)
        self.norm = QKNorm(self.dtype)
        self.proj = dense(c.hidden_size, self.dtype)

    def before(self, x: Float[Array, "b l c"]) -> list[Float[Array, "b l h d"]]:
        """Queries, keys and values."""
        return self.norm(self.qkv(x), self.config.num_heads)

    def after(self, y: Float[Array, "b l h d"]) -> Float[Array, "b l c"]:
        """What is added to the stream."""
        return self.proj(y.reshape(*y.shape[:2], -1))


class DoubleStreamBlock(nn.Module):
    """Attention over both streams, then a perceptron in each."""

    config: DitConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], told: Float[Array, "b m c"], vec: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
        """The next latents and tokens."""
        streams = {"txt": told, "img": x}
        numbers = {s: Modulation(2, self.dtype, name=f"{s}_mod")(vec) for s in streams}
        attention = {s: StreamAttention(self.config, self.dtype, name=f"{s}_attn") for s in streams}
        parts = [attention[s].before(modulated(y, *numbers[s][:2])) for s, y in streams.items()]
        joint = attend(*(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True)))
        ends = jnp.split(joint, [told.shape[1]], axis=1)
        for (s, y), end in zip(streams.items(), ends, strict=True):
            _, _, gate, shift, scale, gate_mlp = numbers[s]
            y = y + gate * attention[s].after(end)
            streams[s] = y + gate_mlp * self._mlp(s, modulated(y, shift, scale))
        return streams["img"], streams["txt"]

    def _mlp(self, stream: str, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        hidden = int(self.config.hidden_size * self.config.mlp_ratio)
        x = nn.gelu(dense(hidden, self.dtype, True, f"{stream}_mlp_0")(x))
        return dense(self.config.hidden_size, self.dtype, True, f"{stream}_mlp_2")(x)


class SingleStreamBlock(nn.Module):
    """Attention and a perceptron side by side."""

    config: DitConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], vec: Float[Array, "b c"]) -> Float[Array, "b l c"]:
        """The next tokens and latents."""
        c, width = self.config, self.config.hidden_size
        shift, scale, gate = Modulation(1, self.dtype, name="modulation")(vec)
        hidden = 3 * width + int(width * c.mlp_ratio)
        y = dense(hidden, self.dtype, True, "linear1")(modulated(x, shift, scale))
        qkv, y = jnp.split(y, [3 * width], axis=-1)
        seen = attend(*QKNorm(self.dtype, name="norm")(qkv, c.num_heads))
        y = jnp.concatenate([seen.reshape(x.shape), nn.gelu(y)], axis=-1)
        return x + gate * dense(width, self.dtype, True, "linear2")(y)


class LastLayer(nn.Module):
    """From the transformer's width to the latents'."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], vec: Float[Array, "b c"]) -> Float[Array, "b n d"]:
        """The velocity."""
        out = _exact(2 * vec.shape[-1], self.dtype, "adaLN_modulation_1")(nn.silu(vec))
        shift, scale = jnp.split(out[:, None], 2, axis=-1)
        x = dense(self.features, self.dtype, True, "linear")(modulated(x, shift, scale))
        return x.astype(jnp.float32)


def abstract_params(dit: Dit) -> Params:
    """The shapes and dtypes of a transformer's parameters; nothing is computed."""
    x, told = (
        jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
        for width in (dit.config.in_channels, dit.config.context_in_dim)
    )
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(dit.init, jax.random.key(0), x, one, told, one)["params"]
