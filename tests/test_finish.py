"""Finishing: each file by itself, and all of it again from the kept parameters."""

import csv
import dataclasses
import errno
import json

import jax
import numpy as np
import pytest
import trimesh
from balls import ball_recipe

from jax3d import camera, finish, folder, gallery, image, mesh, record
from jax3d.finish import HISTORY, Finisher
from jax3d.folder import PARAMS
from jax3d.mesh import MeshConfig
from jax3d.recipe import Pictures

RECIPE = dataclasses.replace(ball_recipe(), pictures=Pictures(size=16, frames=2))
ALL = {
    PARAMS, HISTORY, "views.png", "mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply",
    "mesh.js", "mesh_views.png", "turntable.mp4", "turntable.gif",
}  # fmt: skip
BLOCKS = [
    {"step": 20.0, "residual_norm": 1.25, "grad_norm": 3.0},
    {"step": 40.0, "residual_norm": float("nan")},
]


@pytest.fixture(scope="module")
def finisher():
    return Finisher(RECIPE)


@pytest.fixture(scope="module")
def params(finisher):
    return finisher.field.init(jax.random.key(3))


def about(**changes):
    return {
        "index": 0,
        "prompt": "a red chair",
        "seed": 3,
        "steps": 40,
        "status": "done",
        "knobs": {},
        "critic": "none",
        "residual_norm": float("nan"),
        "model_flops": 1,
        "seconds": {"optimize": 1.0},
        "recipe": record.encode(RECIPE),
    } | changes


@pytest.fixture(scope="module")
def made(finisher, params, tmp_path_factory):
    """A finished asset's folder."""
    place = tmp_path_factory.mktemp("assets") / "0000-a-red-chair"
    place.mkdir()
    finisher.write(params, place, about(), True, BLOCKS)
    return place


def test_an_asset_has_all_its_files_with_size_and_checksum(made):
    found = record.read(made / "asset.json")
    assert set(found["files"]) == ALL == {p.name for p in made.iterdir()} - {"asset.json"}
    assert found["errors"] == {}
    for name, each in found["files"].items():
        assert each["bytes"] == (made / name).stat().st_size > 0
    assert "NaN" not in (made / "asset.json").read_text()
    assert found["residual_norm"] is None


def test_what_games_ask_lies_beside(finisher, params, tmp_path):
    config = dataclasses.replace(RECIPE.mesh, lods=2, hull=32, height=0.4)
    asked = dataclasses.replace(RECIPE, mesh=config, pictures=Pictures(size=16, frames=0))
    found = Finisher(asked, finisher.field).write(params, tmp_path, about(), True)
    assert found["errors"] == {}
    assert {"mesh_lod1.glb", "mesh_lod2.glb", "hull.glb"} <= {*found["files"]}
    whole = np.asarray(mesh.load_glb(tmp_path / "mesh.glb").vertices)
    np.testing.assert_allclose([whole[:, 2].min(), whole[:, 2].max()], [0, 0.4], atol=1e-5)
    for name in ("mesh_lod1.glb", "mesh_lod2.glb", "hull.glb"):
        scene = trimesh.load_scene(tmp_path / name)
        assert scene.bounds[1][1] == pytest.approx(0.4, rel=0.2)
    # Held against the field's views, where the field has it.
    assert found["metrics"]["mesh_psnr"] > 15
    again = record.decode(mesh.MeshConfig, record.encode(config))
    assert again == config


def test_levels_of_what_is_a_mesh_are_refused_before_any_work(finisher):
    asked = dataclasses.replace(RECIPE, mesh=dataclasses.replace(RECIPE.mesh, lods=1))
    own = finisher.field._replace(mesh=lambda params: None)
    with pytest.raises(ValueError, match=r"mesh\.lods"):
        Finisher(asked, own)


def test_the_history_is_a_table(made):
    with open(made / HISTORY, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "20", "grad_norm": "3", "residual_norm": "1.25"},
        {"step": "40", "grad_norm": "", "residual_norm": ""},
    ]


def broken(error):
    def raising(*args, **kwargs):
        raise error

    return raising


FULL = OSError(errno.ENOSPC, "No space left on device")
COSTS = [
    # What breaks, with what, and which files are missing then.
    (image, "write_video", OSError("no ffmpeg"), {"turntable.mp4", "turntable.gif"}),
    (image, "_write_mp4", RuntimeError("no codec"), {"turntable.mp4"}),
    (image, "_write_mp4", FULL, {"turntable.mp4"}),
    (image, "row", ValueError("a font"), {"views.png", "mesh_views.png"}),
    (mesh, "write_glb", FULL, {"mesh.glb", "mesh.js", "mesh_views.png"}),
    (mesh, "write_obj", UnicodeError("a name"), {"mesh.obj", "mesh.mtl", "mesh.png"}),
    (mesh, "write_ply", FULL, {"mesh.ply"}),
    (mesh, "compare", FloatingPointError("nan"), {"mesh_views.png"}),
    (gallery, "write_mesh_script", MemoryError(), {"mesh.js"}),
    (folder, "save_params", FULL, {PARAMS}),
    (finish, "write_history", FULL, {HISTORY}),
    (Finisher, "meshes", ValueError("fog"), {n for n in ALL if n.startswith("mesh")}),
    (Finisher, "meshes", AssertionError(), {n for n in ALL if n.startswith("mesh")}),
    (Finisher, "measure", KeyError("chair"), set()),
]


@pytest.mark.parametrize(("where", "what", "error", "missing"), COSTS)
def test_what_finishing_raises_costs_that_file(
    finisher, params, tmp_path, monkeypatch, where, what, error, missing
):
    monkeypatch.setattr(where, what, broken(error))
    said = finisher.write(params, tmp_path, about(), True, BLOCKS)
    assert {p.name for p in tmp_path.iterdir()} == ALL - missing | {"asset.json"}
    assert set(said["files"]) == ALL - missing
    assert said == record.read(tmp_path / "asset.json")
    names = set(said["errors"])
    assert names
    assert names <= missing | {"mesh", "scores"}
    assert all(why and "\n" not in why for why in said["errors"].values())
    if str(error) and not isinstance(error, KeyError):
        told = getattr(error, "strerror", None) or str(error)
        assert all(told in why for why in said["errors"].values())


def test_half_a_file_is_none(finisher, params, tmp_path, monkeypatch):
    def half(path, made):
        path.write_bytes(b"half")
        path.with_name("mesh.mtl").write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(mesh, "write_obj", half)
    said = finisher.write(params, tmp_path, about(), True)
    assert not {p.name for p in tmp_path.iterdir()} & {"mesh.obj", "mesh.mtl", "mesh.png"}
    assert said["errors"] == {"mesh.obj": str(FULL)}


def test_where_nothing_can_be_written_the_run_ends(finisher, params, tmp_path, monkeypatch):
    for where, what in [
        (folder, "save_params"), (image, "write_png"), (image, "write_video"),
        (mesh, "write_glb"), (mesh, "write_obj"), (mesh, "write_ply"),
    ]:  # fmt: skip
        monkeypatch.setattr(where, what, broken(FULL))
    with pytest.raises(OSError, match=r"nothing can be written: .*No space left on device"):
        finisher.write(params, tmp_path, about(), True, BLOCKS)
    assert not (tmp_path / "asset.json").exists()


def test_where_the_record_cannot_be_written_the_run_ends(finisher, params, tmp_path):
    (tmp_path / "asset.json").mkdir()
    with pytest.raises(OSError, match=r"asset\.json"):
        finisher.write(params, tmp_path, about(), False)


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) + 1e-20)


def test_half_precision_shows_the_same_picture(made, finisher, params):
    found = folder.load_asset(made)
    assert found.recipe == RECIPE
    around = camera.around(4, 15.0)
    assert psnr(finisher.pictures(found.params, around), finisher.pictures(params, around)) > 50
    sizes = [x.size for x in jax.tree.leaves(params)]
    assert (made / PARAMS).stat().st_size < 2.2 * sum(sizes) + 2000


@pytest.mark.parametrize("large", [65504.0, 65520.0, 1e6, -1e30])
def test_what_half_precision_cannot_hold_is_kept_whole(tmp_path, large):
    tree = {"a": np.float32([1.0, large]), "b": np.float32([0.1, 2.0]), "c": np.int32([7])}
    folder.save_params(tree, tmp_path / PARAMS)
    found = finish.folders.weights.load_tree(tmp_path / PARAMS, tree)
    np.testing.assert_array_equal(found["a"], tree["a"])
    np.testing.assert_array_equal(found["b"], tree["b"].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(found["c"], tree["c"])


def test_an_asset_is_made_again_at_another_size(made, tmp_path):
    said = finish.export(
        made, tmp_path / "new", mesh=MeshConfig(resolution=12, faces=60, texture=32),
        pictures=Pictures(size=24, frames=0),
    )  # fmt: skip
    assert image.read_image(tmp_path / "new" / "views.png").shape == (24, 8 * 24, 3)
    assert mesh.load_glb(tmp_path / "new" / "mesh.glb").texture.shape[0] == 32
    assert not (tmp_path / "new" / "turntable.mp4").exists()
    assert (tmp_path / "new" / HISTORY).read_bytes() == (made / HISTORY).read_bytes()
    assert (tmp_path / "new" / PARAMS).read_bytes() == (made / PARAMS).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"new"}
    assert said["recipe"]["pictures"]["size"] == 24
    assert said["prompt"] == "a red chair"
    # And from there again, in its own place, with files that it has no more.
    finish.export(tmp_path / "new", pictures=Pictures(size=16, frames=2))
    assert (tmp_path / "new" / "turntable.gif").exists()
    finish.export(tmp_path / "new", pictures=Pictures(size=16, frames=0))
    assert not (tmp_path / "new" / "turntable.gif").exists()
    assert folder.load_asset(tmp_path / "new").record["files"].keys() == ALL - {
        "turntable.mp4", "turntable.gif"
    }  # fmt: skip


def test_an_export_does_not_follow_links(made, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="new is a link"):
        finish.export(made, tmp_path / "new")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_failure_has_a_record_and_nothing_to_show(tmp_path):
    said = finish.write_failure(tmp_path, about(status="nonfinite", steps=0), "why", BLOCKS[:1])
    assert {p.name for p in tmp_path.iterdir()} == {HISTORY, "asset.json"}
    assert said == record.read(tmp_path / "asset.json")
    assert (said["status"], said["errors"]) == ("failed", {"asset": "why"})
    with pytest.raises(ValueError, match="has no params"):
        folder.load_asset(tmp_path)
    json.loads((tmp_path / "asset.json").read_text(), parse_constant=pytest.fail)
