"""Regularisers of an asset's renders, each a mean over pixels.

Letters: v views, H and W pixels.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.knobs import Knobs
from jax3d.types import Render


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


def of_pictures(render: Render) -> dict[str, Float[Array, ""]]:
    """The regularisers that look at renders, by name."""
    return {
        "opacity": opacity_entropy(render.alpha),
        "sparsity": sparsity(render.alpha),
        "orient": orientation(render.orient),
        "normal": normal_smoothness(render.normal),
    }


def weigh(values: Mapping[str, Float[Array, ""]], knobs: Knobs, step) -> Float[Array, ""]:
    """The sum of regularisers, each times its knob `lambda_<name>` at this step."""
    return sum(getattr(knobs, f"lambda_{name}").at(step) * value for name, value in values.items())
