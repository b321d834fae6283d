"""Folders of assets as a run leaves them, made in no time: a tetrahedron, eight views, a record."""

import numpy as np

from jax3d import gallery, image, record
from jax3d.mesh import write_glb, write_obj
from jax3d.types import Mesh

CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
UVS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
SIZE = (0.4, 0.8, 0.6)
"""Along the world's axes: front, right, up."""


def tetrahedron():
    texture = np.full((8, 8, 3), [0.8, 0.2, 0.1], np.float32)
    return Mesh(CORNERS * np.array(SIZE, np.float32) / 2, FACES, uvs=UVS, texture=texture)


def write_asset(out, index, prompt, **changes):
    """Writes an asset with one coarser mesh and a hull; `changes` are of its record."""
    name = gallery.slug(prompt, index)
    folder = out / name
    folder.mkdir(parents=True)
    solid = tetrahedron()
    write_glb(folder / "mesh.glb", solid)
    write_obj(folder / "mesh.obj", solid)
    write_glb(folder / "mesh_lod1.glb", solid, texture="mesh.png")
    write_glb(folder / "hull.glb", Mesh(CORNERS, FACES))
    views = np.linspace(0.2, 1.0, 8, dtype=np.float32)[:, None, None, None]
    image.write_png(folder / "views.png", image.row(np.broadcast_to(views, (8, 16, 16, 3))))
    about = {
        "index": index,
        "prompt": prompt,
        "seed": index % 4,
        "steps": 24,
        "status": "done",
        "knobs": {},
        "critic": "embedded native generator",
        "model_flops": 1,
        "seconds": {"optimize": 0.1, "finish": 0.1},
        "recipe": {"maker": {"weights": ""}, "mesh": {"height": 0.6}},
        "metrics": {"similarity": round(1.0 - index / 1000, 6), "faces": len(FACES)},
        "errors": {},
        "files": record.files_of(folder),
        "versions": {"jax3d": "0.1.0"},
    } | changes
    (folder / record.NAME).write_text(record.dumps(about), encoding="utf-8")
    return name
