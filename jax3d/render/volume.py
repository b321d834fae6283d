"""Volume rendering of a field of density and colour, by quadrature along rays.

With optical depth tau_i = sigma_i delta_i and T_i = exp(-sum_{j<i} tau_j), a sample's weight is
w_i = T_i - T_{i+1} = T_i (1 - exp(-tau_i)) and the opacity of the ray 1 - T_s (Max 1995; NeRF,
eq. 3). Transmittance is summed in log space, so neither empty nor saturated rays lose their
gradient to a NaN.

A field is a function `field(params, x[m, 3]) -> Samples` of points in world space.
Letters: v views, n rays, s samples along a ray, m points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import stepfun
from jax3d.bounds import Count, Natural, Positive, Share
from jax3d.render import shading, sparse
from jax3d.types import Key, Look, Params, Rays, Render


class Samples(NamedTuple):
    """What a field says of points."""

    sigma: Float[Array, " m"]
    """Density, 1/metre, >= 0."""
    rgb: Float[Array, "m 3"]
    """Albedo, [0, 1]."""
    normal: Float[Array, "m 3"] | None = None
    """Outward unit normals, or None if the field has none: then nothing is lit."""


@dataclass(frozen=True)
class VolumeConfig:
    """How rays are sampled."""

    shape: Literal["sphere", "box"] = "sphere"
    """What bounds the field: a ball of radius `bound` or a cube of half side `bound`."""
    bound: Positive = 1.0
    """Metres."""
    coarse: Natural = 0
    """Bins of the histogram that places the samples; 0 places them evenly."""
    samples: Count = 64
    """Samples per ray."""
    tile: Count = 16384
    """Rays at a time: bounds the memory of large images."""
    weights: bool = False
    """Return the compositing weights."""
    cull: Share = 3e-4
    """`render` leaves out samples that surely have less opacity than this or are seen by less of
    their ray, and gives no gradient to those that turn out so."""
    chunk: Count = 1024
    """Samples that `render` has in flight."""


def near_far(rays: Rays, cfg: VolumeConfig) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Where flat rays enter and leave the bounding shape, metres; equal where they miss it."""
    o, d = rays.origins, rays.directions
    if cfg.shape == "sphere":
        middle = -jnp.sum(o * d, axis=-1)
        squared = cfg.bound**2 - jnp.sum((o + middle[:, None] * d) ** 2, axis=-1)
        hit = squared > 0
        half = jnp.where(hit, jnp.sqrt(jnp.where(hit, squared, 1.0)), 0.0)
        near, far = middle - half, middle + half
    else:
        d = jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
        first, second = (-cfg.bound - o) / d, (cfg.bound - o) / d
        near = jnp.max(jnp.minimum(first, second), axis=-1)
        far = jnp.min(jnp.maximum(first, second), axis=-1)
    near = jnp.maximum(near, 0.0)
    return near, jnp.maximum(far, near)


def weights(
    sigma: Float[Array, "n s"], edges: Float[Array, "n e"]
) -> tuple[Float[Array, "n s"], Float[Array, " n"]]:
    """Compositing weights of the samples and the opacity of the rays."""
    tau = sigma * jnp.diff(edges, axis=-1)
    left = jnp.exp(-stepfun.running_sum(tau))
    before = jnp.concatenate([jnp.ones_like(left[:, :1]), left[:, :-1]], axis=-1)
    return before - left, 1 - left[:, -1]


def composite(
    samples: Samples,
    edges: Float[Array, "n e"],
    t: Float[Array, "n s"],
    rays: Rays,
    look: Look,
    cfg: VolumeConfig,
) -> dict[str, Array | None]:
    """Blend the samples of flat rays; `look` has one entry per ray. Returns `Render`'s fields."""
    n, s = t.shape
    w, alpha = weights(samples.sigma.reshape(n, s), edges)
    rgb = samples.rgb.reshape(n, s, 3)
    normal, orient = jnp.zeros((n, 3), rgb.dtype), jnp.zeros((n,), rgb.dtype)
    if samples.normal is not None:
        normals = samples.normal.reshape(n, s, 3)
        rgb = shading.shade(rgb, normals, look)
        normal = _blend(w, normals)
        # The weights are held still, or the object would shrink to please this term
        # (DreamFusion, appendix A.2).
        away = jnp.maximum(jnp.sum(normals * rays.directions[:, None], axis=-1), 0.0)
        orient = jnp.sum(jax.lax.stop_gradient(w) * away**2, axis=-1)
    color = _blend(w, rgb)
    return {
        "rgb": color,
        "alpha": alpha,
        "depth": jnp.sum(w * t, axis=-1) / jnp.maximum(alpha, 1e-6),
        "normal": normal,
        "orient": orient,
        "weights": w if cfg.weights else None,
    }


def _blend(w: Float[Array, "n s"], x: Float[Array, "n s 3"]) -> Float[Array, "n 3"]:
    # Channel by channel: XLA:CPU sums contiguous rows several times faster.
    return jnp.stack([jnp.sum(w * x[..., i], axis=-1) for i in range(3)], axis=-1)


def render_reference(
    field: Callable[[Params, Any], Samples],
    params: Params,
    rays: Rays,
    look: Look,
    cfg: VolumeConfig,
    key: Key | None = None,
    proposal: Callable[[Any], Any] | None = None,
) -> Render:
    """Render rays `[v, H, W]` by plain autodiff, every sample in memory at once.

    `look` holds one entry or `v`. `key=None` puts the samples at the centres of their intervals.
    `proposal(x[m, 3]) -> sigma[m]` gives the density that places the samples, by default the
    field's own; no gradient flows through the places.
    """
    proposal = proposal or (lambda x: field(params, x).sigma)

    def march(rays, look, u):
        def density(edges, t):
            del edges
            x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
            return proposal(x.reshape(-1, 3)).reshape(t.shape)

        edges, t = place(density, rays, u, cfg)
        x = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        return composite(field(params, x.reshape(-1, 3)), edges, t, rays, look, cfg)

    return tiled(march, rays, shading.per_ray(look, rays), cfg, key)


def render(
    field: sparse.Split,
    params: Params,
    rays: Rays,
    look: Look,
    cfg: VolumeConfig,
    key: Key | None = None,
    lattice: Float[Array, "g g g"] | None = None,
) -> Render:
    """Render as `render_reference` does, fast and without its memory; see `sparse`.

    `lattice` holds densities at evenly spaced points of the cube of half side `cfg.bound`,
    corner to corner: samples that it shows to be empty or hidden are left out. Without it every
    sample is evaluated. Differentiable in `params` and `look`, not in the rays.
    """
    still = jax.lax.stop_gradient(params)
    bounds = None if lattice is None else sparse.bounds(jax.lax.stop_gradient(lattice))

    def occupied(rays, edges, t):
        if bounds is None:
            return None
        return sparse.occupied(bounds, rays, edges, t, cfg.bound, cfg.cull)

    def march(rays, look, u):
        def density(edges, t):
            keep = occupied(rays, edges, t)
            return sparse.evaluate(field, still, rays, t, keep, cfg.chunk).sigma.reshape(t.shape)

        edges, t = place(density, rays, u, cfg)
        samples = sparse.evaluate(field, params, rays, t, occupied(rays, edges, t), cfg.chunk)
        if lattice is not None:
            sigma = jax.lax.stop_gradient(samples.sigma).reshape(t.shape)
            samples = sparse.hold(samples, sparse.visible(sigma, sigma, edges, cfg.cull))
        return composite(samples, edges, t, rays, look, cfg)

    return tiled(march, rays, shading.per_ray(look, rays), cfg, key)


def place(
    density: Callable[[Any, Any], Any] | None, rays: Rays, u: Float[Array, " n"], cfg: VolumeConfig
) -> tuple[Float[Array, "n e"], Float[Array, "n s"]]:
    """Edges of the sampling intervals of flat rays, and the sample in each, metres.

    `density(edges[n, e], t[n, s]) -> sigma[n, s]` fills the histogram with the field along the
    rays; it is not asked if `cfg.coarse` is 0.
    """
    near, far = near_far(rays, cfg)
    if cfg.coarse == 0:
        edges = stepfun.even_edges(near, far, cfg.samples)
        return edges, stepfun.points(edges, u)
    bins = stepfun.even_edges(near, far, cfg.coarse)
    t = stepfun.points(bins, u)
    histogram, _ = weights(jax.lax.stop_gradient(density(bins, t)), bins)
    # A surface near the border of a bin may lie in its neighbour (mip-NeRF, section 3.1).
    padded = jnp.pad(histogram, ((0, 0), (1, 1)))
    histogram = jnp.maximum(jnp.maximum(padded[:, :-2], padded[:, 2:]), histogram)
    edges = stepfun.resample(bins, histogram, cfg.samples)
    return edges, stepfun.points(edges, u)


def tiled(
    march: Callable[[Rays, Look, Any], dict],
    rays: Rays,
    look: Look,
    cfg: VolumeConfig,
    key: Key | None,
) -> Render:
    """Apply `march(rays, look, u)` to the flat rays of `[v, H, W]`, `cfg.tile` at a time.

    `look` has one entry for each flat ray.
    """
    shape = rays.origins.shape[:-1]
    rays = jax.tree.map(lambda a: a.reshape(-1, 3), rays)
    n = rays.origins.shape[0]
    u = jnp.full((n,), 0.5) if key is None else jax.random.uniform(key, (n,))
    if n <= cfg.tile:
        out = march(rays, look, u)
    else:
        tiles = -(-n // cfg.tile)

        def fold(a):
            pad = ((0, tiles * cfg.tile - n), *((0, 0),) * (a.ndim - 1))
            return jnp.pad(a, pad, mode="edge").reshape(tiles, cfg.tile, *a.shape[1:])

        out = jax.lax.map(lambda args: march(*args), jax.tree.map(fold, (rays, look, u)))
        out = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], out)
    return Render(**jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), out))
