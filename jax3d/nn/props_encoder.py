"""The picture encoder of the prop reconstructor: a small residual convolutional network.

Patches of four pixels first, so that no convolution runs at the picture's own resolution, where a
CPU would spend most of its time. Letters: b pictures, s pixels along a side.
"""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from jax3d.bounds import Count

PATCH = 4
"""Pixels along a side of a patch."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the network."""

    widths: tuple[Count, ...] = (64, 128, 256)
    """Channels of each level; each has half the cells of the one before along a side."""
    blocks: Count = 2
    """Residual blocks of a level."""
    out: Count = 256
    """Numbers that tell of a picture."""


class PropsEncoder(nn.Module):
    """Tells of each picture by one vector."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, pictures: Float[Array, "*b s s 4"]) -> Float[Array, "*b e"]:
        """Encodes.

        Args:
          pictures: sRGB over white and coverage, in [0, 1]; a coverage of 1 everywhere says that it
            is not known. `s` is a multiple of 16.
        """
        cfg = self.config
        zeros = nn.initializers.zeros
        x = 2.0 * pictures - 1.0
        for level, width in enumerate(cfg.widths):
            stride = PATCH if level == 0 else 2
            x = nn.Conv(width, (stride, stride), (stride, stride), name=f"down{level}")(x)
            for k in range(cfg.blocks):
                h = nn.LayerNorm(1e-5, name=f"norm{level}_{k}")(x)
                h = nn.silu(nn.Conv(width, (3, 3), name=f"in{level}_{k}")(h))
                x = x + nn.Conv(width, (1, 1), name=f"out{level}_{k}", kernel_init=zeros)(h)
        x = nn.silu(nn.LayerNorm(1e-5, name="norm")(x))
        return nn.Dense(cfg.out, name="out")(x.reshape(*x.shape[:-3], -1))
