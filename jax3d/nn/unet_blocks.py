"""Residual, down and up blocks of latent diffusion networks, under diffusers' names.

Letters: b images, h and w pixels, c channels, e width of the time embedding. Blocks take the
makers of their layers, so that one block serves every kind of attention and resampling.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax3d.nn.layers import conv, dense, group_norm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}


def timestep_embedding(
    t: Num[Array, " b"],
    dim: int,
    flip_sin_to_cos: bool = True,
    freq_shift: int | float = 0,
    max_period: float = 10000.0,
) -> Float[Array, "b dim"]:
    """Sinusoids of t at `dim / 2` frequencies from 1 to 1/max_period, `[cos, sin]` if flipped."""
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2) / (dim // 2 - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers around an activation; float32 arithmetic."""

    dim: int
    act: str = "silu"
    post_act: str | None = None
    dtype: Any = jnp.float32
    out_dim: int | None = None
    """Of the second layer; None: `dim`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """Maps sinusoids, a camera or other numbers to the time embedding's width."""
        x = nn.Dense(self.dim, dtype=jnp.float32, param_dtype=self.dtype, name="linear_1")(x)
        x = ACTIVATIONS[self.act](x)
        out = self.out_dim or self.dim
        x = nn.Dense(out, dtype=jnp.float32, param_dtype=self.dtype, name="linear_2")(x)
        return ACTIVATIONS[self.post_act](x) if self.post_act else x


class ResnetBlock2D(nn.Module):
    """Two normalised 3x3 convolutions with the time embedding between them, and a shortcut.

    Pixel-space networks resample with it: given a size, both branches are brought to it before
    the first convolution.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    act: str = "silu"
    scale_shift: bool = False
    skip_time_act: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b e"] | None,
        size: tuple[int, int] | None = None,
    ) -> Float[Array, "b h2 w2 o"]:
        """The block's output; `temb=None` leaves the time out, as autoencoders do."""
        act = ACTIVATIONS[self.act]
        y = act(group_norm(self.groups, self.epsilon, "norm1")(x))
        if size is not None:
            x, y = resize(x, size), resize(y, size)
        y = conv(self.features, 3, self.dtype, "conv1")(y)
        scale = None
        if temb is not None:
            temb = temb if self.skip_time_act else act(temb)
            width = 2 * self.features if self.scale_shift else self.features
            shift = dense(width, self.dtype, True, "time_emb_proj")(temb)[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(shift, 2, axis=-1)
            else:
                y = y + shift
        y = group_norm(self.groups, self.epsilon, "norm2")(y)
        if scale is not None:
            y = y * (1 + scale) + shift
        y = conv(self.features, 3, self.dtype, "conv2")(act(y))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "conv_shortcut")(x)
        return x + y


class Downsample2D(nn.Module):
    """Convolution of stride 2; `asymmetric` pads right and below only, as the autoencoder does."""

    asymmetric: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None, size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 c"]:
        """Halves the sides."""
        del temb, size
        pad = (0, 1) if self.asymmetric else (1, 1)
        return nn.Conv(
            x.shape[-1],
            (3, 3),
            2,
            (pad, pad),
            dtype=self.dtype,
            param_dtype=self.dtype,
            name="conv",
        )(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement and a convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None, size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 c"]:
        """Enlarges to `size`: twice the sides, or those of the skip that comes next."""
        del temb
        return conv(x.shape[-1], 3, self.dtype, "conv")(resize(x, size))


class DownBlock2D(nn.Module):
    """Residual layers, each followed by attention if there is any, then a smaller map."""

    layers: int
    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None
    downsample: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b e"] | None,
        context: Float[Array, "b m d"] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 o"], list[Float[Array, "b _ _ o"]]]:
        """The block's output, and the maps after each layer for the way up."""
        skips = []
        for i in range(self.layers):
            x = self.resnet(name=f"resnets_{i}")(x, temb)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, context)
            skips.append(x)
        if self.downsample is not None:
            half = ((x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2)
            x = self.downsample(name="downsamplers_0")(x, temb, half)
            skips.append(x)
        return x, skips


class UpBlock2D(nn.Module):
    """The way up: each layer reads the last skip beside its input."""

    layers: int
    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None
    upsample: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b e"] | None,
        size: tuple[int, int],
        skips: list[Float[Array, "b h w _"]] | None = None,
        context: Float[Array, "b m d"] | None = None,
    ) -> Float[Array, "b h2 w2 o"]:
        """The block's output, of `size` if it enlarges; `skips` in the order of their making."""
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = self.resnet(name=f"resnets_{i}")(x, temb)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, context)
        if self.upsample is not None:
            x = self.upsample(name="upsamplers_0")(x, temb, size)
        return x


class MidBlock2D(nn.Module):
    """A residual layer, attention if there is any, a residual layer."""

    resnet: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b e"] | None,
        context: Float[Array, "b m d"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """The bottom of the network."""
        x = self.resnet(name="resnets_0")(x, temb)
        if self.attention is not None:
            x = self.attention(name="attentions_0")(x, context)
        return self.resnet(name="resnets_1")(x, temb)


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """To half the sides by means, or to larger ones by nearest neighbour.

    The nearest pixel is floor(i * in / out), as torch has it, which for other factors than 2 is
    not the pixel under the centre.
    """
    if (2 * size[0], 2 * size[1]) == x.shape[1:3]:
        return nn.avg_pool(x, (2, 2), (2, 2))
    for axis, out in ((1, size[0]), (2, size[1])):
        side = x.shape[axis]
        if out == 2 * side:
            x = jnp.repeat(x, 2, axis)
        elif out != side:
            x = jnp.take(x, jnp.arange(out) * side // out, axis)
    return x
