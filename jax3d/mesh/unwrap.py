"""Texture coordinates by charts (xatlas), packed into a texture of exactly the asked size.

xatlas packs to a scale, or to a size that it exceeds as it likes. So the charts are found once and
then packed at several scales, which takes little of the time, for the largest one that fits.

They are packed on a grid of cells, of which no two charts may touch the same by a bilinear lookup
(it reads what has its centre less than a cell away). A cell is a texel of small textures; in those
of 512 pixels and more it is a square of them, so mip levels down to the grid's size keep the
charts apart as well.
"""

import math

import numpy as np
import xatlas

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
    if texture < 2:
        raise ValueError(
            f"mesh.texture is {texture}; charts need 2 pixels a side at the very least"
        )
    if not len(mesh.faces):
        raise ValueError("a mesh without faces has nothing to unwrap")
    charts, count = _charts(mesh)
    unwrapped = _pack_tightly(charts, texture // max(1, texture // _CELLS))
    if unwrapped is None:
        raise ValueError(
            f"the mesh of {len(mesh.faces)} faces unfolds into {count} charts, which do not fit a "
            f"texture of {texture} x {texture} pixels: raise mesh.texture or lower mesh.faces"
        )
    return unwrapped


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


def _pack_tightly(charts, cells):
    """Charts at the largest scale at which they fit a grid, or None."""
    corners = charts.uvs[charts.faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    high = cells / math.sqrt(max(area, 1e-12))
    low = _SMALLEST * high
    best = _pack(charts, low, cells)
    for _ in range(_HALVINGS if best is not None else 0):
        scale = (low + high) / 2
        packed = _pack(charts, scale, cells)
        best, low, high = (best, low, scale) if packed is None else (packed, scale, high)
    return best


def _pack(charts, scale, cells):
    """Charts at `scale` cells a metre, or None if they do not fit."""
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
