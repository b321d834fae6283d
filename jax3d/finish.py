"""What becomes of a finished asset: pictures, scores, a mesh, and one record of it all.

Every asset keeps its parameters (`folder.PARAMS`), from which `export` makes the rest again, and
the metrics of its blocks (`HISTORY`).
"""

import contextlib
import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

import jax3d
from jax3d import camera as cameras
from jax3d import folder as folders
from jax3d import gallery, image, mesh, record
from jax3d.data import props
from jax3d.fields.base import Representation
from jax3d.mesh import MeshConfig
from jax3d.metrics import scorer
from jax3d.optimize.checkpoint import absolute
from jax3d.recipe import Pictures, Recipe
from jax3d.types import Camera, Look, Params

HISTORY = "history.csv"
PICTURE = "picture.png"
"""What an asset was made from, where that is a picture."""
VIEWS = 8
"""Around the asset, in `views.png`; the scorer judges them."""

History = Sequence[Mapping[str, float]]
"""Of each block the means of its metrics, and the `step` that ended it."""


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "jax3d": jax3d.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


class _Files:
    """The files of an asset in the making, and what went wrong with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.errors: dict[str, str] = {}
        self._refusal: OSError | None = None
        self._before = set(folder.iterdir())

    @contextlib.contextmanager
    def make(self, name: str, *beside: str) -> Iterator[None]:
        """Notes what the making of a file raises, and removes what there is of it.

        `beside` are files that come and go with it.
        """
        try:
            yield
        except Exception as error:
            # From fonts to codecs: whatever it is, the asset has other files.
            said = " ".join(str(error).split())[:300]
            plain = isinstance(error, OSError | ValueError) and said
            self.errors[name] = said if plain else f"{type(error).__name__}: {said}"
            if isinstance(error, OSError):
                self._refusal = error
            for each in (name, *beside):
                (self.folder / each).unlink(missing_ok=True)

    def demand_some(self) -> None:
        """Raises the `OSError` by which no file could be written, save perhaps the smallest."""
        made = (
            set(self.folder.iterdir())
            - self._before
            - {self.folder / HISTORY, self.folder / PICTURE}
        )
        if self._refusal is not None and not made:
            raise OSError(f"nothing can be written: {self._refusal}") from self._refusal


class Finisher:
    """Turns one asset's parameters into files; its functions compile once for all assets."""

    def __init__(self, recipe: Recipe, field: Representation | None = None):
        """Prepares the compiled functions of a recipe; `field` is by default what the recipe makes.

        A model's may know more: how the model's makers mesh it. Raises `ValueError` where levels of
        detail are asked of what is a mesh by itself.
        """
        self.recipe = recipe
        self.field = recipe.outcome.build() if field is None else field
        mesh.demand_levels(self.field, recipe.mesh)
        size = (recipe.pictures.size,) * 2
        self._picture = jax.jit(
            lambda params, camera, look: self._shown(params, camera, look, size)
        )
        self._around = jax.jit(
            lambda n: cameras.around(n, recipe.pictures.elevation), static_argnums=0
        )
        self._scorer = scorer.load()
        held_out = [s for s in props.specs() if props.is_held_out(s)]
        self._captions = [props.caption(s) for s in held_out]

    def _shown(self, params: Params, camera: Camera, look: Look, size: tuple[int, int]):
        """Pictures over the look's background, and what was left out of them."""
        render = self.field.render(params, None, camera, look, size)
        left_out = 0 if render.overflow is None else render.overflow.sum()
        return render.over(look.background), left_out

    def pictures(self, params: Params, camera: Camera) -> np.ndarray:
        """`[v, S, S, 3]` over white; one camera at a time, so memory does not grow with v.

        Raises `ValueError` where a picture has no room for all that is in it.
        """
        look = Look.albedo()
        one = [jax.tree.map(lambda x, i=i: x[i : i + 1], camera) for i in range(len(camera.fovy))]
        shown, left_out = zip(*(self._picture(params, c, look) for c in one), strict=True)
        if any(left_out):
            raise ValueError(
                f"pictures of {self.recipe.pictures.size} pixels have no room for all that is in "
                "them: raise field.splat.hits of the recipe, or lower pictures.size"
            )
        return np.concatenate([np.asarray(picture) for picture in shown])

    def meshes(self, params: Params) -> tuple[mesh.Mesh, ...]:
        """The asset's mesh, and coarser ones if asked; raises `ValueError` where it has none."""
        return mesh.levels(self.field, params, self.recipe.mesh)

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

    def write(
        self,
        params: Params,
        folder: Path,
        about: Mapping[str, Any],
        solid: bool,
        history: History | None = None,
        shown: np.ndarray | None = None,
        measure: Callable[[Params], Mapping[str, float]] | None = None,
    ) -> dict:
        """Writes an asset's files and returns what `asset.json` holds.

        Each file is made by itself: what its making raises goes under its name into the record's
        `errors`, and costs no other file.

        Args:
          params: Of the field.
          folder: Exists, and is empty save for files that are to stay.
          about: What is known of the asset already; its `prompt` is read, and to its `seconds`
            the time of this call is added.
          solid: Whether turntable and mesh are wanted, beside views and scores.
          history: Where it is known.
          shown: Pictures from which it was made, `[n, H, W, 3]`.
          measure: What else is measured of the parameters.

        Raises:
          OSError: Nothing could be written, or not even the record.
        """
        started = time.perf_counter()
        files = _Files(folder)
        with files.make(folders.PARAMS):
            folders.save_params(params, folder / folders.PARAMS)
        if history is not None:
            with files.make(HISTORY):
                write_history(folder / HISTORY, history)
        if shown is not None:
            with files.make(PICTURE):
                image.write_png(folder / PICTURE, image.row(shown))
        views, metrics = self._look(params, about["prompt"], files)
        if measure is not None:
            with files.make("measures"):
                metrics |= measure(params)
        if solid:
            metrics |= self._solidify(params, views, files)
            self._turn(params, views, files)
        files.demand_some()
        seconds = about["seconds"]
        spent = seconds.get("finish", 0.0) + time.perf_counter() - started
        found = {
            "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
            "errors": files.errors,
            "files": record.files_of(folder),
            "seconds": {**seconds, "finish": spent},
            "versions": versions(),
        }
        return _recorded(folder, {**about, **found})

    def _look(
        self, params: Params, prompt: str, files: _Files
    ) -> tuple[np.ndarray | None, dict[str, float]]:
        """Writes eight views in a row; returns them and what the scorer says of them."""
        around = self._around(VIEWS)
        views, scores = None, {}
        with files.make("views.png"):
            views = self.pictures(params, around)
            image.write_png(files.folder / "views.png", image.row(views))
        if views is not None:
            with files.make("scores"):
                scores = self.measure(prompt, views, np.asarray(around.azimuth))
        return views, scores

    def _solidify(
        self, params: Params, views: np.ndarray | None, files: _Files
    ) -> dict[str, int | float]:
        """Writes the mesh and its pictures; returns what is measured of it, beside the views."""
        folder, made = files.folder, ()
        with files.make("mesh"):
            made = self.meshes(params)
        if not made:
            return {}
        place = mesh.placement(made[0], self.recipe.mesh.height)
        finest, *coarser = map(place.apply, made)
        metrics = {"faces": len(finest.faces)}
        with files.make("mesh.glb"):
            mesh.write_glb(folder / "mesh.glb", finest)
        with files.make("mesh.obj", "mesh.mtl", "mesh.png"):
            mesh.write_obj(folder / "mesh.obj", finest)
        with files.make("mesh.ply"):
            mesh.write_ply(folder / "mesh.ply", finest)
        self._for_games(finest, coarser, files)
        if "mesh.glb" in files.errors:
            return metrics
        with files.make("mesh.js"):
            gallery.write_mesh_script(folder / "mesh.glb")
        if views is None:
            return metrics
        with files.make("mesh_views.png"):
            around = self._around(VIEWS)
            reloaded = place.undo(mesh.load_glb(folder / "mesh.glb"))
            likeness = mesh.compare(reloaded, views, around, Look.albedo())
            image.write_png(folder / "mesh_views.png", image.row(likeness.rgb))
            metrics["mesh_psnr"] = likeness.psnr
        return metrics

    def _for_games(self, finest: mesh.Mesh, coarser: Sequence[mesh.Mesh], files: _Files) -> None:
        """Writes the coarser levels, which use the texture beside them, and the hull."""
        config = self.recipe.mesh
        for k in range(1, config.lods + 1):
            name = f"mesh_lod{k}.glb"
            with files.make(name):
                if k > len(coarser):
                    raise ValueError("the level before cannot lose half its faces and stay closed")
                if not (files.folder / "mesh.png").exists():
                    raise ValueError("its texture, mesh.png, could not be written")
                mesh.write_glb(files.folder / name, coarser[k - 1], texture="mesh.png")
        if config.hull is not None:
            with files.make("hull.glb"):
                mesh.write_glb(files.folder / "hull.glb", mesh.convex_hull(finest, config.hull))

    def _turn(self, params: Params, views: np.ndarray | None, files: _Files) -> None:
        """Writes the turntable, of which some frames are the views."""
        pictures, frames = self.recipe.pictures, None
        if not pictures.frames:
            return
        with files.make("turntable"):
            around = self._around(pictures.frames)
            every, rest = divmod(pictures.frames, VIEWS)
            if rest or views is None:
                frames = self.pictures(params, around)
            else:
                new = np.arange(pictures.frames) % every != 0
                frames = np.repeat(views, every, axis=0)
                if new.any():
                    frames[new] = self.pictures(params, jax.tree.map(lambda x: x[new], around))
        for name in ("turntable.mp4", "turntable.gif") if frames is not None else ():
            with files.make(name):
                image.write_video(files.folder / name, frames, fps=12)


def write_failure(
    folder: Path, about: Mapping[str, Any], why: str, history: History | None
) -> dict:
    """Writes the record of an asset that has nothing to show, and returns it."""
    if history is not None:
        write_history(folder / HISTORY, history)
    found = {
        "status": "failed",
        "metrics": {},
        "errors": {"asset": why},
        "files": record.files_of(folder),
        "seconds": {**about["seconds"], "finish": 0.0},
        "versions": versions(),
    }
    return _recorded(folder, {**about, **found})


def _recorded(folder: Path, found: dict) -> dict:
    text = record.dumps(found)
    (folder / record.NAME).write_text(text, encoding="utf-8")
    return json.loads(text)


def page_of(records: Mapping[str, Mapping]) -> list[gallery.Asset]:
    """What the page shows of records, by folder: not what failed or lost to another candidate."""
    return [
        {
            "folder": name,
            "prompt": about["prompt"],
            "seed": about["seed"],
            "metrics": about["metrics"],
            "family": spec.name if (spec := props.parse(about["prompt"])) else "",
            "knobs": {
                "steps": str(about["steps"]),
                "status": about["status"],
                **{k: " to ".join(f"{x:g}" for x in v) for k, v in about["knobs"].items()},
            },
        }
        for name, about in records.items()
        if about.get("best", True) and about["status"] != "failed"
    ]


def write_history(path: Path, history: History) -> None:
    """Writes the metrics of each block as CSV: a column each, empty where one is not finite."""
    names = sorted({name for means in history for name in means} - {"step"})
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *names])
        for means in history:
            values = (means.get(name, np.nan) for name in names)
            cells = (f"{x:.6g}" if np.isfinite(x) else "" for x in values)
            writer.writerow([int(means["step"]), *cells])


def export(
    source: epath.PathLike,
    target: epath.PathLike | None = None,
    *,
    mesh: MeshConfig | None = None,
    pictures: Pictures | None = None,
) -> dict:
    """Makes mesh, pictures and video of a finished asset's folder again; returns the record.

    Args:
      source: The folder of an asset.
      target: The folder of the new files; `source` by default, whose files they replace.
      mesh: In place of the recipe's.
      pictures: In place of the recipe's.

    Raises:
      ValueError: `source` holds no whole asset, or a mesh where another one is asked for; or
        `target` is a link.
      OSError: A folder cannot be read or written.
    """
    source = absolute(source)
    target = source if target is None else absolute(target)
    folders.refuse_links(target.parent, [target.name])
    asset = folders.load_asset(source)
    if asset.recipe.texture is not None and mesh not in (None, asset.recipe.mesh):
        raise ValueError(
            f"{source} is a mesh already, whose texture was trained: it stays as it is"
        )
    recipe = dataclasses.replace(
        asset.recipe,
        mesh=asset.recipe.mesh if mesh is None else mesh,
        pictures=asset.recipe.pictures if pictures is None else pictures,
    )
    about = asset.record | {"recipe": record.encode(recipe)}
    parent = target.parent
    with (
        folders.held(parent, "export", wait=True),
        folders.staging(parent, "export", target.name) as local,
    ):
        return remake(Finisher(recipe), asset, about, source, target, local, solid=True)


def remake(
    finisher: Finisher,
    asset: folders.Asset,
    about: Mapping[str, Any],
    source: epath.Path,
    target: epath.Path,
    local: Path,
    *,
    solid: bool,
) -> dict:
    """Makes an asset's files anew from its parameters; what led to these stays. Returns the record.

    `local` is an empty folder of this machine, on the disk of a local `target`.
    """
    for name in {HISTORY, PICTURE} & {*about["files"]}:
        (source / name).copy(local / name, overwrite=True)
    # Held-out photographs are not among an asset's files: what they said stays.
    kept = {k: v for k, v in about["metrics"].items() if k.startswith("unseen_")}
    made = finisher.write(asset.params, local, about, solid, measure=lambda params: kept)
    folders.publish(local, target)
    return made
