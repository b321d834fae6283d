"""Large reconstruction models: pictures to the features of three planes, in one pass.

OpenLRM after LRM (https://arxiv.org/abs/2311.04400) and TripoSR (https://arxiv.org/abs/2403.02151)
of one picture, InstantMesh (https://arxiv.org/abs/2404.07191) of several: tokens of the planes,
learnt and the same for all objects, attend to each other and to the tokens of an image encoder, and
each then becomes 2 x 2 texels.

Letters: b objects, v views of each, s their side, n tokens of the planes, m of the pictures, d
width, r texels.
Planes are in the networks' own order and axes; `models` turns them to ours.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.bounds import Count
from jax3d.nn.attention import Attention, Transformer2DModel
from jax3d.nn.dino import Dino, DinoConfig, normalise
from jax3d.nn.layers import dense, layer_norm
from jax3d.types import Params


class Texels(nn.Module):
    """The transposed 2 x 2 convolution of stride 2: each token's four texels, float32."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b 3 l l d"]) -> Float[Array, "b 3 r r c"]:
        """Doubles the resolution of the planes."""
        b, _, side, _, width = x.shape
        start = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        shape = (2, 2, self.features, width)
        kernel = self.param("kernel", start, shape, self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        y = jnp.einsum("bphwd,yxcd->bphywxc", x.astype(self.dtype), kernel) + bias
        return y.reshape(b, 3, 2 * side, 2 * side, self.features).astype(jnp.float32)


# OpenLRM.


@dataclasses.dataclass(frozen=True)
class OpenLRMConfig:
    """The network's part of OpenLRM's `config.json`, under its names."""

    camera_embed_dim: Count = 1024
    transformer_dim: Count = 512
    transformer_layers: Count = 12
    transformer_heads: Count = 8
    triplane_low_res: Count = 32
    triplane_dim: Count = 32


class OpenLRM(nn.Module):
    """OpenLRM without its decoder."""

    config: OpenLRMConfig
    encoder: DinoConfig
    normalised: bool = False
    """Whether the encoder reads colours by ImageNet's statistics."""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b s s 3"], camera: Float[Array, "b 16"]
    ) -> Float[Array, "b 3 r r c"]:
        """Planes of pictures in [0, 1] and their cameras (`models.openlrm.CAMERA`)."""
        c = self.config
        images = normalise(images) if self.normalised else images
        seen = Dino(self.encoder, self.dtype, name="encoder")(images)
        seen = jnp.concatenate([seen[:, :1], seen[:, 1 + self.encoder.registers :]], axis=1)
        told = nn.silu(dense(c.camera_embed_dim, self.dtype, True, "camera_embedder_0")(camera))
        told = dense(c.camera_embed_dim, self.dtype, True, "camera_embedder_2")(told)
        start = nn.initializers.normal(c.transformer_dim**-0.5)
        x = self.param("pos_embed", start, (1, 3 * c.triplane_low_res**2, c.transformer_dim))
        x = _plane_tokens(x, seen, told, c, self.dtype)
        return Texels(c.triplane_dim, self.dtype, name="upsampler")(x)


def _plane_tokens(
    start: Float[Array, "1 n d"],
    seen: Float[Array, "b m e"],
    told: Float[Array, "b k"] | None,
    config: "OpenLRMConfig | InstantMeshConfig",
    dtype: Any,
) -> Float[Array, "b 3 l l d"]:
    """The tokens that blocks of the module at hand make of learnt ones."""
    x = jnp.broadcast_to(start, (len(seen), *start.shape[1:])).astype(dtype)
    for i in range(config.transformer_layers):
        x = PlaneBlock(config.transformer_heads, dtype, name=f"layers_{i}")(x, seen, told)
    side = config.triplane_low_res
    return layer_norm("norm", 1e-6)(x).reshape(len(x), 3, side, side, -1)


class PlaneBlock(nn.Module):
    """Cross-attention, self-attention and a perceptron, each after a norm."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        seen: Float[Array, "b m e"],
        told: Float[Array, "b k"] | None,
    ) -> Float[Array, "b n d"]:
        """The next tokens of the planes, from those of the pictures.

        Norms are told the camera by its embedding (OpenLRM), or are plain (InstantMesh).
        """
        width = x.shape[-1]

        def norm(x, name):
            if told is None:
                return layer_norm(name, 1e-5)(x)
            return ModulatedNorm(self.dtype, name=name)(x, told)

        def attention(name):
            head = width // self.heads
            return Attention(self.heads, head, width, self.dtype, out_bias=False, name=name)

        x = x + attention("cross_attn")(norm(x, "norm1"), seen)
        x = x + attention("self_attn")(norm(x, "norm2"))
        y = dense(4 * width, self.dtype, True, "mlp_0")(norm(x, "norm3"))
        return x + dense(width, self.dtype, True, "mlp_3")(nn.gelu(y, approximate=False))


class ModulatedNorm(nn.Module):
    """LayerNorm, then a scale and a shift that depend on the camera (DiT's adaptive norm)."""

    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], told: Float[Array, "b k"]
    ) -> Float[Array, "b n d"]:
        """The normalised tokens."""
        both = dense(2 * x.shape[-1], self.dtype, True, "mlp_1")(nn.silu(told))
        shift, scale = jnp.split(both[:, None].astype(jnp.float32), 2, axis=-1)
        return layer_norm("norm", 1e-6)(x) * (1 + scale) + shift


# InstantMesh.


@dataclasses.dataclass(frozen=True)
class InstantMeshConfig:
    """The network's part of InstantMesh's config, under its names."""

    transformer_dim: Count = 1024
    transformer_layers: Count = 16
    transformer_heads: Count = 16
    triplane_low_res: Count = 32
    triplane_dim: Count = 80


class InstantMesh(nn.Module):
    """InstantMesh without its decoders."""

    config: InstantMeshConfig
    encoder: DinoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b v s s 3"], cameras: Float[Array, "b v 16"]
    ) -> Float[Array, "b 3 r r c"]:
        """Planes of views in [0, 1] and their cameras (`models.instantmesh.cameras`)."""
        c, width, b = self.config, self.encoder.hidden_size, len(images)
        told = dense(width, self.dtype, True, "camera_embedder_0")(cameras.reshape(-1, 16))
        told = dense(width, self.dtype, True, "camera_embedder_2")(nn.silu(told))
        views = normalise(images.reshape(-1, *images.shape[2:]))
        seen = Dino(self.encoder, self.dtype, name="encoder")(views, told)
        seen = seen.reshape(b, -1, width)
        start = nn.initializers.normal(c.transformer_dim**-0.5)
        x = self.param("pos_embed", start, (1, 3 * c.triplane_low_res**2, c.transformer_dim))
        x = _plane_tokens(x, seen, None, c, self.dtype)
        return Texels(c.triplane_dim, self.dtype, name="deconv")(x)


# TripoSR.


@dataclasses.dataclass(frozen=True)
class TripoSRConfig:
    """The network's part of TripoSR's `config.yaml`."""

    plane_size: Count = 32
    channels: Count = 1024
    num_attention_heads: Count = 16
    attention_head_dim: Count = 64
    num_layers: Count = 16
    out_channels: Count = 40


class TripoSR(nn.Module):
    """TripoSR without its decoder."""

    config: TripoSRConfig
    encoder: DinoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b 3 r r c"]:
        """Planes of pictures in [0, 1]."""
        c, b = self.config, len(images)
        seen = Dino(self.encoder, self.dtype, name="encoder")(normalise(images))
        shape = (3, c.channels, c.plane_size, c.plane_size)
        x = self.param("embeddings", nn.initializers.normal(c.channels**-0.5), shape)
        x = jnp.broadcast_to(jnp.moveaxis(x, 1, -1), (b, 3, *shape[2:], c.channels))
        x = Transformer2DModel(
            c.num_attention_heads,
            c.attention_head_dim,
            c.num_layers,
            use_linear_projection=True,
            dtype=self.dtype,
            name="backbone",
        )(x.reshape(b, 3 * c.plane_size, c.plane_size, c.channels).astype(self.dtype), seen)
        x = x.reshape(b, 3, c.plane_size, c.plane_size, c.channels)
        return Texels(c.out_channels, self.dtype, name="upsample")(x)


MOST_LAYERS = 128
"""Layers that are traced; the deepest of the models in use has 16."""


Network = OpenLRM | InstantMesh | TripoSR


def abstract_params(network: Network) -> Params:
    """The shapes and dtypes of a network's parameters; nothing is computed."""
    side = network.encoder.grid * network.encoder.patch_size
    lead = (1, 1) if isinstance(network, InstantMesh) else (1,)
    told = [jax.ShapeDtypeStruct((*lead, side, side, 3), jnp.float32)]
    if not isinstance(network, TripoSR):
        told.append(jax.ShapeDtypeStruct((*lead, 16), jnp.float32))
    return jax.eval_shape(network.init, jax.random.key(0), *told)["params"]
