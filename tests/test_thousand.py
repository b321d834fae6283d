"""A thousand assets at toy size through all of the engine: the plan for a million, in little."""

import csv
import json
import multiprocessing
import re
import resource
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from balls import ball_recipe, red_ball

from jax3d.making import generate
from jax3d.manifest import grid
from jax3d.optimize.engine import EngineConfig

RECIPE = ball_recipe(steps=10)


def make(out):
    """Makes the assets in `out`; returns the ledger and the most memory this process had, bytes."""
    prompts = [f"ball {k}" for k in range(20)]
    jobs = grid(prompt=prompts, seed=range(10), lr=[0.5, 1.0, 1.5, 2.0, 3.0])
    config = EngineConfig(slots=64, block=10, checkpoint_every=4)
    rows = generate(RECIPE, red_ball(), jobs, out, config=config)
    return rows, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_a_thousand_assets(tmp_path):
    # In a process of its own, whose memory is that of a sweep.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        rows, peak = pool.submit(make, tmp_path).result()
    assert peak < 4e9
    assert [row["index"] for row in rows] == list(range(1000))
    assert {row["status"] for row in rows} == {"done"}
    meshes = [(tmp_path / row["path"] / "mesh.glb").exists() for row in rows]
    assert np.mean(meshes) > 0.9
    with open(tmp_path / "ledger.csv", newline="", encoding="utf-8") as file:
        ledger = list(csv.DictReader(file))
    assert len({(row["prompt"], row["seed"], row["lr"]) for row in ledger}) == 1000
    page = (tmp_path / "index.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])
    assert len(data["assets"]) == 1000
    # Each setting made its own asset: more rate, another result.
    sums = {
        (tmp_path / row["path"] / "views.png").read_bytes()
        for row in rows
        if row["prompt"] == "ball 0"
    }
    assert len(sums) > 40
