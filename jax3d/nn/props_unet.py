"""The UNet of the embedded critic: small, camera-aware, made for one CPU core or one chip.

Pixels enter and leave as 4x4 patches, so a 64x64 image is a 16x16 grid at the finest level. The
network predicts the clean image: unlike noise, it is smooth enough for patches this large.
The camera is given twice: as six channels a pixel (the ray's direction and moment, its Plücker
coordinates) and as harmonics of the azimuth in the embedding that modulates every block.
"""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax3d.bounds import Count, Range


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the embedded critic's network."""

    widths: tuple[Annotated[int, Range(8, 65536)], ...] = (64, 128, 224)
    """Channels of each level; a level halves the side of the one before."""
    blocks: tuple[Count, ...] = (1, 2, 1)
    """Residual blocks of each level, on the way down and again on the way up."""
    attention: tuple[bool, ...] = (False, True, True)
    """Levels whose blocks attend to their own grid and to the caption."""
    heads: Count = 4
    embedding: Count = 256
    """Width of the vector that modulates the blocks."""
    patch: Annotated[int, Range(1, 64)] = 4
    words: Count = 64
    """Rows of the word table; row 0 pads."""
    word_width: Count = 96

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        if not len(self.widths) == len(self.blocks) == len(self.attention) > 0:
            return "widths has another number of levels than blocks or attention"
        for width, attends in zip(self.widths, self.attention, strict=True):
            if width % 8 or (attends and width % self.heads):
                return (
                    f"widths holds {width}; expected multiples of 8 and, where a level attends, "
                    f"of its {self.heads} heads"
                )
        return None


class WordTable(nn.Module):
    """Looks up the embeddings of word ids; id 0 pads and embeds to zero."""

    words: int
    width: int

    @nn.compact
    def __call__(self, ids: Int[Array, "*b L"]) -> Float[Array, "*b L D"]:
        """Embeds ids."""
        shape = (self.words, self.width)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        return table[ids] * (ids > 0)[..., None]


def _sinusoid(t: Float[Array, " b"], width: int) -> Float[Array, "b w"]:
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(width // 2) / (width // 2))
    angles = t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def _norm(name: str | None = None):
    return nn.GroupNorm(num_groups=8, epsilon=1e-5, name=name)


class ResBlock(nn.Module):
    """Two 3x3 convolutions, the second modulated by the embedding (scale and shift)."""

    width: int

    @nn.compact
    def __call__(self, x, emb):
        """[b, h, w, c], [b, e] -> [b, h, w, width]."""
        h = nn.Conv(self.width, (3, 3), name="conv1")(nn.silu(_norm("norm1")(x)))
        film = nn.Dense(2 * self.width, name="film", kernel_init=nn.initializers.zeros)(emb)
        scale, shift = jnp.split(film[:, None, None, :], 2, -1)
        h = nn.silu(_norm("norm2")(h) * (1 + scale) + shift)
        h = nn.Conv(self.width, (3, 3), name="conv2", kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="skip")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the grid, with the caption's words as further keys and values."""

    heads: int

    @nn.compact
    def __call__(self, x, words, known):
        """[b, h, w, c], words [b, L, D] of which `known` [b, L] count -> [b, h, w, c]."""
        b, height, width, c = x.shape
        split = (b, -1, self.heads, c // self.heads)
        grid = _norm("norm")(x).reshape(b, -1, c)
        q, k, v = jnp.split(nn.Dense(3 * c, name="qkv")(grid), 3, -1)
        word_k, word_v = jnp.split(nn.Dense(2 * c, name="words")(words), 2, -1)
        k, v = jnp.concatenate([k, word_k], 1), jnp.concatenate([v, word_v], 1)
        seen = jnp.concatenate([jnp.ones((b, height * width), bool), known], 1)
        out = jax.nn.dot_product_attention(
            q.reshape(split), k.reshape(split), v.reshape(split), mask=seen[:, None, None, :]
        )
        out = nn.Dense(c, name="out", kernel_init=nn.initializers.zeros)(out.reshape(b, -1, c))
        return x + out.reshape(x.shape)


class PropsUNet(nn.Module):
    """Predicts the clean image from a noised one, its caption and, where known, its camera."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        z_t: Float[Array, "b H W 3"],
        t: Float[Array, " b"],
        words: Float[Array, "b L D"],
        rays: Float[Array, "b h w 6"],
        pose: Float[Array, "b P"],
        camera_known: Bool[Array, " b"],
    ) -> Float[Array, "b H W 3"]:
        """Estimates the clean image.

        Args:
          z_t: Noised images, [-1, 1] before the noise.
          t: Timestep in [0, 1000).
          words: From `WordTable`; all zero where the text is not told.
          rays: Direction and moment at the centres of the patches.
          pose: Harmonics of the orbit position.
          camera_known: Where false, `rays` and `pose` are ignored.
        """
        cfg = self.config
        known = jnp.any(words != 0, -1)
        told = camera_known.astype(z_t.dtype)

        pooled = jnp.sum(words, 1) / jnp.sqrt(1.0 + jnp.sum(known, 1, keepdims=True))
        pose = jnp.concatenate([pose * told[:, None], told[:, None]], -1)
        emb = nn.Dense(cfg.embedding, name="time1")(_sinusoid(t, 128))
        emb = emb + nn.Dense(cfg.embedding, name="text1")(pooled)
        emb = emb + nn.Dense(cfg.embedding, name="pose1")(pose)
        emb = nn.Dense(cfg.embedding, name="emb2")(nn.silu(emb))
        # What a class looks like from a side is a product of both: it needs some depth.
        for k in range(2):
            deep = nn.silu(nn.Dense(2 * cfg.embedding, name=f"deep{k}_in")(nn.silu(emb)))
            zeros = nn.initializers.zeros
            emb = emb + nn.Dense(cfg.embedding, name=f"deep{k}_out", kernel_init=zeros)(deep)
        emb = nn.silu(emb)
        x = _patch(z_t, cfg.patch)
        maps = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], -1) * told[:, None, None, None]
        x = nn.Conv(cfg.widths[0], (3, 3), name="in")(jnp.concatenate([x, maps], -1))

        def level(x, i, name):
            for k in range(cfg.blocks[i]):
                x = ResBlock(cfg.widths[i], name=f"{name}{i}_{k}")(x, emb)
                if cfg.attention[i]:
                    x = Attention(cfg.heads, name=f"{name}{i}_{k}_attention")(x, words, known)
            return x

        skips = []
        last = len(cfg.widths) - 1
        for i in range(last):
            x = level(x, i, "down")
            skips.append(x)
            x = nn.Conv(cfg.widths[i + 1], (3, 3), strides=2, name=f"shrink{i}")(x)
        x = level(level(x, last, "down"), last, "up")
        for i in reversed(range(last)):
            x = nn.Dense(cfg.widths[i], name=f"grow{i}")(x)
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = level(jnp.concatenate([x, skips[i]], -1), i, "up")
        x = nn.silu(_norm("out_norm")(x))
        out = nn.Conv(3 * cfg.patch**2, (3, 3), name="out", kernel_init=nn.initializers.zeros)(x)
        return _unpatch(out, cfg.patch)


def _patch(x: Float[Array, "b H W c"], p: int) -> Float[Array, "b h w d"]:
    b, height, width, c = x.shape
    x = x.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height // p, width // p, p * p * c)


def _unpatch(x: Float[Array, "b h w d"], p: int) -> Float[Array, "b H W c"]:
    b, height, width, d = x.shape
    x = x.reshape(b, height, width, p, p, d // p**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height * p, width * p, d // p**2)
