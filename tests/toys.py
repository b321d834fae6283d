"""Small stand-ins for the parts of an optimisation, and what tests of processes share."""

import socket

import jax
import jax.numpy as jnp

from jax3d.fields.base import Representation, no_adapt
from jax3d.priors.base import Prior
from jax3d.types import Cond, Condition, Render


def pages(count: int, size: int) -> Representation:
    """One picture for each of `count` sectors of azimuth, seen by whoever stands there.

    Its parameters are `{"rgb": [count, size, size, 3], "alpha": [count, size, size]}`.
    """

    def init(key):
        rgb_key, alpha_key = jax.random.split(key)
        return {
            "rgb": 0.5 + 0.1 * jax.random.normal(rgb_key, (count, size, size, 3)),
            "alpha": 0.5 + 0.1 * jax.random.normal(alpha_key, (count, size, size)),
        }

    def render(params, key, camera, look, size):
        del key
        sector = jnp.round(camera.azimuth / (2 * jnp.pi) * count).astype(int) % count
        rgb, alpha = (params[name][sector] for name in ("rgb", "alpha"))
        shape = (*rgb.shape[:1], *size)
        rgb = jax.image.resize(rgb, (*shape, 3), "linear")
        alpha = jax.image.resize(alpha, shape, "linear")
        background = jnp.broadcast_to(look.background, (*rgb.shape[:1], 3))[:, None, None]
        return Render(
            rgb=rgb * alpha[..., None] + (1 - alpha[..., None]) * background,
            alpha=alpha,
            depth=alpha,
            normal=rgb,
            orient=alpha**2,
        )

    def density(params, x):
        return jnp.full(x.shape[:-1], params["alpha"].mean())

    def color(params, x):
        return jnp.broadcast_to(params["rgb"].mean((0, 1, 2)), x.shape)

    def tv(params):
        return jnp.mean(jnp.diff(params["rgb"], axis=1) ** 2)

    return Representation(init, render, density, color, no_adapt, tv, bound=1.0)


def no_condition(dim: int = 1) -> Condition:
    """The condition of critics that read no text."""
    tokens = jnp.zeros((4, 1, dim))
    return Condition(Cond(tokens[0]), Cond(tokens[0]), Cond(tokens))


def linear_critic(alphas_cumprod, size: int) -> Prior:
    """A critic linear in its image, its weights, its text's only number and the azimuth."""

    def encode(params, key, rgb):
        return jnp.einsum("vhwc,cd->vhwd", rgb, params["encoder"])

    def denoise(params, z_t, t, text, camera):
        told = text.tokens[:, :, :1, None] + camera.azimuth[:, None, None, None]
        return jnp.einsum("vhwc,cd->vhwd", z_t, params["unet"]) + told

    return Prior(encode, None, denoise, alphas_cumprod, size)


def linear_weights(dtype=jnp.float32):
    """Weights of the linear critic, with two channels in z."""
    return {
        "encoder": jnp.arange(6, dtype=dtype).reshape(3, 2) / 6,
        "unet": jnp.array([[0.5, 0.1], [-0.2, 0.7]], dtype),
    }


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def recipe_file(steps: int) -> str:
    """The text of a config whose assets take seconds."""
    return f"""
from jax3d.fields.triplane import TriplaneConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, Stage
from jax3d.recipe import Pictures, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=1, stages=(Stage({steps}, 16),)),
    mesh=MeshConfig(resolution=24, faces=200, texture=32),
    pictures=Pictures(size=16, frames=0),
)
"""
