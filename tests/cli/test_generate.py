"""The command: what it writes, and how it answers mistakes."""

import csv
import json
import sys

import numpy as np
import pytest

from jax3d import cli, image, mesh
from jax3d.cli import generate, sweep
from jax3d.cli.signals import Stop
from jax3d.fields.triplane import TriplaneConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.priors import embedded
from jax3d.recipe import Pictures, Recipe

TINY = Recipe(
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=2, stages=(StageConfig(3, 16),)),
    mesh=MeshConfig(resolution=32, faces=400, texture=64),
    pictures=Pictures(size=32, frames=3),
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The same command twice."""
    folders = [tmp_path_factory.mktemp(name) / "assets" for name in ("first", "second")]
    for out in folders:
        prompts = ("a red chair", "a blue mug")
        options = generate.Options(prompts=prompts, out=str(out), recipe=TINY)
        assert generate.run(options, Stop()) == 0
    return folders


FOLDERS = ("0000-a-red-chair", "0001-a-blue-mug")


def test_every_asset_has_its_files(two_runs):
    for name in FOLDERS:
        found = {p.name for p in (two_runs[0] / name).iterdir()}
        assert {"mesh.glb", "mesh.obj", "mesh.ply", "turntable.mp4", "turntable.gif"} <= found
        assert {"views.png", "mesh_views.png", "asset.json"} <= found
    record = json.loads((two_runs[0] / FOLDERS[0] / "asset.json").read_text())
    assert record["prompt"] == "a red chair"
    assert record["seed"] == 0
    assert {"r_precision", "name", "color", "azimuth", "mesh_psnr"} <= set(record["metrics"])
    assert {"jax3d", "jax", "backend"} <= set(record["versions"])
    assert {"optimize", "finish"} <= set(record["seconds"])
    assert image.read_image(two_runs[0] / FOLDERS[0] / "views.png").shape == (32, 256, 3)


def test_the_page_shows_all(two_runs):
    page = (two_runs[0] / "index.html").read_text()
    assert "a red chair" in page
    assert "a blue mug" in page


def test_the_same_command_gives_the_same_asset_bit_by_bit(two_runs):
    for name in FOLDERS:
        for file in ("mesh.glb", "views.png", "turntable.gif"):
            first, second = ((run / name / file).read_bytes() for run in two_runs)
            assert first == second, file


def test_the_mesh_stands_in_the_field(two_runs):
    made = mesh.load_glb(two_runs[0] / FOLDERS[0] / "mesh.glb")
    assert np.abs(made.vertices).max() < 1.0
    assert len(made.faces) <= 400


def run(capsys, *argv):
    code = cli.main(list(argv))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate"], "no prompt"),
        (["generate", ""], "no prompt"),
        (["generate", "a red chiar"], "nearest: 'chair'"),
        (["generate", "a red chair", "--steps", "-3"], "--steps is -3"),
        (["generate", "a red chair", "--config", "nowhere.py"], "nowhere.py"),
        (["generate", "a red chair", "--prior", "nowhere.safetensors"], "nowhere"),
        (["generate", "a red chair", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["generate", "a red chair", "--out", "s3://bucket/props"], "not to s3://"),
        (["generate", "a red chair", "--candidates", "0"], "--candidates is 0"),
        (["generate", "a red chair", "--cpu-devices", "0"], "cpu-devices is 0"),
        (["generate", "a red chair", "--config", "distli"], "nearest: distil"),
        (["generate", "a red chair", "--views", "0"], "--views is 0"),
        (["sweep"], "no manifest"),
        (["sweep", "a.csv", "--process", "1"], "--process needs --processes"),
        (["sweep", "a.csv", "--dollars-per-hour", "nan"], "--dollars-per-hour is nan"),
        (["export"], "no folder"),
        (["genrate", "a red chair"], "nearest: 'generate'"),
        (["train", "pryor"], "nearest: 'train prior'"),
        ([], "no command"),
        (["sweep", "nowhere.jsonl"], "nowhere.jsonl"),
        (["sample"], "no prompt"),
    ],
)
def test_mistakes_end_in_one_line_and_code_two(capsys, argv, message):
    code, err = run(capsys, *argv)
    assert code == 2
    assert err.startswith("jax3d: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_missing_extra_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    code, err = run(capsys, "generate", "a red chair", "--out", "gs://bucket/props")
    assert code == 2
    assert "install gcsfs" in err


def test_a_sweep_tells_what_it_cost(capsys, tmp_path):
    manifest = tmp_path / "props.csv"
    manifest.write_text("prompt,steps,guidance_scale\na red chair,2,5\n")
    options = sweep.Options(
        manifest=str(manifest), out=str(tmp_path / "out"), recipe=TINY, dollars_per_hour=3600.0
    )
    assert sweep.run(options, Stop()) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "assets/h" in told
    assert "1 assets (1 done); an asset:" in told
    assert "dollars" in told
    (line,) = csv.DictReader((tmp_path / "out" / "ledger.csv").read_text().splitlines())
    assert (line["steps"], line["guidance_scale"]) == ("2", "5")


def test_a_corrupt_weight_file_is_told(capsys, tmp_path):
    good = embedded.WEIGHTS
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:1000])
    bad.with_suffix(".json").write_bytes(good.with_suffix(".json").read_bytes())
    code, err = run(capsys, "generate", "a red chair", "--prior", str(bad))
    assert code == 2
    assert "bad.safetensors" in err


def test_a_config_with_an_unknown_field_is_told(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from jax3d.recipe import Recipe\nrecipe = Recipe(colour=1)\n")
    code, err = run(capsys, "generate", "a red chair", "--config", str(path))
    assert code == 2
    assert "colour" in err


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "a red chair", "--colour", "1"])
    assert stop.value.code == 2
