"""The latent autoencoder of Stable Diffusion, under diffusers' class and parameter names.

Letters: b images, H and W pixels, h and w latents, z latent channels. Pixels are in [-1, 1].
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import weights
from jax3d.nn.layers import conv, dense, group_norm
from jax3d.nn.unet_blocks import (
    DownBlock2D,
    Downsample2D,
    MidBlock2D,
    ResnetBlock2D,
    UpBlock2D,
    Upsample2D,
)
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError, find_weights, to_flax

_EPSILON = 1e-6


class Moments(NamedTuple):
    """The posterior of an image's latents: a diagonal Gaussian; the mean is its mode."""

    mean: Float[Array, "b h w z"]
    logvar: Float[Array, "b h w z"]
    """In [-30, 20]."""

    def sample(self, eps: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
        """The latents that unit noise `eps` stands for."""
        return self.mean + jnp.exp(0.5 * self.logvar) * eps


class AutoencoderKL(nn.Module):
    """The autoencoder as its `config.json` describes it; names and meanings are diffusers'.

    `encode` and `decode` are methods for `apply`; neither applies the `scaling_factor` (see
    `scale` and `unscale`).
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: int | float = 0.18215
    shift_factor: float | None = None
    dtype: Any = jnp.float32

    def setup(self):  # noqa: D102
        shared = (
            self.block_out_channels,
            self.layers_per_block,
            self.norm_num_groups,
            self.act_fn,
            self.mid_block_add_attention,
            self.dtype,
        )
        self.encoder = Encoder(2 * self.latent_channels, *shared)
        self.decoder = Decoder(self.out_channels, *shared)
        if self.use_quant_conv:
            self.quant_conv = conv(2 * self.latent_channels, 1, self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = conv(self.latent_channels, 1, self.dtype)

    def __call__(self, pixels: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        """Encodes to the mode and decodes it."""
        return self.decode(self.encode(pixels).mean)

    def encode(self, pixels: Float[Array, "b H W c"]) -> Moments:
        """The posterior of the images' latents, unscaled."""
        y = self.encoder(pixels)
        if self.use_quant_conv:
            y = self.quant_conv(y)
        mean, logvar = jnp.split(y.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        """Images from unscaled latents."""
        if self.use_post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)

    def scale(self, z: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The autoencoder's latents to the denoiser's."""
        return (z - (self.shift_factor or 0.0)) * self.scaling_factor

    def unscale(self, z: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The denoiser's latents to the autoencoder's."""
        return z / self.scaling_factor + (self.shift_factor or 0.0)


class SelfAttention(nn.Module):
    """One head over all pixels, normalised and residual."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: None = None) -> Float[Array, "b h w c"]:
        """Mixes pixels; there is no context."""
        del context
        b, h, w, c = x.shape
        y = group_norm(self.groups, _EPSILON, "group_norm")(x).reshape(b, h * w, c)
        q, k, v = (dense(c, self.dtype, True, f"to_{name}")(y)[:, :, None] for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v)[:, :, 0]
        return x + dense(c, self.dtype, True, "to_out_0")(y).reshape(x.shape)


class Encoder(nn.Module):
    """Images to the moments of their latents."""

    features: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    groups: int
    act: str
    mid_attention: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w z2"]:
        """Halves the sides at every level but the last."""
        x = conv(self.block_out_channels[0], 3, self.dtype, "conv_in")(x)
        last = len(self.block_out_channels) - 1
        for i, channels in enumerate(self.block_out_channels):
            x, _ = DownBlock2D(
                self.layers_per_block,
                _resnet(channels, self),
                None,
                None if i == last else partial(Downsample2D, True, self.dtype),
                name=f"down_blocks_{i}",
            )(x, None)
        return _ends(_middle(self)(x, None), self)


class Decoder(nn.Module):
    """Latents to images."""

    features: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    groups: int
    act: str
    mid_attention: bool
    dtype: Any

    @nn.compact
    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W c"]:
        """Doubles the sides at every level but the last."""
        x = conv(self.block_out_channels[-1], 3, self.dtype, "conv_in")(z)
        x = _middle(self)(x, None)
        last = len(self.block_out_channels) - 1
        for i, channels in enumerate(reversed(self.block_out_channels)):
            x = UpBlock2D(
                self.layers_per_block + 1,
                _resnet(channels, self),
                None,
                None if i == last else partial(Upsample2D, self.dtype),
                name=f"up_blocks_{i}",
            )(x, None, (2 * x.shape[1], 2 * x.shape[2]))
        return _ends(x, self)


def _resnet(features: int, part: Encoder | Decoder) -> partial:
    return partial(ResnetBlock2D, features, part.groups, _EPSILON, part.act, dtype=part.dtype)


def _middle(part: Encoder | Decoder) -> MidBlock2D:
    attention = partial(SelfAttention, part.groups, part.dtype) if part.mid_attention else None
    return MidBlock2D(_resnet(part.block_out_channels[-1], part), attention, name="mid_block")


def _ends(x: Array, part: Encoder | Decoder) -> Array:
    # Whatever act_fn is, diffusers has SiLU here.
    x = nn.silu(group_norm(part.groups, _EPSILON, "conv_norm_out")(x))
    return conv(part.features, 3, part.dtype, "conv_out")(x)


_FIXED = {
    "down_block_types": "DownEncoderBlock2D",
    "up_block_types": "UpDecoderBlock2D",
}


def from_config(config: dict[str, Any]) -> AutoencoderKL:
    """The autoencoder that a diffusers `vae/config.json` describes.

    Raises:
      ValueError: the file describes another class, or asks for what is not supported.
    """
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"the config is of a {kind}, not of an AutoencoderKL")
    for name, known in _FIXED.items():
        if strange := set(config.get(name, ())) - {known}:
            raise ValueError(f"{name} of unknown kind: {', '.join(sorted(strange))}")
    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None:
            raise ValueError(f"{name} is not supported, only scaling_factor and shift_factor")
    ours = ("parent", "name", "dtype")
    vae = AutoencoderKL(**weights.checked_fields(config, AutoencoderKL, ours))
    levels = len(vae.block_out_channels)
    if not 1 <= levels <= 8 or vae.layers_per_block > 16:
        raise WeightsError(
            f"an autoencoder of {levels} levels of {vae.layers_per_block} layers cannot be meant"
        )
    return vae


def abstract_params(vae: AutoencoderKL) -> Params:
    """The shapes and dtypes of an autoencoder's parameters; nothing is computed."""
    side = 2 ** len(vae.block_out_channels)
    pixels = jax.ShapeDtypeStruct((1, side, side, vae.in_channels), jnp.float32)
    return jax.eval_shape(vae.init, jax.random.key(0), pixels)["params"]


def load(folder: str | Path, dtype: Any = jnp.float32) -> tuple[AutoencoderKL, Params]:
    """The autoencoder of a diffusers `vae/` folder and its weights.

    Raises:
      ValueError: a file is missing, damaged or does not fit, or another class is described.
    """
    vae, like = weights.described(
        Path(folder) / "config.json",
        lambda config: from_config(config).clone(dtype=dtype),
        abstract_params,
    )
    path = find_weights(folder, "diffusion_pytorch_model")
    return vae, to_flax(rename(weights.load(path)), like, path)


def rename(tensors: Flat) -> Flat:
    """Tensors under today's names: old files say `query` or `proj_attn` in the middle."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(rf"(?<=attentions[._]0\.)({'|'.join(old)})(?=\.)")
    return {pattern.sub(lambda m: old[m[0]], name): tensor for name, tensor in tensors.items()}
