"""A folder of assets: claimed, resumed, accounted for; and the best of several candidates."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from balls import ball_recipe, red_ball
from jax.experimental.compilation_cache import compilation_cache

from jax3d import folder, ledger
from jax3d.finish import Finisher
from jax3d.folder import PARAMS
from jax3d.making import MERITS, generate
from jax3d.manifest import Job
from jax3d.optimize import asset as asset_program
from jax3d.optimize import engine, flops
from jax3d.optimize.engine import EngineConfig
from jax3d.priors import embedded
from jax3d.recipe import Recipe

TINY = ball_recipe()
JOBS = [
    Job("a red chair", 1),
    Job("a blue mug", 2, knobs={"guidance_scale": (3.0,)}),
    Job("a green car", 3, steps=2),
    Job("a red chair", 4),
]
CONFIG = EngineConfig(slots=2, block=2, checkpoint_every=1)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Most runs here are of one recipe: what is compiled for one is there for the others."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Stop(Exception):
    """Ends a run from within."""


@pytest.fixture(scope="module")
def critic():
    return red_ball()


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
    # Twice the steps are twice the FLOPs.
    assert float(rows[0]["model_flops"]) == 2 * float(rows[2]["model_flops"]) > 1e6
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


def test_another_run_is_refused_or_overwrites(resumed, critic, tmp_path):
    out = shutil.copytree(resumed[0], tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds another run: 4 assets.*in jobs\..*--overwrite"):
        generate(TINY, critic, JOBS[:1], out)
    assert len(list(out.glob("*/mesh.glb"))) == 4
    generate(TINY, critic, JOBS[:1], out, config=CONFIG, overwrite=True)
    assert [p.parent.name for p in out.glob("*/mesh.glb")] == ["0000-a-red-chair"]
    assert not (out / "replaced").exists()


def test_mistakes_are_found_before_any_work(tmp_path, critic):
    with pytest.raises(ValueError, match="nearest: 'chair'"):
        generate(TINY, embedded.open(), [*JOBS, Job("a red chiar")], tmp_path / "a")
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
        place = tmp_path / row["path"]
        assert (place / "mesh.glb").exists() == (k == best)
        assert (place / "views.png").exists()
        assert (place / PARAMS).exists()
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


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path):
    refused = []

    def again(progress):
        with pytest.raises(ValueError, match=r"out is written to by process \d+ on .*, since"):
            generate(TINY, red_ball(), JOBS[:1], tmp_path / "out")
        refused.append(progress)
        raise Stop

    with pytest.raises(Stop):
        generate(TINY, red_ball(), JOBS[:1], tmp_path / "out", config=CONFIG, report=again)
    assert refused
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"sweep.json", "checkpoints"}


KILLED = """
import os, signal, sys, threading
from balls import ball_recipe, red_ball
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.optimize.engine import EngineConfig

first = threading.Event()

def die(progress):
    # After a checkpoint, in the middle of the last asset, when the first is finished.
    if progress.steps >= 28:
        first.wait()
        os.kill(os.getpid(), signal.SIGKILL)

jobs = [Job("a red chair", seed) for seed in (1, 2)]
config = EngineConfig(slots=1, block=2, checkpoint_every=1, checkpoint_minutes=60.0)
finished = lambda record: first.set()
generate(
    ball_recipe(steps=20), red_ball(), jobs, "out", config=config, report=die, finished=finished
)
"""


def test_a_killed_run_in_a_relative_folder_goes_on(tmp_path, monkeypatch):
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here.parent}:{here}", "TMPDIR": str(tmp_path / "tmp")}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "tmp").mkdir()
    said = subprocess.run([sys.executable, "-c", KILLED], cwd=work, env=env, capture_output=True)
    assert said.returncode == -signal.SIGKILL, said.stderr.decode()[-2000:]
    assert not list((tmp_path / "tmp").iterdir())
    assert (work / "out" / "0000-a-red-chair" / "asset.json").exists()
    assert (work / "out" / "locks" / "main.json").exists()
    monkeypatch.chdir(work)
    steps, made = [], []
    rows = generate(
        ball_recipe(steps=20), red_ball(), [Job("a red chair", seed) for seed in (1, 2)], "out",
        config=EngineConfig(slots=1, block=2, checkpoint_every=1),
        report=lambda progress: steps.append(progress.steps), finished=made.append,
    )  # fmt: skip
    assert [record["index"] for record in made] == [1]
    # Of its 20 steps 8 were taken, and those of the checkpoint before were safe.
    assert steps[-1] in (14, 16)
    assert [(row["steps"], row["status"]) for row in rows] == [(20, "done")] * 2
    names = {"0000-a-red-chair", "0001-a-red-chair", "index.html", "ledger.csv", "viewer"}
    assert {p.name for p in (work / "out").iterdir()} == names | {"sweep.json"}


# From its first step, and from its sixth: two blocks in.
DIVERGING = {"lambda_sparsity": (3e38,)}
LATER = {"lambda_sparsity": (0.0, 3e38, 2 / 3, 0.0)}


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    out = tmp_path_factory.mktemp("diverged") / "out"
    jobs = [
        Job("a red chair", 1, knobs=DIVERGING), Job("a blue mug", 2, steps=6, knobs=LATER),
        Job("a green car", 3),
    ]  # fmt: skip
    records = []
    rows = generate(TINY, red_ball(), jobs, out, config=CONFIG, finished=records.append)
    return out, jobs, rows, records


def test_every_asset_has_its_status(diverged):
    out, _, rows, records = diverged
    assert [(row["status"], row["steps"]) for row in rows] == [
        ("failed", 0), ("nonfinite", 5), ("done", 4),
    ]  # fmt: skip
    assert {r["index"]: r["status"] for r in records} == {0: "failed", 1: "nonfinite", 2: "done"}
    with open(out / "ledger.csv", newline="", encoding="utf-8") as file:
        ledger = list(csv.DictReader(file))
    assert [row["status"] for row in ledger] == ["failed", "nonfinite", "done"]
    assert "not finite" in ledger[0]["error"]


def test_a_starting_blob_is_no_result(diverged):
    out, *_ = diverged
    failed = {p.name for p in (out / "0000-a-red-chair").iterdir()}
    assert failed <= {"asset.json", "history.csv"}
    page = (out / "index.html").read_text()
    assert "a red chair" not in page
    assert "a blue mug" in page


def test_no_json_holds_nan(diverged):
    out, *_ = diverged
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_failure_is_not_tried_again(diverged):
    out, jobs, rows, _ = diverged
    made = []
    again = generate(TINY, red_ball(), jobs, out, config=CONFIG, finished=made.append)
    assert again == rows
    assert not made


@pytest.mark.filterwarnings("ignore:.* made a")
def test_what_is_damaged_is_made_again(tmp_path, resumed):
    out = tmp_path / "out"
    shutil.copytree(resumed[0], out)
    glb, kept = (out / "0000-a-red-chair" / "mesh.glb", out / "0001-a-blue-mug" / "mesh.glb")
    before, second = glb.read_bytes(), kept.stat().st_mtime_ns
    os.truncate(glb, 100)
    (out / "0002-a-green-car" / "asset.json").write_text("{")
    (out / "0003-a-red-chair" / PARAMS).write_bytes(b"")
    made, steps = [], [0]
    rows = generate(
        TINY, red_ball(), JOBS, out, config=CONFIG, finished=made.append,
        report=lambda progress: steps.append(progress.total),
    )  # fmt: skip
    assert sorted(record["index"] for record in made) == [0, 2, 3]
    # The first from its parameters, the others anew: 2 and 4 steps.
    assert steps[-1] == 6
    assert [row["status"] for row in rows] == ["done"] * 4
    assert abs(len(glb.read_bytes()) - len(before)) < 500
    assert kept.stat().st_mtime_ns == second
    assert json.loads((out / "0002-a-green-car" / "asset.json").read_text())["prompt"]


def test_a_run_that_is_asked_to_stop_goes_on_later(tmp_path):
    asked = []

    def stop():
        asked.append(True)
        return len(asked) == 1

    jobs, config = [Job("a red chair", 1), Job("a blue mug", 2)], EngineConfig(slots=1, block=2)
    with pytest.raises(engine.Interrupted):
        generate(TINY, red_ball(), jobs, tmp_path / "out", config=config, stop=stop)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"sweep.json", "checkpoints"}
    assert not (tmp_path / "out" / "locks").exists()
    assert (tmp_path / "out" / "ledger.csv").exists()
    steps = []
    rows = generate(
        TINY, red_ball(), jobs, tmp_path / "out", config=config,
        report=lambda progress: steps.append(progress.steps),
    )  # fmt: skip
    # Both had taken half of their steps.
    assert steps[-1] == 4
    assert [row["status"] for row in rows] == ["done"] * 2


class Broken(Exception):
    """Of a program that cannot be built."""


def raising(*args, **kwargs):
    raise Broken


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (asset_program, "distil"),
        (Recipe, "build"),
        (Recipe, "condition"),
        (Finisher, "__init__"),
        (flops, "count"),
        (engine, "run"),
        (engine._Program, "slots_that_fit"),
        (engine._Run, "resume"),
    ],
)
@pytest.mark.parametrize("before", ["nothing", "another run"])
def test_a_start_that_fails_claims_no_folder(tmp_path, monkeypatch, where, what, before, resumed):
    out = tmp_path / "out"
    if before == "another run":
        shutil.copytree(resumed[0], out)
    held = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(where, what, raising)
    with pytest.raises(Broken):
        generate(TINY, red_ball(), JOBS[:1], out, config=CONFIG, overwrite=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == held
    assert out.exists() == (before == "another run")


def test_a_disk_that_is_full_ends_the_run(tmp_path, monkeypatch):
    def full(local, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(folder, "publish", full)
    with pytest.raises(OSError, match=r"No space left on device.*0000-a-red-chair"):
        generate(TINY, red_ball(), JOBS[:1], tmp_path / "out", config=CONFIG)
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"sweep.json", "checkpoints"}
