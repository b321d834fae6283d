"""`jax3d train scorer`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax3d.cli import cache, terminal
from jax3d.cli.signals import Stop
from jax3d.train.scorer import ScorerTraining, train


@dataclass(frozen=True)
class Options:
    """Trains the scorer and writes its report card."""

    out: Path = Path("runs/scorer")
    config: str | None = None
    """Recipe to start from: a Python file."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""
    recipe: Annotated[ScorerTraining, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ScorerTraining
    )


def run(options: Options, stop: Stop) -> int:
    """Trains; a training of minutes keeps no checkpoint."""
    del stop
    if options.cache:
        cache.turn_on()
    train(options.recipe, options.out, terminal.say)
    return 0
