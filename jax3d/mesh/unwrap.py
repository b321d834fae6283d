"""Texture coordinates by charts (xatlas), packed into a texture of exactly the asked size.

xatlas packs to a scale, or to a size that it exceeds as it likes. So the charts are found once and
then packed at several scales, which takes little of the time, for the largest one that fits.

They are packed on a grid of cells, of which no two charts may touch the same by a bilinear lookup
(it reads what has its centre less than a cell away). A cell is a texel of small textures; in those
of 512 pixels and more it is a square of them, so mip levels down to the grid's size keep the
charts apart as well.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xatlas

from jax3d.mesh.extract import compact, join
from jax3d.types import Mesh

_CELLS = 256
"""Least cells along a side of large textures."""

_SMALLEST = 0.25
"""Of the scale at which charts without gaps would fill the texture: below it, gaps take more than
15/16 of the texels, and the texture shows little of the object."""

_HALVINGS = 6
"""The scale ends within 1.2% of the largest that fits."""


def unwrap(mesh: Mesh, texture: int) -> Mesh:
    """Give a mesh texture coordinates for a square texture of `texture` pixels a side.

    Vertices on seams are repeated, vertex colours dropped. Takes 1 s at 5,000 faces and 3-5 s at
    10,000-20,000: simplify first. Raises `ValueError` where the charts do not fit the texture.
    """
    return unwrap_together([mesh], texture)[0]


def unwrap_together(meshes: Sequence[Mesh], texture: int) -> tuple[Mesh, ...]:
    """Gives several meshes places in one texture, as `unwrap` does one.

    They are one object, ever coarser, to be seen from ever farther: each has half the texels of
    the one before along a length.
    """
    if texture < 2:
        raise ValueError(
            f"mesh.texture is {texture}; charts need 2 pixels a side at the very least"
        )
    if not all(len(mesh.faces) for mesh in meshes):
        raise ValueError("a mesh without faces has nothing to unwrap")
    charts, counts = zip(*map(_charts, meshes), strict=True)
    joined = _side_by_side(charts)
    unwrapped = _pack_tightly(joined, texture // max(1, texture // _CELLS))
    if unwrapped is None:
        raise ValueError(
            f"the mesh of {len(joined.faces)} faces unfolds into {sum(counts)} charts, which do "
            f"not fit a texture of {texture} x {texture} pixels: raise mesh.texture or lower "
            "mesh.faces"
        )
    ends = np.cumsum([0, *(len(mesh.faces) for mesh in meshes)])
    return tuple(compact(unwrapped.replace(faces=unwrapped.faces[a:b])) for a, b in pairwise(ends))


def _charts(mesh):
    """The mesh with coordinates in metres, each chart at a place of its own, and their number."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.padding = 1
    atlas.generate(pack_options=packing)
    source, faces, uvs = atlas[0]
    metres = uvs * np.array([atlas.width, atlas.height]) / atlas.texels_per_unit
    return Mesh(mesh.vertices[source], faces.astype(np.int64), uvs=metres), atlas.chart_count


def _side_by_side(charts: Sequence[Mesh]) -> Mesh:
    """Charts of several meshes as those of one, of which none lies on another."""
    placed, right = [], 0.0
    for k, mesh in enumerate(charts):
        placed.append(mesh.replace(uvs=mesh.uvs / 2**k + [right, 0.0]))
        right = float(placed[-1].uvs[:, 0].max()) + 1.0
    return join(placed)


def _pack_tightly(charts, cells):
    """Charts at the largest scale at which they fit a grid, or None."""
    corners = charts.uvs[charts.faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    # In cells, not metres: xatlas passes over faces of less than 1e-7, whatever their unit.
    charts = charts.replace(uvs=charts.uvs * (cells / math.sqrt(max(area, 1e-12))))
    low, high = _SMALLEST, 1.0
    best = _pack(charts, low, cells)
    for _ in range(_HALVINGS if best is not None else 0):
        scale = (low + high) / 2
        packed = _pack(charts, scale, cells)
        best, low, high = (best, low, scale) if packed is None else (packed, scale, high)
    return best


def _pack(charts, scale, cells):
    """Charts at `scale` of their own size, in cells, or None if they do not fit."""
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(charts.uvs.astype(np.float32), charts.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution = cells
    packing.texels_per_unit = scale
    atlas.generate(pack_options=packing)
    if atlas.atlas_count != 1:
        return None
    source, faces, uvs = atlas[0]
    return Mesh(charts.vertices[source], faces.astype(np.int64), uvs=uvs)
