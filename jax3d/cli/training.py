"""What the commands that train share: their options, and the training itself."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax3d.cli import COMMANDS, cache, terminal
from jax3d.cli.signals import Stop

Train = Callable[..., Path]
"""`train(recipe, folder, report)`: goes on from what the folder holds, returns the weights."""


def options(name: str, recipe_type: type) -> type:
    """The options of `jax3d train NAME`, whose recipe is a dataclass."""

    @dataclass(frozen=True)
    class Options:
        out: Path = Path("runs") / name
        config: str | None = None
        """Recipe to start from, by its name (`jax3d configs` lists them) or as a Python file."""
        cache: bool = True
        """Keep compiled programs in the user's cache folder, for the next run."""
        recipe: Annotated[recipe_type, tyro.conf.arg(name="")] = dataclasses.field(
            default_factory=recipe_type
        )

    Options.__doc__ = COMMANDS[f"train {name}"]
    return Options


def run(options, stop: Stop, train: Train) -> int:
    """Trains; what is lost by a signal is what came after the last checkpoint."""
    del stop
    if options.cache:
        cache.turn_on()
    train(options.recipe, options.out, terminal.say)
    return 0
