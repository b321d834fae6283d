"""Three planes as one table: lookups that are linear in its rows, and their transpose.

A point reads four rows of each plane, with bilinear weights. The planes' parts are summed, or
concatenated (`join="concat"`): a network's first layer W on the concatenation is the sum of the
lookups in planes multiplied by W's parts beforehand, so `fold` turns one into the other.
Letters: m points, r plane resolution, c channels, k hidden units, q lookups per point.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import interp

Join = Literal["sum", "concat"]
Slopes = Literal["none", "shifted", "exact"]
"""What is read beside the value (q = 1): the values at three shifted points, or the derivatives
along the three axes (q = 4)."""


def fold(planes: Float[Array, "3 r r c"], w: Float[Array, "c3 k"]) -> Float[Array, "3 r r k"]:
    """Apply the first layer to the planes; it takes their concatenation."""
    _, r, _, c = planes.shape
    # Three products of matrices: XLA:CPU is slower at a batch of them, and at their gradients.
    parts = zip(planes.reshape(3, r * r, c), w.reshape(3, c, -1), strict=True)
    return jnp.stack([plane @ part for plane, part in parts]).reshape(3, r, r, -1)


def gather(
    planes: Float[Array, "3 r r c"],
    x: Float[Array, "m 3"],
    join: Join,
    slopes: Slopes = "none",
    step: float = 0.0,
) -> Float[Array, "m q d"]:
    """Read the planes at points with coordinates in [0, 1]; `step` is the shift of "shifted"."""
    rows = planes.reshape(-1, planes.shape[-1])

    def read(corners):
        parts = [w[:, None] * rows.at[index].get(mode="promise_in_bounds") for index, w in corners]
        return sum(parts[1:], parts[0])

    def one(lookup):
        if join == "sum":
            return read([corner for plane in lookup for corner in plane])
        return jnp.concatenate([read(plane) for plane in lookup], axis=-1)

    return jnp.stack([one(k) for k in _lookups(x, planes.shape[1], slopes, step)], axis=1)


def scatter(
    planes: Float[Array, "3 r r c"],
    x: Float[Array, "m 3"],
    dh: Float[Array, "m q d"],
    join: Join,
    slopes: Slopes = "none",
    step: float = 0.0,
) -> Float[Array, "3 r r c"]:
    """`planes` plus the transpose of `gather` applied to `dh`."""
    rows = planes.reshape(-1, planes.shape[-1])
    for q, lookup in enumerate(_lookups(x, planes.shape[1], slopes, step)):
        parts = [dh[:, q]] * 3 if join == "sum" else jnp.split(dh[:, q], 3, axis=-1)
        for corners, part in zip(lookup, parts, strict=True):
            for index, w in corners:
                rows = rows.at[index].add(w[:, None] * part, mode="promise_in_bounds")
    return rows.reshape(planes.shape)


def _lookups(x, r, slopes, step):
    """For each of q lookups and each plane, the rows and weights: `[q][3][4](index, weight)`."""
    if slopes == "shifted":
        points = [x, *(x + step * axis for axis in jnp.eye(3, dtype=x.dtype))]
        return [[_corners(p, plane, r)[0] for plane in range(3)] for p in points]
    planes = [_corners(x, plane, r) for plane in range(3)]
    value = [corners for corners, _, _ in planes]
    if slopes == "none":
        return [value]
    along = [
        [
            planes[p][1 + axes.index(axis)] if axis in axes else [(i, 0.0 * w) for i, w in value[p]]
            for p, axes in enumerate(interp.PLANES)
        ]
        for axis in range(3)
    ]
    return [value, *along]


def _corners(x, plane, r):
    """Rows and weights of the value and of its derivatives along the plane's two axes."""
    a, b = interp.PLANES[plane]
    (i, u), (j, v) = interp.corners(x[:, a], r), interp.corners(x[:, b], r)
    base = (plane * r + i) * r + j
    rows = (base, base + 1, base + r, base + r + 1)
    value = ((1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v)
    along_a = (v - 1, -v, 1 - v, v)
    along_b = (u - 1, 1 - u, -u, u)
    scale = r - 1
    return (
        list(zip(rows, value, strict=True)),
        [(k, scale * w) for k, w in zip(rows, along_a, strict=True)],
        [(k, scale * w) for k, w in zip(rows, along_b, strict=True)],
    )
