"""`jax3d fit`: scenes of several sizes in one program, and a bad one that costs only itself."""

import json
from dataclasses import replace

import jax
import numpy as np
import photographed
import pytest

from jax3d import cli, folder, record
from jax3d.cli import fit
from jax3d.cli.signals import Stop
from jax3d.fields.triplane import TriplaneConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.stage import Task
from jax3d.recipe import Pictures, load
from jax3d.types import Prompt

CONFIG = load("fit")
STEPS = 60
TINY = replace(
    CONFIG,
    field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
    optimize=AssetConfig(views=1, stages=(StageConfig(STEPS, 16),)),
    mesh=MeshConfig(resolution=16, faces=100, texture=32, chunk=4096),
    pictures=Pictures(size=16, frames=0),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    here = tmp_path_factory.mktemp("scenes")
    photographed.write(here / "few", 9)
    photographed.write(here / "many", 16)
    photographed.write(here / "bad", 4)
    (here / "bad" / "2.png").write_bytes(b"no picture")
    return here


def test_steps_bring_a_scene_nearer_to_views_that_are_held_out(scenes):
    opened = TINY.open(None)
    few = str(scenes / "few")
    cond = opened.condition(Prompt("", image=opened.read(few)))
    task = Task(cond, TINY.knobs_of(0), (STEPS,))
    (stage,) = opened.stages
    start = jax.jit(stage.start)(task, None)

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda state, _: stage.step(state, stage.shared, cond, task.knobs), state, length=STEPS
        )

    state, metrics = run(start)
    before, after = (opened.measure(s.params, cond, few) for s in (start, state))
    assert after["unseen_psnr"] > before["unseen_psnr"] + 1.5
    assert after["unseen_ssim"] > before["unseen_ssim"] + 0.1
    assert after["unseen_psnr"] > 14
    assert after["unseen_views"] == 2
    assert np.isfinite(metrics["photometric"]).all()
    assert opened.about(cond)["scene"]["scale"] == float(cond.scale)


@pytest.fixture(scope="module")
def fitted(scenes):
    out = scenes / "out"
    folders = tuple(str(scenes / name) for name in ("few", "bad", "many"))
    options = fit.Options(folders=folders, out=str(out), recipe=TINY, cache=False)
    code = fit.run(options, Stop())
    return out, options, code


@pytest.mark.slow
def test_scenes_are_fitted_and_a_bad_one_costs_only_itself(fitted):
    out, _, code = fitted
    assert code == 1
    few, bad, many = (record.read(path) for path in sorted(out.glob("*/asset.json")))
    assert [each["prompt"] for each in (few, bad, many)] == ["few", "bad", "many"]
    assert [each["status"] for each in (few, bad, many)] == ["done", "failed", "done"]
    assert "2.png" in bad["errors"]["asset"]
    assert (few["metrics"]["unseen_views"], many["metrics"]["unseen_views"]) == (2, 2)
    for each in (few, many):
        assert each["metrics"]["unseen_psnr"] > 14
        assert each["errors"].keys() <= {"mesh"}
        np.testing.assert_allclose(each["scene"]["centre"], [0.5, 0, -0.5], atol=0.5)
        assert 0.2 < each["scene"]["scale"] < 0.6
        # No more room than the largest scene needs.
        assert each["recipe"]["guidance"]["most"] == 14
    assert "unseen_psnr" in (out / "ledger.csv").read_text()


@pytest.mark.slow
def test_a_second_call_finds_its_work_done(fitted, capsys):
    out, options, _ = fitted
    before = (out / "0000-few" / "asset.json").read_text()
    assert fit.run(options, Stop()) == 1
    assert "0 assets" in capsys.readouterr().out
    assert (out / "0000-few" / "asset.json").read_text() == before


@pytest.mark.slow
def test_another_picture_is_another_asset(scenes, fitted):
    own = record.picture_of(str(scenes / "few"))
    assert record.read(fitted[0] / "0000-few" / "asset.json")["picture"] == own
    other = scenes / "few" / "0.png"
    kept = other.read_bytes()
    other.write_bytes(kept + b"x")
    assert record.picture_of(str(scenes / "few")) != own
    other.write_bytes(kept)


@pytest.mark.slow
def test_an_export_keeps_what_held_out_views_said(fitted):
    source = fitted[0] / "0000-few"
    assert cli.main(["export", str(source), "--out", str(source.parent / "new"), "--no-cache"]) in (
        0,
        1,
    )
    new = json.loads((source.parent / "new" / "0000-few" / "asset.json").read_text())
    before = record.read(source / "asset.json")
    assert new["metrics"]["unseen_psnr"] == before["metrics"]["unseen_psnr"]
    assert new["scene"] == before["scene"]
    assert folder.load_asset(source).recipe.guidance == replace(CONFIG.guidance, most=14)


def test_mistakes_are_told_in_a_line(scenes, capsys, tmp_path):
    few = str(scenes / "few")
    for argv, says in [
        (["fit"], "no folder"),
        (["fit", str(tmp_path / "none")], "there is no such folder"),
        (["fit", str(tmp_path)], "no transforms.json"),
        (["fit", few, "--recipe", "native"], "fits no photographs"),
        (["fit", few, "--optimize.stages.0.size", "48"], "cannot be halved to 48"),
        (["generate", "a red chair", "--recipe", "fit"], "jax3d fit FOLDER"),
    ]:
        assert cli.main([*argv, *(["--out", str(tmp_path / "out")])]) == 2, argv
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert says in told
    assert not (tmp_path / "out").exists()
