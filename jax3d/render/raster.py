"""A z-buffer rasteriser of textured triangle meshes (NumPy, host side, not differentiable).

It shows an exported mesh to the cameras that its field was seen by, so that the two can be
compared; texture baking uses the same triangle fill. All triangles are filled at once: each is
given the pixels of its bounding box, and the flat list of (triangle, pixel) pairs is cut down to
those inside by barycentric coordinates (Pineda, "A Parallel Algorithm for Polygon Rasterization",
1988).

Letters: v views, F faces, V vertices, n fragments, H and W pixels.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax3d.types import Camera, Look, Mesh, Render

_EDGE = 1e-4
"""Barycentric slack: a pixel's centre on a shared edge belongs to both triangles, to no gap."""


class Fragments(NamedTuple):
    """Pairs of a face and a pixel whose centre it covers."""

    face: Int[np.ndarray, " n"]
    pixel: Int[np.ndarray, " n"]
    """Row-major index into the picture."""
    barycentric: Float[np.ndarray, "n 3"]
    """Weights of the face's corners in the picture's plane; they add up to 1."""


def fill(corners: Float[np.ndarray, "F 3 2"], size: tuple[int, int]) -> Fragments:
    """Fill triangles of a picture of `size` (H, W), in any winding.

    `corners` are (column, row) in pixels; the upper left pixel's centre is (0.5, 0.5). Triangles
    without area, or with corners that are not finite, cover nothing.
    """
    height, width = size
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = _cross(b - a, c - a)
    limit = np.array([width, height])
    usable = np.isfinite(corners).all(axis=(1, 2)) & (np.abs(area) > 1e-12)
    safe = np.where(usable[:, None, None], corners, -1.0)
    first = np.clip(np.ceil(safe.min(axis=1) - 0.5), 0, limit).astype(np.int64)
    last = np.clip(np.floor(safe.max(axis=1) - 0.5) + 1, first, limit).astype(np.int64)
    box_width, box_height = (last - first).T

    count = box_width * box_height
    face = np.repeat(np.arange(len(corners)), count)
    place = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    column = first[face, 0] + place % box_width[face]
    row = first[face, 1] + place // box_width[face]

    point = np.stack([column, row], axis=-1) + 0.5
    to_a, to_b, to_c = a[face] - point, b[face] - point, c[face] - point
    edges = np.stack([_cross(to_b, to_c), _cross(to_c, to_a), _cross(to_a, to_b)], axis=-1)
    barycentric = edges / area[face, None]
    inside = (barycentric >= -_EDGE).all(axis=-1)
    return Fragments(face[inside], (row * width + column)[inside], barycentric[inside])


def render_mesh(
    mesh: Mesh, camera: Camera, look: Look, size: tuple[int, int], supersample: int = 2
) -> Render:
    """Show a mesh to cameras `[v]`; both sides of a face are seen, colours are opaque.

    Every pixel is the mean of `supersample`^2 point samples; normals are smooth, as in the
    exported file. Faces that reach behind a camera are left out: keep the mesh in front. A mesh
    without colours is white.
    """
    fine = (size[0] * supersample, size[1] * supersample)
    pixels, depths = project(camera, mesh.vertices, fine)
    eyes = np.asarray(camera.c2w)[:, :3, 3]
    normals = vertex_normals(mesh.vertices, mesh.faces)
    views = len(eyes)
    ambient, textureless = (np.broadcast_to(x, views) for x in (look.ambient, look.textureless))
    light = np.broadcast_to(look.light, (views, 3))

    layers = []
    for i in range(views):
        seen = _visible(mesh.faces, pixels[i], depths[i], fine)
        corner = mesh.faces[seen.face]
        albedo = _albedo(mesh, corner, seen.barycentric)
        normal = _unit(_mix(normals[corner], seen.barycentric))
        lambert = np.maximum(normal @ light[i], 0.0)[:, None]
        shade = ambient[i] + (1.0 - ambient[i]) * lambert
        rgb = (albedo + textureless[i] * (1.0 - albedo)) * shade
        distance = np.linalg.norm(
            _mix(mesh.vertices[corner], seen.barycentric) - eyes[i], axis=-1, keepdims=True
        )
        values = np.concatenate([rgb, np.ones_like(distance), distance, normal], axis=-1)
        layers.append(_pool(values, seen.pixel, size, supersample))

    out = np.stack(layers).astype(np.float32)
    alpha = out[..., 3]
    return Render(
        rgb=jnp.asarray(out[..., :3]),
        alpha=jnp.asarray(alpha),
        depth=jnp.asarray(out[..., 4] / np.maximum(alpha, 1e-6)),
        normal=jnp.asarray(out[..., 5:]),
        orient=jnp.zeros_like(alpha),
    )


def sample_texture(
    texture: Float[np.ndarray, "H W c"], uv: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n c"]:
    """Bilinear lookup, clamped at the borders; `uv` in [0, 1] from the lower left corner."""
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1 - uv[:, 1]) * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    bottom = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Area-weighted unit normals; vertices at one place (split by a texture's seam) share one.

    A vertex of no face gets +z.
    """
    _, place = np.unique(vertices, axis=0, return_inverse=True)
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    normal = np.repeat(np.cross(b - a, c - a), 3, axis=0)
    corner = place.reshape(-1)[faces.reshape(-1)]
    summed = np.stack([np.bincount(corner, x, minlength=len(vertices)) for x in normal.T], axis=-1)
    return _unit(summed)[place.reshape(-1)].astype(vertices.dtype)


def project(
    camera: Camera, x: Float[np.ndarray, "n 3"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "v n 2"], Float[np.ndarray, "v n"]]:
    """`camera.project` in NumPy, which need not compile for each mesh's number of vertices."""
    height, width = size
    c2w, fovy = np.asarray(camera.c2w, np.float64), np.asarray(camera.fovy, np.float64)
    local = (x - c2w[:, None, :3, 3]) @ c2w[:, :3, :3]
    depth = -local[..., 2]
    scale = height / 2 / (np.where(depth > 1e-6, depth, 1.0) * np.tan(fovy / 2)[:, None])
    column = width / 2 + scale * local[..., 0]
    row = height / 2 - scale * local[..., 1]
    return np.stack([column, row], axis=-1), depth


def _visible(faces, pixels, depths, size):
    """The nearest fragment of each covered pixel, its weights corrected for perspective."""
    in_front = (depths[faces] > 1e-6).all(axis=1)
    corners = np.where(in_front[:, None, None], pixels[faces], np.nan).astype(np.float64)
    found = fill(corners, size)
    # 1/depth, not depth, is linear in the picture's plane.
    weight = found.barycentric / depths[faces[found.face]]
    nearness = weight.sum(axis=-1)
    winner = np.full(size[0] * size[1], -1)
    order = np.argsort(nearness, kind="stable")
    winner[found.pixel[order]] = order  # the last one written is the nearest
    keep = winner[winner >= 0]
    return Fragments(found.face[keep], found.pixel[keep], weight[keep] / nearness[keep, None])


def _albedo(mesh, corner, barycentric):
    if mesh.texture is not None:
        return sample_texture(mesh.texture, _mix(mesh.uvs[corner], barycentric))
    if mesh.colors is not None:
        return _mix(mesh.colors[corner], barycentric)
    return np.ones_like(barycentric)


def _pool(values, pixel, size, supersample):
    """Mean over the point samples of each pixel; an empty sample counts as zero."""
    height, width = size
    fine = np.zeros((height * supersample * width * supersample, values.shape[-1]))
    fine[pixel] = values
    return fine.reshape(height, supersample, width, supersample, -1).mean(axis=(1, 3))


def _mix(corner_values, barycentric):
    return np.einsum("nkc,nk->nc", corner_values, barycentric)


def _unit(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(length > 0, x / np.where(length > 0, length, 1.0), [0.0, 0.0, 1.0])


def _cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
