"""From jobs to a folder of assets: claim it, sweep, finish, keep account, show.

    out/ledger.csv           one row an asset
    out/index.html           the gallery

`folder` says what else is there. A run that was killed goes on when it is called again.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from etils import epath

from jax3d import bounds, finish, folder, gallery, ledger, record, weights
from jax3d.data import props
from jax3d.finish import Finisher
from jax3d.manifest import Job
from jax3d.optimize import engine
from jax3d.optimize.checkpoint import absolute, demand_storage
from jax3d.optimize.engine import EngineConfig, Outcome
from jax3d.optimize.stage import Task, starting_from, step_flops
from jax3d.priors.base import Critic
from jax3d.recipe import Opened, Recipe
from jax3d.types import Params, Prompt

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
    critic: Critic | None,
    jobs: Sequence[Job],
    out: epath.PathLike,
    *,
    config: EngineConfig | None = None,
    candidates: int = 1,
    share: Iterable[int] | None = None,
    worker: str = "main",
    overwrite: bool = False,
    wait: bool = False,
    start_from: epath.PathLike | None = None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    finished: Callable[[dict], None] = lambda record: None,
) -> list[dict]:
    """Makes every asset that `out` lacks; returns the ledger's rows, `status` as in `record`.

    Args:
      recipe: How; jobs override it.
      critic: By whose taste; None for a recipe whose model does it all.
      jobs: What: all of the folder, whoever makes them.
      out: Folder of the results, or a gs:// URL.
      config: How the engine runs.
      candidates: Jobs in a row that are candidates for one asset: the best by the scorer gets a
        mesh, the others keep their views.
      share: The jobs, by index, that this call makes; all by default.
      worker: Names this call among others that work on the same folder; one process at a time may
        have the name.
      overwrite: Whether what the folder holds may be lost; not together with `share`.
      wait: Whether to wait for a process that is this worker already, instead of being refused.
      start_from: Folder of a finished asset from whose parameters every asset starts.
      stop: Asked after every block of steps whether to save and stop.
      report: Called after every block of steps.
      finished: Called with an asset's record when its files are written, in other threads but
        never twice at once; with that of the best candidate again when it has its mesh.

    Raises:
      ValueError: A prompt or a value cannot be read, the folder is another run's or process's, or
        no place for checkpoints. `out` is as it was.
      OSError: `out` cannot be written to: told before any work is done, or when the disk is full.
      engine.Interrupted: `stop` said so; the rest goes on later.
    """
    config = EngineConfig() if config is None else config
    _demand_sense(recipe, config, out, overwrite and share is not None)
    _demand_scores(jobs, candidates)
    start = None if start_from is None else _start(recipe, start_from)
    opened, solid = recipe.open(critic), candidates == 1
    assets = _Assets(recipe, opened, jobs, absolute(out), worker, solid, start)
    mine = list(range(len(jobs)) if share is None else share)
    assets.check(mine)
    run = _Run(assets, critic, config, stop, report, finished)
    with folder.held(assets.out, worker, wait=wait, alone=overwrite):
        note = _note(assets, config, candidates)
        with folder.claimed(assets.out, note, overwrite=overwrite, worker=worker) as begun:
            _sweep(run, _refuse(run, _mend(run, mine), begun), begun)
        if candidates > 1:
            _keep_best(run, candidates)
        return _account(assets, alone=share is None)


def _start(recipe: Recipe, path: epath.PathLike) -> Params:
    """The parameters of an asset at hand; raises `ValueError` where the recipe cannot take them."""
    if recipe.maker is not None:
        raise ValueError(f"start-from {path}: the recipe's model makes the start of every asset")
    asset = folder.load_asset(path)
    if asset.recipe.texture is not None:
        raise ValueError(f"start-from {path}: it is a mesh, from which no field can go on")
    if asset.recipe.field != recipe.field:
        raise ValueError(
            f"start-from {path}: its field is {asset.recipe.field}, and the recipe's is "
            f"{recipe.field}: give the options that made it"
        )
    return asset.params


class _Assets:
    """The assets of a folder: how each is made and where it lies."""

    def __init__(
        self, recipe, opened, jobs, out: epath.Path, worker: str, solid: bool, start: Params
    ):
        self.recipe, self.opened, self.jobs, self.out = recipe, opened, jobs, out
        self.worker, self.solid, self.start = worker, solid, start
        self.names = [gallery.slug(job.title, k) for k, job in enumerate(jobs)]
        # A wave of assets asks for its conditions twice: when it enters and when it moves on.
        self._condition = lru_cache(opened.remember)(self._read)

    def check(self, indices: Iterable[int]) -> None:
        """Raises `ValueError` for a job that cannot be made; each distinct prompt is read once.

        Pictures are another matter: one that is damaged costs its own asset alone.
        """
        jobs = [self.jobs[k] for k in indices]
        for job in jobs:
            job.check(self.recipe)
        for prompt, negative in dict.fromkeys(
            (job.prompt, job.negative) for job in jobs if job.picture is None
        ):
            self._condition(prompt, self.recipe.negative if negative is None else negative, None)

    def refusals(self, indices: Iterable[int]) -> dict[int, str]:
        """Of the assets that are made from pictures, those that cannot be, and why."""
        found = {}
        for k in indices:
            if self.jobs[k].picture is not None:
                try:
                    self.task(k)
                except (ValueError, OSError) as error:
                    found[k] = str(error)
        return found

    def _read(self, prompt: str, negative: str, picture: str | None) -> Any:
        if picture is None:
            return self.opened.condition(Prompt(prompt, negative))
        shown = self.opened.read(picture)
        try:
            return self.opened.condition(Prompt(prompt, negative, shown))
        except ValueError as error:
            raise ValueError(f"{picture}: {error}") from error

    def task(self, index: int) -> Task:
        """What the engine is told of an asset."""
        job = self.jobs[index]
        own = job.recipe(self.recipe)
        cond = self._condition(job.prompt, own.negative, job.picture)
        return Task(cond, own.knobs_of(job.seed), (*self.opened.steps, *own.lengths))

    def made_from(self, index: int) -> tuple[dict, Callable[[Params], dict[str, float]] | None]:
        """What a record says of what an asset was made from, and what is measured by it."""
        if (own := self.opened.measure) is None:
            return {}, None  # most conditions need not be read once more
        cond, picture = self.task(index).cond, self.jobs[index].picture
        return self.opened.about(cond), lambda params: own(params, cond, picture)

    def find(self, index: int) -> folder.Found | None:
        """What the folder has of an asset."""
        job = self.jobs[index]
        picture = record.picture_of(job.picture)
        wanted = record.asked(job.title, job.seed, job.recipe(self.recipe), picture)
        return folder.find(self.place(index), wanted)

    def place(self, index: int) -> epath.Path:
        """The folder of an asset."""
        return self.out / self.names[index]


class _Run:
    """One call of `generate`: its assets, and what is done with those that are finished."""

    def __init__(self, assets: _Assets, critic, config, stop, report, finished):
        self.assets, self.critic, self.config = assets, critic, config
        self.stop, self.report = stop, report
        # Whatever of the program can be refused is refused here, before a folder is claimed.
        self._prepare(assets.recipe, assets.opened)
        self._finished, self._one_at_a_time = finished, threading.Lock()

    def _prepare(self, recipe: Recipe, opened: Opened) -> None:
        self.recipe, self.stages = recipe, opened.stages
        if self.assets.start is not None:
            self.stages = starting_from(self.stages, self.assets.start)
        self.finisher = Finisher(recipe, self.stages[-1].representation)

    def widen(self) -> None:
        """Compiles anew with more room; what an asset becomes does not depend on it."""
        recipe = self.recipe.wider()
        self._prepare(recipe, recipe.open(self.critic))

    def finished(self, about: dict) -> None:
        """Tells of an asset, in one thread at a time."""
        with self._one_at_a_time:
            self._finished(about)

    def staging(self, index: int):
        """Where the files of an asset are made."""
        return folder.staging(self.assets.out, self.assets.worker, self.assets.names[index])


def _note(assets: _Assets, config: EngineConfig, candidates: int) -> dict:
    """What `sweep.json` says."""
    who = folder.identity(assets.recipe, assets.opened, assets.jobs, candidates, config)
    if assets.start is not None:
        who["start"] = weights.digest(assets.start)
    return {
        "identity": who,
        "assets": len(assets.jobs),
        "critic": assets.opened.name,
        "recipe": record.encode(assets.recipe),
        "versions": finish.versions(),
        "folders": assets.names,
    }


def _mend(run: _Run, indices: Iterable[int]) -> list[int]:
    """Makes damaged files of finished assets again, and names the assets that are to be made."""
    todo = []
    for index in indices:
        found, place = run.assets.find(index), run.assets.place(index)
        if found is None:
            todo.append(index)
        elif found.damaged:
            try:
                whole = folder.load_asset(place)
            except ValueError as error:
                warnings.warn(f"{place} is damaged, and made anew: {error}", stacklevel=3)
                todo.append(index)
                continue
            warnings.warn(f"{place}: {', '.join(found.damaged)} made again", stacklevel=3)
            solid = run.assets.solid or found.record.get("best", False)
            with run.staging(index) as local:
                made = finish.remake(
                    run.finisher, whole, found.record, place, place, local, solid=solid
                )
            run.finished(made)
    return todo


def _refuse(run: _Run, indices: Sequence[int], begun: Callable[[], None]) -> list[int]:
    """Notes the assets whose pictures are no use, and names the others."""
    refused = run.assets.refusals(indices)
    if refused:
        begun()
    for index, why in refused.items():
        about = _about(run.assets, index) | {"steps": 0, "model_flops": 0}
        about |= {"seconds": {"optimize": 0.0}}
        with run.staging(index) as local:
            made = finish.write_failure(local, about, why, None)
            folder.publish(local, run.assets.place(index))
        run.finished(made)
    return [index for index in indices if index not in refused]


def _sweep(run: _Run, todo: list[int], begun: Callable[[], None]) -> None:
    """Takes assets through the engine; `begun` is called when it has got going."""
    if not todo:
        return
    assets = run.assets
    work = step_flops(run.stages, assets.task(todo[0]))
    total = sum(sum(assets.task(k).steps) for k in todo)
    taken = 0
    starting = threading.Lock()

    def going():
        with starting:
            begun()

    def passed_on(outcome: Outcome):
        going()
        run.finished(_write(run, outcome, work))

    def told(block: engine.Report):
        nonlocal taken
        going()
        taken += block.steps
        last = [track.history[-1] for track in block.tracks if track.history]
        norms = [means["residual_norm"] for means in last if "residual_norm" in means]
        run.report(Progress(taken, total, norms, block.finished))

    with folder.checkpoints(assets.out, assets.worker, run.config.keep) as (own, others):
        try:
            while todo:
                try:
                    engine.run(
                        run.stages,
                        assets.task,
                        todo,
                        passed_on,
                        config=run.config,
                        report=told,
                        checkpoints=own,
                        others=others,
                        stop=run.stop,
                    )
                    return
                except engine.Overflow as found:
                    warnings.warn(f"{found}: compiled anew with twice the room", stacklevel=2)
                run.widen()
                todo = _mend(run, todo)
        except engine.Interrupted:
            _account(assets, alone=False)
            raise


def _about(assets: _Assets, index: int) -> dict:
    """What the record of an asset says of how it was asked for."""
    job = assets.jobs[index]
    return {
        "index": index,
        "prompt": job.title,
        "seed": job.seed,
        "picture": record.picture_of(job.picture),
        "knobs": {name: list(values) for name, values in job.knobs.items()},
        "critic": assets.opened.name,
        "recipe": record.encode(job.recipe(assets.recipe)),
    }


def _write(run: _Run, outcome: Outcome, work: Sequence[int]) -> dict:
    """Writes the files of a finished asset and returns its record."""
    assets, track = run.assets, outcome.track
    taken = (*track.steps[: track.stage], track.step)
    about = _about(assets, track.index) | {
        "steps": track.taken,
        "status": track.status,
        "residual_norm": track.history[-1].get("residual_norm") if track.history else None,
        "model_flops": sum(k * each for k, each in zip(taken, work, strict=False)),
        "seconds": {"optimize": track.device_seconds},
    }
    with run.staging(track.index) as local:
        why = _failure(run, track)
        if why is not None:
            made = finish.write_failure(local, about, why, track.history)
        else:
            told, measure = assets.made_from(track.index)
            made = run.finisher.write(
                outcome.params,
                local,
                about | told,
                assets.solid,
                track.history,
                outcome.shown,
                measure,
            )
        folder.publish(local, assets.place(track.index))
    return made


def _failure(run: _Run, track: engine.Track) -> str | None:
    """Why an asset has nothing to show, if so."""
    if track.status == "failed":
        return track.why
    if track.status != "nonfinite":
        return None
    told = f"step {track.taken} gave numbers that are not finite"
    if track.taken < run.config.block:
        return f"{told}: there is only its start"
    if any(stage.before is not None for stage in run.stages[track.stage + 1 :]):
        return f"{told}: it never came to be a mesh"
    return None


def _demand_sense(recipe: Recipe, config: EngineConfig, out: epath.PathLike, lose: bool) -> None:
    """Raises `ValueError` for what no folder is needed to refuse."""
    if lose:
        raise ValueError(
            "several workers cannot overwrite a folder: the last to begin would delete what the "
            "first have made. Remove it first, or choose another --out"
        )
    bounds.check(recipe)
    bounds.check(config, "engine")
    demand_storage(out)


def _demand_scores(jobs: Sequence[Job], candidates: int) -> None:
    if candidates < 1 or len(jobs) % candidates:
        raise ValueError(f"candidates is {candidates}: each asset takes 1 or more")
    for job in jobs:
        if candidates > 1 and props.parse(job.prompt) is None:
            raise ValueError(
                f"candidates are compared by the scorer, which cannot read {job.prompt!r}: it "
                "knows the words of the prop world only"
            )


def _keep_best(run: _Run, candidates: int) -> None:
    """Gives the best candidate of each prompt its mesh, and marks all."""
    assets = run.assets
    for first in range(0, len(assets.jobs), candidates):
        indices = range(first, first + candidates)
        records = folder.records(assets.out, [assets.names[k] for k in indices])
        if len(records) < candidates:
            continue  # another worker's, and still on its way
        best = max(indices, key=lambda k: _merit(records[assets.names[k]]))
        for index in sorted(indices, key=lambda k: k != best):
            about, place = records[assets.names[index]], assets.place(index)
            if "best" in about:
                continue
            about["best"] = index == best and about["status"] != "failed"
            if not about["best"]:
                folder.write_record(place, about)
                continue
            try:
                whole = folder.load_asset(place)
            except ValueError as error:
                about["errors"]["mesh"] = str(error)
                folder.write_record(place, about)
                continue
            with run.staging(index) as local:
                made = finish.remake(run.finisher, whole, about, place, place, local, solid=True)
            run.finished(made)


def _merit(about: dict) -> tuple[float, ...]:
    rank = {"failed": 0.0, "nonfinite": 1.0}.get(about["status"], 2.0)
    return (rank, *(about["metrics"].get(name, 0.0) for name in MERITS))


def _account(assets: _Assets, alone: bool) -> list[dict]:
    """Writes the ledger and the gallery of all that is finished by now; returns the rows.

    Workers do so at their ends, which may coincide. Whoever finds that more is finished when it
    has written writes again, so the last to write has written all.
    """
    while True:
        records = folder.records(assets.out, assets.names)
        try:
            rows = _show(assets, records)
        except FileNotFoundError:
            continue  # another worker has put what we wrote in its place
        if len(folder.records(assets.out, assets.names)) == len(records):
            break
    # What dead workers left: others have finished their assets. The living tidy up themselves.
    if alone and len(records) == len(assets.jobs):
        (assets.out / "checkpoints").rmtree(missing_ok=True)
    return rows


def _show(assets: _Assets, records: dict[str, dict]) -> list[dict]:
    rows = [ledger.row(name, about) for name, about in records.items()]
    ledger.write(assets.out, rows)
    gallery.write_gallery(assets.out, finish.page_of(records))
    return rows
