"""TRELLIS's networks of structured latents (Xiang et al. 2024, arXiv:2412.01506, 3.2 and 3.3).

Latents live on the occupied voxels of a grid. A transformer between sparse convolutions is the
velocity of their rectified flow; transformers of shifted windows decode them. Parameters have the
names of the official checkpoints. Letters: b copies of one asset, n voxels, c the width, m tokens
of the condition, e their width.
"""

import dataclasses
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jax3d import weights
from jax3d.bounds import Count, Positive
from jax3d.nn import sparse
from jax3d.nn.layers import dense, layer_norm
from jax3d.nn.sparse import Levels, SparseConv, Voxels
from jax3d.nn.trellis import (
    Attention,
    FeedForward,
    FlowBlock,
    Time,
    place_embedding,
    plain_norm,
    read_settings,
)
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError

# The flow of latents.


@dataclasses.dataclass(frozen=True)
class LatentFlowConfig:
    """The transformer as its file of settings describes it."""

    resolution: Count = 64
    in_channels: Count = 8
    out_channels: Count = 8
    model_channels: Count = 1024
    cond_channels: Count = 1024
    num_blocks: Count = 24
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    num_io_res_blocks: Count = 2
    io_block_channels: tuple[Count, ...] = (128,)
    """Fine to coarse; the resolution is halved after each."""
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False


class LatentFlow(nn.Module):
    """The velocity of latents on voxels."""

    config: LatentFlowConfig = LatentFlowConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n i"],
        levels: Levels,
        t: Num[Array, " b"],
        told: Float[Array, "b m e"],
    ) -> Float[Array, "b n o"]:
        """Of noisy latents at times in [0, 1000], told tokens of a condition; float32.

        `levels` has one more level than the config has `io_block_channels`.
        """
        c = self.config
        time = Time(c.model_channels, self.dtype, name="t_embedder")(t)
        h = dense(c.io_block_channels[0], self.dtype, True, "input_layer")(x)
        skips, at = [], 0
        for i, width in enumerate(self._widths()):
            down = i % c.num_io_res_blocks == c.num_io_res_blocks - 1
            if down:
                h, at = sparse.coarsened(h.astype(jnp.float32), levels.links[at]), at + 1
            h = SparseResBlock(width, self.dtype, name=f"input_blocks_{i}")(
                h, levels.voxels[at], time
            )
            skips.append(h)
        h = h + place_embedding(levels.voxels[at].coords, c.model_channels)
        look = partial(sparse.attend_first, count=jnp.sum(levels.voxels[at].there))
        for i in range(c.num_blocks):
            h = FlowBlock(
                c.num_heads, c.mlp_ratio, c.qk_rms_norm, c.qk_rms_norm_cross, self.dtype,
                name=f"blocks_{i}",
            )(h, time, told, look)  # fmt: skip
        h = self._back(h, skips, levels, time)
        return nn.Dense(
            c.out_channels, dtype=jnp.float32, param_dtype=self.dtype, name="out_layer"
        )(plain_norm(h, 1e-5))

    def _widths(self) -> list[int]:
        """Of the input blocks, the last of each level being the first of the next."""
        c = self.config
        after = (*c.io_block_channels[1:], c.model_channels)
        pairs = zip(c.io_block_channels, after, strict=True)
        return [w for here, there in pairs for w in (*[here] * (c.num_io_res_blocks - 1), there)]

    def _back(self, h, skips, levels: Levels, time) -> Float[Array, "b n c"]:
        """The output blocks, told what the input blocks found; a level's first block refines."""
        c, at = self.config, len(levels.links)
        widths = [w for w in c.io_block_channels[::-1] for _ in range(c.num_io_res_blocks)]
        for i, (width, skip) in enumerate(zip(widths, skips[::-1], strict=True)):
            h = jnp.concatenate([h, skip], axis=-1)
            if i % c.num_io_res_blocks == 0:
                at -= 1
                h = sparse.rows(h, levels.links[at].parent)
            h = SparseResBlock(width, self.dtype, name=f"out_blocks_{i}")(
                h, levels.voxels[at], time
            )
        return h


class SparseResBlock(nn.Module):
    """Two sparse convolutions, the second told the time by its norm, residual; float32."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], voxels: Voxels, time: Float[Array, "b t"]
    ) -> Float[Array, "b n f"]:
        """The next features."""
        told = dense(2 * self.features, self.dtype, True, "emb_layers_1")(nn.silu(time))
        scale, shift = jnp.split(told[:, None].astype(jnp.float32), 2, axis=-1)

        def conv(y, name):
            return SparseConv(self.features, self.dtype, name=name)(nn.silu(y), voxels.near)

        y = conv(layer_norm("norm1", 1e-6)(x), "conv1")
        y = conv(plain_norm(y, 1e-6) * (1 + scale) + shift, "conv2")
        if x.shape[-1] != self.features:
            x = dense(self.features, self.dtype, True, "skip_connection")(x)
        return x + y


# The decoders.


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder's transformer as its file of settings describes it."""

    resolution: Count = 64
    model_channels: Count = 768
    latent_channels: Count = 8
    num_blocks: Count = 12
    num_heads: Count = 12
    mlp_ratio: Positive = 4.0
    window_size: Count = 8
    qk_rms_norm: bool = False


class GaussianDecoder(nn.Module):
    """What each voxel says of its Gaussians."""

    config: DecoderConfig = DecoderConfig()
    outputs: int = 448
    """Numbers for each voxel."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b n i"], voxels: Voxels) -> Float[Array, "b n o"]:
        """Raw numbers, float32."""
        h = trunk(self.config, self.dtype, z, voxels)
        return nn.Dense(self.outputs, dtype=jnp.float32, param_dtype=self.dtype, name="out_layer")(
            plain_norm(h, 1e-5)
        )


def trunk(
    c: DecoderConfig, dtype: Any, z: Float[Array, "b n i"], voxels: Voxels
) -> Float[Array, "b n c"]:
    """The transformer that decoders share; called inside of one, whose parameters are its own."""
    half = c.window_size // 2
    found = [sparse.windows(voxels, c.resolution, c.window_size, shift) for shift in (0, half)]
    h = dense(c.model_channels, dtype, True, "input_layer")(z)
    h = h + place_embedding(voxels.coords, c.model_channels)
    for i in range(c.num_blocks):
        look = partial(sparse.attend_windows, found=found[i % 2], most=c.window_size**3)
        h = WindowBlock(c, dtype, name=f"blocks_{i}")(h, look)
    return h


class MeshDecoder(nn.Module):
    """What each voxel, at four times the resolution, says of the surface in it."""

    config: DecoderConfig = DecoderConfig()
    outputs: int = 101
    """Numbers for each voxel."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "b n i"], voxels: Voxels
    ) -> tuple[Float[Array, "b k o"], Voxels]:
        """Raw numbers, float32, and the k = 64 n voxels that they are of."""
        h, side = trunk(self.config, self.dtype, z, voxels), self.config.resolution
        for i, shrunk in enumerate((4, 8)):
            fine = sparse.split(voxels, side)
            width = self.config.model_channels // shrunk
            h = Subdivision(width, self.dtype, name=f"upsample_{i}")(h, voxels, fine)
            voxels, side = fine, 2 * side
        return nn.Dense(self.outputs, dtype=jnp.float32, param_dtype=self.dtype, name="out_layer")(
            h
        ), voxels


class Subdivision(nn.Module):
    """Two sparse convolutions of voxels cut in eight, residual; float32."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], voxels: Voxels, fine: Voxels
    ) -> Float[Array, "b k f"]:
        """Features of the children."""

        def conv(y, name):
            return SparseConv(self.features, self.dtype, name=name)(nn.silu(y), fine.near)

        y = VoxelNorm(name="act_layers_0")(x, voxels)
        y = conv(jnp.repeat(y, 8, axis=1), "out_layers_0")
        y = conv(VoxelNorm(name="out_layers_1")(y, fine), "out_layers_3")
        if x.shape[-1] != self.features:
            x = dense(self.features, self.dtype, True, "skip_connection")(x)
        return y + jnp.repeat(x, 8, axis=1)


class VoxelNorm(nn.Module):
    """GroupNorm of 32 groups over the rows that are somebody's, float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], voxels: Voxels) -> Float[Array, "b n c"]:
        """The normalised features."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32).reshape(*x.shape[:2], GROUPS, -1)
        there = voxels.there[:, None, None]
        count = jnp.maximum(jnp.sum(there), 1) * y.shape[-1]

        def mean(y):
            total = jnp.sum(jnp.where(there, y, 0.0), axis=(1, 3), keepdims=True)
            return total / count

        y = y - mean(y)
        y = y * jax.lax.rsqrt(mean(y**2) + 1e-5)
        return y.reshape(x.shape) * scale + bias


GROUPS = 32


class WindowBlock(nn.Module):
    """Attention inside of windows and a perceptron, both residual."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], look) -> Float[Array, "b n c"]:
        """The next tokens, float32; `look(q, k, v)` is of the windows."""
        c = self.config
        attention = Attention(c.num_heads, c.qk_rms_norm, self.dtype, name="attn")
        x = x + attention(plain_norm(x, 1e-6), look=look)
        return x + FeedForward(c.mlp_ratio, self.dtype, name="mlp")(plain_norm(x, 1e-6))


# Files.


def latent_flow(config: dict[str, Any], dtype: Any = jnp.float32) -> LatentFlow:
    """The transformer that a file of settings describes; raises `WeightsError`."""
    c = read_settings(config, ("SLatFlowModel", "ElasticSLatFlowModel"), LatentFlowConfig)
    halvings = len(c.io_block_channels)
    patch = config["args"].get("patch_size", 2**halvings)
    if not halvings or patch != 2**halvings or not c.num_io_res_blocks:
        raise WeightsError(
            f"patches of {weights.shown(patch)} are not made by {halvings} io_block_channels, each "
            f"of {c.num_io_res_blocks} num_io_res_blocks"
        )
    if c.resolution % 2**halvings:
        raise WeightsError(f"a grid of {c.resolution} cannot be halved {halvings} times")
    return LatentFlow(c, dtype)


def decoder_settings(config: dict[str, Any], name: str) -> DecoderConfig:
    """The transformer of a decoder of the class `name`; raises `WeightsError`."""
    c = read_settings(config, (name, f"Elastic{name}"), DecoderConfig)
    if not 1 <= c.window_size <= c.resolution:
        raise WeightsError(f"windows of {c.window_size} in a grid of {c.resolution}")
    return c


def abstract_latent_flow(net: LatentFlow) -> Params:
    """The shapes and dtypes of the transformer's parameters; nothing is computed."""
    c = net.config
    halvings = len(c.io_block_channels)
    levels = _abstract_levels(c.resolution, halvings)
    x = jax.ShapeDtypeStruct((1, 1, c.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    told = jax.ShapeDtypeStruct((1, 1, c.cond_channels), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x, levels, t, told)["params"]


def abstract_gaussian_decoder(net: GaussianDecoder) -> Params:
    """The shapes and dtypes of the decoder's parameters; nothing is computed."""
    z = jax.ShapeDtypeStruct((1, 1, net.config.latent_channels), jnp.float32)
    voxels = _abstract_levels(net.config.resolution, 0).voxels[0]
    return jax.eval_shape(net.init, jax.random.key(0), z, voxels)["params"]


def abstract_mesh_decoder(net: MeshDecoder) -> Params:
    """The shapes and dtypes of the decoder's parameters; nothing is computed."""
    z = jax.ShapeDtypeStruct((1, 1, net.config.latent_channels), jnp.float32)
    voxels = _abstract_levels(net.config.resolution, 0).voxels[0]
    return jax.eval_shape(net.init, jax.random.key(0), z, voxels)["params"]


def _abstract_levels(side: int, halvings: int) -> Levels:
    place = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(lambda place: sparse.levels(place, side, (1,) * halvings), place)


def rename(tensors: Flat) -> Flat:
    """Tensors under our names, sparse convolutions laid out as torch has dense ones."""
    flat = {}
    for name, tensor in tensors.items():
        new = re.sub(r"(conv[12]|layers\.[03]|connection)\.conv\.(weight|bias)$", r"\1.\2", name)
        if new != name and tensor.ndim == 5:
            tensor = np.moveaxis(tensor, -1, 1)
        flat[new] = tensor
    return flat
