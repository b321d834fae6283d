"""What help and mistakes may import: told by `sys.modules`, since clocks depend on the machine."""

import json
import subprocess
import sys

import pytest

from jax3d import cli

HEAVY = ("jax", "jaxlib", "flax", "orbax", "optax", "numpy", "trimesh", "scipy", "skimage", "rich")

PROBE = """
import json, sys
from jax3d.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
roots = {name.partition(".")[0] for name in sys.modules}
print("\\n" + json.dumps([code, sorted(roots)]))
"""


def imports(*argv):
    """The exit code of a command, and the packages that it imported."""
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, roots = json.loads(done.stdout.splitlines()[-1])
    return code, set(roots), done


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["-h"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["configs"], 0),
        (["configs", "--help"], 0),
        (["configs", "--nonsense"], 2),
        ([], 2),
        (["genrate", "a red chair"], 2),
        (["train"], 2),
        (["train", "priors"], 2),
        (["--out", "x"], 2),
        (["generate", b"a \xff chair"], 2),
    ],
)
def test_help_and_mistyped_commands_do_not_wait_for_jax(argv, code):
    got, roots, _ = imports(*argv)
    assert got == code
    assert not roots & set(HEAVY)


def test_the_package_alone_does_not_import_jax():
    probe = "import sys, jax3d; dir(jax3d); print(jax3d.__version__, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.split()[1:] == ["False"]


def test_help_of_a_command_imports_nothing_that_only_its_run_needs():
    code, roots, done = imports("generate", "--help")
    assert code == 0
    assert "--knobs.guidance-scale" in done.stdout
    assert not roots & {"imageio", "imageio_ffmpeg"}


def test_each_command_is_told_as_its_options_tell_themselves():
    for command, about in cli.COMMANDS.items():
        module = __import__(f"jax3d.cli.{command.replace(' ', '_')}", fromlist=["Options"])
        assert module.Options.__doc__.partition("\n")[0] == about
        assert callable(module.run)
        assert f"  {command} " in cli.help_text()


def test_every_module_of_the_commands_is_listed():
    from pathlib import Path

    shared = {"__init__", "cache", "making", "options", "signals", "terminal", "training"}
    found = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert found - shared == {command.replace(" ", "_") for command in cli.COMMANDS}
