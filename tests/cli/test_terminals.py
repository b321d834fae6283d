"""What is said on any terminal, on none, and when nobody listens."""

import os
import subprocess
import sys

import jax
import pytest

from jax3d import cli
from jax3d.cli import making, signals, terminal

SAY = """
import sys
from jax3d import cli
from jax3d.cli import configs, terminal

def run(options, stop):
    with terminal.progress("2 assets", stop) as shown:
        shown.update(1, 2, "fast")
        for _ in range({lines}):
            shown.say({text!a})
    return stop.exit_code if stop() else 0

configs.run = run
sys.exit(cli.main(["configs"]))
"""
TEXTS = [
    "a red chair",
    "caf\u00e9 \u6905\u5b50 \U0001f697",
    "[red]a[/red] [/] [bold",
    ":car: *a*",
    "\udcff",
]


def speak(text, lines=1, env=(), **options):
    code = SAY.format(text=text, lines=lines)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **dict(env)},
        **{"capture_output": True, **options},
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_a_prompt_is_said_in_any_encoding(text, encoding):
    done = speak(text, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode(encoding).splitlines()
    assert said == [text.encode(encoding, "backslashreplace").decode(encoding)]


@pytest.mark.parametrize("text", TEXTS)
def test_the_locale_c_changes_nothing(text):
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = speak(text, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(
    "argv", [["--help"], ["configs"], ["configs", "--help"], ["configs", "--x"]]
)
def test_help_is_said_in_any_encoding(argv, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "jax3d", *argv],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == (2 if "--x" in argv else 0)
    assert b"Traceback" not in done.stderr
    (done.stderr or done.stdout).decode(encoding)


def closed_pipe():
    """The end of a pipe that nobody reads."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


@pytest.mark.parametrize("argv", [["--help"], ["configs"], ["configs", "--help"], ["--version"]])
def test_a_closed_pipe_ends_the_command_as_the_signal_would(argv):
    pipe = closed_pipe()
    done = subprocess.run(
        [sys.executable, "-m", "jax3d", *argv], stdout=pipe, stderr=subprocess.PIPE
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_pipe_asks_a_run_to_save():
    pipe = closed_pipe()
    done = speak("a red chair", lines=50, capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, b"")


def test_without_any_stdout_nothing_is_said():
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m jax3d configs >&-'], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_terminal_a_line_comes_every_half_minute(capsys):
    times = iter([0.0, 1.0, 29.9, 30.0, 31.0, 59.9, 60.5, 3600.0])
    lines = terminal.Lines("2 assets", signals.Stop(), clock=lambda: next(times))
    for step in range(7):
        lines.update(step, 9, "fast")
    assert capsys.readouterr().out.splitlines() == [
        f"2 assets: {step} of 9 steps, fast" for step in (2, 5, 6)
    ]


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_on_a_terminal_brackets_and_colons_are_what_they_are(text, monkeypatch):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    done = speak(
        text, env={"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"},
        capture_output=False, stdout=follower, stderr=subprocess.PIPE,
    )  # fmt: skip
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    os.close(follower)
    assert (done.returncode, done.stderr) == (0, b"")
    assert text in said
    assert "1/2 steps" in said


def device_error(text):
    return jax.errors.JaxRuntimeError(text)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("no room for 8 TiB"), "out of memory: no room for 8 TiB"),
        (
            device_error("RESOURCE_EXHAUSTED: Out of memory\n allocating 5 bytes"),
            "the device is out",
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ImportError("install gcsfs"), "install gcsfs"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
        (ValueError("[red]\udcff"), "[red]"),
    ],
)
def test_errors_of_the_users_world_end_in_one_line(monkeypatch, capsys, error, told):
    def run(options, stop):
        raise error

    monkeypatch.setattr(cli.import_module("jax3d.cli.configs"), "run", run)
    assert cli.main(["configs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("jax3d: ")
    assert told in said


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        TypeError(),
        ZeroDivisionError(),
        RecursionError(),
        device_error("INTERNAL: x"),
    ],
)
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, error):
    def run(options, stop):
        raise error

    monkeypatch.setattr(cli.import_module("jax3d.cli.configs"), "run", run)
    with pytest.raises(type(error)):
        cli.main(["configs"])


def row(index, status="done", error="", best=""):
    return {"index": index, "status": status, "error": error, "best": best}


@pytest.mark.parametrize(
    ("rows", "wanted", "code", "told"),
    [
        ([row(0), row(1, "plateau")], range(2), 0, ""),
        ([row(0), row(1, "nonfinite")], range(2), 1, "not made: 1 nonfinite\n"),
        ([row(0), row(1, "failed"), row(2, "failed")], range(3), 1, "not made: 2 failed\n"),
        ([row(0, error="no mesh")], range(1), 1, "not made: 1 without all its files\n"),
        ([row(0), row(1, "nonfinite")], [0], 0, ""),
        ([row(0, best=True), row(1, "nonfinite", best=False)], range(2), 0, ""),
        ([row(0)], range(2), 1, "not made: 1 missing\n"),
        ([], range(0), 0, ""),
    ],
)
def test_the_exit_code_says_whether_all_is_made(capsys, rows, wanted, code, told):
    assert making.exit_code(rows, wanted) == code
    assert capsys.readouterr().out == told
