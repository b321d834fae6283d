"""A z-buffer rasteriser of triangles in stock JAX: what `raster` does on the host, traced.

Which triangle a sample sees carries no gradient; what is looked up there does. As on the host, each
triangle is given the samples of its bounding box, and of the flat list of (triangle, sample) pairs
each sample keeps the nearest that covers it (Pineda, "A Parallel Algorithm for Polygon
Rasterization", 1988). The list has a fixed length, `room`: the work is in proportion to the
triangles' sizes in the picture, not to their number times the samples.

Letters: v views, F faces, p pairs, m samples, H and W sides in samples, T texture side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d import camera as cameras
from jax3d.types import Camera

_EDGE = 1e-4
"""Barycentric slack: a sample on a shared edge belongs to both triangles, to no gap."""

_NEAR = 1e-6
"""Faces with a corner at less depth are left out, metres."""

_MOST = 2**30
"""Where the count of pairs stops: two such numbers still add up within int32."""


class Seen(NamedTuple):
    """What the samples of pictures see; nothing in it carries a gradient."""

    face: Int[Array, "v H W"]
    """The nearest one; -1 where there is none."""
    weights: Float[Array, "v H W 3"]
    """Of the face's corners, corrected for perspective: they add up to 1, or are 0."""
    overflow: Int[Array, " v"]
    """Pairs that were left out for want of room; 0: the picture is right."""


def visible(
    camera: Camera, corners: Float[Array, "F 3 3"], size: tuple[int, int], room: int
) -> Seen:
    """The nearest face at each sample of pictures of `size` (H, W), static; both sides are seen.

    Faces without area, with corners that are not finite, or that reach behind a camera are left
    out. Where two are equally near to a millionth, the later one is seen.

    Args:
      camera: `[v]`.
      corners: Metres, world axes.
      size: Of the pictures, in samples: several times the pixels, to smooth edges.
      room: Pairs of a triangle and a sample of its bounding box that there is room for, a view.
    """
    count = len(corners)
    pixels, depths = cameras.project(camera, lax.stop_gradient(corners).reshape(-1, 3), size)
    pixels, depths = pixels.reshape(-1, count, 3, 2), depths.reshape(-1, count, 3)
    return jax.vmap(lambda *view: Seen(*_view(*view, size, room)))(pixels, depths)


def look_up(texture: Float[Array, "T S c"], uv: Float[Array, "*m 2"]) -> Float[Array, "*m c"]:
    """Bilinear lookup, clamped at the borders, as `raster.sample_texture` does it on the host.

    Differentiable in the texture; `uv` in [0, 1] from the lower left corner.
    """
    height, width, channels = texture.shape
    x = jnp.clip(uv[..., 0] * width - 0.5, 0, width - 1)
    y = jnp.clip((1 - uv[..., 1]) * height - 0.5, 0, height - 1)
    left, top = (jnp.floor(a).astype(jnp.int32) for a in (x, y))
    across, down = x - left, y - top
    columns = jnp.stack([left, jnp.minimum(left + 1, width - 1)], axis=-1)
    rows = jnp.stack([top, jnp.minimum(top + 1, height - 1)], axis=-1)
    texels = rows[..., :, None] * width + columns[..., None, :]
    down, across = (jnp.stack([1 - share, share], axis=-1) for share in (down, across))
    weights = down[..., :, None] * across[..., None, :]
    # One lookup of all four texels: its transpose is one scatter.
    found = texture.reshape(-1, channels).at[texels].get(mode="promise_in_bounds")
    return jnp.sum(weights[..., None] * found, axis=(-3, -2))


def _view(
    pixels: Float[Array, "F 3 2"], depths: Float[Array, "F 3"], size: tuple[int, int], room: int
):
    """One view's faces, weights and overflow."""
    height, width = size
    usable = jnp.all(depths > _NEAR, axis=-1) & jnp.all(jnp.isfinite(pixels), axis=(1, 2))
    usable &= jnp.abs(_cross(*_edges(pixels))) > 1e-12
    pixels = jnp.where(usable[:, None, None], pixels, 0.0)
    depths = jnp.where(usable[:, None], depths, 1.0)
    limit = jnp.array([width, height], pixels.dtype)
    first = jnp.clip(jnp.ceil(pixels.min(axis=1) - 0.5), 0, limit).astype(jnp.int32)
    last = jnp.clip(jnp.floor(pixels.max(axis=1) + 0.5), first, limit).astype(jnp.int32)
    box = jnp.where(usable[:, None], last - first, 0)
    ends = lax.associative_scan(
        lambda a, b: jnp.minimum(a + b, _MOST), jnp.minimum(box[:, 0] * box[:, 1], _MOST)
    )

    pair = jnp.arange(room, dtype=jnp.int32)
    face = jnp.searchsorted(ends, pair, side="right").astype(jnp.int32)
    there = pair < ends[-1]
    face = jnp.where(there, face, 0)
    place = pair - (ends - box[:, 0] * box[:, 1])[face]
    across = jnp.maximum(box[face, 0], 1)
    column, row = first[face, 0] + place % across, first[face, 1] + place // across
    weights = _weights(pixels[face], depths[face], column, row)
    inside = there & jnp.all(weights >= -_EDGE / depths[face], axis=-1)
    nearness = jnp.sum(weights, axis=-1)  # 1/depth, which is linear in the picture

    nobody = height * width
    sample = jnp.where(inside, row * width + column, nobody)
    nearest = jnp.zeros(nobody, nearness.dtype).at[sample].max(nearness, mode="drop")
    is_nearest = nearness >= (1 - 1e-6) * nearest.at[sample].get(mode="fill", fill_value=jnp.inf)
    sample = jnp.where(is_nearest, sample, nobody)
    seen = jnp.full(nobody, -1, jnp.int32).at[sample].max(face, mode="drop")

    at = jnp.arange(nobody, dtype=jnp.int32)
    shown = jnp.maximum(seen, 0)
    weights = _weights(pixels[shown], depths[shown], at % width, at // width)
    weights = jnp.maximum(weights, 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = jnp.where(seen[:, None] >= 0, weights / jnp.where(total > 0, total, 1.0), 0.0)
    overflow = jnp.maximum(ends[-1] - room, 0)
    return seen.reshape(size), weights.reshape(*size, 3), overflow


def _edges(pixels: Float[Array, "*p 3 2"]):
    """The edges from a triangle's first corner to the other two."""
    return pixels[..., 1, :] - pixels[..., 0, :], pixels[..., 2, :] - pixels[..., 0, :]


def _weights(
    pixels: Float[Array, "p 3 2"],
    depths: Float[Array, "p 3"],
    column: Int[Array, " p"],
    row: Int[Array, " p"],
) -> Float[Array, "p 3"]:
    """Barycentric coordinates of samples' centres, each over its corner's depth."""
    point = jnp.stack([column, row], axis=-1) + 0.5
    to = pixels - point[:, None]
    area = _cross(*_edges(pixels))
    opposite = _cross(jnp.roll(to, -1, axis=1), jnp.roll(to, -2, axis=1))
    return opposite / jnp.where(area == 0, 1.0, area)[:, None] / depths


def _cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
