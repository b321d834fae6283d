"""The level set zero of a field that is costly to ask, positive inside.

A grid of R cells along an axis takes (R + 1)^3 values. Near a surface so many are needed, elsewhere
a sign is enough: `near_surface` asks for all of a coarse grid and doubles it, asking at each level
only around what the level before found near zero. Both are the host's loops around a field that is
always called with as many points, so that a jitted one compiles once.

The field is in the cube [-bound, bound]^3, metres, indexed x, y, z. Letters: r points of a grid
along an axis, R + 1.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter1d
from skimage import measure

from jax3d.mesh.extract import EmptyFieldError, Field, evaluate, signed_volume
from jax3d.types import Mesh

COARSEST = 63
"""Cells along an axis of the coarsest grid, at least."""


class Sampled(NamedTuple):
    """A field on a grid."""

    values: Float[np.ndarray, "r r r"]
    """Where a point was not asked, the value of the nearest one of the level before."""
    asked: int
    """Points at which the field was evaluated, all levels together."""


def everywhere(field: Field, bound: float, cells: int, chunk: int) -> Sampled:
    """A field at all points of a grid.

    Args:
      field: `field(x[n, 3]) -> [n]`.
      bound: half side of the cube, metres.
      cells: along an axis.
      chunk: points per call of the field.

    Raises:
      ValueError: a value is not finite.
    """
    count = (cells + 1) ** 3
    values = _ask(field, bound, cells, range(count), chunk)
    return Sampled(values.reshape((cells + 1,) * 3), count)


def near_surface(
    field: Field, bound: float, cells: int, chunk: int, band: float, coarsest: int = COARSEST
) -> Sampled:
    """A field on a grid, asked near its surface alone.

    Its level set is that of `everywhere` if the surface is nowhere farther than a coarser level's
    cell from a point of that level with a value below `band`, or with a neighbour on the other
    side: if the field is that smooth, and nothing is too thin for the coarsest level to see.

    Args:
      field: as in `everywhere`, as are `bound`, `cells` and `chunk`.
      bound: half side of the cube, metres.
      cells: along an axis of the finest level; those before have half as many each, as long as
        that is a whole number of at least `coarsest`.
      chunk: points per call of the field.
      band: magnitude of the values that are near zero.
      coarsest: cells along an axis.

    Raises:
      ValueError: a value is not finite.
    """
    levels = [cells]
    while levels[0] % 2 == 0 and levels[0] // 2 >= coarsest:
        levels.insert(0, levels[0] // 2)
    values, asked = everywhere(field, bound, levels[0], chunk)
    for level in levels[1:]:
        # Between levels a cell more, for what the coarser one saw a little beside its place.
        reach = 2 if level == cells else 3
        at = np.flatnonzero(_around(_crossed(values) | (np.abs(values) < band), reach))
        for axis in range(3):
            values = np.repeat(values, 2, axis).take(range(level + 1), axis)
        values.reshape(-1)[at] = _ask(field, bound, level, at, chunk)
        asked += len(at)
    return Sampled(values, asked)


def _ask(field, bound, cells, at, chunk) -> Float[np.ndarray, " n"]:
    """Values at points of a grid, by their numbers in it."""
    values = np.empty(len(at), np.float32)
    for begin in range(0, len(at), chunk):
        some = slice(begin, begin + chunk)
        place = np.stack(np.unravel_index(np.asarray(at[some]), (cells + 1,) * 3), axis=-1)
        values[some] = evaluate(field, bound * (2 * place / cells - 1), chunk)
    if not np.isfinite(values).all():
        raise ValueError(
            f"the field is not finite at {np.sum(~np.isfinite(values))} of {len(values)} points"
        )
    return values


def _crossed(values: Float[np.ndarray, "r r r"]) -> Bool[np.ndarray, "r r r"]:
    """Points with a neighbour along an axis on the other side."""
    inside, crossed = values > 0, np.zeros(values.shape, bool)
    for axis in range(3):
        one, other = (np.moveaxis(x, axis, 0) for x in (inside, crossed))
        differ = one[1:] != one[:-1]
        other[1:] |= differ
        other[:-1] |= differ
    return crossed


def _around(points: Bool[np.ndarray, "r r r"], reach: int) -> Bool[np.ndarray, "..."]:
    """Points of the next level that are up to `reach` of its cells from some of this one."""
    fine = np.zeros([2 * n - 1 for n in points.shape], np.uint8)
    fine[::2, ::2, ::2] = points
    for axis in range(3):
        fine = maximum_filter1d(fine, 2 * reach + 1, axis, mode="constant")
    return fine > 0


def surface(values: Float[np.ndarray, "r r r"], bound: float) -> Mesh:
    """The closed surface between positive values and others, faces outward, metres.

    By marching cubes (Lewiner et al. 2003); vertices are where the values are zero if they are
    linear along edges of the grid. What is beyond the grid counts as outside.

    Raises:
      EmptyFieldError: there is none.
    """
    framed = np.pad(values, 1, constant_values=-1.0)
    if not framed.max() > 0:
        raise EmptyFieldError(
            "the field has no surface: nothing is inside; its values lie between "
            f"{values.min():.3g} and {values.max():.3g}"
        )
    found, faces, _, _ = measure.marching_cubes(framed, 0.0)
    vertices = bound * (2 * (found - 1) / (len(values) - 1) - 1)
    mesh = Mesh(vertices.astype(np.float32), faces.astype(np.int64))
    return mesh if signed_volume(mesh) > 0 else mesh.replace(faces=mesh.faces[:, ::-1])
