"""The `jax3d` command."""

import dataclasses
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jax3d import generate as generation
from jax3d import image
from jax3d import recipe as recipes
from jax3d.priors import props as embedded
from jax3d.priors.base import Critic
from jax3d.priors.folder import open_prior
from jax3d.recipe import Recipe
from jax3d.train.prior import PriorTraining
from jax3d.train.prior import train as train_prior
from jax3d.train.scorer import ScorerTraining
from jax3d.train.scorer import train as train_scorer

console = Console()


@dataclasses.dataclass(frozen=True)
class Generate:
    """Makes 3D assets from prompts: meshes, turntables and a page that shows them."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One asset each, for example "a red chair with armrests"."""
    out: Path = Path("out")
    """Folder of the results."""
    config: Path | None = None
    """Recipe to start from, such as configs/props.py; other options override it."""
    seed: int = 0
    """Of the first asset; the others count on from it."""
    steps: int | None = None
    """Stretches the recipe's stages to this many steps in all."""
    views: int | None = None
    """Views a step; shorthand for --optimise.views."""
    prior: str = "embedded"
    """The critic: "embedded", the path of weights that `jax3d train prior` wrote, or a Stable
    Diffusion or MVDream folder in the official layout."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws 2D images from the embedded critic: one row a prompt, one column a view."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    out: Path = Path("samples.png")
    mode: embedded.Mode = "camera"
    """How the critic is asked: by the exact camera, by view words, or by the text alone."""
    views: int = 8
    guidance_scale: float = 3.0
    steps: int = 40
    seed: int = 0
    prior: str = "embedded"
    """"embedded", or the path of weights that `jax3d train prior` wrote."""


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
        match _parse(sys.argv[1:] if argv is None else argv):
            case Generate() as command:
                run_generate(command)
            case Sample() as command:
                run_sample(command)
            case TrainPrior() as command:
                train_prior(command.recipe, command.out, console.print)
            case TrainScorer() as command:
                train_scorer(command.recipe, command.out, console.print)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"jax3d: {message}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]):
    """The command that the arguments spell."""
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
        | Annotated[Sample, tyro.conf.subcommand("sample", default=Sample())]
        | Annotated[Train, tyro.conf.subcommand("train")]
    )
    config = (tyro.conf.AvoidSubcommands,)
    parsed = tyro.cli(commands, args=argv, prog="jax3d", config=config)
    return parsed.network if isinstance(parsed, Train) else parsed


def open_critic(prior: str) -> Critic:
    """The critic that `--prior` names."""
    if prior == "embedded":
        return embedded.open_critic()
    path = Path(prior)
    if path.suffix == ".safetensors" and path.with_suffix(".json").exists():
        return embedded.open_critic(path)
    return open_prior(prior)


def _demand_prompts(prompts: tuple[str, ...]) -> None:
    if not prompts:
        raise ValueError('no prompt: give one or more in quotes, such as "a red chair"')


def run_generate(command: Generate) -> None:
    """`jax3d generate`."""
    _demand_prompts(command.prompts)
    recipe = command.recipe
    if command.steps is not None:
        recipe = recipe.with_steps(command.steps)
    if command.views is not None:
        optimise = dataclasses.replace(recipe.optimise, views=command.views)
        recipe = dataclasses.replace(recipe, optimise=optimise)
    jobs = [generation.Job(p, command.seed + k) for k, p in enumerate(command.prompts)]
    critic = open_critic(command.prior)
    console.print(f"critic: {critic.name}", markup=False)
    started = time.perf_counter()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{len(jobs)} assets", total=recipe.steps, rate="compiling")

        def report(progress: generation.Progress):
            steps = progress.step / (time.perf_counter() - started)
            assets = 3600 * steps * len(jobs) / progress.steps
            norms = ", ".join(f"{x:.3f}" for x in progress.residual_norm[:8])
            rate = f"{steps:.2f} steps/s, {assets:.0f} assets/h, residual norms {norms}"
            bar.update(task, completed=progress.step, rate=rate)

        def finished(record: dict):
            shown = {k: round(v, 3) for k, v in record["metrics"].items()}
            trouble = record.get("error", "")
            bar.print(f"{record['prompt']!r} {shown} {trouble}", markup=False)

        records = generation.generate(recipe, critic, jobs, command.out, report, finished)
    seconds = time.perf_counter() - started
    console.print(
        f"{len(records)} assets in {seconds:.0f} s ({3600 * len(records) / seconds:.1f} assets/h): "
        f"open {command.out / 'index.html'}"
    )


def run_sample(command: Sample) -> None:
    """`jax3d sample`."""
    _demand_prompts(command.prompts)
    critic = embedded.open_critic(
        embedded.WEIGHTS if command.prior == "embedded" else command.prior
    )
    camera = generation.views_around(command.views, 15.0)
    sample = embedded.sampler(critic, command.mode, command.guidance_scale, command.steps)
    keys = jax.random.split(jax.random.key(command.seed), len(command.prompts))
    rows = [sample(key, prompt, camera) for key, prompt in zip(keys, command.prompts, strict=True)]
    image.write_png(command.out, image.contact_sheet(np.concatenate(rows), command.views))
    console.print(f"{len(rows)} prompts, {command.views} views each: {command.out}")
