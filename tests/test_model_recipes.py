"""Recipes whose assets a model makes: from words, from pictures, by way of a picture, refined."""

import dataclasses
import json

import numpy as np
import pytest
from balls import ball_recipe, red_ball
from PIL import Image
from tiny_models import write_lrm, write_native

from jax3d import cli, config_files, image, weights
from jax3d import recipe as recipes
from jax3d.cli import generate as command
from jax3d.cli import making, reconstruct
from jax3d.cli.signals import Stop
from jax3d.data.prop_fields import HALF
from jax3d.fields.grid import GridConfig
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.models import props_lrm, props_native
from jax3d.models.pictured import PicturedConfig
from jax3d.models.props_lrm import LrmConfig
from jax3d.models.props_native import NativeConfig
from jax3d.recipe import Recipe
from jax3d.types import Prompt


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """Weights of a tiny native generator, and of a tiny reconstructor."""
    folder = tmp_path_factory.mktemp("weights")
    return write_native(folder / "native.safetensors"), write_lrm(folder / "lrm.safetensors")


def small(model, stages=()) -> Recipe:
    ball = ball_recipe()
    return dataclasses.replace(
        ball,
        maker=model,
        field=GridConfig(resolution=64, bound=HALF, samples=16),
        optimize=dataclasses.replace(ball.optimize, stages=stages),
    )


@pytest.fixture(scope="module")
def native(tiny_weights):
    return small(NativeConfig(steps=3, weights=str(tiny_weights[0])))


@pytest.fixture(scope="module")
def lrm(tiny_weights):
    return small(LrmConfig(steps=3, weights=str(tiny_weights[1])))


@pytest.fixture(scope="module")
def pictured(tiny_weights):
    eye = LrmConfig(steps=2, weights=str(tiny_weights[1]))
    return small(PicturedConfig(candidates=2, picture_steps=2, reconstructor=eye))


def test_a_model_makes_the_assets_without_a_critic(native, tmp_path):
    jobs = [Job("a red chair"), Job("a blue car", seed=4, knobs={"model_scale": (3.0,)})]
    rows = generate(native, None, jobs, tmp_path / "out")
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["steps"] for row in rows] == [3, 3]
    record = json.loads((tmp_path / "out" / "0000-a-red-chair" / "asset.json").read_text())
    assert record["critic"] == props_native.NAME
    assert "picture.png" not in record["files"]
    alone = generate(native, None, jobs[1:], tmp_path / "alone")
    both = [tmp_path / "out" / rows[1]["path"], tmp_path / "alone" / alone[0]["path"]]
    one, other = ((folder / "params.safetensors").read_bytes() for folder in both)
    assert one == other


@pytest.mark.slow
def test_a_picture_leads_to_an_asset_and_is_kept_through_refinement(pictured, tmp_path):
    made = {}
    for out, recipe in (("fast", pictured), ("refined", pictured.refined(2))):
        (row,) = generate(recipe, red_ball(), [Job("a red chair")], tmp_path / out)
        assert (row["status"], row["steps"]) == ("done", 3 if out == "fast" else 5)
        folder = tmp_path / out / row["path"]
        made[out] = weights.load_safetensors(folder / "params.safetensors")["sdf"]
        picture = image.read_image(folder / "picture.png")
        assert picture.shape == (props_lrm.SIZE, props_lrm.SIZE, 3)
        # The critic knows nothing but red discs.
        np.testing.assert_allclose(picture[32, 32], [0.8, 0.1, 0.1], atol=0.25)
        np.testing.assert_allclose(picture[0, 0], 1.0, atol=0.1)
    moved = np.abs(np.float32(made["refined"]) - np.float32(made["fast"]))
    # Two steps of Adam at the recipe's rate, from what the model made.
    assert 0 < moved.max() <= 2.1 * pictured.optimize.rate + 1e-3


def test_a_model_from_disk_takes_the_recipes_place(tiny_weights, tmp_path):
    options = command.Options(
        prompts=("a red chair",),
        model=str(tiny_weights[0]),
        guidance_scale=(2.0,),
        out=str(tmp_path / "out"),
        recipe=ball_recipe(),
        cache=False,
    )
    recipe = options.whole_recipe()
    assert recipe.field == props_native.FIELD
    assert (recipe.steps, recipe.asks_critic) == (0, False)
    assert dataclasses.replace(options, refine=3).whole_recipe().steps == 3
    (job,) = command.jobs_of(options)
    assert job.knobs == {"model_scale": (2.0,)}
    with pytest.raises(ValueError, match="no model that is known"):
        dataclasses.replace(options, model=str(tmp_path)).whole_recipe()


def test_what_does_not_fit_is_told_before_any_work(native, tmp_path):
    with pytest.raises(ValueError, match="asks a critic, and was given none"):
        native.refined(2).open(None)
    with pytest.raises(ValueError, match="makes is no GridConfig"):
        dataclasses.replace(native, field=GridConfig(resolution=32, bound=HALF)).open(None)
    with pytest.raises(ValueError, match="--refine K adds"):
        native.with_steps(7)
    with pytest.raises(ValueError, match="this recipe has none"):
        Recipe().refined(3)
    with pytest.raises(ValueError, match="model makes the start of every asset"):
        generate(native, None, [Job("a red chair")], tmp_path / "out", start_from=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["native", "fast", "reconstruct"])
def test_packaged_recipes_of_models_stand_without_distillation(name):
    recipe = recipes.load(name)
    assert recipe.steps == 0
    assert recipe.refined(50).steps == 50
    assert name in config_files.packaged()


@pytest.mark.parametrize(
    ("recipe", "knob"),
    [(Recipe(), "guidance_scale"), (Recipe(maker=NativeConfig()), "model_scale")],
)
def test_several_scales_make_each_prompt_with_each(recipe, knob):
    options = command.Options(
        prompts=("a red chair", "a blue car"),
        guidance_scale=(3.0, 15.0, 40.0),
        recipe=recipe,
        seed=5,
    )
    jobs = command.jobs_of(options)
    assert [job.prompt for job in jobs] == ["a red chair"] * 3 + ["a blue car"] * 3
    assert [job.knobs[knob] for job in jobs] == [(3.0,), (15.0,), (40.0,)] * 2
    assert [job.seed for job in jobs] == [5] * 3 + [6] * 3


# ------------------------------------------------------------------------------ pictures


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("red", (200, 20, 20)), ("../../blue", (20, 20, 200))):
        rgb = np.full((40, 40, 3), 255, np.uint8)
        rgb[10:30, 15:25] = color
        Image.fromarray(rgb).save(folder / f"{name.replace('/', '_')}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not meant")
    Image.new("RGB", (30, 30), "white").save(folder / "empty.jpg")
    return folder


def rows_of(options):
    rows, code = making.make(options, reconstruct.jobs_of(options), Stop())
    return {row["prompt"]: row for row in rows}, code


def test_a_bad_picture_costs_no_other(lrm, pictures, tmp_path):
    options = reconstruct.Options(
        pictures=(str(pictures),), out=str(tmp_path / "out"), recipe=lrm, cache=False
    )
    rows, code = rows_of(options)
    assert code == 1
    assert {name: row["status"] for name, row in rows.items()} == {
        ".._.._blue": "done", "broken": "failed", "empty": "failed", "red": "done",
    }  # fmt: skip
    assert "not a picture that can be read" in rows["broken"]["error"]
    assert "nothing is in the picture but its ground" in rows["empty"]["error"]
    for row in rows.values():
        assert (tmp_path / "out" / row["path"]).resolve().parent == tmp_path / "out"
    before = (tmp_path / "out" / rows["red"]["path"] / "asset.json").stat().st_mtime_ns

    # A picture that is mended is made at the next call, and it alone.
    (pictures / "broken.png").write_bytes((pictures / "red.png").read_bytes())
    with pytest.warns(UserWarning, match="made from another picture"):
        again, code = rows_of(options)
    assert again["broken"]["status"] == "done"
    assert code == 1
    assert (tmp_path / "out" / again["red"]["path"] / "asset.json").stat().st_mtime_ns == before


def test_pictures_that_are_not_there_are_told(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    for given, says in (
        ([], "no picture: give files"),
        (["nowhere.png"], "no such picture or folder"),
        ([str(tmp_path / "none")], "holds no picture"),
    ):
        assert cli.main(["reconstruct", *given, "--out", str(tmp_path / "out")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words_alone_are_no_picture(lrm, tmp_path):
    with pytest.raises(ValueError, match="makes assets from pictures"):
        generate(lrm, None, [Job("a red chair")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_model_reads_a_caption_beside_the_picture(lrm, pictures):
    opened = lrm.open(None)
    shown = image.read_picture(pictures / "red.png")
    silent, told = (opened.condition(Prompt(text, image=shown))[0] for text in ("", "a red chair"))
    np.testing.assert_array_equal(silent.picture, told.picture)
    assert not np.any(silent.tokens)
    assert np.any(told.tokens)
