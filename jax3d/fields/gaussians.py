"""3D Gaussians: as many as there is room for, of which some are alive.

Its parameters are a dictionary of arrays over the n places: `means` (metres), `quats` (w, x, y, z),
`scales` (logarithms of metres), `opacities` (logits), `sh0` and, above degree 0, `shN` (spherical
harmonics of the colour less 1/2). Where nobody is, the opacity's logit is `DEAD`: such a place is
not shown, has no gradient, and is found again when parameters are loaded.

As a field, a Gaussian of opacity o has the density A exp(-q / 2), with q of its covariance plus
thickness^2 I and A = -ln(1 - o) / (sqrt(2 pi) s), s the least standard deviation of that: a ray
along the shortest axis, face on to a flat Gaussian, then has the opacity that the splat has. The
cut is the splat's: where o exp(-q / 2) is below 1/255 there is nothing.

Letters: v views, n places, m points.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import KDTree

from jax3d.bounds import Count, NonNegative, Positive, Range
from jax3d.fields import densify
from jax3d.fields.base import Representation
from jax3d.fields.densify import DEAD, Classical, Mcmc
from jax3d.render import ewa, shading, splat
from jax3d.render.mixture import Kernels, mixture
from jax3d.render.raster import sample_texture
from jax3d.render.splat import SplatConfig
from jax3d.types import Camera, Gaussians, Key, Look, Mesh, Params, Render


@dataclass(frozen=True)
class GaussiansConfig:
    """Sizes and code paths of Gaussians."""

    capacity: Count = 4096
    """Places: the most Gaussians that there can be."""
    start: Count = 2048
    """Gaussians of a fresh asset."""
    degree: Annotated[int, Range(0, 3)] = 0
    """Of the spherical harmonics: 0 is one colour from everywhere."""
    bound: Positive = 1.0
    """Half side of the cube around the origin that is meshed, metres."""
    radius: Positive = 0.5
    """Of the ball that a fresh asset fills, metres."""
    opacity: Annotated[float, Range(above=0, below=1)] = 0.1
    """Of fresh Gaussians."""
    normals: bool = False
    """Give normals, the shortest axes; lit looks need some."""
    thickness: NonNegative = 0.01
    """Added to Gaussians where their density is asked for, metres: a mesh's grid then sees flat
    ones."""
    densify: Mcmc | Classical | None = field(default_factory=Mcmc)
    """How Gaussians come and go; None: the first ones stay."""
    rate_means: tuple[NonNegative, NonNegative] = (0.01, 0.0002)
    """Learning rate of the centres at the start and at the end of the run, exponential in between
    (DreamGaussian)."""
    rate_scales: NonNegative = 0.005
    rate_quats: NonNegative = 0.005
    rate_opacities: NonNegative = 0.05
    rate_sh: NonNegative = 0.01
    """Of the constant harmonic; the others have a twentieth."""
    splat: SplatConfig = field(default_factory=SplatConfig)

    def build(self) -> Representation:
        """The representation."""
        return gaussians(self)

    def wider(self) -> "GaussiansConfig":
        """The same with twice the room in pictures, for when `Render.overflow` is not 0."""
        hits = 2 * splat.room(self.splat, self.capacity)
        return replace(self, splat=replace(self.splat, hits=hits))

    def mistake(self) -> str | None:
        """What does not fit together, for `bounds.check`."""
        if self.start > self.capacity:
            return f"start is {self.start}; there are {self.capacity} places (capacity)"
        if 0 in self.rate_means and any(self.rate_means):
            return f"rate_means is {self.rate_means}; an exponential has no end of 0"
        return None


def gaussians(config: GaussiansConfig | None = None) -> Representation:
    """Build the representation."""
    cfg = config or GaussiansConfig()
    change = {} if cfg.densify is None else _changing(cfg.densify)
    return Representation(
        init=partial(_init, cfg=cfg),
        render=partial(_render, cfg=cfg),
        regularise=_regularise,
        bound=cfg.bound,
        density=lambda params, x: _field(params, x, cfg)[0],
        color=lambda params, x: _field(params, x, cfg)[1],
        rates=partial(_rates, cfg=cfg),
        **change,
    )


def _changing(config: Mcmc | Classical) -> dict[str, Any]:
    """The functions of a densification."""
    act = densify.mcmc if isinstance(config, Mcmc) else densify.classical
    return {
        "memory": partial(densify.start, config=config),
        "adapt": partial(act, config=config),
    }


def scene(params: Params) -> Gaussians:
    """The true values of all places; those without a Gaussian have an opacity of about 0."""
    return Gaussians(
        means=params["means"],
        quats=params["quats"],
        scales=jnp.exp(params["scales"]),
        opacities=jax.nn.sigmoid(params["opacities"]),
        sh=jnp.concatenate([params[name] for name in ("sh0", "shN") if name in params], axis=-2),
    )


def alive(params: Params) -> Gaussians:
    """The true values of those that are there, on the host."""
    there = np.asarray(densify.there(params))
    return jax.tree.map(lambda x: np.asarray(x)[there], scene(params))


def from_gaussians(known: Gaussians, config: GaussiansConfig, key: Key) -> Params:
    """Parameters that hold given Gaussians, on the host; random ones where there are too many.

    Coefficients of higher degrees than the config's are left out, lacking ones are 0.
    """
    known = jax.tree.map(lambda x: np.asarray(x, np.float32), known)
    count = len(known.means)
    if count > config.capacity:
        kept = np.sort(np.asarray(jax.random.permutation(key, count))[: config.capacity])
        known = jax.tree.map(lambda x: x[kept], known)
    missing = max(config.capacity - count, 0)
    coefficients = (config.degree + 1) ** 2
    sh = known.sh[:, :coefficients]
    sh = np.pad(sh, [(0, missing), (0, coefficients - sh.shape[1]), (0, 0)])
    odds = np.clip(known.opacities, 1e-6, 1 - 1e-6)
    params = {
        "means": np.pad(known.means, [(0, missing), (0, 0)]),
        "quats": np.pad(known.quats, [(0, missing), (0, 0)], constant_values=1.0),
        "scales": np.pad(np.log(np.maximum(known.scales, 1e-7)), [(0, missing), (0, 0)]),
        "opacities": np.pad(np.log(odds / (1 - odds)), (0, missing), constant_values=DEAD),
        "sh0": sh[:, :1],
    }
    if config.degree:
        params["shN"] = sh[:, 1:]
    if isinstance(config.densify, Classical):
        params["screen"] = np.zeros((config.capacity, 2), np.float32)
    return jax.tree.map(jnp.asarray, params)


def from_points(
    points: Float[Any, "n 3"], colors: Float[Any, "n 3"], config: GaussiansConfig, key: Key
) -> Params:
    """Parameters that start from a point cloud: metres in world space, sRGB in [0, 1].

    Each Gaussian is round and as wide as its three nearest neighbours are far (INRIA's start).

    Raises:
      ValueError: There are fewer than two points, or one is not finite.
    """
    points = np.asarray(points, np.float32)
    if len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points: Gaussians start from two or more, all finite")
    # Of each point the nearest is the point itself.
    distance, _ = KDTree(points).query(points, k=min(4, len(points)))
    width = np.sqrt(np.maximum(np.mean(distance[:, 1:] ** 2, axis=1), 1e-7))
    known = Gaussians(
        means=points,
        quats=np.broadcast_to(np.float32([1, 0, 0, 0]), (len(points), 4)),
        scales=np.repeat(width[:, None], 3, axis=1),
        opacities=np.full(len(points), config.opacity),
        sh=((np.asarray(colors) - 0.5) / ewa.SH0)[:, None],
    )
    return from_gaussians(known, config, key)


def from_mesh(mesh: Mesh, config: GaussiansConfig, key: Key) -> Params:
    """Parameters that start from `config.start` points of a mesh's surface, in its colours.

    Raises:
      ValueError: The mesh has no area.
    """
    corners = np.asarray(mesh.vertices, np.float32)[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    if not area.sum() > 0:
        raise ValueError(f"the mesh has {len(area)} faces and no area: there is no surface")
    face_key, place_key, keep_key = jax.random.split(key, 3)
    shares = jnp.asarray(area / area.sum())
    face = np.asarray(jax.random.choice(face_key, len(area), (config.start,), p=shares))
    u, w = np.asarray(jax.random.uniform(place_key, (2, config.start)))
    # The root spreads points evenly over a triangle.
    weight = np.stack([1 - np.sqrt(u), np.sqrt(u) * (1 - w), np.sqrt(u) * w], axis=-1)

    def mix(values):
        return np.einsum("nk,nkc->nc", weight, np.asarray(values)[mesh.faces[face]])

    colors = np.ones_like(weight)
    if mesh.texture is not None:
        colors = sample_texture(mesh.texture, mix(mesh.uvs))
    elif mesh.colors is not None:
        colors = mix(mesh.colors)
    return from_points(mix(mesh.vertices), colors, config, keep_key)


def _init(key: Key, cfg: GaussiansConfig) -> Params:
    """A ball of round grey Gaussians."""
    place_key, color_key = jax.random.split(key)
    n, k = cfg.capacity, (cfg.degree + 1) ** 2
    # The mean distance to three neighbours in a ball of evenly spread points.
    width = 1.16 * cfg.radius * cfg.start ** (-1 / 3)
    logit = math.log(cfg.opacity / (1 - cfg.opacity))
    params = {
        "means": cfg.radius * jax.random.ball(place_key, 3, shape=(n,)),
        "quats": jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0]), (n, 4)),
        "scales": jnp.full((n, 3), math.log(width)),
        "opacities": jnp.where(jnp.arange(n) < cfg.start, logit, DEAD),
        "sh0": 0.1 * jax.random.normal(color_key, (n, 1, 3)),
    }
    if k > 1:
        params["shN"] = jnp.zeros((n, k - 1, 3))
    if isinstance(cfg.densify, Classical):
        params["screen"] = jnp.zeros((n, 2))
    return params


def _rates(progress, cfg: GaussiansConfig) -> dict[str, Any]:
    """The learning rates at a share of the run."""
    first, last = cfg.rate_means
    rates = {
        "means": first * (last / first) ** progress if first else 0.0,
        "scales": cfg.rate_scales,
        "quats": cfg.rate_quats,
        "opacities": cfg.rate_opacities,
        "sh0": cfg.rate_sh,
    }
    if cfg.degree:
        rates["shN"] = cfg.rate_sh / 20
    if isinstance(cfg.densify, Classical):
        rates["screen"] = 0.0  # a tap for gradients, that is all
    return rates


def _render(
    params: Params,
    key: Key | None,
    camera: Camera,
    look: Look,
    size: tuple[int, int],
    cfg: GaussiansConfig,
) -> Render:
    del key
    view = ewa.view_of(camera, size)
    prints = splat.footprints(scene(params), view, size, cfg.splat)
    if "screen" in params:
        measured = densify.measured(prints.means2d, prints.shown, params["screen"], size)
        prints = prints._replace(means2d=measured)
    rgb = jnp.minimum(prints.rgb, 1.0)
    if cfg.normals:
        rgb = shading.shade(rgb, prints.normals, shading.per_view(look, len(rgb)))
    channels = [rgb, prints.depths[..., None], *([prints.normals] if cfg.normals else [])]
    values, alpha, overflow = splat.blend(prints, jnp.concatenate(channels, -1), size, cfg.splat)
    return Render(
        rgb=values[..., :3],
        alpha=alpha,
        depth=values[..., 3] / jnp.maximum(alpha, 1e-6) * _along_rays(camera, size),
        normal=values[..., 4:] if cfg.normals else jnp.zeros_like(values[..., :3]),
        orient=jnp.zeros_like(alpha),  # the normals are on the camera's side
        overflow=overflow,
    )


def _along_rays(camera: Camera, size: tuple[int, int]) -> Float[Array, "v H W"]:
    """Distance along a pixel's ray for one metre of depth along the view axis."""
    height, width = size
    column = (2 * jnp.arange(width) + 1 - width) / height
    row = (2 * jnp.arange(height) + 1 - height) / height
    away = column**2 + row[:, None] ** 2
    return jnp.sqrt(1 + jnp.tan(camera.fovy / 2)[:, None, None] ** 2 * away)


def _regularise(params: Params) -> dict[str, Float[Array, ""]]:
    """Means over the living of opacities and of standard deviations."""
    there = densify.there(params)
    count = jnp.maximum(jnp.sum(there), 1)

    def mean(x):
        return jnp.sum(jnp.where(there, x, 0.0)) / count

    scales = jnp.mean(jnp.exp(jnp.where(there[:, None], params["scales"], 0.0)), axis=-1)
    return {
        "splat_opacity": mean(jax.nn.sigmoid(params["opacities"])),
        "splat_scale": mean(scales),
    }


def _field(
    params: Params, x: Float[Array, "*m 3"], cfg: GaussiansConfig
) -> tuple[Float[Array, "*m"], Float[Array, "*m 3"]]:
    """Density and albedo at points; the albedo is the mean of colours, by density."""
    known = scene(params)
    scales = jnp.sqrt(known.scales**2 + cfg.thickness**2)
    axes = ewa.rotations(known.quats)
    opacity = jnp.minimum(known.opacities, splat.MOST)
    amplitude = -jnp.log1p(-opacity) / (math.sqrt(2 * math.pi) * jnp.min(scales, axis=-1))
    rgb = jnp.clip(ewa.SH0 * params["sh0"][:, 0] + 0.5, 0.0, 1.0)
    reach = jnp.sqrt(2 * jnp.log(jnp.maximum(known.opacities, ewa.CUT) / ewa.CUT))
    sides = reach[:, None] * jnp.sqrt(jnp.sum((axes * scales[:, None]) ** 2, axis=-1))
    # A little more than the box, against rounding; nothing for who is shown nowhere.
    extents = jnp.where((reach > 0)[:, None], 1.0001 * sides + 1e-6, -1.0)
    kernels = Kernels(
        means=known.means,
        whiten=jnp.swapaxes(axes / scales[:, None], -1, -2),
        reach=jax.lax.stop_gradient(reach),
        channels=amplitude[:, None] * jnp.concatenate([jnp.ones_like(rgb[:, :1]), rgb], axis=-1),
    )
    values = mixture(kernels, extents, x.reshape(-1, 3))
    # Where there is nothing the albedo is grey.
    few = 1e-6
    albedo = (values[:, 1:] + 0.5 * few) / (values[:, :1] + few)
    return values[:, 0].reshape(x.shape[:-1]), albedo.reshape(x.shape)
