"""From jobs to a folder of assets: claim it, sweep, finish, keep account, show.

    out/sweep.json           what this folder holds, so that another run cannot mix with it
    out/NNNN-prompt/         the files of an asset; it is finished when `asset.json` is there
    out/checkpoints/WORKER/  the assets on their way, until the worker has finished its share
    out/ledger.csv           one row an asset
    out/index.html           the gallery

`out` may be a gs:// URL. A run that was killed goes on when it is called again.
"""

import dataclasses
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
from etils import epath

from jax3d import bounds, gallery, ledger, weights
from jax3d.data import props
from jax3d.finish import Finisher, versions
from jax3d.manifest import Job
from jax3d.optimize import engine
from jax3d.optimize.checkpoint import Checkpoints, demand_storage, within
from jax3d.optimize.engine import EngineConfig, Outcome
from jax3d.optimize.stage import Task, step_flops
from jax3d.priors.base import Critic
from jax3d.recipe import Recipe

PARAMS = "params.safetensors"
"""An asset's parameters, kept while its candidates are compared."""

MERITS = ("r_precision", "name", "color", "azimuth", "similarity")
"""The metrics by which candidates are compared, each where those before it are equal."""


class Progress(NamedTuple):
    """What is known after a block of steps."""

    steps: int
    """Taken so far by all assets of this call together."""
    total: int
    """That all of them will take, unless they stop early."""
    residual_norms: list[float]
    """Of the assets of the block, its mean."""
    finished: int
    """Assets of this call whose files are written."""


def generate(
    recipe: Recipe,
    critic: Critic,
    jobs: Sequence[Job],
    out: epath.PathLike,
    *,
    config: EngineConfig | None = None,
    candidates: int = 1,
    share: Iterable[int] | None = None,
    worker: str = "main",
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    finished: Callable[[dict], None] = lambda record: None,
) -> list[dict]:
    """Makes every job's asset that `out` does not hold yet; returns the rows of the ledger.

    Args:
      recipe: How; jobs override it.
      critic: By whose taste.
      jobs: What: all of the folder, whoever makes them.
      out: Folder of the results.
      config: How the engine runs.
      candidates: Jobs in a row that are candidates for one asset: the best by the scorer gets a
        mesh, the others keep their views.
      share: The jobs, by index, that this call makes; all by default.
      worker: Names the checkpoints of this call, among others that work on the same folder.
      overwrite: Whether what the folder holds may be lost; not together with `share`.
      report: Called after every block of steps.
      finished: Called with the record of each asset when its files are written, in other threads
        but never twice at once; with that of the best candidate again when it has its mesh.

    Raises:
      ValueError: The critic does not understand a prompt, a value does not fit the recipe, the
        folder holds another run, it would be overwritten by one of several workers, or it is a URL
        that checkpoints cannot go to.
      OSError: `out` cannot be written; found out before any work is done.
    """
    if overwrite and share is not None:
        raise ValueError(
            "several workers cannot overwrite a folder: the last to begin would delete what the "
            "first have made. Remove it first, or choose another --out"
        )
    config = EngineConfig() if config is None else config
    bounds.check(recipe)
    bounds.check(config, "engine")
    demand_storage(out)
    _demand_scores(jobs, candidates)
    assets = _Assets(recipe, critic, jobs, epath.Path(out), solid=candidates == 1)
    _claim(assets, config, candidates, overwrite, worker)
    mine = range(len(jobs)) if share is None else share
    todo = [k for k in mine if not assets.is_finished(k)]
    finisher = Finisher(recipe)
    _sweep(assets, finisher, todo, config, worker, report, finished)
    if candidates > 1:
        _keep_best(assets, finisher, candidates, finished)
    return _account(assets, alone=share is None)


class _Assets:
    """The assets of a folder: how each is made and where it lies."""

    def __init__(self, recipe, critic, jobs, out: epath.Path, solid: bool):
        self.recipe, self.critic, self.jobs, self.out = recipe, critic, jobs, out
        self.solid = solid
        self.folders = [gallery.slug(job.prompt, k) for k, job in enumerate(jobs)]
        # A wave of assets asks for its conditions twice: when it enters and when it moves on.
        self._condition = lru_cache(256)(self._read)
        for job in jobs:
            own = job.recipe(recipe)
            own.knobs_of(job.seed)
            self._condition(job.prompt, own.negative)

    def _read(self, prompt: str, negative: str):
        return dataclasses.replace(self.recipe, negative=negative).condition(self.critic, prompt)

    def task(self, index: int) -> Task:
        """What the engine is told of an asset."""
        job = self.jobs[index]
        own = job.recipe(self.recipe)
        steps = tuple(stage.steps for stage in own.optimize.stages)
        return Task(self._condition(job.prompt, own.negative), own.knobs_of(job.seed), steps)

    def is_finished(self, index: int) -> bool:
        """Whether its files are there."""
        return (self.out / self.folders[index] / "asset.json").exists()


def _claim(
    assets: _Assets, config: EngineConfig, candidates: int, overwrite: bool, worker: str
) -> None:
    """Makes the folder this run's own, or raises `ValueError` if it is another's."""
    what = (assets.recipe, assets.jobs, assets.critic.name, candidates)
    identity = hashlib.sha256(repr((what, config.patience, config.tolerance)).encode()).hexdigest()
    note = assets.out / "sweep.json"
    if note.exists():
        held = json.loads(note.read_text(encoding="utf-8"))
        if held["identity"] != identity and not overwrite:
            raise ValueError(
                f"{assets.out} holds another run: {held['assets']} assets by {held['critic']}, or "
                "with another recipe. Choose another --out, or lose what it holds by --overwrite"
            )
        if held["identity"] == identity:
            return
        for folder in (*held["folders"], "checkpoints"):
            if (assets.out / folder).exists():
                (assets.out / folder).rmtree()
    assets.out.mkdir(parents=True, exist_ok=True)
    about = {
        "identity": identity,
        "assets": len(assets.jobs),
        "critic": assets.critic.name,
        "recipe": dataclasses.asdict(assets.recipe),
        "versions": versions(),
        "folders": assets.folders,
    }
    # Several workers may claim it at the same moment, all with the same words.
    fresh = note.with_name(f"sweep.json.{worker}")
    fresh.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    fresh.replace(note)


def _sweep(assets: _Assets, finisher: Finisher, todo, config, worker, report, finished) -> None:
    if not todo:
        return
    recipe, critic, folder = assets.recipe, assets.critic, assets.out / "checkpoints"
    stages = recipe.build(critic)
    work = step_flops(stages, assets.task(todo[0]))
    total = sum(sum(assets.task(k).steps) for k in todo)
    taken = 0

    one_at_a_time = threading.Lock()

    def passed_on(outcome: Outcome):
        record = _write(assets, finisher, outcome, work)
        with one_at_a_time:
            finished(record)

    def told(block: engine.Report):
        nonlocal taken
        taken += block.steps
        norms = [track.history[-1]["residual_norm"] for track in block.tracks if track.history]
        report(Progress(taken, total, norms, block.finished))

    checkpoints = Checkpoints(folder / worker, config.keep)
    others = [Checkpoints(p, mine=False) for p in within(folder) if p.name != worker]
    engine.run(
        stages,
        assets.task,
        todo,
        passed_on,
        config=config,
        report=told,
        checkpoints=checkpoints,
        others=others,
    )
    for each in (checkpoints, *others):
        each.close()
    (folder / worker).rmtree(missing_ok=True)


def _write(assets: _Assets, finisher: Finisher, outcome: Outcome, work: list[int]) -> dict:
    """Writes the files of a finished asset and returns its record."""
    track = outcome.track
    job = assets.jobs[track.index]
    taken = (*track.steps[: track.stage], track.step)
    about = {
        "index": track.index,
        "prompt": job.prompt,
        "seed": job.seed,
        "steps": track.taken,
        "status": track.status,
        "knobs": dict(job.knobs),
        "critic": assets.critic.name,
        "residual_norm": track.history[-1].get("residual_norm") if track.history else None,
        "model_flops": sum(k * each for k, each in zip(taken, work, strict=False)),
        "seconds": {"optimize": track.device_seconds},
        "recipe": dataclasses.asdict(job.recipe(assets.recipe)),
    }
    with tempfile.TemporaryDirectory() as name:
        local = Path(name)
        record = finisher.write(outcome.params, local, about, assets.solid)
        if not assets.solid:
            weights.save_safetensors(outcome.params, local / PARAMS)
        _publish(local, assets.out / assets.folders[track.index])
    return record


def _publish(local: Path, target: epath.Path) -> None:
    """Copies files to where they belong, `asset.json` last and at once: it says all is there."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(local.iterdir()):
        if path.name != "asset.json":
            epath.Path(path).copy(target / path.name, overwrite=True)
    fresh = target / "asset.json.new"
    epath.Path(local / "asset.json").copy(fresh, overwrite=True)
    fresh.replace(target / "asset.json")


def _demand_scores(jobs: Sequence[Job], candidates: int) -> None:
    if candidates < 1 or len(jobs) % candidates:
        raise ValueError(f"candidates is {candidates}: each asset takes 1 or more")
    for job in jobs:
        if candidates > 1 and props.parse(job.prompt) is None:
            raise ValueError(
                f"candidates are compared by the scorer, which cannot read {job.prompt!r}: it "
                "knows the words of the prop world only"
            )


def _keep_best(
    assets: _Assets, finisher: Finisher, candidates: int, finished: Callable[[dict], None]
) -> None:
    """Gives the best candidate of each prompt its mesh, and marks all."""
    for first in range(0, len(assets.jobs), candidates):
        folders = assets.folders[first : first + candidates]
        records = ledger.records(assets.out, folders)
        if len(records) < candidates:
            continue  # another worker's, and still on its way
        best = max(folders, key=lambda name: _merit(records[name]))
        for name in sorted(folders, key=lambda name: name != best):
            target = assets.out / name
            if not (target / PARAMS).exists():
                continue
            record = records[name] | {"best": name == best}
            with tempfile.TemporaryDirectory() as local:
                local = Path(local)
                if name == best:
                    params = _read_params(finisher, target, local)
                    record = finisher.write(params, local, record, solid=True)
                else:
                    (local / "asset.json").write_text(json.dumps(record, indent=1) + "\n")
                _publish(local, target)
            (target / PARAMS).unlink()
            if name == best:
                finished(record)


def _merit(record: dict) -> tuple[float, ...]:
    metrics = record["metrics"]
    whole = float(record["status"] != "nonfinite")
    return (whole, *(metrics.get(name, 0.0) for name in MERITS))


def _read_params(finisher: Finisher, target: epath.Path, local: Path):
    copy = local / PARAMS
    (target / PARAMS).copy(copy, overwrite=True)
    params = weights.load_tree(copy, jax.eval_shape(finisher.field.init, jax.random.key(0)))
    copy.unlink()
    return params


def _account(assets: _Assets, alone: bool) -> list[dict]:
    """Writes the ledger and the gallery of all that is finished by now; returns the rows.

    Workers do so at their ends, which may coincide. Whoever finds all finished when it has
    written less writes again, so the last to write has written all.
    """
    while True:
        records = ledger.records(assets.out, assets.folders)
        try:
            rows = _show(assets, records)
        except FileNotFoundError:
            continue  # another worker has put what we wrote in its place
        whole = len(records) == len(assets.jobs)
        if whole or not all(map(assets.is_finished, range(len(assets.jobs)))):
            break
    # What dead workers left: others have finished their assets. The living tidy up themselves.
    if whole and alone:
        (assets.out / "checkpoints").rmtree(missing_ok=True)
    return rows


def _show(assets: _Assets, records: dict[str, dict]) -> list[dict]:
    rows = [ledger.row(folder, record) for folder, record in records.items()]
    ledger.write(assets.out, rows)
    shown = [
        {
            "folder": folder,
            "prompt": record["prompt"],
            "seed": record["seed"],
            "metrics": record["metrics"],
            "knobs": {
                "steps": str(record["steps"]),
                "status": record["status"],
                **{k: " to ".join(f"{x:g}" for x in v) for k, v in record["knobs"].items()},
            },
        }
        for folder, record in records.items()
        if record.get("best", True)
    ]
    gallery.write_gallery(assets.out, shown)
    return rows
