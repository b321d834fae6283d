"""A texture from pictures of a surface: what each texel looked like to those who saw it best.

For each view a texel has the weight (n . e)^4 t: n is the surface's normal, e the direction to the
eye, and t falls to nothing towards the edges of what the view sees, where a pixel mixes what lies
in front with what lies behind. A texel that the mesh itself hides from a view has no weight there.
What nobody saw takes the colour of the nearest places that somebody did.

Charts are painted beyond their borders, and what lies between them repeats the nearest chart's
colour, so neither lookups at seams nor mip levels find a background.

Letters: v views, S pixels a side, n texels.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt, map_coordinates, maximum_filter, minimum_filter
from scipy.spatial import KDTree

from jax3d.fields.base import Representation
from jax3d.mesh.bake import filled, places
from jax3d.render import raster
from jax3d.types import Camera, Look, Mesh, Params

_FACING = 4
"""The power of the cosine."""
_FADE = 4.0
"""Pixels from an edge at which a view is trusted fully."""
_LEAST = 1e-3
"""Sum of weights below which a texel counts as unseen."""
_DEEP = 0.02
"""Metres by which a texel may lie behind what the view sees of the mesh; a larger step between
neighbouring pixels is an edge."""
_NEAREST = 4


class Views(NamedTuple):
    """Pictures of an asset, on the host."""

    rgb: Float[np.ndarray, "v S S 3"]
    """Colour times opacity, sRGB."""
    alpha: Float[np.ndarray, "v S S"]
    camera: Camera
    overflow: int
    """The most that a picture left out for want of room."""


def photograph(field: Representation, params: Params, camera: Camera, size: int) -> Views:
    """Pictures of an asset's own colours, one camera at a time."""

    @jax.jit
    def one(params, camera):
        shown = field.render(params, None, camera, Look.albedo(), (size, size))
        return shown.rgb[0], shown.alpha[0], shown.overflow

    count = len(camera.fovy)
    each = [jax.tree.map(lambda x, i=i: x[i : i + 1], camera) for i in range(count)]
    rgb, alpha, overflow = zip(*(one(params, c) for c in each), strict=True)
    most = max(0 if x is None else int(x.max()) for x in overflow)
    return Views(np.stack(rgb), np.stack(alpha), camera, most)


def paint(mesh: Mesh, views: Views, texture: int) -> Mesh:
    """Gives an unwrapped mesh, metres, the colours of pictures, as a `texture`-pixel square.

    Raises `ValueError` where no view sees any of it.
    """
    pixel, point, normal = places([mesh], texture)
    total, sums = np.zeros(len(point), np.float32), np.zeros((len(point), 3), np.float32)
    for i in range(len(views.rgb)):
        weight, color = _seen(mesh, views, i, point, normal)
        total += weight
        sums += weight[:, None] * color
    seen = total > _LEAST
    if not seen.any():
        raise ValueError("no view sees the surface: it lies out of the pictures")
    colors = sums / np.maximum(total, _LEAST)[:, None]
    if not seen.all():
        colors[~seen] = _nearby(point[seen], colors[seen], point[~seen])
    return mesh.replace(texture=filled(np.clip(colors, 0.0, 1.0), pixel, texture))


def _seen(mesh: Mesh, views: Views, i: int, point, normal):
    """Weight `[n]` and colour `[n, 3]` of each texel in one view."""
    camera = jax.tree.map(lambda x: x[i : i + 1], views.camera)
    size = views.alpha.shape[1:]
    place, _ = raster.project(camera, point, size)
    column, row = place[0].T
    away = np.asarray(camera.c2w)[0, :3, 3] - point
    distance = np.linalg.norm(away, axis=-1)
    facing = np.einsum("nc,nc->n", away, normal) / np.maximum(distance, 1e-9)

    depth = np.asarray(raster.render_mesh(mesh, camera, Look.albedo(), size, 1).depth[0])
    inside = (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
    at = (np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int))
    behind = distance - depth[at]
    visible = inside & (facing > 0) & (behind < _DEEP)
    trust = np.minimum(distance_transform_edt(~_edges(depth, views.alpha[i])) / _FADE, 1.0)[at]
    where = [row - 0.5, column - 0.5]
    layers = np.concatenate([views.rgb[i], views.alpha[i][..., None]], axis=-1)
    sampled = [
        map_coordinates(x, where, order=1, mode="nearest") for x in np.moveaxis(layers, -1, 0)
    ]
    alpha = np.maximum(sampled[3], 1e-3)
    weight = np.where(visible, np.maximum(facing, 0.0) ** _FACING * trust * alpha, 0.0)
    return weight.astype(np.float32), np.stack(sampled[:3], axis=-1) / alpha[:, None]


def _edges(
    depth: Float[np.ndarray, "S S"], alpha: Float[np.ndarray, "S S"]
) -> Bool[np.ndarray, "S S"]:
    """Pixels beside which something begins: the mesh, the asset, or what lies farther back."""
    # Across a slope depths differ from pixel to pixel, but not by more than to the other side.
    step = maximum_filter(depth, 3) - minimum_filter(depth, 3)
    curve = np.abs(maximum_filter(depth, 3) + minimum_filter(depth, 3) - 2 * depth)
    return ((step > _DEEP) & (curve > _DEEP / 2)) | (minimum_filter(alpha, 3) < 0.5)


def _nearby(known, colors, asked):
    """Means of the colours at the nearest places, by inverse distance."""
    distance, index = KDTree(known).query(asked, k=min(_NEAREST, len(known)))
    distance, index = distance.reshape(len(asked), -1), index.reshape(len(asked), -1)
    weight = 1 / np.maximum(distance, 1e-6)
    return np.einsum("nk,nkc->nc", weight / weight.sum(axis=1, keepdims=True), colors[index])
