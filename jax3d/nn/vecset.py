"""The decoder of Hunyuan3D 2's ShapeVAE (https://arxiv.org/abs/2501.12202, section 3.1).

A shape is a set of vectors (3DShape2VecSet, https://arxiv.org/abs/2301.11445): a transformer mixes
them, and a point asks them by cross-attention on which side of the surface it is. Parameters have
the names of its authors' code. Letters: b shapes, n latents, d their width, c width of the
transformer, m points, l tokens that attend, h heads.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.bounds import Count, Natural, Positive
from jax3d.nn.attention import attend
from jax3d.nn.layers import dense, layer_norm
from jax3d.types import Params


@dataclasses.dataclass(frozen=True)
class VecsetConfig:
    """The decoder as `vae.params` of a `config.yaml` describes it."""

    num_latents: Count = 3072
    embed_dim: Count = 64
    """Width of the latents."""
    width: Count = 1024
    """Of the transformer."""
    heads: Count = 16
    num_decoder_layers: Natural = 16
    num_freqs: Natural = 8
    """Octaves of the sinusoids that tell where a point is, from one radian a unit on."""
    include_pi: bool = True
    """Whether they are pi times as fast."""
    qkv_bias: bool = True
    qk_norm: bool = False
    """Whether queries and keys are normalised."""
    scale_factor: Positive = 1.0
    """Of latents as they are sampled, relative to those that it reads."""
    geo_decoder_downsample_ratio: Count = 1
    """How much narrower points are than the transformer, in width and heads."""
    geo_decoder_mlp_expand_ratio: Count = 4
    """Hidden width of the points' perceptron."""
    geo_decoder_ln_post: bool = True
    """Whether points are normalised at last; without it their queries and keys are not either."""


class Vecset(nn.Module):
    """A decoder of latents to values of points."""

    config: VecsetConfig = VecsetConfig()
    dtype: Any = jnp.float32
    """Of the transformer. What points are told is float32 always: a surface follows from small
    differences of neighbours."""

    def setup(self):
        """Layers under the authors' names."""
        self.post_kl = dense(self.config.width, self.dtype)
        self.transformer = Transformer(self.config, self.dtype)
        self.geo_decoder = PointDecoder(self.config)

    def mix(self, z: Float[Array, "b n d"]) -> Float[Array, "b n c"]:
        """What points ask, of latents as they are sampled; float32."""
        x = self.post_kl(z / self.config.scale_factor)
        return self.transformer(x).astype(jnp.float32)

    def ask(self, mixed: Float[Array, "b n c"], x: Float[Array, "b m 3"]) -> Float[Array, "b m"]:
        """Values of points in the network's own cube, about [-1, 1]^3; positive inside."""
        return self.geo_decoder(mixed, x)

    def __call__(self, z: Float[Array, "b n d"], x: Float[Array, "b m 3"]) -> Float[Array, "b m"]:
        """Values of points in shapes of latents."""
        return self.ask(self.mix(z), x)


class Transformer(nn.Module):
    """Blocks of self-attention and a perceptron."""

    config: VecsetConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The mixed tokens."""
        c = self.config
        for i in range(c.num_decoder_layers):
            x = Block(c.heads, c.qkv_bias, c.qk_norm, dtype=self.dtype, name=f"resblocks_{i}")(x)
        return x


class PointDecoder(nn.Module):
    """Points that look at a set of vectors; float32."""

    config: VecsetConfig

    @nn.compact
    def __call__(
        self, mixed: Float[Array, "b n c"], x: Float[Array, "b m 3"]
    ) -> Float[Array, "b m"]:
        """The points' values."""
        c, ratio = self.config, self.config.geo_decoder_downsample_ratio
        width = c.width // ratio
        y = dense(width, jnp.float32, True, "query_proj")(encode(x, c.num_freqs, c.include_pi))
        if ratio > 1:
            mixed = dense(width, jnp.float32, True, "latents_proj")(mixed)
        y = Block(
            c.heads // ratio,
            c.qkv_bias,
            c.qk_norm and c.geo_decoder_ln_post,
            c.geo_decoder_mlp_expand_ratio,
            name="cross_attn_decoder",
        )(y, mixed)
        if c.geo_decoder_ln_post:
            y = layer_norm("ln_post")(y)
        return dense(1, jnp.float32, True, "output_proj")(y)[..., 0]


def encode(x: Float[Array, "*n 3"], octaves: int, include_pi: bool) -> Float[Array, "*n e"]:
    """A point, then sines and cosines of its coordinates; octaves are faster than the axes."""
    frequencies = 2.0 ** jnp.arange(octaves) * (jnp.pi if include_pi else 1.0)
    phase = (x[..., None] * frequencies).reshape(*x.shape[:-1], 3 * octaves)
    return jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)], axis=-1)


class Block(nn.Module):
    """Attention, to itself or to other tokens, and a perceptron, both residual."""

    heads: int
    qkv_bias: bool
    qk_norm: bool
    expand: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], others: Float[Array, "b n e"] | None = None
    ) -> Float[Array, "b l c"]:
        """The next tokens."""
        attention = Attention(self.heads, self.qkv_bias, self.qk_norm, self.dtype, name="attn")
        y = layer_norm("ln_1", 1e-6)(x)
        if others is None:
            x = x + attention(y)
            y = layer_norm("ln_2", 1e-6)(x)
        else:
            x = x + attention(y, layer_norm("ln_2", 1e-6)(others))
            y = layer_norm("ln_3", 1e-6)(x)
        return x + Mlp(self.expand, self.dtype, name="mlp")(y)


class Attention(nn.Module):
    """Attention whose heads lie side by side, each with its queries, keys and values."""

    heads: int
    qkv_bias: bool
    qk_norm: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], others: Float[Array, "b n e"] | None = None
    ) -> Float[Array, "b l c"]:
        """Attends from `x` to `others`, or to itself without them."""
        width = x.shape[-1]

        def project(tokens, name, count):
            y = dense(count * width, self.dtype, self.qkv_bias, name)(tokens)
            y = y.reshape(*y.shape[:-1], self.heads, count, width // self.heads)
            return [y[..., i, :] for i in range(count)]

        if others is None:
            q, k, v = project(x, "c_qkv", 3)
        else:
            (q,), (k, v) = project(x, "c_q", 1), project(others, "c_kv", 2)
        if self.qk_norm:
            q, k = (y.astype(self.dtype) for y in Norms(name="attention")(q, k))
        y = attend(q, k, v).reshape(x.shape)
        return dense(width, self.dtype, True, "c_proj")(y)


class Norms(nn.Module):
    """Queries and keys, normalised in each head."""

    @nn.compact
    def __call__(
        self, q: Float[Array, "b l h d"], k: Float[Array, "b n h d"]
    ) -> tuple[Float[Array, "b l h d"], Float[Array, "b n h d"]]:
        """Both, float32."""
        return layer_norm("q_norm", 1e-6)(q), layer_norm("k_norm", 1e-6)(k)


class Mlp(nn.Module):
    """Two linear layers around the exact GELU."""

    expand: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Maps each token by itself."""
        width = x.shape[-1]
        x = dense(self.expand * width, self.dtype, True, "c_fc")(x)
        return dense(width, self.dtype, True, "c_proj")(nn.gelu(x, approximate=False))


def abstract_params(vecset: Vecset) -> Params:
    """The shapes and dtypes of a decoder's parameters; nothing is computed."""
    z = jax.ShapeDtypeStruct((1, 1, vecset.config.embed_dim), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 1, 3), jnp.float32)
    return jax.eval_shape(vecset.init, jax.random.key(0), z, x)["params"]
