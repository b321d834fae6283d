"""Small stand-ins for the parts of an optimisation, and what tests of processes share."""

import socket
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jax3d.fields.base import Representation
from jax3d.guidance.base import Guidance, Shot
from jax3d.knobs import Knobs, KnobValues
from jax3d.models.base import Model
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig, Optimizer
from jax3d.priors.base import Prior
from jax3d.types import Camera, Cond, Condition, Look, Ramp, Render


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
        return Render(
            rgb=rgb * alpha[..., None],
            alpha=alpha,
            depth=alpha,
            normal=rgb,
            orient=alpha**2,
        )

    def density(params, x):
        return jnp.full(x.shape[:-1], params["alpha"].mean())

    def color(params, x):
        return jnp.broadcast_to(params["rgb"].mean((0, 1, 2)), x.shape)

    def regularise(params):
        return {"tv": jnp.mean(jnp.diff(params["rgb"], axis=1) ** 2)}

    return Representation(init, render, regularise, 1.0, density, color)


def shot(render: Render, camera: Camera, step=0) -> Shot:
    """Renders over white, as a guidance sees them."""
    return Shot(step, camera, Look.albedo(), render)


def knobs(seed: int = 0, **values) -> Knobs:
    """Knobs of constants or ramps, over a wide range of timesteps and without regularisers."""
    plain = {"t_min": 0.02, "t_max": 0.98, "lambda_opacity": 0.0, **values}
    ramps = {name: x for name, x in plain.items() if isinstance(x, Ramp)}
    written = {
        name: tuple(x) if name == "background" else (x,)
        for name, x in plain.items()
        if name not in ramps
    }
    return KnobValues(**written).traced(seed, 1).replace(**ramps)


def stack(trees):
    """One tree with a leading axis from one tree each."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def optimizer(field: Representation, guidance: Guidance, config: AssetConfig) -> Optimizer:
    """Of an asset under one guidance."""
    return asset.make(field, (asset.random_views(guidance, config),), config)


def run_block(step, k: int, size: int, *, over: Literal["vmap", "map"] = "vmap"):
    """Compile k steps of A assets: `(states, shared, conds, knobs) -> (states, metrics[k, A])`."""

    def block(states, shared, conds, knobs):
        def one(inputs):
            state, cond, knob = inputs
            return step(state, shared, cond, knob, size)

        each = jax.vmap(one) if over == "vmap" else lambda inputs: lax.map(one, inputs)
        return lax.scan(lambda states, _: each((states, conds, knobs)), states, length=k)

    return jax.jit(block, donate_argnums=0)


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


def sampler(steps: int = 6, size: int = 4) -> Model:
    """A model that samples pages of one colour: the prompt's length, drowned in noise at first."""

    def begin(key, cond):
        return jax.random.normal(key, (3,)) + 0.0 * cond

    def advance(params, z, i, cond, knobs):
        wanted = params["scale"] * cond * knobs.model_scale.at(i)
        return z + (wanted - z) / (steps - i)

    def decode(params, z):
        del params
        rgb = jnp.broadcast_to(jax.nn.sigmoid(z), (4, size, size, 3))
        return {"rgb": rgb, "alpha": jnp.ones((4, size, size))}

    return Model(
        field=None,
        representation=pages(4, size),
        params={"scale": jnp.float32(0.1)},
        condition=lambda prompt: jnp.float32(len(prompt.text)),
        begin=begin,
        advance=advance,
        steps=steps,
        decode=decode,
        name="a toy sampler",
        digest="toy",
    )


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
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.recipe import Pictures, Recipe

recipe = Recipe(
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=1, stages=(StageConfig({steps}, 16),)),
    mesh=MeshConfig(resolution=24, faces=200, texture=32),
    pictures=Pictures(size=16, frames=0),
)
"""
