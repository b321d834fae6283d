"""View-dependent prompting: which wording of a prompt each camera is judged by.

Critics of web images know no cameras, but words such as "front view" shift them (DreamFusion,
arXiv:2209.14988, section 3.2). Negative prompts are plain strings: their embedding takes the
place of the null text.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.camera import from_front
from jax3d.types import Camera, Cond

VIEWS = ("side", "front", "back", "overhead")
"""The order of the wordings everywhere."""

VIEW_SUFFIXES = tuple(f", {view} view" for view in VIEWS)

OVERHEAD = math.radians(60.0)
"""Elevation above which a view counts as overhead, radians."""


def wordings(prompt: str) -> list[str]:
    """The prompt worded for the side, front, back and overhead."""
    return [prompt + suffix for suffix in VIEW_SUFFIXES]


def hard_weights(camera: Camera) -> Float[Array, "*v 4"]:
    """One-hot choice of a wording, with threestudio's limits.

    Front within 45 degrees of azimuth 0, back within 45 degrees of 180, overhead above 60 degrees
    of elevation, whatever the azimuth; else side.
    """
    turn = jnp.degrees(from_front(camera.azimuth))
    view = jnp.where(turn < 45, 1, jnp.where(turn > 135, 2, 0))
    return jax.nn.one_hot(jnp.where(camera.elevation > OVERHEAD, 3, view), 4)


def soft_weights(camera: Camera) -> Float[Array, "*v 4"]:
    """Weights of the wordings that sum to 1 and are continuous in the camera.

    Linear in azimuth between front (0), side (90 degrees) and back (180 degrees), as in
    stable-dreamfusion; overhead takes over linearly between 45 and 75 degrees of elevation.
    """
    quarters = from_front(camera.azimuth) / (jnp.pi / 2)
    front = jnp.clip(1 - quarters, 0, 1)
    back = jnp.clip(quarters - 1, 0, 1)
    overhead = jnp.clip((camera.elevation - OVERHEAD) / math.radians(30.0) + 0.5, 0, 1)
    around = jnp.stack([1 - front - back, front, back], axis=-1)
    return jnp.concatenate([around * (1 - overhead)[..., None], overhead[..., None]], axis=-1)


def select(text: Cond, weights: Float[Array, "*v 4"]) -> Cond:
    """Mix the wordings `text[4, ...]` of one prompt to one text a view, `[*v, ...]`."""
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1, precision="highest"), text)
