"""From prompts to assets on disk: optimise, look, mesh, measure, write.

All assets of a call are optimised in one program; everything after that happens one asset at a
time on the host.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax3d
from jax3d import camera as cameras
from jax3d import gallery, image, mesh
from jax3d.data import props
from jax3d.metrics import scorer
from jax3d.optimize import asset
from jax3d.priors.base import Critic
from jax3d.recipe import Recipe
from jax3d.render import sparse
from jax3d.types import AssetState, Camera, Look, Params

BLOCK = 20
"""Steps between two reports of progress."""


class Job(NamedTuple):
    """One asset to make."""

    prompt: str
    seed: int


class Progress(NamedTuple):
    """What is known after a block of steps."""

    step: int
    steps: int
    residual_norm: np.ndarray
    """[A], of the block's last step."""


def optimise(
    recipe: Recipe,
    critic: Critic,
    jobs: Sequence[Job],
    report: Callable[[Progress], None] = lambda progress: None,
) -> AssetState:
    """Optimises all jobs together; returns their states with a leading axis of assets.

    Raises:
      ValueError: A prompt is not understood by the critic, or the recipe does not fit it.
    """
    conds = asset.stack([recipe.condition(critic, job.prompt) for job in jobs])
    knobs = asset.stack([recipe.knobs_of(job.seed) for job in jobs])
    optimiser = asset.make(
        recipe.representation(), critic.prior, recipe.guide(critic), recipe.optimise
    )
    states = jax.jit(jax.vmap(optimiser.init))(knobs)
    # The assets of a batch are the same numbers either way; see `sparse.Plan.over`.
    over = sparse.plan().over
    compiled, done = {}, 0
    for k, size in asset.blocks(recipe.optimise, BLOCK):
        if (k, size) not in compiled:
            compiled[k, size] = asset.run_block(optimiser.step, k, size, over=over)
        states, metrics = compiled[k, size](states, critic.params, conds, knobs)
        done += k
        report(Progress(done, recipe.steps, np.asarray(metrics["residual_norm"][-1])))
    return states


def views_around(n: int, elevation: float) -> Camera:
    """`n` cameras on a circle that starts at the front; elevation in degrees."""
    azimuth = 2 * jnp.pi * jnp.arange(n) / n
    fovy = jnp.radians(42.0)
    return cameras.orbit(azimuth, jnp.radians(elevation), 1.02 * 0.95 / jnp.sin(fovy / 2), fovy)


class Finisher:
    """Turns one asset's parameters into files; its functions compile once for all assets."""

    def __init__(self, recipe: Recipe):
        """Prepares the compiled functions of a recipe."""
        self.recipe = recipe
        self.field = recipe.representation()
        size = (recipe.pictures.size,) * 2
        self._picture = jax.jit(
            lambda params, camera, look: self.field.render(params, None, camera, look, size).rgb
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
        """The textured mesh of the field."""
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
        return {k: v for k, v in found._asdict().items() if not np.isnan(v)}

    def write(self, params: Params, job: Job, folder: Path, about: dict) -> dict:
        """Writes an asset's files and returns what `asset.json` holds."""
        started = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.recipe.pictures
        around = views_around(8, pictures.elevation)
        views = self.pictures(params, around)
        image.write_png(folder / "views.png", image.row(views))
        frames = self.pictures(params, views_around(pictures.frames, pictures.elevation))
        image.write_video(folder / "turntable.mp4", frames, fps=12)
        image.write_video(folder / "turntable.gif", frames, fps=12)
        metrics = self.measure(job.prompt, views, np.asarray(around.azimuth))
        try:
            made = self.mesh(params)
        except ValueError as error:
            # One asset that has no good mesh must not cost the others their files.
            about = {**about, "error": str(error)}
        else:
            mesh.write_glb(folder / "mesh.glb", made)
            mesh.write_obj(folder / "mesh.obj", made)
            mesh.write_ply(folder / "mesh.ply", made)
            reloaded = mesh.load_glb(folder / "mesh.glb")
            likeness = mesh.compare(reloaded, views, around, Look.albedo())
            image.write_png(folder / "mesh_views.png", image.row(likeness.rgb))
            metrics |= {"mesh_psnr": likeness.psnr, "faces": len(made.faces)}
        record = {
            "prompt": job.prompt,
            "seed": job.seed,
            "metrics": metrics,
            "seconds": {**about.pop("seconds"), "finish": time.perf_counter() - started},
            **about,
            "recipe": dataclasses.asdict(self.recipe),
            "versions": versions(),
        }
        (folder / "asset.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "jax3d": jax3d.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def generate(
    recipe: Recipe,
    critic: Critic,
    jobs: Sequence[Job],
    out: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    finished: Callable[[dict], None] = lambda record: None,
) -> list[dict]:
    """Makes every job's asset and a page that shows them all; returns the `asset.json` records.

    Args:
      recipe: How.
      critic: By whose taste.
      jobs: What.
      out: Folder of the results: `NNNN-prompt/` for each asset and `index.html`.
      report: Called after every block of steps.
      finished: Called with the record of each asset when its files are written.

    Raises:
      ValueError: See `optimise`.
      OSError: `out` cannot be written; found out before any work is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    probe = out / ".writable"
    probe.touch()
    probe.unlink()
    finisher = Finisher(recipe)
    started = time.perf_counter()
    states = jax.block_until_ready(optimise(recipe, critic, jobs, report))
    seconds = (time.perf_counter() - started) / len(jobs)
    records, entries = [], []
    for k, job in enumerate(jobs):
        params = jax.tree.map(lambda x, k=k: x[k], states.params)
        folder = out / gallery.slug(job.prompt, k)
        about = {"steps": recipe.steps, "seconds": {"optimise": seconds}, "critic": critic.name}
        record = finisher.write(params, job, folder, about)
        records.append(record)
        entries.append(
            {
                "folder": folder.name,
                "prompt": job.prompt,
                "seed": job.seed,
                "metrics": record["metrics"],
            }
        )
        gallery.write_gallery(out, entries)
        finished(record)
    return records
