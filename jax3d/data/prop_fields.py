"""Objects of the prop world as grids: signed distance, and which label the nearest surface bears.

A label is a paint (the asset's own colour, its shade, its contrast) or one of the world's
materials, which no caption changes. Labels belong to the shape, paints to the colour: one object
stands for all of its colours. Grids are cell-centred over the cube of half side `HALF`, indexed
x, y, z.
Letters: R cells along an axis, L labels, P primitives.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jax3d.data import prop_shapes, props
from jax3d.render import sdf

HALF = 0.88
"""Half side of the grids' cube, metres: it holds every object with a cell to spare."""
DISTANCES, LABELS = 40, 32
"""Cells along an axis of the two grids."""
REACH = 0.12
"""Distances are clipped to this, metres."""
PAINTS = 3
"""The first labels: own colour, shade, contrast."""

_BAND = 0.045
_SURFACE = 32768
"""Subcells within `_BAND` of the surface: more than any object has."""


def paints(color: str) -> Float[np.ndarray, "3 3"]:
    """The own colour, shade and contrast of an object of a colour, sRGB."""
    own = np.array([props.COLORS[color]], np.float32)
    parts = prop_shapes.Parts(1, own, {}, np.zeros((1, 0), np.float32))
    return np.stack([parts.color[0], parts.shade[0], parts.contrast[0]]).astype(np.float32)


@functools.cache
def materials() -> Float[np.ndarray, "m 3"]:
    """The colours in the world that are no paint, sRGB, in lexicographic order."""
    white = [s for s in props.specs() if s.color == "white"]
    # Several of each, since some builders choose between materials.
    scene = props.build(white * 8, 0)
    shown = np.stack([scene.role > 0, (scene.role > 0) & (scene.pattern > 0)], -1)
    found = np.unique(np.round(scene.color[shown], 3), axis=0)
    far = np.abs(found[:, None] - paints("white")).max(-1).min(-1) > 2e-3
    return found[far].astype(np.float32)


def build(shapes: list[tuple[str, str]], seed: int) -> tuple[sdf.Scene, Int[np.ndarray, "n P 2"]]:
    """Objects of `(class, attribute)` and the labels of their primitives' two colours.

    They are built in white, whose three paints are no material; proportions do not depend on it.
    """
    scene = props.build([props.Spec(name, "white", attribute) for name, attribute in shapes], seed)
    known = np.concatenate([paints("white"), materials()])
    near = np.abs(scene.color[..., None, :] - known).sum(-1)
    return scene, near.argmin(-1).astype(np.int32)


def centers(resolution: int) -> Float[np.ndarray, "n 3"]:
    """The cells' centres, metres."""
    axis = (((np.arange(resolution) + 0.5) / resolution * 2 - 1) * HALF).astype(np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def describe(
    scene: sdf.Scene, labels: Int[Array, "P 2"]
) -> tuple[Float[Array, "d d d"], UInt8[Array, "r r r l"]]:
    """One object's grids: clipped signed distance, metres, and shares of the labels, 255 the whole.

    A cell's shares count the labels of the surface points nearest to its eight subcells, those
    within `_BAND` of the surface alone; cells without such have no share.
    """
    coarse = sdf.distance(scene, jnp.asarray(centers(DISTANCES)))
    fine = 2 * LABELS
    x = jnp.asarray(centers(fine))
    distance = sdf.distance(scene, x)
    (index,) = jnp.nonzero(jnp.abs(distance) < _BAND, size=_SURFACE, fill_value=len(x))
    x, distance = x[jnp.minimum(index, len(x) - 1)], distance[jnp.minimum(index, len(x) - 1)]
    normal = sdf.normal(scene, x)
    x = x - distance[:, None] * normal
    # An ellipsoid's distance is a bound: once more.
    x = x - sdf.distance(scene, x)[:, None] * normal
    coded = scene.replace(color=labels[..., None] * jnp.array([1.0, 0.0, 0.0]))
    label = jnp.round(sdf.albedo(coded, x)[:, 0]).astype(jnp.int32)
    i, j, k = (c // 2 for c in jnp.unravel_index(index, (fine,) * 3))
    count = PAINTS + len(materials())
    shares = jnp.zeros((LABELS, LABELS, LABELS, count)).at[i, j, k, label].add(1.0, mode="drop")
    shares = shares / jnp.maximum(shares.sum(-1, keepdims=True), 1.0)
    clipped = jnp.clip(coarse, -REACH, REACH).reshape((DISTANCES,) * 3)
    return clipped, jnp.round(255 * shares).astype(jnp.uint8)
