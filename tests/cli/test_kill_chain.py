"""The command, ended again and again at random moments, makes what it makes undisturbed."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from toys import recipe_file

PROMPTS = ("a red chair", "a blue car", "a snowman")
COMMAND = [
    *("jax3d", "generate", *PROMPTS, "--config", "tiny.py"),
    *("--engine.block", "2", "--engine.checkpoint-every", "1", "--cpu-devices", "1"),
]
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
KEPT = ("params.safetensors", "history.csv", "views.png", "mesh.glb", "mesh.obj", "mesh.ply")


def written(out):
    """What tells that a run has come further."""
    return {p.name for pattern in ("checkpoints/*/*", "0*") for p in out.glob(pattern)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("jax3d") is None, reason="the command is not on the PATH")
def test_nine_signals_of_three_kinds_change_nothing(tmp_path):
    (tmp_path / "tiny.py").write_text(recipe_file(steps=600))
    (tmp_path / "scratch").mkdir()
    env = {**os.environ, "TMPDIR": "scratch", "XDG_CACHE_HOME": "cache", "XLA_FLAGS": ""}
    options = {"cwd": tmp_path, "env": env, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    whole = subprocess.run([*COMMAND, "--out", "whole"], **options, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    rng = np.random.default_rng(11)
    codes = []
    for number in list(ENDS) * 3:
        before, litter = written(tmp_path / "out"), {*(tmp_path / "scratch").iterdir()}
        process = subprocess.Popen([*COMMAND, "--out", "out"], **options, **pipes)
        if rng.random() < 0.7:  # else at any moment from the start, imports included
            while process.poll() is None and written(tmp_path / "out") <= before:
                time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.5))
        process.send_signal(number)
        _, told = process.communicate(timeout=300)
        codes.append(process.returncode)
        assert process.returncode in (ENDS[number], 0), told
        assert "Traceback" not in told
        if number != signal.SIGKILL:
            assert {*(tmp_path / "scratch").iterdir()} <= litter
    assert sum(code != 0 for code in codes) >= 5, codes
    done = subprocess.run([*COMMAND, "--out", "out"], **options, capture_output=True)
    assert done.returncode == 0, done.stderr
    for place in sorted((tmp_path / "whole").glob("0*")):
        for name in KEPT:
            resumed = tmp_path / "out" / place.name / name
            assert resumed.read_bytes() == (place / name).read_bytes(), resumed
    assert not (tmp_path / "out" / "checkpoints").exists()
