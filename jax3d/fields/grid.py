"""A surface in a dense grid: signed distances, and colours around the surface.

Both are read trilinearly; the density is the Laplace distribution's cumulative of the distance,
sigma = Psi(-d / beta) / beta (VolSDF, Yariv et al. 2021, eq. 2 and 3, with alpha = 1 / beta), so
the level set sigma = 1 / (2 beta) is the surface d = 0. Grids are corner-aligned with the cube
[-bound, bound]^3, indexed x, y, z. Letters: m points, r cells along an axis.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import interp
from jax3d.bounds import Count, Positive, Range, Share
from jax3d.fields.base import Representation
from jax3d.math import laplace_density, normalize
from jax3d.render import sparse, volume
from jax3d.types import Camera, Key, Look, Params, Render


@dataclass(frozen=True)
class GridConfig:
    """Sizes and code paths of a grid."""

    resolution: Annotated[int, Range(4, 1024)] = 64
    """Points along an axis."""
    bound: Positive = 0.88
    """Half side of the cube that the grid spans, metres."""
    shape: Literal["sphere", "box"] = "sphere"
    """What is rendered of it: the ball that it holds, or all."""
    beta: Positive = 0.005
    """Width of the surface in the density, metres."""
    radius: Positive = 0.5
    """Of the ball that a fresh grid holds, metres."""
    normals: bool = True
    """Give normals, the slope of the distance; lit looks need some."""
    samples: Count = 96
    """Along each ray, evenly: no histogram is as sharp as the surface."""
    cull: Share = 3e-4
    """Samples of less opacity than this, or seen by less of their ray, are skipped."""
    tile: Count = 16384
    """Rays at a time, to bound the memory of large images."""
    chunk: Count | None = None
    """Samples in flight; `None` takes the backend's."""

    def build(self) -> Representation:
        """The representation."""
        return grid(self)


def grid(config: GridConfig | None = None) -> Representation:
    """Build the representation; its parameters are `{"sdf": [r, r, r], "rgb": [r, r, r, 3]}`.

    `sdf` is in metres, negative inside; `rgb` are logits of sRGB albedo.
    """
    cfg = config or GridConfig()

    def render(
        params: Params, key: Key | None, camera: Camera, look: Look, size: tuple[int, int]
    ) -> Render:
        rays_cfg = volume.VolumeConfig(
            shape=cfg.shape,
            bound=cfg.bound,
            samples=cfg.samples,
            tile=cfg.tile,
            cull=cfg.cull,
            chunk=cfg.chunk or sparse.plan().chunk,
        )
        split = sparse.Split(
            gather=partial(_gather, cfg=cfg),
            scatter=partial(_scatter, cfg=cfg),
            head=partial(_head, cfg=cfg),
        )
        rays = cameras.rays(camera, size)
        # Between points the distance lies between theirs: the density's bounds are exact.
        lattice = _sigma(params["sdf"], cfg)
        return volume.render(split, (_table(params), ()), rays, look, rays_cfg, key, lattice)

    def density(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        d = _read(params["sdf"][..., None], x.reshape(-1, 3), cfg)[:, 0]
        return _sigma(d, cfg).reshape(x.shape[:-1])

    def color(params: Params, x: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        return jax.nn.sigmoid(_read(params["rgb"], x.reshape(-1, 3), cfg)).reshape(x.shape)

    return Representation(
        init=partial(_init, cfg=cfg),
        render=render,
        regularise=_regularise,
        bound=cfg.bound,
        density=density,
        color=color,
    )


def _init(key: Key, cfg: GridConfig) -> Params:
    """A ball of uneven grey."""
    axis = jnp.linspace(-cfg.bound, cfg.bound, cfg.resolution)
    x, y, z = jnp.meshgrid(axis, axis, axis, indexing="ij")
    sdf = jnp.sqrt(x**2 + y**2 + z**2) - cfg.radius
    return {"sdf": sdf, "rgb": 0.1 * jax.random.normal(key, (*sdf.shape, 3))}


def _regularise(params: Params) -> dict[str, Float[Array, ""]]:
    """The total variation: mean squared difference of neighbours, of distances and of colours."""
    grids = (params["sdf"], jax.nn.sigmoid(params["rgb"]))
    return {"tv": sum(jnp.mean(jnp.diff(g, axis=axis) ** 2) for g in grids for axis in range(3))}


def _sigma(d: Float[Array, "*m"], cfg: GridConfig) -> Float[Array, "*m"]:
    """Density, 1/metre, at signed distances."""
    return laplace_density(d, cfg.beta)


def _table(params: Params) -> Float[Array, "r r r 4"]:
    return jnp.concatenate([params["sdf"][..., None], params["rgb"]], -1)


def _corners(x: Float[Array, "m 3"], r: int, cfg: GridConfig):
    """Eight `(row, value weight, slope weights[3])` around points; slopes are by the metre."""
    axes = [interp.corners(x[:, a] / (2 * cfg.bound) + 0.5, r) for a in range(3)]
    scale = (r - 1) / (2 * cfg.bound)
    found = []
    for corner in range(8):
        bits = [corner >> 2 & 1, corner >> 1 & 1, corner & 1]
        (i, j, k) = (low + bit for (low, _), bit in zip(axes, bits, strict=True))
        w = [way if bit else 1 - way for (_, way), bit in zip(axes, bits, strict=True)]
        s = [scale if bit else -scale for bit in bits]
        slopes = (s[0] * w[1] * w[2], w[0] * s[1] * w[2], w[0] * w[1] * s[2])
        found.append(((i * r + j) * r + k, w[0] * w[1] * w[2], slopes))
    return found


def _read(values: Float[Array, "r r r c"], x: Float[Array, "m 3"], cfg: GridConfig):
    """Trilinear lookup, `[m, c]`."""
    rows = values.reshape(-1, values.shape[-1])
    return sum(
        w[:, None] * rows.at[index].get(mode="promise_in_bounds")
        for index, w, _ in _corners(x, values.shape[0], cfg)
    )


def _gather(table: Float[Array, "r r r 4"], x: Float[Array, "m 3"], cfg: GridConfig):
    """The four values of points and, where normals are wanted, the distance's three slopes."""
    rows = table.reshape(-1, table.shape[-1])
    total = 0.0
    for index, w, slopes in _corners(x, table.shape[0], cfg):
        row = rows.at[index].get(mode="promise_in_bounds")
        part = w[:, None] * row
        if cfg.normals:
            part = jnp.concatenate([part, jnp.stack(slopes, -1) * row[:, :1]], -1)
        total = total + part
    return total


def _scatter(table, x: Float[Array, "m 3"], dh: Float[Array, "m q"], cfg: GridConfig):
    """`table` plus the transpose of `_gather` applied to `dh`."""
    rows = table.reshape(-1, table.shape[-1])
    for index, w, slopes in _corners(x, table.shape[0], cfg):
        part = w[:, None] * dh[:, :4]
        if cfg.normals:
            part = part.at[:, 0].add(jnp.sum(jnp.stack(slopes, -1) * dh[:, 4:], -1))
        rows = rows.at[index].add(part, mode="promise_in_bounds")
    return rows.reshape(table.shape)


def _head(net: Params, h: Float[Array, "m q"], x: Float[Array, "m 3"], cfg: GridConfig):
    del net, x
    normal = normalize(h[:, 4:]) if cfg.normals else None
    return volume.Samples(_sigma(h[:, 0], cfg), jax.nn.sigmoid(h[:, 1:4]), normal)
