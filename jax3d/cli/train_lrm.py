"""`jax3d train lrm`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax3d.cli import cache, terminal
from jax3d.cli.signals import Stop
from jax3d.train.lrm import LrmTraining, train


@dataclass(frozen=True)
class Options:
    """Trains the embedded reconstructor; goes on from its own checkpoint."""

    out: Path = Path("runs/lrm")
    config: str | None = None
    """Recipe to start from, such as lrm_cpu (`jax3d configs` lists them) or a Python file."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    recipe: Annotated[LrmTraining, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LrmTraining
    )


def run(options: Options, stop: Stop) -> int:
    """Trains; what is lost by a signal is what came after the last checkpoint."""
    del stop
    if options.cache:
        cache.turn_on()
    train(options.recipe, options.out, terminal.say)
    return 0
