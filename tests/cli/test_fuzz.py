"""Whatever the arguments are, they spell a command, or are refused without a traceback."""

import contextlib
import dataclasses
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax3d import cli
from jax3d.cli import generate

# fmt: off
OPTIONS = [
    "--out", "--config", "--seed", "--steps", "--views", "--prior", "--dtype", "--overwrite",
    "--no-overwrite", "--cpu-devices", "--cache", "--no-cache", "--engine.slots", "--engine.over",
    "--engine.block", "--field.hidden", "--field.resolution", "--optimize.stages",
    "--optimize.views", "--optimize.rates", "--optimize.camera.fovy", "--knobs.lr",
    "--guidance.score.view-words", "--knobs.guidance_scale", "--knobs.background", "--negative",
    "--mesh.faces", "--mesh.level", "--pictures.size", "--candidates", "--processes", "--process",
    "--distributed", "--dollars-per-hour", "--mode", "--method", "--guidance-scale", "--batch",
    "--lr", "--renders.images", "--argv", "--recipe", "--help", "-h", "--", "-", "--=x", "=",
]
VALUES = [
    "0", "1", "-1", "2", "1e3", "1e999", "nan", "inf", "-inf", "1_000", "0x10", "4294967295",
    "4294967296", "9" * 5000, "True", "None", "none", "embedded", "float32", "vmap", "camera",
    "ddim", "distil", "distli", "evil.py", "out", "/dev/null", "0.5", "a=b", "''", "", " ", "\n",
    "\x00", "\udcff", "\ud800", "\u00e9", "\U0001f697", "[red]", "[/]", "{}", "()", "\\", "%s",
    "*", "~", "$HOME", "--config=nowhere", "-5", "a red chair",
]
# fmt: on
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(VALUES),
    st.builds("{}={}".format, st.sampled_from(OPTIONS), st.sampled_from(VALUES)),
    st.text(max_size=8),
)
COMMANDS = st.sampled_from(
    [*(command.split() for command in cli.COMMANDS), ["train"], [], ["sweeps"]]
)


def read(argv):
    """What comes of arguments: a command with its options, the exit code, or the mistake."""
    try:
        return cli.parse(argv)
    except SystemExit as stop:
        return stop.code
    except ValueError as error:
        return str(error)


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(command=COMMANDS, words=st.lists(WORDS, max_size=6))
def test_arguments_spell_a_command_or_are_refused(tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = read([*command, *words])
    match found:
        case 0:
            assert {"-h", "--help"} & set(words)
            assert out.getvalue().count("usage:") == 1
        case 2:
            assert err.getvalue()
            assert err.getvalue().count("usage:") <= 1
        case str():
            assert found
        case (name, options):
            assert name in cli.COMMANDS
            assert dataclasses.is_dataclass(options)
        case _:
            pytest.fail(f"exit code {found}")


SEEDED = ["generate", "sweep", "sample", "train prior", "train scorer"]


def exit_code(argv):
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("command", SEEDED)
@pytest.mark.parametrize("value", ["-1", "4294967296", "9" * 40, "nan", "1.5", ""])
def test_seeds_are_uint32_in_every_command(tmp_path, monkeypatch, capsys, command, value):
    monkeypatch.chdir(tmp_path)
    for name in ("prior", "scorer", "native", "lrm"):
        monkeypatch.setattr(f"jax3d.cli.train_{name}.run", lambda *_: pytest.fail("it trains"))
    assert exit_code([*command.split(), f"--seed={value}"]) == 2
    told = capsys.readouterr().err
    assert "--seed" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("argv", "fits"),
    [
        (["--seed", "4294967295", "a red chair"], True),
        (["--seed", "4294967295", "a red chair", "a cat"], False),
        (["--seed", "4294967292", "a red chair", "a cat", "--candidates", "2"], True),
        (["--seed", "4294967293", "a red chair", "a cat", "--candidates", "2"], False),
    ],
)
def test_the_last_seed_fits_too(argv, fits):
    _, options = cli.parse(["generate", *argv])
    if fits:
        jobs = generate.jobs_of(options)
        assert [job.seed for job in jobs] == [options.seed + k for k in range(len(jobs))]
        return
    with pytest.raises(ValueError, match=r"seed is 429496729\d: counting on from it"):
        generate.jobs_of(options)
