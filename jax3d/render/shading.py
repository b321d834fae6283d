"""How samples are lit, and how lights and backgrounds are drawn at random.

Letters: v views, n rays.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.math import normalize
from jax3d.types import Camera, Key, Look, Rays


@dataclass(frozen=True)
class LookConfig:
    """The distribution of looks (DreamFusion, section 3.2 and appendix A.2)."""

    shaded: float = 0.0
    """Probability that a view is lit; the others show the bare albedo."""
    textureless: float = 0.5
    """Probability that a lit view shows white material."""
    ambient: float = 0.1
    """Share of the light that has no direction, in lit views."""
    random_background: float = 0.0
    """Probability that a view has a random uniform background instead of the given one."""
    light_jitter: float = 0.8
    """Standard deviation of the light's direction around the camera's, before normalising."""


def sample(key: Key, cfg: LookConfig, camera: Camera, background: Float[Array, "3"]) -> Look:
    """Draw one look for each camera `[v]`."""
    keys = jax.random.split(key, 5)
    shape = camera.fovy.shape
    lit = jax.random.bernoulli(keys[0], cfg.shaded, shape)
    white = lit & jax.random.bernoulli(keys[1], cfg.textureless, shape)
    around = normalize(camera.c2w[..., :3, 2])
    light = normalize(around + cfg.light_jitter * jax.random.normal(keys[2], around.shape))
    random = jax.random.bernoulli(keys[3], cfg.random_background, shape)[..., None]
    color = jax.random.uniform(keys[4], (*shape, 3))
    return Look(
        background=jnp.where(random, color, background),
        ambient=jnp.where(lit, cfg.ambient, 1.0),
        textureless=jnp.where(white, 1.0, 0.0),
        light=light,
    )


def shade(
    albedo: Float[Array, "n s 3"], normal: Float[Array, "n s 3"], look: Look
) -> Float[Array, "n s 3"]:
    """Lambertian colours of samples; `look` has one entry for each of the n rays."""
    diffuse = jnp.maximum(jnp.einsum("nsi,ni->ns", normal, look.light), 0.0)
    ambient, white = look.ambient[:, None], look.textureless[:, None, None]
    light = ambient + (1 - ambient) * diffuse
    return (albedo + white * (1 - albedo)) * light[..., None]


def per_ray(look: Look, rays: Rays, backdrop: Float[Array, "*v h w 3"] | None = None) -> Look:
    """Broadcast a look of one or of `v` views to the flat rays of `[v, H, W]`.

    `backdrop` replaces the background by one colour a pixel.
    """
    shape = rays.origins.shape[:-1]

    def spread(x, tail):
        lead = x.shape[: x.ndim - len(tail)]
        x = x.reshape(*lead, *(1,) * (len(shape) - len(lead)), *tail)
        return jnp.broadcast_to(x, (*shape, *tail)).reshape(-1, *tail)

    return Look(
        background=spread(look.background if backdrop is None else backdrop, (3,)),
        ambient=spread(look.ambient, ()),
        textureless=spread(look.textureless, ()),
        light=spread(look.light, (3,)),
    )
