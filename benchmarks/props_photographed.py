"""Props as photographed scenes, and what is known of their surfaces: the truth for `fit.py`."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jax3d import camera as cameras
from jax3d import mesh as meshing
from jax3d.data import props
from jax3d.image import to_uint8
from jax3d.render import sdf
from jax3d.types import Camera, Mesh

LIGHT = np.float32([0.5, 0.35, 0.79]) / np.linalg.norm([0.5, 0.35, 0.79])
"""One lamp for all views, so that the shading is on the object."""
AMBIENT = 0.55


def spread(count: int, low: float, high: float, offset: float = 0.0) -> Camera:
    """Cameras on a spiral between two elevations, degrees."""
    i = jnp.arange(count) + 0.5
    heights = jnp.sin(jnp.radians(jnp.array([low, high])))
    elevation = jnp.arcsin(heights[0] + (heights[1] - heights[0]) * i / count)
    fovy = jnp.radians(42.0)
    azimuth = offset + i * jnp.pi * (3 - 5**0.5)
    return cameras.orbit(azimuth, elevation, 1.02 * 0.95 / jnp.sin(fovy / 2), fovy)


@partial(jax.jit, static_argnums=2)
def photograph(scene: sdf.Scene, camera: Camera, size: int):
    """Straight sRGB and coverage, `[v, size, size, 4]`."""
    return jax.lax.map(
        lambda c: props.render(scene, c, jnp.asarray(LIGHT), jnp.float32(AMBIENT), size), camera
    )


def truth(spec: props.Spec, seed: int) -> sdf.Scene:
    """The prop."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), props.build([spec], seed))


def write_scene(folder: Path, scene: sdf.Scene, size: int, seen: int, unseen: int) -> None:
    """A folder as Blender's NeRF scenes have it."""
    sets = {"train": spread(seen, -15, 70), "test": spread(unseen, -10, 60, offset=1.3)}
    for part, camera in sets.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        pictures = to_uint8(photograph(scene, camera, size))
        frames = []
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / part / f"r_{i}.png")
            pose = np.asarray(camera.c2w[i], float).round(7).tolist()
            frames.append({"file_path": f"./{part}/r_{i}", "transform_matrix": pose})
        about = {"camera_angle_x": float(camera.fovy[0]), "frames": frames}
        (folder / f"transforms_{part}.json").write_text(json.dumps(about, indent=1))


def surface(scene: sdf.Scene, resolution: int = 160) -> Mesh:
    """The true surface, finely meshed."""
    distance = jax.jit(lambda x: 500.0 * jax.nn.sigmoid(-200.0 * sdf.distance(scene, x)))
    grid = meshing.sample_density(distance, 1.0, resolution)
    return meshing.extract_surface(distance, grid, 250.0, 1.0)
