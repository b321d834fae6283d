"""Regularisers of an asset's renders, each a mean over pixels.

Letters: v views, H and W pixels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.types import Knobs, Render


def opacity_entropy(alpha: Float[Array, "*v H W"]) -> Float[Array, ""]:
    """Binary entropy of alpha, nats: 0 where every pixel is empty or opaque, at most ln 2.

    Alpha is cut to [0.001, 0.999], so pixels that have decided feel no pull.
    """
    a = jnp.clip(alpha, 1e-3, 1 - 1e-3)
    return -jnp.mean(a * jnp.log(a) + (1 - a) * jnp.log(1 - a))


def sparsity(alpha: Float[Array, "*v H W"]) -> Float[Array, ""]:
    """Mean of sqrt(alpha^2 + 0.01), which an empty picture makes least (threestudio)."""
    return jnp.mean(jnp.sqrt(alpha**2 + 0.01))


def orientation(orient: Float[Array, "*v H W"]) -> Float[Array, ""]:
    """Mean weight of normals that face away (Ref-NeRF, arXiv:2112.03907, eq. 11)."""
    return jnp.mean(orient)


def normal_smoothness(normal: Float[Array, "*v H W 3"]) -> Float[Array, ""]:
    """Mean squared difference between the normals of neighbouring pixels."""
    down = jnp.diff(normal, axis=-3)
    right = jnp.diff(normal, axis=-2)
    return jnp.mean(jnp.sum(down**2, axis=-1)) + jnp.mean(jnp.sum(right**2, axis=-1))


def regularise(
    render: Render, tv: Float[Array, ""], knobs: Knobs, step
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The regularisers' weighted sum, and each one unweighted.

    `tv` is the total variation of the representation's own grids.
    """
    terms = {
        "opacity": (knobs.lambda_opacity, opacity_entropy(render.alpha)),
        "sparsity": (knobs.lambda_sparsity, sparsity(render.alpha)),
        "orient": (knobs.lambda_orient, orientation(render.orient)),
        "normal": (knobs.lambda_normal, normal_smoothness(render.normal)),
        "tv": (knobs.lambda_tv, tv),
    }
    total = sum(ramp.at(step) * value for ramp, value in terms.values())
    return total, {name: value for name, (_, value) in terms.items()}
