"""The velocity network of the native prop generator: a residual network on one latent vector.

The latents are principal components, so they have no order that attention or convolution could
use, and a residual network learns most from a second of a CPU. It is told the time and the caption
by a vector that scales and shifts every block, and predicts the clean latents.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.bounds import Count


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Sizes of the network."""

    width: Count = 384
    hidden: Count = 1280
    """Inside a block."""
    blocks: Count = 3
    embedding: Count = 256
    """Width of the vector that modulates the blocks."""
    words: Count = 64
    """Rows of the word table; row 0 pads."""
    frequencies: Count = 16
    """Of the time's sinusoids."""


class PropsFlow(nn.Module):
    """Estimates the clean latents of noised ones, told the time and the caption."""

    config: FlowConfig

    @nn.compact
    def __call__(
        self,
        z_t: Float[Array, "*b d"],
        t: Float[Array, "*b"],
        words: Float[Array, "*b e"],
    ) -> Float[Array, "*b d"]:
        """Estimates the clean latents.

        Args:
          z_t: `(1 - t) z + t noise`.
          t: [0, 1]; 1 is noise.
          words: From `embed_words`; zero where no caption is told.
        """
        cfg = self.config
        zeros = nn.initializers.zeros
        angles = t[..., None] * (jnp.pi * 2.0 ** (jnp.arange(cfg.frequencies) / 2))
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        told = nn.Dense(cfg.embedding, name="time")(waves)
        told = told + nn.Dense(cfg.embedding, name="text")(words)
        # A class with an attribute is more than the sum of both: it needs some depth.
        for k in range(2):
            deep = nn.silu(nn.Dense(2 * cfg.embedding, name=f"deep{k}_in")(nn.silu(told)))
            told = told + nn.Dense(cfg.embedding, name=f"deep{k}_out", kernel_init=zeros)(deep)
        told = nn.silu(told)
        x = nn.Dense(cfg.width, name="in")(z_t) + nn.Dense(cfg.width, name="told")(told)
        for k in range(cfg.blocks):
            film = nn.Dense(2 * cfg.width, name=f"film{k}", kernel_init=zeros)(told)
            scale, shift = jnp.split(film, 2, -1)
            norm = nn.LayerNorm(1e-5, use_bias=False, use_scale=False, name=f"norm{k}")
            h = nn.silu(nn.Dense(cfg.hidden, name=f"up{k}")(norm(x) * (1 + scale) + shift))
            x = x + nn.Dense(cfg.width, name=f"down{k}", kernel_init=zeros)(h)
        return nn.Dense(z_t.shape[-1], name="out", kernel_init=zeros)(x)
