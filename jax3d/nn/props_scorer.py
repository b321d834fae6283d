"""The scorer's network: a small image encoder and a small text encoder with a shared space."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax3d.bounds import Count, Range
from jax3d.nn.props_unet import WordTable


@dataclasses.dataclass(frozen=True)
class ScorerConfig:
    """Sizes of the scorer's network."""

    widths: tuple[Annotated[int, Range(8, 65536)], ...] = (32, 64, 128, 192)
    """Channels at strides 2, 4, 8 and 16."""
    embedding: Count = 128
    """Width of the shared space."""
    azimuth_bins: Count = 24
    words: Count = 64
    word_width: Count = 96


class ImageEncoder(nn.Module):
    """Residual blocks at four strides, pooled over the grid."""

    config: ScorerConfig

    @nn.compact
    def __call__(
        self, rgb: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b e"], Float[Array, "b bins"]]:
        """Unit embeddings and azimuth logits of images in [0, 1]."""
        x = 2.0 * rgb - 1.0
        for i, width in enumerate(self.config.widths):
            x = nn.Conv(width, (3, 3), strides=2, name=f"shrink{i}")(x)
            h = nn.silu(nn.GroupNorm(8, name=f"norm{i}_1")(x))
            h = nn.silu(nn.GroupNorm(8, name=f"norm{i}_2")(nn.Conv(width, (3, 3), name=f"a{i}")(h)))
            x = x + nn.Conv(width, (3, 3), name=f"b{i}")(h)
        x = nn.silu(nn.GroupNorm(8, name="norm_out")(x))
        # The flattened grid keeps the layout that tells the azimuth; the mean alone would lose it.
        pooled = nn.silu(nn.Dense(256, name="pool")(x.reshape(x.shape[0], -1)))
        embedding = nn.Dense(self.config.embedding, name="embed")(pooled)
        return _unit(embedding), nn.Dense(self.config.azimuth_bins, name="azimuth")(pooled)


class TextEncoder(nn.Module):
    """Summed word embeddings through two layers."""

    config: ScorerConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "b L"]) -> Float[Array, "b e"]:
        """Unit embeddings of captions given as word ids (0 pads)."""
        cfg = self.config
        h = jnp.sum(WordTable(cfg.words, cfg.word_width, name="words")(ids), -2)
        h = nn.silu(nn.Dense(256, name="hidden1")(h))
        h = nn.silu(nn.Dense(256, name="hidden2")(h))
        return _unit(nn.Dense(self.config.embedding, name="embed")(h))


class Scorer(nn.Module):
    """Both encoders and the temperature of their comparison."""

    config: ScorerConfig

    @nn.compact
    def __call__(self, rgb, ids):
        """-> similarity logits `[images, texts]`, azimuth logits `[images, bins]`."""
        image, azimuth = ImageEncoder(self.config, name="image")(rgb)
        text = TextEncoder(self.config, name="text")(ids)
        scale = self.param("log_scale", nn.initializers.constant(2.5), ())
        return jnp.exp(jnp.minimum(scale, 4.6)) * image @ text.T, azimuth


def _unit(x):
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
