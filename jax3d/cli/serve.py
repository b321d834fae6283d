"""`jax3d serve`."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from jax3d.bounds import Range
from jax3d.cli import terminal
from jax3d.cli.signals import Stop


@dataclass(frozen=True)
class Options:
    """Serves a folder's page to this machine alone, and saves what is chosen there."""

    folder: tyro.conf.Positional[str] = ""
    """Of the assets: the --out of what made them. A run that is at work there may go on."""
    port: Annotated[int, Range(0, 65535)] = 0
    """Of 127.0.0.1; 0 is any that is free."""
    sweep: str | None = None
    """Options of the sweep that makes more assets like one: --sweep="--recipe native". None: the
    page writes the manifest only."""


def run(options: Options, stop: Stop) -> int:
    """Serves until a signal ends it: every choice that was confirmed is on disk by then."""
    del stop
    if not options.folder:
        raise ValueError("no folder: give that of the assets, such as out")
    # Imported here: help does not wait for JAX.
    from jax3d import folder
    from jax3d.desk import Desk
    from jax3d.desk.server import Server

    sweep = None if options.sweep is None else shlex.split(options.sweep)
    served = Desk(options.folder, sweep)
    with folder.held(served.out, "desk", wait=False), Server(served, options.port) as server:
        terminal.say(f"open {server.url} (Ctrl-C ends it)")
        server.serve_forever()
    return 0
