"""`jax3d configs`."""

from dataclasses import dataclass

from jax3d import config_files
from jax3d.cli import terminal
from jax3d.cli.signals import Stop


@dataclass(frozen=True)
class Options:
    """Lists the recipes that ship with the package, for --config."""


def run(options: Options, stop: Stop) -> int:
    """Prints a line a recipe."""
    del options, stop
    known = config_files.packaged()
    width = max(map(len, known))
    for name, path in known.items():
        terminal.say(f"{name:{width}}  {config_files.about(path)}")
    return 0
