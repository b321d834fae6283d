"""A triplane: three feature planes and a small network to density and albedo.

phi(x) = [P_xy(x), P_xz(x), P_yz(x)] by bilinear lookup (EG3D, section 4), then a small network to
(density, albedo[, normal]). Each plane is the sum of a pyramid of resolutions, all upsampled to
the finest before rendering: the function is that of a single plane, but large shapes move as one
parameter, which steadies and speeds up Adam. The activations are those of the networks that make
triplanes from pictures (`models.lrm`), so that what they made is refined as what it is.

Two renderers, one result: `_field` is the formula, `_split` the same for `volume.render`, where
the first layer may be folded into the planes (`planes`). Letters: n points, m samples, r plane
resolution, c channels, g lattice points per axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import interp
from jax3d.bounds import Count, Finite, Natural, NonNegative, Positive, Range, Share
from jax3d.fields import planes
from jax3d.fields.base import Representation
from jax3d.math import laplace_density, normalize
from jax3d.render import sparse, volume
from jax3d.render.sparse import Plan
from jax3d.types import Camera, Key, Look, Params, Render

Normals = Literal["none", "predicted", "finite-difference", "analytic"]


@dataclass(frozen=True)
class TriplaneConfig:
    """Sizes and code paths of a triplane."""

    resolution: Annotated[int, Range(2, 4096)] = 64
    channels: Count = 16
    """Of each plane; the three are concatenated."""
    levels: Annotated[int, Range(1, 12)] = 3
    """Of the pyramid: resolution, resolution / 2, ..."""
    hidden: Count = 32
    layers: Count = 2
    """Hidden layers of the network."""
    activation: Literal["relu", "silu"] = "relu"
    """Of the hidden layers."""
    density_activation: Literal["softplus", "exp", "laplace"] = "softplus"
    """`laplace` reads the raw number as the distance to a surface, metres, positive inside
    (`math.laplace_density`)."""
    beta: Positive = 0.01
    """Width of that surface in the density, metres."""
    density_bias: Finite = 0.0
    """Added to the raw density."""
    rgb_padding: Annotated[float, Range(0, 0.5)] = 0.0
    """By how much the sigmoid of colours goes beyond [0, 1] before it is cut there
    (mip-NeRF), so that black and white are within reach."""
    bound: Positive = 1.0
    """Half side of the cube, or radius of the ball, that is rendered, metres."""
    shape: Literal["sphere", "box"] = "sphere"
    """Whether that is a ball or a cube."""
    span: Positive | None = None
    """Half side of the cube that the planes span, metres; None: `bound`."""
    blob_density: NonNegative = 10.0
    """Bias `blob_density * (1 - |x| / blob_radius)` of the raw density: training starts from a
    ball (threestudio)."""
    blob_radius: Positive = 0.5
    normals: Normals = "none"
    """Where normals come from; lit looks need some. `predicted` is an extra head, free and not
    tied to the density; `finite-difference` costs three densities, `analytic` a gradient."""
    coarse: Natural = 0
    """Bins of the histogram that places the samples; 0 places them evenly."""
    samples: Count = 64
    """Along each ray."""
    lattice: Natural = 32
    """Points per axis at which the density is looked up before each render to skip empty and
    hidden samples; 0 skips nothing."""
    cull: Share = 3e-4
    """Samples of less opacity than this, or seen by less of their ray, are skipped; smaller is
    slower and more exact."""
    tile: Count = 16384
    """Rays at a time, to bound the memory of large images."""
    plan: Plan | None = None
    """Code path of the renderer; `None` takes that of the backend."""
    reference: bool = False
    """Render by plain autodiff instead, with every sample in memory."""
    learned_background: bool = False
    """A small network of the ray's direction is what the critic sees behind the object; finished
    assets are shown without it."""

    def build(self) -> Representation:
        """The representation."""
        return triplane(self)

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        if self.resolution >> (self.levels - 1) < 1:
            return f"levels is {self.levels}; {self.resolution} texels cannot be halved so often"
        if self.span is not None and self.span < self.bound:
            return f"span is {self.span}; the planes end within the bound, {self.bound}"
        if self.lattice == 1:
            return "lattice is 1; expected 0 (none) or a whole number from 2 on"
        return None


def triplane(config: TriplaneConfig | None = None) -> Representation:
    """Build the representation."""
    cfg = config or TriplaneConfig()

    def render(
        params: Params, key: Key | None, camera: Camera, look: Look, size: tuple[int, int]
    ) -> Render:
        rays = cameras.rays(camera, size)
        background = None
        if cfg.learned_background:
            hidden = perceptron(params["background"], rays.directions, jax.nn.relu)
            background = jax.nn.sigmoid(hidden)
        composed = _compose(params)
        plan = cfg.plan or sparse.plan()
        rays_cfg = volume.VolumeConfig(
            shape=cfg.shape,
            bound=cfg.bound,
            coarse=cfg.coarse,
            samples=cfg.samples,
            tile=cfg.tile,
            cull=cfg.cull,
            chunk=plan.chunk,
        )
        if cfg.reference:
            field = partial(_field, cfg=cfg)
            shown = volume.render_reference(field, composed, rays, look, rays_cfg, key)
        else:
            lattice = density_lattice(params, cfg) if cfg.lattice else None
            split, split_params = _split(composed, cfg, plan)
            shown = volume.render(split, split_params, rays, look, rays_cfg, key, lattice)
        return shown.replace(background=background)

    def density(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        sigma = _sigma(_compose(params), x.reshape(-1, 3), cfg)
        return sigma.reshape(x.shape[:-1])

    def color(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        raw = _raw(_compose(params), x.reshape(-1, 3), cfg)
        return _rgb(raw, cfg).reshape(x.shape)

    def regularise(params: Params) -> dict[str, Float[Array, ""]]:
        """The total variation: mean squared difference of neighbouring texels."""
        texels = _compose(params)["planes"]
        across = jnp.mean(jnp.diff(texels, axis=1) ** 2)
        return {"tv": across + jnp.mean(jnp.diff(texels, axis=2) ** 2)}

    return Representation(
        init=lambda key: _init(key, cfg),
        render=render,
        regularise=regularise,
        bound=cfg.bound,
        density=density,
        color=color,
    )


def _init(key: Key, cfg: TriplaneConfig) -> Params:
    """Small random planes; a last layer near zero, so that the first shape is the blob alone."""
    planes_key, mlp_key, background_key = jax.random.split(key, 3)
    pyramid = []
    for level in range(cfg.levels):
        shape = (3, cfg.resolution >> level, cfg.resolution >> level, cfg.channels)
        pyramid.append(0.1 * jax.random.normal(jax.random.fold_in(planes_key, level), shape))
    outputs = 7 if cfg.normals == "predicted" else 4
    widths = (3 * cfg.channels, *(cfg.hidden,) * cfg.layers, outputs)
    params = {"planes": pyramid, "mlp": _init_mlp(mlp_key, widths, last=0.1)}
    if cfg.learned_background:
        params["background"] = _init_mlp(background_key, (3, 16, 3), last=0.1)
    return params


def _init_mlp(key: Key, widths: tuple[int, ...], last: float) -> list[dict]:
    """He-normal weights, the last layer scaled by `last`; zero biases."""
    layers = []
    for i, (a, b) in enumerate(pairwise(widths)):
        scale = jnp.sqrt(2.0 / a) * (last if i == len(widths) - 2 else 1.0)
        w = scale * jax.random.normal(jax.random.fold_in(key, i), (a, b))
        layers.append({"w": w, "b": jnp.zeros((b,))})
    return layers


_ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}


def perceptron(
    layers: list[dict], h: Float[Array, "*n a"], activation: Callable
) -> Float[Array, "*n b"]:
    """A network `[{"w", "b"}, ...]` with an activation after all layers but the last."""
    for layer in layers[:-1]:
        h = activation(h @ layer["w"] + layer["b"])
    return h @ layers[-1]["w"] + layers[-1]["b"]


def _compose(params: Params) -> Params:
    """Sum the pyramid into planes `[3, r, r, c]`."""
    finest, *coarser = params["planes"]
    total = sum((jax.image.resize(level, finest.shape, "linear") for level in coarser), finest)
    return {**params, "planes": total}


def features(params: Params, x: Float[Array, "*n 3"], cfg: TriplaneConfig) -> Float[Array, "*n f"]:
    """What an asset's network reads of points: the features of its planes, one after another."""
    read = interp.triplane(_compose(params)["planes"], _unit(x.reshape(-1, 3), cfg))
    return read.reshape(*x.shape[:-1], -1)


def outputs(params: Params, x: Float[Array, "*n 3"], cfg: TriplaneConfig) -> Float[Array, "*n o"]:
    """The network's outputs at points, before their activations, blob and bias included."""
    raw = _raw(_compose(params), x.reshape(-1, 3), cfg)
    return raw.reshape(*x.shape[:-1], -1)


def _raw(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, "n o"]:
    """The network's outputs; column 0 carries the blob and the bias."""
    read = interp.triplane(p["planes"], _unit(x, cfg)).reshape(len(x), -1)
    raw = perceptron(p["mlp"], read, _ACTIVATIONS[cfg.activation])
    return raw.at[:, 0].add(_offset(x, cfg))


def _span(cfg: TriplaneConfig) -> float:
    return cfg.bound if cfg.span is None else cfg.span


def _unit(x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, "n 3"]:
    return x / (2 * _span(cfg)) + 0.5


def _offset(x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, " n"]:
    """What is added to the raw density: the blob and the bias."""
    # The small constant makes the cone's tip smooth.
    distance = jnp.sqrt(jnp.sum(x * x, axis=-1) + 1e-6)
    return cfg.blob_density * (1 - distance / cfg.blob_radius) + cfg.density_bias


_MOST_EXPONENT = 15.0
"""A density of e^15 per metre is opaque within a micrometre; more would end in infinity."""


def _density(raw: Float[Array, "*n"], cfg: TriplaneConfig) -> Float[Array, "*n"]:
    """Density, 1/metre, of the network's number with `_offset` in it."""
    match cfg.density_activation:
        case "softplus":
            return jax.nn.softplus(raw)
        case "exp":
            return jnp.exp(jnp.minimum(raw, _MOST_EXPONENT))
        case "laplace":
            return laplace_density(-raw, cfg.beta)


def _rgb(raw: Float[Array, "n o"], cfg: TriplaneConfig) -> Float[Array, "n 3"]:
    """Albedo in [0, 1] of the network's outputs."""
    rgb = jax.nn.sigmoid(raw[:, 1:4])
    if not cfg.rgb_padding:
        return rgb
    return jnp.clip(rgb * (1 + 2 * cfg.rgb_padding) - cfg.rgb_padding, 0.0, 1.0)


def _sigma(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> Float[Array, " n"]:
    return _density(_raw(p, x, cfg)[:, 0], cfg)


def _step(cfg: TriplaneConfig) -> float:
    """Shift of finite differences: a quarter of a texel, metres."""
    return 0.5 * _span(cfg) / cfg.resolution


def _field(p: Params, x: Float[Array, "n 3"], cfg: TriplaneConfig) -> volume.Samples:
    raw = _raw(p, x, cfg)
    sigma, rgb = _density(raw[:, 0], cfg), _rgb(raw, cfg)
    match cfg.normals:
        case "none":
            normal = None
        case "predicted":
            normal = normalize(raw[:, 4:7])
        case "finite-difference":
            shifted = x[None] + _step(cfg) * jnp.eye(3)[:, None]
            ahead = _sigma(p, shifted.reshape(-1, 3), cfg).reshape(3, -1)
            normal = normalize((sigma - ahead).T)
        case "analytic":
            slope = jax.grad(lambda x: jnp.sum(_sigma(p, x, cfg)))(x)
            normal = normalize(-slope)
    return volume.Samples(sigma, rgb, normal)


def _split(p: Params, cfg: TriplaneConfig, plan: Plan) -> tuple[sparse.Split, Params]:
    """`_field` in the form of `volume.render`, and its parameters."""
    join = "sum" if plan.fold else "concat"
    slopes = {"analytic": "exact", "finite-difference": "shifted"}.get(cfg.normals, "none")
    table = planes.fold(p["planes"], p["mlp"][0]["w"]) if plan.fold else p["planes"]
    if plan.dtype is not None:
        table = table.astype(plan.dtype)
    reading = {"join": join, "slopes": slopes, "step": _step(cfg) / (2 * _span(cfg))}
    split = sparse.Split(
        gather=lambda table, x: planes.gather(table, _unit(x, cfg), **reading),
        scatter=lambda table, x, dh: planes.scatter(table, _unit(x, cfg), dh, **reading),
        head=partial(_head, cfg=cfg, fold=plan.fold),
    )
    return split, (table, p["mlp"])


def _head(
    mlp: Params, h: Float[Array, "m q d"], x: Float[Array, "m 3"], cfg: TriplaneConfig, fold: bool
) -> volume.Samples:
    """From lookups to samples; `fold` says that the first layer's product is in them."""

    def network(h, x):
        first = h if fold else h @ mlp[0]["w"]
        h = activation(first + mlp[0]["b"])
        return perceptron(mlp[1:], h, activation).at[:, 0].add(_offset(x, cfg))

    activation = _ACTIVATIONS[cfg.activation]
    raw = network(h[:, 0], x)
    sigma, rgb = _density(raw[:, 0], cfg), _rgb(raw, cfg)
    axes = jnp.eye(3, dtype=x.dtype)
    match cfg.normals:
        case "none":
            normal = None
        case "predicted":
            normal = normalize(raw[:, 4:7])
        case "finite-difference":
            ahead = [network(h[:, 1 + a], x + _step(cfg) * axes[a])[:, 0] for a in range(3)]
            normal = normalize(sigma[:, None] - _density(jnp.stack(ahead, axis=-1), cfg))
        case "analytic":
            scale = 1 / (2 * _span(cfg))
            slope = [
                jax.jvp(
                    lambda h, x: _density(network(h, x)[:, 0], cfg),
                    (h[:, 0], x),
                    (scale * h[:, 1 + a], jnp.broadcast_to(axes[a], x.shape)),
                )[1]
                for a in range(3)
            ]
            normal = normalize(-jnp.stack(slope, axis=-1))
    return volume.Samples(sigma, rgb, normal)


def density_lattice(params: Params, cfg: TriplaneConfig) -> Float[Array, "g g g"]:
    """Densities at evenly spaced points, corner to corner, slice by slice.

    On a lattice the planes' parts are shared by whole rows of points, so a density costs one
    pass of the network's later layers and no lookup. Not differentiated.
    """
    g, p = cfg.lattice, _compose(jax.lax.stop_gradient(params))
    table = planes.fold(p["planes"], p["mlp"][0]["w"])
    at = jnp.linspace(-cfg.bound, cfg.bound, g)
    low, way = interp.corners(at / (2 * _span(cfg)) + 0.5, cfg.resolution)
    for axis in (1, 2):
        way = way.reshape(-1, *(1,) * (3 - axis))
        table = (1 - way) * table.take(low, axis) + way * table.take(low + 1, axis)
    xy, xz, yz = table
    grid = jnp.stack(jnp.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2)
    activation = _ACTIVATIONS[cfg.activation]
    last = [{"w": p["mlp"][-1]["w"][:, :1], "b": p["mlp"][-1]["b"][:1]}]

    def layer(inputs):
        x, xy, xz = inputs
        h = activation((xy[:, None] + xz[None] + yz + p["mlp"][0]["b"]).reshape(g * g, -1))
        raw = perceptron([*p["mlp"][1:-1], *last], h, activation)[:, 0]
        points = jnp.concatenate([jnp.full((g * g, 1), x), grid], axis=-1)
        return _density(raw + _offset(points, cfg), cfg).reshape(g, g)

    return jax.lax.map(layer, (at, xy, xz))
