"""A triplane: three feature planes and a small network to density and albedo.

phi(x) = [P_xy(x), P_xz(x), P_yz(x)] by bilinear lookup (EG3D, section 4), then a ReLU network to
(density, albedo[, normal]). Each plane is the sum of a pyramid of resolutions, all upsampled to
the finest before rendering: the function is that of a single plane, but large shapes move as one
parameter, which steadies and speeds up Adam. Letters: n points, r plane resolution, c channels.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import interp
from jax3d.fields.base import Representation, no_adapt
from jax3d.math import normalize
from jax3d.render import volume
from jax3d.types import Camera, Key, Look, Params, Render

Normals = Literal["none", "predicted", "finite-difference", "analytic"]


@dataclass(frozen=True)
class TriplaneConfig:
    """Sizes and code paths of a triplane."""

    resolution: int = 64
    channels: int = 16
    """Of each plane; the three are concatenated."""
    levels: int = 3
    """Of the pyramid: resolution, resolution / 2, ..."""
    hidden: int = 32
    layers: int = 2
    """Hidden layers of the network."""
    bound: float = 1.0
    """Half side of the cube that the planes span and radius of the ball rendered, metres."""
    blob_density: float = 10.0
    """Bias `blob_density * (1 - |x| / blob_radius)` of the raw density: training starts from a
    ball (threestudio)."""
    blob_radius: float = 0.5
    normals: Normals = "none"
    """Where normals come from; lit looks need some. `predicted` is an extra head, free and not
    tied to the density; `finite-difference` costs three densities, `analytic` a gradient."""
    coarse: int = 32
    samples: int = 32
    tile: int = 16384
    learned_background: bool = False
    """A small network of the ray's direction replaces the look's background."""


def triplane(config: TriplaneConfig | None = None) -> Representation:
    """Build the representation."""
    cfg = config or TriplaneConfig()
    rays_cfg = volume.VolumeConfig(
        bound=cfg.bound, coarse=cfg.coarse, samples=cfg.samples, tile=cfg.tile
    )

    def render(
        params: Params, key: Key | None, camera: Camera, look: Look, size: tuple[int, int]
    ) -> Render:
        rays = cameras.rays(camera, size)
        backdrop = None
        if cfg.learned_background:
            backdrop = jax.nn.sigmoid(_mlp(params["background"], rays.directions))
        field = lambda p, x: _field(p, x, cfg)  # noqa: E731
        composed = _compose(params)
        return volume.render_reference(
            field, composed, rays, look, rays_cfg, key, backdrop=backdrop
        )

    def density(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        sigma = _sigma(_compose(params), x.reshape(-1, 3), cfg)
        return sigma.reshape(x.shape[:-1])

    def color(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        raw = _raw(_compose(params), x.reshape(-1, 3), cfg)
        return jax.nn.sigmoid(raw[:, 1:4]).reshape(x.shape)

    def tv(params: Params) -> Float[Array, ""]:
        """Mean squared difference of neighbouring texels."""
        planes = _compose(params)["planes"]
        return jnp.mean(jnp.diff(planes, axis=1) ** 2) + jnp.mean(jnp.diff(planes, axis=2) ** 2)

    return Representation(
        init=lambda key: _init(key, cfg),
        render=render,
        density=density,
        color=color,
        adapt=no_adapt,
        tv=tv,
        bound=cfg.bound,
    )


def _init(key: Key, cfg: TriplaneConfig) -> Params:
    """Small random planes; a last layer near zero, so that the first shape is the blob alone."""
    keys = jax.random.split(key, 3)
    pyramid = []
    for level in range(cfg.levels):
        shape = (3, cfg.resolution >> level, cfg.resolution >> level, cfg.channels)
        pyramid.append(0.1 * jax.random.normal(jax.random.fold_in(keys[0], level), shape))
    outputs = 7 if cfg.normals == "predicted" else 4
    widths = (3 * cfg.channels, *(cfg.hidden,) * cfg.layers, outputs)
    params = {"planes": pyramid, "mlp": _init_mlp(keys[1], widths, last=0.1)}
    if cfg.learned_background:
        params["background"] = _init_mlp(keys[2], (3, 16, 3), last=0.1)
    return params


def _init_mlp(key: Key, widths: tuple[int, ...], last: float) -> list[dict]:
    """He-normal weights, the last layer scaled by `last`; zero biases."""
    layers = []
    for i, (a, b) in enumerate(pairwise(widths)):
        scale = jnp.sqrt(2.0 / a) * (last if i == len(widths) - 2 else 1.0)
        w = scale * jax.random.normal(jax.random.fold_in(key, i), (a, b))
        layers.append({"w": w, "b": jnp.zeros((b,))})
    return layers


def _mlp(layers: list[dict], h: Float[Array, "*n a"]) -> Float[Array, "*n b"]:
    for layer in layers[:-1]:
        h = jax.nn.relu(h @ layer["w"] + layer["b"])
    return h @ layers[-1]["w"] + layers[-1]["b"]


def _compose(params: Params) -> Params:
    """Sum the pyramid into planes `[3, r, r, c]`."""
    finest = params["planes"][0]
    planes = sum(
        (jax.image.resize(level, finest.shape, "linear") for level in params["planes"][1:]), finest
    )
    return {**params, "planes": planes}


def _raw(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, "n o"]:
    """The network's outputs; column 0 carries the blob."""
    unit = x / (2 * cfg.bound) + 0.5
    features = interp.triplane(p["planes"], unit)
    raw = _mlp(p["mlp"], features.reshape(len(x), -1))
    return raw.at[:, 0].add(_blob(x, cfg))


def _blob(x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, " n"]:
    # The small constant makes the cone's tip smooth.
    distance = jnp.sqrt(jnp.sum(x * x, axis=-1) + 1e-6)
    return cfg.blob_density * (1 - distance / cfg.blob_radius)


def _sigma(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, " n"]:
    return jax.nn.softplus(_raw(p, x, cfg)[:, 0])


def _field(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> volume.Samples:
    raw = _raw(p, x, cfg)
    sigma, rgb = jax.nn.softplus(raw[:, 0]), jax.nn.sigmoid(raw[:, 1:4])
    match cfg.normals:
        case "none":
            normal = None
        case "predicted":
            normal = normalize(raw[:, 4:7])
        case "finite-difference":
            step = 0.5 * cfg.bound / cfg.resolution
            shifted = x[None] + step * jnp.eye(3)[:, None]
            ahead = _sigma(p, shifted.reshape(-1, 3), cfg).reshape(3, -1)
            normal = normalize((sigma - ahead).T)
        case "analytic":
            slope = jax.grad(lambda x: jnp.sum(_sigma(p, x, cfg)))(x)
            normal = normalize(-slope)
    return volume.Samples(sigma, rgb, normal)
