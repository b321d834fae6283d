"""A surface in a grid that a network decoded from latents, and these latents.

The grid is what is rendered, refined and told as density and colour (`fields.grid`). The latents
stay beside it, since their network can tell the surface more finely than any grid that is worth
keeping: whoever has the network meshes by them.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp

from jax3d.bounds import Count
from jax3d.fields.base import Representation
from jax3d.fields.grid import GridConfig
from jax3d.types import Key, Params


@dataclass(frozen=True)
class DecodedConfig:
    """Sizes of both."""

    grid: GridConfig = field(default_factory=GridConfig)
    latents: Count = 3072
    """How many there are."""
    width: Count = 64
    """Of a latent."""

    def build(self) -> Representation:
        """The representation."""
        return decoded(self)


def decoded(config: DecodedConfig | None = None) -> Representation:
    """Build the representation; its parameters are the grid's and `{"latents": [n, d]}`.

    A fresh one is the grid's fresh one beside latents of zeros.
    """
    cfg = config or DecodedConfig()
    inner = cfg.grid.build()

    def init(key: Key) -> Params:
        return {**inner.init(key), "latents": jnp.zeros((cfg.latents, cfg.width))}

    return inner._replace(init=init)
