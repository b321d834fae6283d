"""Several processes on one folder: they number themselves, and share the work out."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from toys import free_port, recipe_file

from jax3d import cli, cluster, image, recipe
from jax3d.cli import sweep
from jax3d.cli.signals import Stop

ROWS = [{"prompt": "a red chair", "steps": 3 + k % 3} for k in range(6)]
COMMAND = "import sys; from jax3d.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "recipe.py").write_text(recipe_file(steps=4))
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def ledger_of(out):
    return list(csv.DictReader((out / "ledger.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def single(folder):
    """The assets as one process makes them."""
    out = folder / "single"
    options = sweep.Options(
        manifest=str(folder / "jobs.jsonl"),
        out=str(out),
        recipe=recipe.load(folder / "recipe.py"),
    )
    assert sweep.run(options, Stop()) == 0
    return out


@pytest.mark.slow
def test_two_processes_make_every_asset_once_and_the_same(folder, single):
    out = folder / "two"
    argv = [sys.executable, "-c", COMMAND, "sweep", str(folder / "jobs.jsonl")]
    argv += ["--config", str(folder / "recipe.py"), "--out", str(out), "--distributed"]
    argv += ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    argv += ["--engine.block", "2", "--engine.checkpoint-every", "1"]
    pair = [
        subprocess.Popen(
            [*argv, "--process", str(k)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert all("3 assets in" in text for text in said), said
    assert [row["index"] for row in ledger_of(out)] == [str(k) for k in range(6)]
    assert (out / "index.html").read_text().count('"folder"') == 6
    assert not list((out / "checkpoints").iterdir())
    for ours, alone in zip(ledger_of(out), ledger_of(single), strict=True):
        assert ours["path"] == alone["path"]
        assert ours["steps"] == alone["steps"]
        a, b = (image.read_image(o / ours["path"] / "views.png") for o in (out, single))
        np.testing.assert_allclose(a, b, atol=2 / 255)
    # A call for all the assets finds nothing to make, and tidies up.
    again = sweep.Options(
        manifest=str(folder / "jobs.jsonl"),
        out=str(out),
        recipe=recipe.load(folder / "recipe.py"),
    )
    assert sweep.run(again, Stop()) == 0
    assert not (out / "checkpoints").exists()


def test_a_process_alone_is_the_first_of_one():
    assert cluster.roll_call(f"localhost:{free_port()}", 1, 0) == (0, 1, None)


def test_slurm_is_recognised_with_a_device_a_task(monkeypatch):
    told = {"JOB_ID": free_port(), "STEP_NODELIST": "localhost", "NTASKS": 1, "PROCID": 0}
    for name, value in {**told, "LOCALID": 0, "STEP_NUM_NODES": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert cluster.roll_call() == (0, 1, "0")


def test_what_is_no_cluster_is_told():
    for name in os.environ:
        assert not name.startswith("SLURM_STEP")
    with pytest.raises(ValueError, match=r"not found each other: .*coordinator_address"):
        cluster.roll_call()


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (None, "it is one from 0 to 1"),
        (2, "it is one from 0 to 1"),
        (-1, "--process is -1; expected a whole number from 0 on"),
    ],
)
def test_a_process_is_one_of_its_like(folder, capsys, process, message):
    argv = ["sweep", str(folder / "jobs.jsonl"), "--processes", "2"]
    argv += [] if process is None else [f"--process={process}"]
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_share_overwrites_nothing(folder, capsys, tmp_path):
    argv = ["sweep", str(folder / "jobs.jsonl"), "--processes", "2", "--process", "0"]
    assert cli.main([*argv, "--overwrite", "--out", str(tmp_path)]) == 2
    assert "several workers cannot overwrite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
