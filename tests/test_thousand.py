"""A thousand assets at toy size through all of the engine: the plan for a million, in little."""

import csv
import json
import multiprocessing
import re
import resource
from concurrent.futures import ProcessPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from toys import no_condition

from jax3d.fields.triplane import TriplaneConfig
from jax3d.generate import generate
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.manifest import grid
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.engine import EngineConfig
from jax3d.priors.base import Critic
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.recipe import Pictures, Recipe

SIZE = 16
RECIPE = Recipe(
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=1, stages=(StageConfig(10, SIZE),)),
    guidance=SDSConfig(score=ScoreConfig(view_words="none", use_camera=False)),
    mesh=MeshConfig(resolution=16, faces=100, texture=16, chunk=4096),
    pictures=Pictures(size=SIZE, frames=0),
)


def red_ball() -> Critic:
    """A critic of whom every picture is a red disc."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    disc = (x**2 + y**2 < (SIZE / 4) ** 2)[..., None]
    mean = jnp.asarray(np.where(disc, [0.8, 0.1, 0.1], 1.0), jnp.float32)
    data = GaussianData(mean, jnp.float32(0.05))
    return Critic(gaussian(SIZE), data, lambda prompt: no_condition(), "a red ball", "")


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
