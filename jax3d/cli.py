"""The `jax3d` command."""

import dataclasses
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jax3d import bounds, cluster, image, ledger, manifest
from jax3d import camera as cameras
from jax3d import generate as generation
from jax3d import recipe as recipes
from jax3d.bounds import Count, Natural, NonNegative, Range, Seed
from jax3d.manifest import Job
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.parallel import host_cores
from jax3d.priors import embedded, sampling
from jax3d.priors.open import open_critic
from jax3d.recipe import Recipe
from jax3d.train.prior import PriorTraining
from jax3d.train.prior import train as train_prior
from jax3d.train.scorer import ScorerTraining
from jax3d.train.scorer import train as train_scorer
from jax3d.types import Prompt

console = Console()

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class _Making:
    """What `generate` and `sweep` share."""

    out: str = "out"
    """Folder of the results, or a gs:// URL. A run that was cut short there goes on."""
    config: Path | None = None
    """Recipe to start from, such as configs/props.py; other options override it."""
    seed: Seed = 0
    """Of the first asset; the others count on from it."""
    steps: Count | None = None
    """Stretches the recipe's stages to this many steps in all."""
    views: Count | None = None
    """Views a step; shorthand for --optimize.views."""
    prior: str = "embedded"
    """The critic: "embedded", the path of weights that `jax3d train prior` wrote, or a Stable
    Diffusion or MVDream folder in the official layout."""
    dtype: Dtype = "float32"
    """Of a critic from disk: its weights and arithmetic, save norms, softmax and autoencoder."""
    overwrite: bool = False
    """Lose the other run that OUT holds."""
    cpu_devices: Count | None = None
    """On a CPU, the devices to split it into, each with assets of its own; None: one a core, as
    far as there are assets."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)

    def whole_recipe(self) -> Recipe:
        """The recipe with the shorthands applied."""
        recipe = self.recipe if self.steps is None else self.recipe.with_steps(self.steps)
        if self.views is None:
            return recipe
        optimize = dataclasses.replace(recipe.optimize, views=self.views)
        return dataclasses.replace(recipe, optimize=optimize)


@dataclasses.dataclass(frozen=True)
class Generate(_Making):
    """Makes 3D assets from prompts: meshes, turntables and a page that shows them."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One asset each, for example "a red chair with armrests"."""
    candidates: Count = 1
    """Seeds a prompt; the best by the scorer gets a mesh."""


@dataclasses.dataclass(frozen=True)
class Sweep(_Making):
    """Makes the assets of a manifest, on all devices; goes on where it was killed."""

    manifest: tyro.conf.Positional[str] = ""
    """A .jsonl or .csv file: one asset a line with its prompt and, where it differs from the
    recipe, seed, steps, negative prompt and knobs."""
    dollars_per_hour: NonNegative | None = None
    """Price of a device, to tell the cost of an asset."""
    processes: Count | None = None
    """Of how many processes this is one, each with its share of the assets in the same OUT. They
    need not run at the same time."""
    process: Natural | None = None
    """Which one this is, from 0."""
    distributed: bool = False
    """The processes start together and number themselves by `jax.distributed`. Slurm, MPI,
    Kubernetes and TPU pods are recognised; elsewhere tell `processes` and `process` as well."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where a distributed run is not recognised."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws 2D images from the critic alone: one row a prompt, one column a view."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    out: Path = Path("samples.png")
    mode: sampling.Mode | None = None
    """How the critic is asked: by the exact camera, by view words, or by the text alone. None: by
    the camera where the critic is told it, else by the text."""
    views: Count = 8
    guidance_scale: NonNegative | None = None
    """None: 3 for the embedded critic, 7.5 for others."""
    method: sampling.Method | None = None
    """None: the sampler of the critic's folder, or ddim where it names none."""
    steps: Annotated[int, Range(1, 1000)] = 40
    negative: str = ""
    """Negative prompt, in place of the unconditional one."""
    seed: Seed = 0
    prior: str = "embedded"
    """The critic: "embedded", the path of weights that `jax3d train prior` wrote, or a Stable
    Diffusion, MVDream or pixel-space folder in the official layout."""
    dtype: Dtype = "float32"
    """Of a critic from disk."""


@dataclasses.dataclass(frozen=True)
class TrainPrior:
    """Trains the embedded critic; goes on from its own checkpoint."""

    out: Path = Path("runs/prior")
    config: Path | None = None
    """Recipe to start from, such as configs/prior_gpu.py."""
    recipe: Annotated[PriorTraining, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PriorTraining
    )


@dataclasses.dataclass(frozen=True)
class TrainScorer:
    """Trains the scorer and writes its report card."""

    out: Path = Path("runs/scorer")
    config: Path | None = None
    recipe: Annotated[ScorerTraining, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ScorerTraining
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a command; a mistake of the user ends in one line and exit code 2."""
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        bounds.check(command)
        match command:
            case Generate():
                run_generate(command)
            case Sweep():
                run_sweep(command)
            case Sample():
                run_sample(command)
            case TrainPrior():
                train_prior(command.recipe, command.out, console.print)
            case TrainScorer():
                train_scorer(command.recipe, command.out, console.print)
    except (ValueError, OSError, ImportError) as error:
        # An import that fails here is an extra's, and says what to install.
        message = " ".join(str(error).split())
        print(f"jax3d: {message}", file=sys.stderr)
        return 2
    return 0


def parse(argv: list[str]):
    """The command that the arguments spell; ends the process where they spell none."""
    # The config comes first, whatever its place: all other options override what it says.
    paths = [b for a, b in pairwise(argv) if a == "--config"]
    paths += [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]

    def command(kind, *words):
        default = kind()
        if paths and tuple(argv[: len(words)]) == words:
            recipe = recipes.load(paths[-1], type(default.recipe))
            default = dataclasses.replace(default, recipe=recipe)
        return tyro.conf.subcommand(words[-1], default=default)

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Trains the networks that ship with the package."""

        network: Annotated[
            Annotated[TrainPrior, command(TrainPrior, "train", "prior")]
            | Annotated[TrainScorer, command(TrainScorer, "train", "scorer")],
            tyro.conf.arg(name=""),
        ]

    commands = (
        Annotated[Generate, command(Generate, "generate")]
        | Annotated[Sweep, command(Sweep, "sweep")]
        | Annotated[Sample, tyro.conf.subcommand("sample", default=Sample())]
        | Annotated[Train, tyro.conf.subcommand("train")]
    )
    config = (tyro.conf.AvoidSubcommands,)
    parsed = tyro.cli(commands, args=argv, prog="jax3d", config=config)
    return parsed.network if isinstance(parsed, Train) else parsed


def _demand_prompts(prompts: tuple[str, ...]) -> None:
    if not prompts:
        raise ValueError('no prompt: give one or more in quotes, such as "a red chair"')


def run_generate(command: Generate) -> None:
    """`jax3d generate`."""
    _demand_prompts(command.prompts)
    if command.candidates < 1:
        raise ValueError(f"candidates is {command.candidates}; an asset takes 1 or more")
    prompts = [p for p in command.prompts for _ in range(command.candidates)]
    seeds = manifest.seeds(command.seed, len(prompts))
    jobs = [Job(*each) for each in zip(prompts, seeds, strict=True)]
    _split_cpu(command.cpu_devices, len(jobs))
    _make(command, jobs, candidates=command.candidates)


def read_jobs(command: Sweep) -> list[Job]:
    """What a sweep is to make."""
    if not command.manifest:
        raise ValueError("no manifest: give a .jsonl or .csv file with one asset a line")
    return manifest.read(command.manifest, command.seed)


def run_sweep(command: Sweep) -> None:
    """`jax3d sweep`."""
    jobs = read_jobs(command)
    _split_cpu(command.cpu_devices, len(jobs))
    if not command.distributed and command.processes is None:
        rows = _make(command, jobs)
    else:
        me, count = _roll_call(command)
        share = range(me, len(jobs), count)
        rows = _make(command, jobs, share=share, worker=f"process-{me}-of-{count}")
    console.print(ledger.summary(rows, command.dollars_per_hour))


def _roll_call(command: Sweep) -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not command.distributed:
        if command.process not in range(command.processes):
            raise ValueError(
                f"process is {command.process}; of {command.processes} processes it is one from "
                f"0 to {command.processes - 1}"
            )
        return command.process, command.processes
    found = cluster.roll_call(command.coordinator, command.processes, command.process)
    if found.devices is not None:
        jax.config.update("jax_cuda_visible_devices", found.devices)
        jax.config.update("jax_rocm_visible_devices", found.devices)
    return found.process, found.processes


def _make(command: _Making, jobs: list[Job], **options) -> list[dict]:
    """Makes the jobs and shows how it goes; returns the rows of the ledger."""
    critic = open_critic(command.prior, command.dtype)
    console.print(f"critic: {critic.name}", markup=False)
    started = time.perf_counter()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    made = set()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{len(jobs)} assets", total=1, rate="compiling")

        def report(progress: generation.Progress):
            steps = progress.steps / (time.perf_counter() - started)
            assets = 3600 * steps * len(jobs) / progress.total
            low, high = min(progress.residual_norms), max(progress.residual_norms)
            norms = f"residual {low:.2f} to {high:.2f}"
            rate = f"{steps:.2f} steps/s, {assets:.0f} assets/h, {norms}"
            bar.update(task, completed=progress.steps, total=progress.total, rate=rate)

        def finished(record: dict):
            made.add(record["index"])
            shown = {k: round(v, 3) for k, v in record["metrics"].items()}
            trouble = record.get("error", "")
            what = f"{record['prompt']!r}, seed {record['seed']}"
            bar.print(f"{what}: {shown} {trouble}", markup=False)

        rows = generation.generate(
            command.whole_recipe(),
            critic,
            jobs,
            command.out,
            config=command.engine,
            overwrite=command.overwrite,
            report=report,
            finished=finished,
            **options,
        )
    seconds = time.perf_counter() - started
    console.print(
        f"{len(made)} assets in {seconds:.0f} s ({3600 * len(made) / seconds:.1f} assets/h): "
        f"open {command.out}/index.html",
        soft_wrap=True,
    )
    return rows


def _split_cpu(devices: int | None, assets: int) -> None:
    """Gives a CPU several devices, which only the first use of JAX in a process can decide."""
    if devices is None and "xla_force_host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        return
    wanted = min(host_cores(), assets) if devices is None else devices
    if wanted < 1:
        raise ValueError(f"cpu-devices is {wanted}; a CPU makes 1 device or more")
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        if devices is not None:
            raise


def run_sample(command: Sample) -> None:
    """`jax3d sample`."""
    _demand_prompts(command.prompts)
    critic = open_critic(command.prior, command.dtype)
    console.print(f"critic: {critic.name}", markup=False)
    scale = command.guidance_scale
    if scale is None:
        scale = 3.0 if critic.name == embedded.NAME else 7.5
    camera = cameras.in_groups(cameras.around(command.views, 15.0), critic.prior.views)
    sample = sampling.sampler(critic, command.mode, scale, command.steps, command.method)
    keys = jax.random.split(jax.random.key(command.seed), len(command.prompts))
    rows = [
        sample(key, Prompt(prompt, command.negative), camera)
        for key, prompt in zip(keys, command.prompts, strict=True)
    ]
    image.write_png(command.out, image.contact_sheet(np.concatenate(rows), command.views))
    console.print(f"{len(rows)} prompts, {command.views} views each: {command.out}")
