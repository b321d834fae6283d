"""A folder of assets: claimed, resumed, accounted for; and the best of several candidates."""

import csv
import json

import pytest

from jax3d import ledger
from jax3d.fields.triplane import TriplaneConfig
from jax3d.generate import MERITS, PARAMS, generate
from jax3d.manifest import Job
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.engine import EngineConfig
from jax3d.priors import embedded
from jax3d.recipe import Pictures, Recipe

TINY = Recipe(
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=1, stages=(StageConfig(4, 16),)),
    mesh=MeshConfig(resolution=24, faces=200, texture=32),
    pictures=Pictures(size=16, frames=0),
)
JOBS = [
    Job("a red chair", 1),
    Job("a blue mug", 2, knobs={"guidance_scale": (3.0,)}),
    Job("a green car", 3, steps=2),
    Job("a red chair", 4),
]
CONFIG = EngineConfig(slots=2, block=2, checkpoint_every=1)


class Stop(Exception):
    """Ends a run from within."""


@pytest.fixture(scope="module")
def critic():
    return embedded.open()


@pytest.fixture(scope="module")
def cut_short(critic, tmp_path_factory):
    """A folder whose run died after its second asset, and what was finished then."""
    out = tmp_path_factory.mktemp("assets") / "out"
    finished = []

    def two(record):
        finished.append(record)
        if len(finished) == 2:
            raise Stop

    with pytest.raises(Stop):
        generate(TINY, critic, JOBS, out, config=CONFIG, finished=two)
    return out, finished


@pytest.fixture(scope="module")
def resumed(critic, cut_short):
    out, before = cut_short
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*/mesh.glb")}
    finished = []
    rows = generate(TINY, critic, JOBS, out, config=CONFIG, finished=finished.append)
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    return out, before, finished, rows


def test_a_resumed_run_makes_what_is_missing_and_no_more(resumed):
    out, before, after, rows = resumed
    assert sorted(r["index"] for r in before + after) == [0, 1, 2, 3]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert not (out / "checkpoints").exists()
    for row in rows:
        names = {p.name for p in (out / row["path"]).iterdir()}
        assert {"mesh.glb", "mesh.js", "views.png", "asset.json"} <= names
        assert not {n for n in names if n.endswith(".new")}


def test_the_ledger_tells_what_each_asset_was_and_cost(resumed):
    out, *_ = resumed
    with open(out / "ledger.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [job.prompt for job in JOBS]
    assert [row["seed"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["steps"] for row in rows] == ["4", "4", "2", "4"]
    assert {row["status"] for row in rows} == {"done"}
    assert [row["guidance_scale"] for row in rows] == ["", "3", "", ""]
    # Twice the steps are twice the FLOPs, and the critic's forward pass is among them.
    assert float(rows[0]["model_flops"]) == 2 * float(rows[2]["model_flops"]) > 1e8
    assert all(float(row["device_seconds"]) > 0 for row in rows)
    assert all(0 <= float(row["r_precision"]) <= 1 for row in rows)


def test_the_page_lets_choose_by_knob(resumed):
    page = (resumed[0] / "index.html").read_text()
    assert '"knobs": {"steps": "4", "status": "done", "guidance_scale": "3"}' in page


def test_a_finished_run_is_only_read_again(resumed, critic):
    out, *_ = resumed
    again = []
    rows = generate(TINY, critic, JOBS, out, finished=again.append)
    assert len(rows) == 4
    assert not again


def test_another_run_is_refused_or_overwrites(resumed, critic):
    out, *_ = resumed
    with pytest.raises(ValueError, match=r"holds another run: 4 assets.*--overwrite"):
        generate(TINY, critic, JOBS[:1], out)
    assert len(list(out.glob("*/mesh.glb"))) == 4
    generate(TINY, critic, JOBS[:1], out, overwrite=True)
    assert [p.parent.name for p in out.glob("*/mesh.glb")] == ["0000-a-red-chair"]


def test_mistakes_are_found_before_any_work(tmp_path, critic):
    with pytest.raises(ValueError, match="nearest: 'chair'"):
        generate(TINY, critic, [*JOBS, Job("a red chiar")], tmp_path / "a")
    with pytest.raises(ValueError, match="3 numbers"):
        generate(TINY, critic, [Job("a red chair", knobs={"lr": (1.0, 2.0, 3.0)})], tmp_path / "a")
    with pytest.raises(ValueError, match="cannot read 'a thing'"):
        generate(TINY, critic, [Job("a thing")] * 2, tmp_path / "a", candidates=2)
    assert not (tmp_path / "a").exists()


def test_the_best_candidate_gets_the_mesh(tmp_path, critic):
    jobs = [Job("a red chair", seed) for seed in range(3)]
    records = []
    generate(TINY, critic, jobs, tmp_path, config=CONFIG, candidates=3, finished=records.append)
    rows = list(csv.DictReader((tmp_path / "ledger.csv").read_text().splitlines()))
    merit = [[float(row[k]) for k in MERITS] for row in rows]
    assert len({row[-1] for row in merit}) == 3
    best = merit.index(max(merit))
    assert [row["best"] for row in rows] == [str(k == best) for k in range(3)]
    for k, row in enumerate(rows):
        folder = tmp_path / row["path"]
        assert (folder / "mesh.glb").exists() == (k == best)
        assert (folder / "views.png").exists()
        assert not (folder / PARAMS).exists()
    page = (tmp_path / "index.html").read_text()
    assert page.count('"folder"') == 1
    # Each when it was looked at, and the best when it has its mesh.
    assert sorted(record["index"] for record in records) == sorted([0, 1, 2, best])
    assert records[-1]["best"]


def test_the_summary_tells_the_cost():
    rows = [
        {"status": "done", "device_seconds": 1800.0, "model_flops": 2e12, "finish_seconds": 3.0},
        {"status": "plateau", "device_seconds": 5400.0, "model_flops": 4e12, "finish_seconds": 5.0},
    ]
    text = ledger.summary(rows, dollars_per_hour=4.0)
    assert "2 assets (1 done, 1 plateau)" in text
    assert "3600.00 device-seconds, 3e+12 model FLOPs, 4.00 s" in text
    assert "4.0000 dollars" in text


def test_a_ledger_is_read_back_from_the_folders(resumed, tmp_path):
    record = {
        "index": 0, "prompt": 'a "red", chair', "seed": 0, "steps": 1, "status": "done",
        "knobs": {"lr": [1.0, 0.5]}, "metrics": {"faces": 3}, "model_flops": 1,
        "seconds": {"optimize": 1.0, "finish": 2.0},
    }  # fmt: skip
    (tmp_path / "0000-a").mkdir()
    (tmp_path / "0000-a" / "asset.json").write_text(json.dumps(record))
    found = ledger.records(tmp_path, ["0000-a", "0001-b"])
    path = ledger.write(tmp_path, [ledger.row(name, record) for name, record in found.items()])
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert (row["prompt"], row["lr"], row["faces"]) == ('a "red", chair', "1 0.5", "3")
