"""What the command says, on any terminal or on none: a bar, or plain lines for a log."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jax3d.cli.signals import CLOSED_PIPE, Stop

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def write_any_text() -> None:
    """Lets stdout and stderr escape what their encoding has no letters for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on stdout, at once; raises `BrokenPipeError` where nobody reads any more."""
    print(text, flush=True)


def hush() -> None:
    """Leaves a closed stdout alone, so that nothing fails when the interpreter flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> str | None:
    """An error of the user's world in one line; None for any other, which is a mistake of ours."""
    words = " ".join(str(error).split())
    match error:
        case MemoryError():
            return f"out of memory{': ' * bool(words)}{words}"
        case ValueError() | OSError() | ImportError():
            # An import that fails here is an extra's, and says what to install.
            return words or type(error).__name__
    jax = sys.modules.get("jax")
    of_device = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
    if of_device and "RESOURCE_EXHAUSTED" in words:
        return f"the device is out of memory: {words}"
    return None


class Lines:
    """Progress for logs: a line now and then."""

    def __init__(self, title: str, stop: Stop, clock=time.monotonic):
        self._title, self._stop, self._clock = title, stop, clock
        self._last = clock()

    def say(self, text: str) -> None:
        """A line of its own. Once nobody reads, the run is asked to stop."""
        try:
            say(text)
        except BrokenPipeError:
            hush()
            self._stop.number = self._stop.number or CLOSED_PIPE

    def update(self, done: int, total: int, rate: str) -> None:
        """Tells how far it is, if that was not told within the last `EVERY` seconds."""
        now = self._clock()
        if now - self._last >= EVERY:
            self._last = now
            self.say(f"{self._title}: {done} of {total} steps, {rate}")


class Bar:
    """Progress for people: a bar that stays at the foot of the terminal."""

    def __init__(self, bar, title: str):
        self._bar = bar
        self._task = bar.add_task(title, total=1, rate="compiling")

    def say(self, text: str) -> None:
        """A line above the bar; brackets and colons in it are what they are."""
        self._bar.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def update(self, done: int, total: int, rate: str) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done, total=total, rate=rate)


@contextmanager
def progress(title: str, stop: Stop) -> Iterator[Bar | Lines]:
    """Shows how a run goes, as far as stdout can show it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(title, stop)
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Bar(bar, title)
