"""A texture from a colour field.

A renderer does not show the colour at one point: it mixes the samples along its ray by their
compositing weights. So each texel looks along the surface's inward normal as a short ray does,
from a little outside to a little inside, and takes the mix that this ray would show.

Letters: T texture side, n covered texels, s samples along the normal.
"""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt

from jax3d.mesh.extract import Field, evaluate
from jax3d.render.raster import fill, vertex_normals
from jax3d.types import Mesh

_SAMPLES = 8


def bake(
    mesh: Mesh, density: Field, color: Field, texture: int, depth: float, chunk: int = 1 << 16
) -> Mesh:
    """Give an unwrapped mesh the colours of a field, sRGB, as a `texture`-pixel square.

    `depth`, metres, is the length of the short ray, a quarter of it outside: about four cells of
    the grid that the mesh came from, less than what may lie in front of the surface. Texels of
    no face repeat the nearest one that has a colour, so filtering and mip levels never mix in a
    background.
    """
    face, pixel, barycentric = fill(_to_pixels(mesh.uvs, texture)[mesh.faces], (texture, texture))
    pixel, first = np.unique(pixel, return_index=True)
    corners, barycentric = mesh.faces[face[first]], barycentric[first].astype(np.float32)
    point = np.einsum("nk,nkc->nc", barycentric, mesh.vertices[corners])
    normal = np.einsum(
        "nk,nkc->nc", barycentric, vertex_normals(mesh.vertices, mesh.faces)[corners]
    )
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)

    image = np.zeros((texture * texture, 3), np.float32)
    image[pixel] = _look_inwards(density, color, point, normal, depth, chunk)
    covered = np.zeros(texture * texture, bool)
    covered[pixel] = True
    return mesh.replace(
        texture=_dilate(image.reshape(texture, texture, 3), covered.reshape(texture, texture))
    )


def _look_inwards(density, color, point, normal, depth, chunk) -> Float[np.ndarray, "n 3"]:
    """Composite colours from a quarter of `depth` outside the points to three quarters inside."""
    step = depth / _SAMPLES
    total = np.zeros((len(point), 3), np.float32)
    weights = np.zeros((len(point), 1), np.float32)
    transmittance = np.ones((len(point), 1), np.float32)
    for offset in depth / 4 - step * (np.arange(_SAMPLES) + 0.5):
        x = (point + offset * normal).astype(np.float32)
        clear = np.exp(-step * np.maximum(evaluate(density, x, chunk), 0.0))[:, None]
        weight = transmittance * (1.0 - clear)
        total += weight * evaluate(color, x, chunk)
        weights += weight
        transmittance *= clear
    # A faint surface is shown by its own colour, not by what little it composites.
    faint = weights < 1e-3
    if faint.any():
        total[faint[:, 0]] = evaluate(color, point[faint[:, 0]], chunk)
        weights[faint] = 1.0
    return np.clip(total / weights, 0.0, 1.0)


def _dilate(image, covered):
    """Nearest covered texel for those that no face covers."""
    if covered.all():
        return image
    rows, columns = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return image[rows, columns]


def _to_pixels(uvs, texture):
    """Texture coordinates from the lower left to (column, row) from the upper left."""
    return np.stack([uvs[:, 0], 1.0 - uvs[:, 1]], axis=-1).astype(np.float64) * texture
