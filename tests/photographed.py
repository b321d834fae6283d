"""Small photographed scenes, of which everything is known."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jax3d import camera as cameras
from jax3d.image import to_uint8
from jax3d.render.raster import render_mesh
from jax3d.types import Camera, Look, Mesh

ANGLE = 0.7


def cube() -> Mesh:
    """A cube with corners of all colours, off the origin."""
    corner = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], np.float32)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)])
    return Mesh(2 * corner - [0.5, 1, 1.5], faces, colors=0.15 + 0.7 * corner)


def around(count: int) -> Camera:
    """Cameras that look at a place near the cube, from 9 m."""
    i = jnp.arange(count)
    elevation = 0.7 * jnp.sin(2.4 * i)
    return cameras.orbit(2 * jnp.pi * i / count, elevation, 9.0, ANGLE, jnp.array([0.4, 0.1, -0.4]))


def write(folder: Path, count: int = 10, size: int = 32, **about) -> dict:
    """A folder as instant-ngp has it; returns what its file says."""
    camera = around(count)
    shown = render_mesh(cube(), camera, Look.albedo(), (size, size))
    alpha = np.asarray(shown.alpha)[..., None]
    straight = np.asarray(shown.rgb) / np.maximum(alpha, 1e-6)
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for i, picture in enumerate(to_uint8(np.concatenate([straight, alpha], -1))):
        Image.fromarray(picture).save(folder / f"{i}.png")
        pose = np.asarray(camera.c2w[i], float).tolist()
        frames.append({"file_path": f"./{i}.png", "transform_matrix": pose})
    told = {"camera_angle_x": ANGLE, "frames": frames} | about
    (folder / "transforms.json").write_text(json.dumps(told))
    return told
