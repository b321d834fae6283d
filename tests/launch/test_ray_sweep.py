"""A sweep on Ray: an actor that is killed costs no asset."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import recipe_file

from jax3d import image, recipe
from jax3d.cli import sweep
from jax3d.cli.signals import Stop

pytest.importorskip("ray")

SCRIPT = Path(__file__).parents[2] / "launch" / "ray_sweep.py"


def test_a_mistake_ends_before_any_machine_is_asked_for(tmp_path):
    argv = [sys.executable, str(SCRIPT), str(tmp_path / "nowhere.jsonl"), "--out", str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True)
    assert said.returncode == 2
    assert said.stderr.startswith("ray_sweep: ")
    assert "nowhere.jsonl" in said.stderr


@pytest.mark.slow
def test_a_killed_actor_loses_nothing_and_does_nothing_twice(tmp_path):
    jobs, config = tmp_path / "jobs.jsonl", tmp_path / "recipe.py"
    jobs.write_text(6 * (json.dumps({"prompt": "a red chair"}) + "\n"))
    config.write_text(recipe_file(steps=20))
    out, whole = tmp_path / "out", tmp_path / "whole"
    argv = [sys.executable, str(SCRIPT), str(jobs), "--config", str(config), "--out", str(out)]
    argv += ["--chunk", "3", "--workers", "2", "--cpus", "0.5", "--engine.slots", "2"]
    argv += ["--cpu-devices", "1", "--engine.block", "1", "--engine.checkpoint-every", "1"]
    # An address from elsewhere would be another cluster; workers count their devices themselves.
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "XLA_FLAGS")}
    # On a busy machine the actors would starve at Ray's own 15.
    env["RAY_worker_niceness"] = "0"
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"chunk-0-3: taken by pid (\d+)", line):
                break
        else:
            pytest.fail("".join(said))
        folder = out / "checkpoints" / "chunk-0-3"
        while not (folder.exists() and any(p.name.isdigit() for p in folder.iterdir())):
            assert process.poll() is None
            time.sleep(0.02)
        kept = {p for p in out.glob("000[0-2]*/asset.json")}
        os.kill(int(found[1]), signal.SIGKILL)
        said += process.stdout.readlines()
    text = "".join(said)
    assert process.returncode == 0, text
    assert "chunk-0-3: its actor died; it goes on elsewhere" in text
    assert len(re.findall(r"^chunk-0-3: taken by", text, re.M)) == 2
    assert not kept, "the kill came too late to be in the middle"
    assert re.search(r"^chunk-3-6: 3 assets made in 60 steps", text, re.M)
    # What the dead actor had done before its checkpoint is not done again.
    resumed = re.search(r"^chunk-0-3: 3 assets made in (\d+) steps", text, re.M)
    assert 0 < int(resumed[1]) < 60
    assert not (out / "checkpoints").exists()

    alone = sweep.Options(manifest=str(jobs), out=str(whole), recipe=recipe.load(config))
    assert sweep.run(alone, Stop()) == 0
    rows, wanted = (
        list(csv.DictReader((o / "ledger.csv").read_text().splitlines())) for o in (out, whole)
    )
    assert [row["index"] for row in rows] == [str(k) for k in range(6)]
    for ours, theirs in zip(rows, wanted, strict=True):
        assert (ours["path"], ours["steps"]) == (theirs["path"], "20")
        a, b = (
            image.read_image(o / row["path"] / "views.png")
            for o, row in ((out, ours), (whole, theirs))
        )
        assert np.mean(np.abs(a - b)) < 2 / 255
