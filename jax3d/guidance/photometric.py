"""Posed photographs as guidance: a scene is fitted to pictures of it.

The loss of Kerbl et al. 2023 (3D Gaussian splatting, eq. 7): (1 - s) L1 + s (1 - SSIM), s = 0.2.
The asset's condition are its photographs; each step draws some.

Where a photograph is transparent there is nothing: it is compared over the background that the
render has, so that nothing of that background's colour can hide. Where it says nothing, the render
is taken for right.

Letters: v views.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jax3d.bounds import Range, Share
from jax3d.data.photographs import Photographs, Transparent, shown
from jax3d.guidance.base import Guidance, Shot
from jax3d.metrics.pictures import decibels, squared_error, ssim
from jax3d.types import Camera, Key


@dataclass(frozen=True)
class PhotometricConfig:
    """A scene is to look as photographs of it do."""

    ssim: Share = 0.2
    """Weight of 1 - SSIM; the rest is that of L1."""
    transparent: Transparent = "empty"
    """What a photograph's transparency says: that nothing is there, or nothing."""
    most: Annotated[int, Range(1, 10_000)] = 300
    """Photographs a scene; of more, so many are taken, evenly spread."""

    def build(self) -> Guidance:
        """The guidance."""
        return photometric(self)


def photometric(config: PhotometricConfig | None = None) -> Guidance:
    """The loss of renders by the cameras of `drawn`, under the key of their shot."""
    config = config or PhotometricConfig()

    def loss(shared, key, shot: Shot, cond: Photographs, knobs, own):
        del shared, key, knobs, own
        index = drawn(shot.key, cond, len(shot.camera.fovy))
        learned = shot.render.background
        ground = shot.look.background if learned is None else jax.lax.stop_gradient(learned)
        wanted, known = shown(cond, index, ground, shot.rgb.shape[1], config.transparent)
        seen = jnp.where(known[..., None], shot.rgb, wanted)
        l1 = jnp.mean(jnp.abs(seen - wanted))
        likeness = jnp.mean(ssim(seen, wanted))
        value = (1 - config.ssim) * l1 + config.ssim * (1 - likeness)
        return value, {"photometric": value, "psnr": decibels(squared_error(seen, wanted, known))}

    return Guidance(loss)


def drawn(key: Key, cond: Photographs, views: int) -> Int[Array, " v"]:
    """Which photographs a step looks at: any, however much room there is beside them."""
    return jax.random.randint(key, (views,), 0, cond.count)


def cameras(key: Key, cond: Photographs, views: int) -> Camera:
    """The cameras of those."""
    index = drawn(key, cond, views)
    return jax.tree.map(lambda x: jnp.asarray(x)[index], cond.camera)
