"""The `jax3d` command: one module a command, imported when it is the one that is called.

Help and mistyped commands must not wait for JAX, so the commands are written down here. The module
of each has `Options`, a frozen dataclass of what can be asked, and `run(options, stop) -> int`,
which does it and returns the exit code.
"""

import difflib
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from jax3d import __version__
from jax3d.cli import signals, terminal

COMMANDS = {
    "generate": "Makes 3D assets from prompts: meshes, turntables and a page that shows them.",
    "sweep": "Makes the assets of a manifest, on all devices; goes on where it was killed.",
    "reconstruct": "Makes 3D assets from pictures, one each.",
    "fit": "Fits 3D assets to posed photographs, a folder each.",
    "mesh": "Makes a textured mesh of a file of Gaussians, or of an asset.",
    "export": "Makes meshes, pictures and turntables of finished assets again, at other sizes.",
    "serve": "Serves a folder's page to this machine alone, and saves what is chosen there.",
    "pack": "Packs kept assets for a studio: meshes by name, thumbnails, a catalog.",
    "sample": "Draws 2D images from the critic alone: one row a prompt, one column a view.",
    "views": "Draws what a picture shows from other sides, by a critic alone: one row a picture.",
    "train prior": "Trains the embedded critic; goes on from its own checkpoint.",
    "train native": "Trains the embedded native generator; goes on from its own checkpoint.",
    "train lrm": "Trains the embedded reconstructor; goes on from its own checkpoint.",
    "train scorer": "Trains the scorer and writes its report card.",
    "doctor": "Tells devices, versions, memory and extras, and what to install.",
    "configs": "Lists the recipes that ship with the package, for --config.",
}
"""What each command does: the first line of its `Options`."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0: all is made. 1: some assets are not. 2: it could not be done, for the reason that is told in
    one line. 128 + N: signal N ended it, or asked it to end.
    """
    terminal.write_any_text()
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        except Exception as error:
            told = terminal.explain(error)
            if told is None or isinstance(error, BrokenPipeError):
                raise
            print(f"jax3d: {told}", file=sys.stderr)
            return 2
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        terminal.hush()
        return 128 + signals.CLOSED_PIPE


def _run(argv: list[str]) -> int:
    if argv[-1:] in (["-h"], ["--help"]) and argv[:-1] in ([], ["train"]):
        terminal.say(help_text())
        return 0
    if argv[:1] == ["--version"]:
        terminal.say(f"jax3d {__version__}")
        return 0
    # Temporary files have a folder of their own, which even a process that is ended can remove.
    with (
        tempfile.TemporaryDirectory(prefix="jax3d-") as scratch,
        signals.listening(Path(scratch)) as stop,
    ):
        tempfile.tempdir = scratch
        try:
            command, options = parse(argv)
            return import_module(_module(command)).run(options, stop)
        finally:
            tempfile.tempdir = None


def parse(argv: list[str]):
    """The command that the arguments spell, and its `Options`.

    Raises:
      SystemExit: They spell none, which has been told, or ask for help.
      ValueError: There is no such command, an argument is no text, or a value is out of bounds.
    """
    argv = [_text(argument, place) for place, argument in enumerate(argv, 1)]
    words = 2 if argv[:1] == ["train"] else 1
    command = " ".join(argv[:words])
    if command not in COMMANDS:
        raise ValueError(_no_such(command))
    from jax3d.cli import options

    kind = import_module(_module(command)).Options
    return command, options.read(kind, argv[words:], f"jax3d {command}")


def help_text() -> str:
    """What `jax3d --help` says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jax3d COMMAND [options]",
            "",
            "Text and pictures to 3D assets in JAX: many at once, in one compiled program.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help  this text; `jax3d COMMAND --help` tells the options of a command",
            "  --version   the version",
        ]
    )


def _module(command: str) -> str:
    return f"jax3d.cli.{command.replace(' ', '_')}"


def _no_such(command: str) -> str:
    known = ", ".join(COMMANDS)
    if not command:
        return f"no command: give one of {known}"
    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f"nearest: {near[0]!r}; " if near else ""
    return f"no command {command!r} ({hint}commands: {known})"


def _text(argument: str, place: int) -> str:
    """An argument, whose bytes are UTF-8 whatever the locale says; `ValueError` if they are not."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ValueError(f"argument {place}, {argument!r}, is no text: give it in UTF-8") from None
