"""A texture from a colour field.

A renderer does not show the colour at one point: it mixes the samples along its ray by their
compositing weights. So each texel looks along the surface's inward normal as a short ray does,
from a little outside to a little inside, and takes the mix that this ray would show.

A bilinear lookup near the border of a chart reads texels whose centres lie outside of it. These
look from the border's nearest point, so each chart has all its texels to itself, however thin.

Letters: T texture side, n texels, s samples along the normal, F faces, e edges.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import distance_transform_edt

from jax3d.mesh.extract import Field, evaluate, join
from jax3d.render.raster import Fragments, fill, vertex_normals
from jax3d.types import Mesh

_SAMPLES = 8


def bake(mesh: Mesh, shade: Field, texture: int, depth: float, chunk: int = 1 << 14) -> Mesh:
    """Give an unwrapped mesh the colours of a field, as a `texture`-pixel square.

    `shade(x[n, 3]) -> [n, 4]` is the density, 1/metre, and the sRGB colour. `depth`, metres, is
    the length of the short ray, a quarter of it outside: about four cells of the grid that the
    mesh came from, less than what may lie in front of the surface. Texels of no chart repeat the
    nearest one that has a colour, so mip levels never mix in a background.

    Raises `ValueError` where a colour is not finite.
    """
    return bake_together([mesh], shade, texture, depth, chunk)[0]


def bake_together(
    meshes: Sequence[Mesh], shade: Field, texture: int, depth: float, chunk: int = 1 << 14
) -> tuple[Mesh, ...]:
    """Gives meshes that share a texture the colours of a field, as `bake` does one."""
    pixel, point, normal = places(meshes, texture)
    colors = _look_inwards(shade, point, normal, depth, chunk)
    if not np.isfinite(colors).all():
        raise ValueError(
            f"the colour is not finite at {np.sum(~np.isfinite(colors).all(axis=-1))} of "
            f"{len(colors)} points of the surface; the optimisation has diverged: lower the "
            "learning rate or the guidance scale"
        )
    shared = filled(colors, pixel, texture)
    return tuple(mesh.replace(texture=shared) for mesh in meshes)


def places(
    meshes: Sequence[Mesh], texture: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """The texels of meshes that share a texture: where each lies in it, on the surface, and the
    surface's normal there."""
    whole = join(meshes)
    normals = np.concatenate([vertex_normals(mesh.vertices, mesh.faces) for mesh in meshes])
    face, pixel, barycentric = texels(whole, texture)
    corners, weights = whole.faces[face], barycentric.astype(np.float32)
    point = np.einsum("nk,nkc->nc", weights, whole.vertices[corners])
    normal = np.einsum("nk,nkc->nc", weights, normals[corners])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    return pixel, point, normal


def filled(
    colors: Float[np.ndarray, "n 3"], pixel: Int[np.ndarray, " n"], texture: int
) -> Float[np.ndarray, "T T 3"]:
    """A texture of the colours of some texels; the others repeat the nearest of these."""
    image = np.zeros((texture * texture, 3), np.float32)
    image[pixel] = colors
    covered = np.zeros(texture * texture, bool)
    covered[pixel] = True
    return _dilate(image.reshape(texture, texture, 3), covered.reshape(texture, texture))


def texels(mesh: Mesh, texture: int) -> Fragments:
    """The texels that bilinear lookups on an unwrapped mesh read, each once.

    With them come the face whose colour they hold, and where on it: at the texel's centre, or at
    the nearest point of the face's chart.
    """
    corners = _to_pixels(mesh.uvs, texture)[mesh.faces]
    inside = fill(corners, (texture, texture))
    around, distance = _around(corners, *_border(mesh.faces), texture)
    found = Fragments(*(np.concatenate(pair) for pair in zip(inside, around, strict=True)))
    distance = np.concatenate([np.zeros(len(inside.face)), distance])
    order = np.lexsort((distance, found.pixel))
    _, first = np.unique(found.pixel[order], return_index=True)
    return Fragments(*(x[order[first]] for x in found))


def _border(faces):
    """Edges of one face only, as the face and the first of the edge's two corners, 0 to 2."""
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1), axis=-1).reshape(-1, 2)
    _, edge, count = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    return np.divmod(np.flatnonzero(count[edge.reshape(-1)] == 1), 3)


def _around(
    corners: Float[np.ndarray, "F 3 2"],
    face: Int[np.ndarray, " e"],
    corner: Int[np.ndarray, " e"],
    texture: int,
) -> tuple[Fragments, Float[np.ndarray, " n"]]:
    """Texels that points of edges read, and their distances from the edge, pixels."""
    start, end = corners[face, corner], corners[face, (corner + 1) % 3]
    along = end - start
    length = np.linalg.norm(along, axis=-1)
    # The 3 x 3 texels around points half a pixel apart hold all that are read in between.
    steps = np.ceil(2 * length).astype(np.int64) + 1
    edge = np.repeat(np.arange(len(face)), steps)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    place = start[edge] + along[edge] * (step / np.maximum(steps - 1, 1)[edge])[:, None]
    near = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(1, 9, 2)
    texel = (np.floor(place).astype(np.int64)[:, None] + near).reshape(-1, 2)
    edge = np.repeat(edge, 9)

    to_center = texel + 0.5 - start[edge]
    share = np.einsum("nc,nc->n", to_center, along[edge]) / np.maximum(length**2, 1e-12)[edge]
    share = np.clip(share, 0.0, 1.0)
    offset = to_center - share[:, None] * along[edge]
    distance = np.linalg.norm(offset, axis=-1)
    keep = (distance < np.sqrt(2)) & (texel >= 0).all(axis=-1) & (texel < texture).all(axis=-1)
    barycentric = np.zeros((len(edge), 3))
    each = np.arange(len(edge))
    barycentric[each, corner[edge]] = 1 - share
    barycentric[each, (corner[edge] + 1) % 3] = share
    pixel = texel[:, 1] * texture + texel[:, 0]
    return Fragments(face[edge][keep], pixel[keep], barycentric[keep]), distance[keep]


def _look_inwards(shade, point, normal, depth, chunk) -> Float[np.ndarray, "n 3"]:
    """Composite colours from a quarter of `depth` outside the points to three quarters inside."""
    step = depth / _SAMPLES
    total = np.zeros((len(point), 3), np.float32)
    weights = np.zeros((len(point), 1), np.float32)
    transmittance = np.ones((len(point), 1), np.float32)
    for offset in depth / 4 - step * (np.arange(_SAMPLES) + 0.5):
        seen = evaluate(shade, (point + offset * normal).astype(np.float32), chunk)
        clear = np.exp(-step * np.maximum(seen[:, :1], 0.0))
        weight = transmittance * (1.0 - clear)
        total += weight * seen[:, 1:]
        weights += weight
        transmittance *= clear
    # A faint surface is shown by its own colour, not by what little it composites.
    faint = weights[:, 0] < 1e-3
    if faint.any():
        total[faint] = evaluate(shade, point[faint], chunk)[:, 1:]
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
