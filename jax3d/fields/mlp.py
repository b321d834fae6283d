"""A scene in the weights of one network: the NeRF of DreamFusion.

gamma(x) by positional encoding (NeRF, eq. 4), a ReLU network with residual layers to density and
albedo, normals by the gradient of the density. Slower and smoother than a triplane; it has no
grid, so no total variation. Letters: n points.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import interp
from jax3d.bounds import Count, Natural, NonNegative, Positive, Range
from jax3d.fields.base import Representation
from jax3d.math import normalize
from jax3d.render import volume
from jax3d.types import Camera, Key, Look, Params, Render


@dataclass(frozen=True)
class MlpConfig:
    """Sizes and code paths of the network."""

    frequencies: Annotated[int, Range(0, 32)] = 5
    hidden: Count = 64
    blocks: Natural = 2
    """Residual layers after the first."""
    bound: Positive = 1.0
    """Radius of the ball rendered, metres."""
    blob_density: NonNegative = 10.0
    """Bias `blob_density * (1 - |x| / blob_radius)` of the raw density."""
    blob_radius: Positive = 0.5
    normals: Literal["none", "analytic"] = "none"
    coarse: Natural = 32
    samples: Count = 32
    tile: Count = 4096

    def build(self) -> Representation:
        """The representation."""
        return mlp(self)


def mlp(config: MlpConfig | None = None) -> Representation:
    """Build the representation."""
    cfg = config or MlpConfig()
    rays_cfg = volume.VolumeConfig(
        bound=cfg.bound, coarse=cfg.coarse, samples=cfg.samples, tile=cfg.tile
    )

    def field(params: Params, x: Float[Array, "n 3"]) -> volume.Samples:
        raw = _raw(params, x, cfg)
        normal = None
        if cfg.normals == "analytic":
            slope = jax.grad(lambda x: jnp.sum(jax.nn.softplus(_raw(params, x, cfg)[:, 0])))(x)
            normal = normalize(-slope)
        return volume.Samples(jax.nn.softplus(raw[:, 0]), jax.nn.sigmoid(raw[:, 1:4]), normal)

    def render(
        params: Params, key: Key | None, camera: Camera, look: Look, size: tuple[int, int]
    ) -> Render:
        rays = cameras.rays(camera, size)
        return volume.render_reference(field, params, rays, look, rays_cfg, key)

    def density(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        return jax.nn.softplus(_raw(params, x.reshape(-1, 3), cfg)[:, 0]).reshape(x.shape[:-1])

    def color(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        return jax.nn.sigmoid(_raw(params, x.reshape(-1, 3), cfg)[:, 1:4]).reshape(x.shape)

    return Representation(
        init=lambda key: _init(key, cfg),
        render=render,
        regularise=lambda params: {},
        bound=cfg.bound,
        density=density,
        color=color,
    )


def _init(key: Key, cfg: MlpConfig) -> Params:
    """He-normal weights; a last layer near zero, so that the first shape is the blob alone."""
    keys = jax.random.split(key, cfg.blocks + 2)

    def layer(key, a, b, scale=1.0):
        w = scale * jnp.sqrt(2.0 / a) * jax.random.normal(key, (a, b))
        return {"w": w, "b": jnp.zeros((b,))}

    return {
        "first": layer(keys[0], 3 * (1 + 2 * cfg.frequencies), cfg.hidden),
        "blocks": [layer(k, cfg.hidden, cfg.hidden) for k in keys[2:]],
        "last": layer(keys[1], cfg.hidden, 4, scale=0.1),
    }


def _raw(params: Params, x: Float[Array, "n 3"], cfg: MlpConfig) -> Float[Array, "n 4"]:
    """The network's outputs; column 0 carries the blob."""
    h = interp.positional_encoding(x / cfg.bound, cfg.frequencies)
    h = jax.nn.relu(h @ params["first"]["w"] + params["first"]["b"])
    for layer in params["blocks"]:
        h = h + jax.nn.relu(h @ layer["w"] + layer["b"])
    raw = h @ params["last"]["w"] + params["last"]["b"]
    # The small constant makes the cone's tip smooth.
    distance = jnp.sqrt(jnp.sum(x * x, axis=-1) + 1e-6)
    return raw.at[:, 0].add(cfg.blob_density * (1 - distance / cfg.blob_radius))
