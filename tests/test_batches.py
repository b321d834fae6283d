"""The queue of a desk and its sweeps: begun, paused, gone on with, cancelled; never two at once."""

import sys
import time

import pytest
from etils import epath
from made_assets import write_asset

from jax3d import batches, folder
from jax3d.batches import Batches

LINES = [{"prompt": "a red chair", "seed": k} for k in range(3)]

# A sweep that makes one asset of three in each of its lives but the last; it waits for its signal.
SWEEP = """
import shutil, signal, sys, time
from pathlib import Path
manifest, out, source = Path(sys.argv[1]), Path(sys.argv[3]), Path(sys.argv[4])
done = out.exists() and len([*out.iterdir()])
def end(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
for k in range(1 if not done else 3):
    shutil.copytree(source, out / f"{k:04d}-a-red-chair", dirs_exist_ok=True)
print(f"made of {len(manifest.read_text().splitlines())}", flush=True)
time.sleep(0 if done else 60)
"""


@pytest.fixture
def made(tmp_path):
    write_asset(tmp_path / "source", 0, "a red chair")
    (tmp_path / "out").mkdir()
    options = [str(tmp_path / "source" / "0000-a-red-chair")]
    made = Batches(epath.Path(tmp_path / "out"), options, [sys.executable, "-c", SWEEP])
    yield made
    if made._process is not None:
        made._process.kill()
        made._process.wait()


def until(made, state, count):
    """The batch once it is so."""
    for _ in range(600):
        batch = made.state()["batch"]
        if (batch["state"], batch["made"]) == (state, count):
            return batch
        time.sleep(0.05)
    raise AssertionError(f"it is {batch}")


def test_a_queue_is_made_paused_and_gone_on_with(made):
    assert made.state() == {"wait": 0, "can": True, "batch": None, "mistake": ""}
    assert made.add(LINES[:1]) == 1
    assert made.add(LINES[1:]) == 3
    made.start()
    until(made, "running", 1)
    assert made.state()["wait"] == 0
    with pytest.raises(ValueError, match="a sweep is at work"):
        made.start()
    made.add(LINES[:1])  # waits for the next batch
    made.pause()
    made.pause()  # a second signal would end it without saving
    assert until(made, "paused", 1)["told"] == "saved"
    with pytest.raises(ValueError, match="no sweep is at work"):
        made.pause()

    again = Batches(made.out, made.options, made.command)  # the server was killed meanwhile
    assert again.state()["batch"]["state"] == "paused"
    again.start()
    batch = until(again, "done", 3)
    assert (batch["name"], batch["told"]) == ("001", "made of 3")
    again._process.wait()
    assert again.state()["wait"] == 1
    assert len(folder.names(made.out / "more" / "001")) == 3
    with pytest.raises(ValueError, match="no batch is unfinished"):
        again.cancel()


def test_a_cancelled_batch_keeps_what_was_made(made):
    made.add(LINES)
    made.start()
    until(made, "running", 1)
    made.cancel()
    assert made.state()["batch"] is None
    made._process.wait()
    assert (made.out / "more" / "001.cancelled").exists()
    assert len(folder.names(made.out / "more" / "001")) == 1
    with pytest.raises(ValueError, match="nothing is queued"):
        made.start()
    made.add(LINES)
    made.start()
    assert until(made, "running", 1)["name"] == "002"


def test_a_sweep_that_cannot_is_told(made):
    made.command = [sys.executable, "-c", "import sys; sys.exit('jax3d: no such recipe')"]
    made.add(LINES)
    made.start()
    assert until(made, "failed", 0)["told"] == "jax3d: no such recipe"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({}, "no prompt"),
        ({"prompt": "x", "nonsense": 1}, "unknown field"),
        ({"prompt": "x", "seed": -1}, "seed is -1"),
        ({"prompt": "x", "steps": 0}, "steps is 0"),
    ],
)
def test_what_is_no_line_is_refused(made, line, told):
    with pytest.raises(ValueError, match=told):
        made.add([LINES[0], line])
    assert not (made.out / batches.QUEUE).exists()


def test_the_queue_has_an_end_and_its_mistakes_are_told(made, monkeypatch):
    monkeypatch.setattr(batches, "MOST_QUEUED", 4)
    made.add(LINES)
    with pytest.raises(ValueError, match="it holds 4"):
        made.add(LINES)
    with open(made.out / batches.QUEUE, "a") as file:
        file.write("{")
    assert "line 4: not JSON" in made.state()["mistake"]
    with pytest.raises(ValueError, match="line 4"):
        made.add(LINES[:1])


def test_without_options_only_the_manifest_is_written(made):
    made.options = None
    made.add(LINES)
    assert made.state() == {"wait": 3, "can": False, "batch": None, "mistake": ""}
    with pytest.raises(ValueError, match="was given no --sweep"):
        made.start()
