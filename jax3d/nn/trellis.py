"""TRELLIS's blocks and its networks of structures (Xiang et al. 2024, arXiv:2412.01506, 3.3).

A transformer is the velocity of a rectified flow on a dense grid of latents; a decoder of
convolutions says which voxels of a finer grid are occupied. Parameters have the names of the
official checkpoints. Letters: b samples, r and R places along an axis of the coarse and of the fine
grid, l tokens, c their width, m tokens of the condition, e their width, h heads, d their width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax3d import weights
from jax3d.bounds import Count, Natural, Positive
from jax3d.nn.attention import attend
from jax3d.nn.layers import dense, layer_norm
from jax3d.nn.unet_blocks import timestep_embedding
from jax3d.types import Params
from jax3d.weights import WeightsError

FREQUENCIES = 256
"""Numbers by which a time is told."""


# Blocks, of dense and of sparse tokens.


class HeadNorm(nn.Module):
    """Each head's vector at a length of its own, channel by channel, float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
        """The scaled vectors."""
        gamma = self.param("gamma", nn.initializers.ones, x.shape[-2:])
        x = x.astype(jnp.float32)
        length = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.maximum(length, 1e-12) * gamma * x.shape[-1] ** 0.5


class Attention(nn.Module):
    """Multi-head attention whose projections are packed."""

    heads: int
    normed: bool
    """Whether queries and keys are brought to a length."""
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        context: Float[Array, "b m e"] | None = None,
        look: Callable[[Array, Array, Array], Array] = attend,
    ) -> Float[Array, "b l c"]:
        """Attends from `x` to `context`, or to itself, by `look(q, k, v)`."""
        width = x.shape[-1]

        def packed(tokens, count, name):
            y = dense(count * width, self.dtype, True, name)(tokens)
            y = y.reshape(*y.shape[:-1], count, self.heads, width // self.heads)
            return [y[..., i, :, :] for i in range(count)]

        if context is None:
            q, k, v = packed(x, 3, "to_qkv")
        else:
            (q,), (k, v) = packed(x, 1, "to_q"), packed(context, 2, "to_kv")
        if self.normed:
            q = HeadNorm(name="q_rms_norm")(q).astype(self.dtype)
            k = HeadNorm(name="k_rms_norm")(k).astype(self.dtype)
        return dense(width, self.dtype, True, "to_out")(look(q, k, v).reshape(x.shape))


class FeedForward(nn.Module):
    """Two linear layers around GELU's approximation by tanh."""

    ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Maps each token by itself."""
        width = x.shape[-1]
        y = dense(int(self.ratio * width), self.dtype, True, "mlp_0")(x)
        return dense(width, self.dtype, True, "mlp_2")(nn.gelu(y, approximate=True))


class FlowBlock(nn.Module):
    """Self-attention and a perceptron that are told the time, and attention to the condition."""

    heads: int
    ratio: float
    normed: bool
    normed_cross: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        time: Float[Array, "b c"],
        told: Float[Array, "b m e"],
        look: Callable[[Array, Array, Array], Array] = attend,
    ) -> Float[Array, "b l c"]:
        """The next tokens, float32; `look` is that of self-attention."""
        parts = dense(6 * x.shape[-1], self.dtype, True, "adaLN_modulation_1")(nn.silu(time))
        parts = jnp.split(parts[:, None].astype(jnp.float32), 6, axis=-1)
        shift_attention, scale_attention, gate_attention, shift, scale, gate = parts
        y = plain_norm(x, 1e-6) * (1 + scale_attention) + shift_attention
        y = Attention(self.heads, self.normed, self.dtype, name="self_attn")(y, look=look)
        x = x + gate_attention * y
        cross = Attention(self.heads, self.normed_cross, self.dtype, name="cross_attn")
        x = x + cross(layer_norm("norm2", 1e-6)(x), told)
        y = plain_norm(x, 1e-6) * (1 + scale) + shift
        return x + gate * FeedForward(self.ratio, self.dtype, name="mlp")(y)


class Time(nn.Module):
    """Two linear layers of a time's sinusoids, float32 arithmetic."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b c"]:
        """The embedding of times in [0, 1000]."""

        def layer(x, name):
            return nn.Dense(self.width, dtype=jnp.float32, param_dtype=self.dtype, name=name)(x)

        return layer(nn.silu(layer(timestep_embedding(t, FREQUENCIES), "mlp_0")), "mlp_2")


def plain_norm(x: Float[Array, "*b c"], epsilon: float) -> Float[Array, "*b c"]:
    """LayerNorm without weights, float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)


def place_embedding(coords: Num[Array, "n 3"], width: int) -> Float[Array, "n c"]:
    """Sinusoids of x, then of y, then of z, and zeros up to the width."""
    count = width // 3 // 2
    frequencies = 1e4 ** -(jnp.arange(count) / count)
    angles = coords.astype(jnp.float32)[..., None] * frequencies
    found = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(found.reshape(len(coords), -1), ((0, 0), (0, width - 6 * count)))


# The flow of structures.


@dataclasses.dataclass(frozen=True)
class StructureFlowConfig:
    """The transformer as its file of settings describes it."""

    resolution: Count = 16
    in_channels: Count = 8
    out_channels: Count = 8
    model_channels: Count = 1024
    cond_channels: Count = 1024
    num_blocks: Count = 24
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    patch_size: Count = 1
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False


class StructureFlow(nn.Module):
    """The velocity of dense latents."""

    config: StructureFlowConfig = StructureFlowConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b r r r i"], t: Num[Array, " b"], told: Float[Array, "b m e"]
    ) -> Float[Array, "b r r r o"]:
        """Of noisy latents at times in [0, 1000], told tokens of a condition; float32."""
        c, b = self.config, len(x)
        p, along = c.patch_size, c.resolution // c.patch_size
        x = x.reshape(b, along, p, along, p, along, p, -1).transpose(0, 1, 3, 5, 7, 2, 4, 6)
        time = Time(c.model_channels, self.dtype, name="t_embedder")(t)
        h = dense(c.model_channels, self.dtype, True, "input_layer")(x.reshape(b, along**3, -1))
        start = nn.initializers.normal(0.02)
        h = h + self.param("pos_emb", start, (along**3, c.model_channels))
        for i in range(c.num_blocks):
            h = FlowBlock(
                c.num_heads, c.mlp_ratio, c.qk_rms_norm, c.qk_rms_norm_cross, self.dtype,
                name=f"blocks_{i}",
            )(h, time, told)  # fmt: skip
        h = nn.Dense(c.out_channels * p**3, dtype=jnp.float32, param_dtype=self.dtype,
                     name="out_layer")(plain_norm(h, 1e-5))  # fmt: skip
        h = h.reshape(b, along, along, along, c.out_channels, p, p, p)
        return h.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, *(c.resolution,) * 3, -1)


# The decoder of structures.


@dataclasses.dataclass(frozen=True)
class StructureDecoderConfig:
    """The decoder as its file of settings describes it."""

    out_channels: Count = 1
    latent_channels: Count = 8
    num_res_blocks: Natural = 2
    num_res_blocks_middle: Natural = 2
    channels: tuple[Count, ...] = (512, 128, 32)
    """Coarse to fine; the resolution doubles between two."""


class StructureDecoder(nn.Module):
    """Which voxels are occupied."""

    config: StructureDecoderConfig = StructureDecoderConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b r r r i"]) -> Float[Array, "b R R R o"]:
        """Logits, float32: above 0 is occupied."""
        c = self.config
        h = conv3(c.channels[0], self.dtype, "input_layer")(z)
        for i in range(c.num_res_blocks_middle):
            h = ResBlock(self.dtype, name=f"middle_block_{i}")(h)
        kinds: list[int | None] = []
        for width in c.channels:
            kinds += [width] * bool(kinds) + [None] * c.num_res_blocks
        for i, width in enumerate(kinds):
            name = f"blocks_{i}"
            h = (
                Upsample(width, self.dtype, name=name)(h)
                if width
                else ResBlock(self.dtype, name=name)(h)
            )
        h = nn.silu(layer_norm("out_layer_0")(h))
        return conv3(c.out_channels, self.dtype, "out_layer_2")(h).astype(jnp.float32)


class ResBlock(nn.Module):
    """Two normalised convolutions, residual."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b r r r c"]) -> Float[Array, "b r r r c"]:
        """The next features."""
        y = conv3(x.shape[-1], self.dtype, "conv1")(nn.silu(layer_norm("norm1")(x)))
        return x + conv3(x.shape[-1], self.dtype, "conv2")(nn.silu(layer_norm("norm2")(y)))


class Upsample(nn.Module):
    """A convolution to the eight voxels of each place."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b r r r c"]) -> Float[Array, "b R R R f"]:
        """Doubles the resolution."""
        b, r = x.shape[:2]
        y = conv3(8 * self.features, self.dtype, "conv")(x)
        y = y.reshape(b, r, r, r, self.features, 2, 2, 2).transpose(0, 1, 5, 2, 6, 3, 7, 4)
        return y.reshape(b, 2 * r, 2 * r, 2 * r, self.features)


def conv3(features: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution of 3^3 within a border of zeros."""
    return nn.Conv(features, (3, 3, 3), padding=1, dtype=dtype, param_dtype=dtype, name=name)


# Files of settings.

MOST_BLOCKS = 128
"""Blocks that are traced; the deepest network in use has 28."""
_FIXED = {
    "pe_mode": ("ape",),
    "share_mod": (False,),
    "norm_type": ("layer",),
    "attn_mode": ("swin",),
    "use_skip_connection": (True,),
}
"""Settings that are read here only at these values."""


def read_settings(config: dict[str, Any], names: tuple[str, ...], cls: type) -> Any:
    """The settings of a network of one of the classes `names`.

    Raises:
      WeightsError: the file lacks something, or asks for what is not supported.
    """
    if (kind := config.get("name")) not in names:
        raise WeightsError(f"the settings are of a {weights.shown(kind)}, not of a {names[0]}")
    args = config.get("args")
    if not isinstance(args, dict):
        raise WeightsError(f"args = {weights.shown(args)}: no JSON object")
    for name, known in _FIXED.items():
        if name in args and args[name] not in known:
            raise WeightsError(
                f"{name} = {weights.shown(args[name])} is not supported, only {known[0]}"
            )
    fields = {f.name for f in dataclasses.fields(cls)}
    if "num_heads" in fields and args.get("num_heads") is None and "model_channels" in args:
        sizes = weights.checked({"num_head_channels": 64} | args, _HEADS)
        heads = sizes["model_channels"] // max(sizes["num_head_channels"] or 64, 1)
        args = args | {"num_heads": heads}
    chosen = weights.checked_fields(args, cls)
    optional = {"qk_rms_norm", "qk_rms_norm_cross", "mlp_ratio", "num_res_blocks_middle"}
    if lost := sorted(fields - set(chosen) - optional):
        raise WeightsError(f"lacks {', '.join(lost)}")
    settings = cls(**{k: float(v) if k == "mlp_ratio" else v for k, v in chosen.items()})
    counts = ("num_blocks", "num_res_blocks", "num_res_blocks_middle", "num_io_res_blocks")
    if max(getattr(settings, name, 0) for name in counts) > MOST_BLOCKS:
        raise WeightsError(f"{weights.shown(chosen)}: so many blocks cannot be meant")
    return settings


_HEADS = {"model_channels": int, "num_head_channels": int | None}


def structure_flow(config: dict[str, Any], dtype: Any = jnp.float32) -> StructureFlow:
    """The transformer that a file of settings describes; raises `WeightsError`."""
    c = read_settings(config, ("SparseStructureFlowModel",), StructureFlowConfig)
    if c.patch_size < 1 or c.resolution % c.patch_size:
        raise WeightsError(f"patches of {c.patch_size} do not fill a grid of {c.resolution}")
    return StructureFlow(c, dtype)


def structure_decoder(config: dict[str, Any], dtype: Any = jnp.float32) -> StructureDecoder:
    """The decoder that a file of settings describes; raises `WeightsError`."""
    c = read_settings(config, ("SparseStructureDecoder",), StructureDecoderConfig)
    if not c.channels or c.out_channels != 1:
        raise WeightsError(f"channels {c.channels} to {c.out_channels} outputs cannot be meant")
    return StructureDecoder(c, dtype)


def abstract_structure_flow(net: StructureFlow) -> Params:
    """The shapes and dtypes of the transformer's parameters; nothing is computed."""
    c = net.config
    x = jax.ShapeDtypeStruct((1, *(c.resolution,) * 3, c.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    told = jax.ShapeDtypeStruct((1, 1, c.cond_channels), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x, t, told)["params"]


def abstract_structure_decoder(net: StructureDecoder) -> Params:
    """The shapes and dtypes of the decoder's parameters; nothing is computed."""
    z = jax.ShapeDtypeStruct((1, 1, 1, 1, net.config.latent_channels), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), z)["params"]
