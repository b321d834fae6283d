"""What becomes of a finished asset: pictures, scores, a mesh, and one record of it all."""

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jax3d
from jax3d import camera as cameras
from jax3d import gallery, image, mesh
from jax3d.data import props
from jax3d.metrics import scorer
from jax3d.recipe import Recipe
from jax3d.types import Camera, Look, Params


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "jax3d": jax3d.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


class Finisher:
    """Turns one asset's parameters into files; its functions compile once for all assets."""

    def __init__(self, recipe: Recipe):
        """Prepares the compiled functions of a recipe."""
        self.recipe = recipe
        self.field = recipe.field.build()
        size = (recipe.pictures.size,) * 2
        self._picture = jax.jit(
            lambda params, camera, look: self.field.render(params, None, camera, look, size).over(
                look.background
            )
        )
        self._density, self._color = jax.jit(self.field.density), jax.jit(self.field.color)
        self._scorer = scorer.load()
        held_out = [s for s in props.specs() if props.is_held_out(s)]
        self._captions = [props.caption(s) for s in held_out]

    def pictures(self, params: Params, camera: Camera) -> np.ndarray:
        """`[v, S, S, 3]` over white; one camera at a time, so memory does not grow with v."""
        look = Look.albedo()
        one = [jax.tree.map(lambda x, i=i: x[i : i + 1], camera) for i in range(len(camera.fovy))]
        return np.concatenate([np.asarray(self._picture(params, c, look)) for c in one])

    def mesh(self, params: Params) -> mesh.Mesh:
        """The textured mesh of the field; raises `ValueError` where it has none."""
        density, color = partial(self._density, params), partial(self._color, params)
        return mesh.build(density, color, self.field.bound, self.recipe.mesh)

    def measure(self, prompt: str, views: np.ndarray, azimuth: np.ndarray) -> dict[str, float]:
        """The scorer's opinion of views, for a prompt in words of the prop world, else nothing."""
        spec = props.parse(prompt)
        if spec is None:
            return {}
        own = props.caption(spec)
        captions = [own, *(c for c in self._captions if c != own)]
        verdict = scorer.judge(self._scorer, views, captions, [spec.name] * len(views))
        found = scorer.scores(verdict, np.zeros(len(views), int), [spec] * len(views), azimuth)
        shares = {k: v for k, v in found._asdict().items() if not np.isnan(v)}
        # Shares of eight views are often equal; how near the views are to the caption is not.
        return shares | {"similarity": float(verdict.similarity[:, 0].mean())}

    def look(self, params: Params, prompt: str, folder: Path) -> dict[str, float]:
        """Writes eight views in a row and returns what the scorer says of them."""
        around = cameras.around(8, self.recipe.pictures.elevation)
        views = self.pictures(params, around)
        image.write_png(folder / "views.png", image.row(views))
        return self.measure(prompt, views, np.asarray(around.azimuth))

    def solidify(self, params: Params, folder: Path) -> dict[str, Any]:
        """Writes turntable and mesh; returns the mesh's metrics.

        Raises:
          ValueError: The field has no good mesh; the turntable is written all the same.
        """
        pictures = self.recipe.pictures
        if pictures.frames:
            frames = self.pictures(params, cameras.around(pictures.frames, pictures.elevation))
            image.write_video(folder / "turntable.mp4", frames, fps=12)
            image.write_video(folder / "turntable.gif", frames, fps=12)
        made = self.mesh(params)
        mesh.write_glb(folder / "mesh.glb", made)
        mesh.write_obj(folder / "mesh.obj", made)
        mesh.write_ply(folder / "mesh.ply", made)
        gallery.write_mesh_script(folder / "mesh.glb")
        around = cameras.around(8, pictures.elevation)
        reloaded = mesh.load_glb(folder / "mesh.glb")
        likeness = mesh.compare(reloaded, self.pictures(params, around), around, Look.albedo())
        image.write_png(folder / "mesh_views.png", image.row(likeness.rgb))
        return {"mesh_psnr": likeness.psnr, "faces": len(made.faces)}

    def write(self, params: Params, folder: Path, about: Mapping[str, Any], solid: bool) -> dict:
        """Writes an asset's files and returns what `asset.json` holds.

        Args:
          params: Of the field.
          folder: Exists.
          about: What is known of the asset already; its `prompt` is read, and to its `seconds`
            the time of this call is added.
          solid: Whether turntable and mesh are wanted, beside views and scores.
        """
        started = time.perf_counter()
        record = dict(about)
        record["metrics"] = self.look(params, about["prompt"], folder)
        if solid:
            try:
                record["metrics"] |= self.solidify(params, folder)
            except ValueError as error:
                # One asset that has no good mesh must not cost the others their files.
                record["error"] = str(error)
        seconds = about["seconds"]
        spent = seconds.get("finish", 0.0) + time.perf_counter() - started
        record |= {"seconds": {**seconds, "finish": spent}, "versions": versions()}
        (folder / "asset.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record
