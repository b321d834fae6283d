"""How samples are lit.

Letters: v views, n rays.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.types import Look, Rays


def shade(
    albedo: Float[Array, "n s 3"], normal: Float[Array, "n s 3"], look: Look
) -> Float[Array, "n s 3"]:
    """Lambertian colours of samples; `look` has one entry for each of the n rays."""
    diffuse = jnp.maximum(jnp.einsum("nsi,ni->ns", normal, look.light), 0.0)
    ambient, white = look.ambient[:, None], look.textureless[:, None, None]
    light = ambient + (1 - ambient) * diffuse
    return (albedo + white * (1 - albedo)) * light[..., None]


def per_view(look: Look, views: int) -> Look:
    """A look of one or of `v` views, for each of these."""
    return Look(
        background=jnp.broadcast_to(look.background, (views, 3)),
        ambient=jnp.broadcast_to(look.ambient, (views,)),
        textureless=jnp.broadcast_to(look.textureless, (views,)),
        light=jnp.broadcast_to(look.light, (views, 3)),
    )


def per_ray(look: Look, rays: Rays) -> Look:
    """Broadcast a look of one or of `v` views to the flat rays of `[v, H, W]`."""
    shape = rays.origins.shape[:-1]

    def spread(x, tail):
        lead = x.shape[: x.ndim - len(tail)]
        x = x.reshape(*lead, *(1,) * (len(shape) - len(lead)), *tail)
        return jnp.broadcast_to(x, (*shape, *tail)).reshape(-1, *tail)

    return Look(
        background=spread(look.background, (3,)),
        ambient=spread(look.ambient, ()),
        textureless=spread(look.textureless, ()),
        light=spread(look.light, (3,)),
    )
