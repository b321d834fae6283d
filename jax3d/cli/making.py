"""What `jax3d generate` and `jax3d sweep` share: their options, and the making of assets."""

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import tyro

from jax3d.bounds import Count, Natural, Positive, Range, Seed
from jax3d.cli import cache, terminal
from jax3d.cli.signals import Stop
from jax3d.manifest import Job
from jax3d.mesh import Faces, Lods, MeshConfig, Side
from jax3d.optimize import engine
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.parallel import host_cores
from jax3d.recipe import FieldName, Recipe

Dtype = Literal["float32", "bfloat16"]

MADE = ("done", "plateau")
"""Statuses of assets that came out."""


@dataclass(frozen=True)
class OfMesh:
    """Of `--mesh`. Not aliases of its options: a recipe may hold several meshes' settings."""

    faces: Faces | None = None
    """Shorthand for --mesh.faces."""
    texture: Side | None = None
    """Shorthand for --mesh.texture."""
    lods: Lods | None = None
    """Shorthand for --mesh.lods."""
    hull: Faces | None = None
    """Shorthand for --mesh.hull."""
    height: Positive | None = None
    """Shorthand for --mesh.height."""

    def of(self, mesh: MeshConfig) -> MeshConfig:
        """A mesh's settings with those that are given here in their place."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(mesh, **given)


Short = Annotated[OfMesh, tyro.conf.arg(name="")]
"""For a command's options, where they stand by themselves."""


@dataclass(frozen=True)
class Making:
    """Options of the commands that make assets."""

    out: str = "out"
    """Folder of the results, or a gs:// URL. A run that was cut short there goes on."""
    model: str | None = None
    """The model that makes the asset, or its start, in place of the recipe's: a folder of TripoSR
    or OpenLRM, a file that `jax3d train native` or `lrm` wrote, or `owner/name` on the hub."""
    views_by: str = ""
    """A folder of Zero123++, which draws of a picture the six views that InstantMesh reads."""
    config: Annotated[str | None, tyro.conf.arg(aliases=["--recipe"])] = None
    """Recipe to start from: the name of a packaged one, such as distil or native (`jax3d configs`
    lists them), or a Python file; other options override it."""
    field: FieldName | None = None
    """What represents the assets, in place of the recipe's field; the new one's options then go by
    --field.capacity and the like."""
    seed: Seed = 0
    """Of the first asset; the others count on from it."""
    steps: Count | None = None
    """Stretches the recipe's stages to this many steps in all."""
    refine: Natural | None = None
    """Steps of distillation on top of what the recipe's model makes."""
    views: Count | None = None
    """Views a step; shorthand for --optimize.views."""
    prior: str = "embedded"
    """The critic: "embedded", the path of weights that `jax3d train prior` wrote, or a Stable
    Diffusion or MVDream folder in the official layout."""
    dtype: Dtype = "float32"
    """Of a critic or model from disk: its weights and arithmetic, save norms, softmax and
    autoencoder."""
    overwrite: bool = False
    """Lose the other run that OUT holds."""
    wait: bool = False
    """Wait for a process that is at work in OUT, instead of being refused."""
    start_from: str | None = None
    """Folder of a finished asset to start from, such as out/0000-a-red-chair."""
    cpu_devices: Annotated[int, Range(1, 1024)] | None = None
    """On a CPU, the devices to split it into, each with assets of its own; None: one a core, as
    far as there are assets."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    short: Short = dataclasses.field(default_factory=OfMesh)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)

    def whole_recipe(self) -> Recipe:
        """The recipe with the shorthands applied."""
        recipe = dataclasses.replace(self.recipe, mesh=self.short.of(self.recipe.mesh))
        if self.model is not None:
            recipe = recipe.made_by(self.model, self.dtype, self.views_by)
        elif self.views_by:
            raise ValueError("views-by draws views for a --model that reads them: give one")
        recipe = recipe if self.refine is None else recipe.refined(self.refine)
        recipe = recipe if self.steps is None else recipe.with_steps(self.steps)
        if self.views is None:
            return recipe
        optimize = dataclasses.replace(recipe.optimize, views=self.views)
        return dataclasses.replace(recipe, optimize=optimize)


def make(
    options: Making,
    jobs: Sequence[Job],
    stop: Stop,
    *,
    candidates: int = 1,
    share: Iterable[int] | None = None,
    worker: str = "main",
) -> tuple[list[dict], int]:
    """Makes the jobs and shows how it goes.

    Returns the rows of the ledger, and the exit code that `cli.main` tells of.
    """
    # Imported here: what meshes and writes is not needed to tell the options.
    from jax3d.making import generate

    # A save that fails is told in our line; Orbax would print its traceback beside it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    share = None if share is None else list(share)
    if options.cache:
        cache.turn_on()
    recipe = options.whole_recipe()
    critic = _critic(options) if recipe.asks_critic else None
    started = time.perf_counter()
    made = set()
    with terminal.progress(f"{len(jobs)} assets", stop) as shown, stop.patience():

        def finished(record: Mapping):
            made.add(record["index"])
            shown.say(_told(record))

        def report(block):
            rate = _rate(block, len(jobs), time.perf_counter() - started)
            shown.update(block.steps, block.total, rate)

        try:
            rows = generate(
                recipe,
                critic,
                jobs,
                options.out,
                config=options.engine,
                candidates=candidates,
                share=share,
                worker=worker,
                overwrite=options.overwrite,
                wait=options.wait,
                start_from=options.start_from,
                report=report,
                finished=finished,
                stop=stop,
            )
        except engine.Interrupted:
            return [], stop.exit_code
        except engine.OutOfMemory as error:
            raise MemoryError(f"not even one asset a device fits: {error}") from error
    seconds = time.perf_counter() - started
    rate = f"{3600 * len(made) / seconds:.1f} assets/h"
    terminal.say(f"{len(made)} assets in {seconds:.0f} s ({rate}): open {options.out}/index.html")
    return rows, exit_code(rows, range(len(jobs)) if share is None else share)


def _critic(options: Making):
    """The critic, of whom is told."""
    from jax3d.priors.open import open_critic

    critic = open_critic(options.prior, options.dtype)
    terminal.say(f"critic: {critic.name}")
    return critic


def _rate(block, jobs: int, seconds: float) -> str:
    """How fast it goes, after a block of steps."""
    steps = block.steps / seconds
    told = f"{steps:.2f} steps/s, {3600 * steps * jobs / block.total:.0f} assets/h"
    if norms := block.residual_norms:
        told += f", residual {min(norms):.2f} to {max(norms):.2f}"
    return told


def _told(record: Mapping) -> str:
    """A finished asset in a line: what it is, how it ended, its scores, what went wrong."""
    scores = {
        name: round(value, 3) for name, value in record["metrics"].items() if value is not None
    }
    told = f"{record['prompt']!r}, seed {record['seed']}: {record['status']} {scores}"
    return " ".join([told, *(f"{part}: {why}" for part, why in record["errors"].items())])


def exit_code(rows: Iterable[Mapping], wanted: Iterable[int]) -> int:
    """1 where an asset is not made, which is told, else 0; candidates that lost count for none."""
    found = {row["index"]: row for row in rows}
    left = Counter()
    for index in wanted:
        row = found.get(index)
        if row is None:
            left["missing"] += 1
        elif row["best"] is not False and row["status"] not in MADE:
            left[row["status"]] += 1
        elif row["best"] is not False and row["error"]:
            left["without all its files"] += 1
    if left:
        terminal.say(f"not made: {', '.join(f'{n} {kind}' for kind, n in sorted(left.items()))}")
    return 1 if left else 0


def split_cpu(devices: int | None, assets: int) -> None:
    """Gives a CPU several devices, which only the first use of JAX in a process can decide."""
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices is None and forced:
        return
    try:
        jax.config.update(
            "jax_num_cpu_devices", min(host_cores(), assets) if devices is None else devices
        )
    except RuntimeError:
        if devices is not None:
            raise
