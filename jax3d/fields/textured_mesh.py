"""A mesh whose texture is trained: one asset's surface is fixed, its colours are not.

Its parameters are a dictionary: `texture` (logits of sRGB albedo, first row at the top) is trained;
`corners`, `uvs` and `normals` of the faces are not. There is room for a fixed number of faces, each
with corners of its own, so that nothing but numbers is stored; places without a face are all zero.

Letters: v views, F places for faces, T texture side, H and W pixels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jax3d.bounds import Count, Positive, Range
from jax3d.fields.base import Representation
from jax3d.math import normalize
from jax3d.render import shading, triangles
from jax3d.render.raster import vertex_normals
from jax3d.types import Camera, Key, Look, Mesh, Params, Render


@dataclass(frozen=True)
class TexturedMeshConfig:
    """Sizes and code paths of a mesh with a trained texture."""

    faces: Annotated[int, Range(8, 2**31 - 1)] = 6000
    """Places for faces."""
    texture: Annotated[int, Range(8, 16384)] = 256
    """Side of the square texture, pixels."""
    bound: Positive = 1.0
    """Half side of the cube around the origin that holds the object, metres."""
    supersample: Annotated[int, Range(1, 16)] = 2
    """A pixel is the mean of this number squared of samples, which smooths edges and texels."""
    room: Count = 8
    """Pairs of a face and a sample in its bounding box that there is room for: so many for each
    sample of a view, and twice as many for each face."""
    rate: Positive = 0.2
    """Learning rate of the texture (DreamGaussian)."""

    def build(self) -> Representation:
        """The representation."""
        return textured_mesh(self)


def textured_mesh(config: TexturedMeshConfig | None = None) -> Representation:
    """Build the representation."""
    cfg = config or TexturedMeshConfig()
    return Representation(
        init=partial(_init, cfg=cfg),
        render=partial(_render, cfg=cfg),
        regularise=lambda params: {},
        bound=cfg.bound,
        mesh=to_mesh,
        rates=partial(_rates, cfg=cfg),
    )


def from_mesh(mesh: Mesh, config: TexturedMeshConfig) -> Params:
    """Parameters that hold a textured mesh, on the host.

    Raises:
      ValueError: It has no texture of the config's side, or more faces than there are places.
    """
    side = config.texture
    if mesh.texture is None or np.shape(mesh.texture) != (side, side, 3):
        raise ValueError(f"the mesh has no texture of {side} x {side} pixels to go on from")
    if len(mesh.faces) > config.faces:
        raise ValueError(f"the mesh has {len(mesh.faces)} faces; there are {config.faces} places")
    normals = vertex_normals(mesh.vertices, mesh.faces)
    albedo = np.clip(mesh.texture, 0.01, 0.99)  # further out, a logit hardly has a gradient
    missing = config.faces - len(mesh.faces)

    def placed(values):
        values = np.asarray(values, np.float32)[mesh.faces]
        return np.pad(values, [(0, missing), (0, 0), (0, 0)])

    return {
        "corners": placed(mesh.vertices),
        "normals": placed(normals),
        "texture": np.log(albedo / (1 - albedo)).astype(np.float32),
        "uvs": placed(mesh.uvs),
    }


def to_mesh(params: Params) -> Mesh:
    """The mesh with its texture, on the host; vertices of one place and texel are joined."""
    known = {name: np.asarray(value, np.float32) for name, value in params.items()}
    there = np.any(known["corners"] != 0, axis=(1, 2))
    rows = np.concatenate([known["corners"], known["uvs"]], axis=-1)[there].reshape(-1, 5)
    vertices, faces = np.unique(rows, axis=0, return_inverse=True)
    return Mesh(
        vertices=vertices[:, :3],
        faces=faces.reshape(-1, 3).astype(np.int64),
        uvs=vertices[:, 3:],
        texture=np.asarray(jax.nn.sigmoid(known["texture"])),
    )


def _init(key: Key, cfg: TexturedMeshConfig) -> Params:
    """A grey octahedron: its texture is the unfolded one, the lower half in the corners."""
    del key
    axes = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], np.float32)
    sides = [(axes[k], axes[(k + 1) % 4]) for k in range(4)]
    up = np.array([0, 0, 1], np.float32)
    corners = np.array([[a, b, up] for a, b in sides] + [[b, a, -up] for a, b in sides])
    flat = corners[..., :2]
    below = flat.copy()
    below[:4, 2], below[4:, 2] = 0.0, flat[4:, 0] + flat[4:, 1]
    missing = [(0, cfg.faces - 8), (0, 0), (0, 0)]
    return {
        "corners": jnp.pad(jnp.asarray(0.5 * cfg.bound * corners), missing),
        "normals": jnp.pad(jnp.asarray(corners), missing),
        "texture": jnp.zeros((cfg.texture, cfg.texture, 3)),
        "uvs": jnp.pad(jnp.asarray(0.5 + 0.5 * below), missing),
    }


def _rates(progress, cfg: TexturedMeshConfig) -> dict[str, Any]:
    """The texture alone learns."""
    del progress
    return {"corners": 0.0, "normals": 0.0, "texture": cfg.rate, "uvs": 0.0}


def _render(
    params: Params,
    key: Key | None,
    camera: Camera,
    look: Look,
    size: tuple[int, int],
    cfg: TexturedMeshConfig,
) -> Render:
    del key
    fine = (size[0] * cfg.supersample, size[1] * cfg.supersample)
    still = jax.lax.stop_gradient({k: x for k, x in params.items() if k != "texture"})
    room = cfg.room * (fine[0] * fine[1] + 2 * len(still["corners"]))
    seen = triangles.visible(camera, still["corners"], fine, room)
    hit = (seen.face >= 0).astype(jnp.float32)

    def mix(corner_values):
        return jnp.einsum("...kc,...k->...c", corner_values[seen.face], seen.weights)

    albedo = triangles.look_up(jax.nn.sigmoid(params["texture"]), mix(still["uvs"]))
    normal = normalize(mix(still["normals"])) * hit[..., None]
    flat = (x.reshape(len(x), -1, 3) for x in (albedo, normal))
    rgb = shading.shade(*flat, shading.per_view(look, len(albedo))).reshape(albedo.shape)
    rgb = rgb * hit[..., None]
    place = mix(still["corners"]) - camera.c2w[:, None, None, :3, 3]
    distance = jnp.linalg.norm(place, axis=-1) * hit
    values = jnp.concatenate([rgb, normal, hit[..., None], distance[..., None]], axis=-1)
    values = _pool(values, cfg.supersample)
    alpha = values[..., 6]
    return Render(
        rgb=values[..., :3],
        alpha=alpha,
        depth=values[..., 7] / jnp.maximum(alpha, 1e-6),
        normal=values[..., 3:6],
        orient=jnp.zeros_like(alpha),  # what faces away is seen like what does not
        overflow=seen.overflow,
    )


def _pool(values, supersample: int):
    """Means over the samples of each pixel."""
    views, height, width, channels = values.shape
    shape = (views, height // supersample, supersample, width // supersample, supersample, channels)
    return values.reshape(shape).mean(axis=(2, 4))
