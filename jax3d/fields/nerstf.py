"""A scene in the weights of one network, twice: as a radiance field and as a textured surface.

Shap-E's implicit function (https://arxiv.org/abs/2305.02463, section 4.2): gamma(x) by sinusoids, a
SiLU network, and heads for a NeRF of two passes (a coarse density that places samples, a fine one
with colour) and for an STF (signed distance and texture of a surface). Letters: n points or rays,
b bins of the coarse pass, s samples of the fine one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d.bounds import Count, Range
from jax3d.fields.base import Representation
from jax3d.render import shading, volume
from jax3d.types import Camera, Key, Look, Params, Rays, Render

BOUND = 1.0
"""Half side of the cube that holds the object, metres."""
FREQUENCIES = 15
ENCODED = 3 + 3 * 2 * FREQUENCIES
"""Numbers that the network reads of a point."""
OUTPUTS = 12
SDF, COARSE_DENSITY, DENSITY = 0, 1, 2
TEXTURE, COARSE_RGB, RGB = slice(3, 6), slice(6, 9), slice(9, 12)
"""What the network's outputs are of, before their activations."""
_CUBE = volume.VolumeConfig(shape="box", bound=BOUND)


@dataclasses.dataclass(frozen=True)
class NerstfConfig:
    """Sizes of the network and of the renderer."""

    hidden: Count = 256
    layers: Annotated[int, Range(1, 128)] = 6
    """Hidden layers."""
    coarse: Annotated[int, Range(2, 4096)] = 64
    """Samples along a ray at which the coarse density is asked."""
    samples: Annotated[int, Range(1, 4096)] = 128
    """More of them, placed by it; the fine heads are asked at all."""
    tile: Count = 512
    """Rays at a time, to bound the memory of images and of their gradients."""

    def build(self) -> Representation:
        """The representation."""
        return nerstf(self)


def nerstf(config: NerstfConfig | None = None) -> Representation:
    """Build the representation; its parameters are `{"mlp": [{"w", "b"}, ...]}`.

    Its colours and densities, and so a mesh of them, are the NeRF's; `sdf` and `texture` tell the
    surface that the same parameters hold.
    """
    cfg = config or NerstfConfig()
    rays_cfg = dataclasses.replace(_CUBE, tile=cfg.tile)

    def render(
        params: Params, key: Key | None, camera: Camera, look: Look, size: tuple[int, int]
    ) -> Render:
        rays = cameras.rays(camera, size)

        # Each tile is computed again for its gradient, or all samples were in memory at once.
        @jax.checkpoint
        def shown(rays: Rays, look: Look, u: Float[Array, " n"]) -> dict:
            near, far = volume.near_far(rays, rays_cfg)
            return march(params, rays, near, far, look, draws(u, cfg))

        return volume.tiled(shown, rays, shading.per_ray(look, rays), rays_cfg, key)

    def density(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        return jax.nn.relu(outputs(params, x)[..., DENSITY])

    def color(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        return jax.nn.sigmoid(outputs(params, x)[..., RGB])

    return Representation(
        init=partial(_init, cfg=cfg),
        render=render,
        regularise=lambda params: {},
        bound=BOUND,
        density=density,
        color=color,
    )


def _init(key: Key, cfg: NerstfConfig) -> Params:
    """He-normal weights, the last layer's a tenth of that."""
    widths = (ENCODED, *(cfg.hidden,) * cfg.layers, OUTPUTS)
    keys = jax.random.split(key, len(widths) - 1)
    layers = [
        {"w": jnp.sqrt(2.0 / a) * jax.random.normal(k, (a, b)), "b": jnp.zeros((b,))}
        for k, (a, b) in zip(keys, pairwise(widths), strict=True)
    ]
    layers[-1]["w"] *= 0.1
    return {"mlp": layers}


def encode(x: Float[Array, "*n 3"]) -> Float[Array, "*n e"]:
    """A point, then sin of 2^k x and of 2^k x + pi / 2, k < 15; k is slower than the axes."""
    phase = x[..., None, :] * 2.0 ** jnp.arange(FREQUENCIES)[:, None]
    phase = phase.reshape(*x.shape[:-1], 3 * FREQUENCIES)
    # Not cos: at 2^14 x what rounding does to the sum is what the networks learnt with.
    waves = jnp.sin(jnp.concatenate([phase, phase + jnp.pi / 2], axis=-1))
    return jnp.concatenate([x, waves], axis=-1)


def outputs(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 12"]:
    """The network's outputs at points, before their activations."""
    *layers, last = params["mlp"]
    h = encode(x)
    for layer in layers:
        h = jax.nn.silu(h @ layer["w"] + layer["b"])
    return h @ last["w"] + last["b"]


def sdf(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """The surface's distance, positive inside, through a tanh: in units of the network's own."""
    return jnp.tanh(outputs(params, x)[..., SDF])


def texture(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """The surface's albedo, sRGB in [0, 1]."""
    return jax.nn.sigmoid(outputs(params, x)[..., TEXTURE])


# The two passes of the NeRF.


class Draws(NamedTuple):
    """Numbers in [0, 1) that place the samples of n rays."""

    coarse: Float[Array, "n b"]
    """Where in its bin each sample of the coarse pass lies."""
    chosen: Float[Array, "n s"]
    """Which part of the coarse pass's mass each of the others lies in."""
    inside: Float[Array, "n s"]
    """Where in that bin."""


_GOLDEN = 0.618033988749895


def draws(u: Float[Array, " n"], cfg: NerstfConfig) -> Draws:
    """Even draws that one number a ray shifts, in place of independent ones: less noise."""
    i = jnp.arange(cfg.samples)
    return Draws(
        coarse=jnp.broadcast_to(u[:, None], (len(u), cfg.coarse)),
        chosen=(i + u[:, None]) / cfg.samples,
        inside=(u[:, None] + _GOLDEN * i) % 1.0,  # several in a bin do not coincide
    )


def march(
    params: Params,
    rays: Rays,
    near: Float[Array, " n"],
    far: Float[Array, " n"],
    look: Look,
    draws: Draws,
) -> dict[str, Array | None]:
    """What flat rays see between two depths, as fields of a `Render`; each has its own look."""

    def points(t):
        return rays.origins[:, None] + t[..., None] * rays.directions[:, None]

    def coarse(t):
        return jax.nn.relu(outputs(jax.lax.stop_gradient(params), points(t))[..., COARSE_DENSITY])

    t = place(coarse, near, far, draws)
    raw = outputs(params, points(t)).reshape(-1, OUTPUTS)
    samples = volume.Samples(jax.nn.relu(raw[:, DENSITY]), jax.nn.sigmoid(raw[:, RGB]))
    return volume.composite(samples, _edges(t, near, far), t, rays, look, _CUBE)


def place(
    density: Callable[[Array], Array],
    near: Float[Array, " n"],
    far: Float[Array, " n"],
    draws: Draws,
) -> Float[Array, "n t"]:
    """Ascending samples of rays, those of the coarse pass among them (NeRF, section 5.2).

    `density(t[n, b]) -> sigma[n, b]` is the coarse one, 1/metre.
    """
    even = jnp.linspace(0.0, 1.0, draws.coarse.shape[1])
    bins = _edges(near[:, None] + (far - near)[:, None] * even, near, far)
    first = bins[:, :-1] + draws.coarse * jnp.diff(bins, axis=-1)
    cells = _edges(first, near, far)
    mass = volume.weights(density(first), cells)[0] + _LEAST_MASS
    cdf = jnp.cumsum(mass / jnp.sum(mass, axis=-1, keepdims=True), axis=-1)
    chosen = jax.vmap(jnp.searchsorted)(cdf, draws.chosen)
    chosen = jnp.minimum(chosen, first.shape[1] - 1)
    low = jnp.take_along_axis(cells[:, :-1], chosen, axis=-1)
    high = jnp.take_along_axis(cells[:, 1:], chosen, axis=-1)
    return jnp.sort(jnp.concatenate([first, low + (high - low) * draws.inside], axis=-1), axis=-1)


_LEAST_MASS = 1e-5
"""Of each cell of the coarse pass, so that none is surely left out."""


def _edges(
    t: Float[Array, "n k"], near: Float[Array, " n"], far: Float[Array, " n"]
) -> Float[Array, "n e"]:
    """The edges of the cells around ascending samples: half-way between them, and the ends."""
    return jnp.concatenate([near[:, None], (t[:, 1:] + t[:, :-1]) / 2, far[:, None]], axis=-1)
