"""Assets from a picture under a critic that is told it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_folder
from PIL import Image

from jax3d import image
from jax3d import recipe as recipes
from jax3d.cli import making, reconstruct
from jax3d.cli.signals import Stop
from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.base import Shot
from jax3d.guidance.known_view import KnownViewConfig, known_view
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import StageConfig
from jax3d.optimize.stage import Task
from jax3d.priors import embedded, zero123
from jax3d.priors.open import open_critic
from jax3d.recipe import Pictures, Recipe
from jax3d.types import Cond, Condition, Prompt, Render

FIELD = TriplaneConfig(resolution=8, channels=4, levels=1, hidden=8, coarse=8, samples=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("zero123"), "zero123")


@pytest.fixture(scope="module")
def picture():
    rgba = np.zeros((48, 48, 4), np.float32)
    rgba[8:40, 16:32] = [0.9, 0.1, 0.1, 1.0]
    return rgba


def small(name, size=16, steps=2, **knobs) -> Recipe:
    recipe = recipes.load(name)
    return dataclasses.replace(
        recipe,
        field=FIELD,
        optimize=dataclasses.replace(recipe.optimize, stages=(StageConfig(steps, size),), rates=()),
        knobs=dataclasses.replace(recipe.knobs, **knobs),
        mesh=MeshConfig(resolution=16, faces=200, texture=32, level=5.0),
        pictures=Pictures(size=16, frames=0),
    )


def test_a_picture_is_framed_as_its_camera_sees_it(picture):
    framed = image.framed(picture, 0.85, 64)
    # The bar is 32 of its 37 pixels high and half as wide, in the middle.
    rows, columns = (np.flatnonzero((framed[..., 3] > 0.5).any(axis)) for axis in (1, 0))
    assert len(rows) == pytest.approx(0.85 * 64, abs=2)
    assert len(columns) == pytest.approx(0.85 * 32, abs=2)
    assert rows[0] + rows[-1] == pytest.approx(63, abs=2)
    # No dark rim: colours are straight.
    np.testing.assert_allclose(framed[framed[..., 3] > 0.05][:, 0], 0.9, atol=0.02)
    opaque = image.framed(picture[..., :3], 0.85, 48)
    np.testing.assert_allclose(opaque[..., 3], 1.0, atol=1e-6)


def test_the_loss_is_that_of_colour_and_coverage():
    given = jnp.ones((4, 4, 4)) * jnp.array([1.0, 0.5, 0.0, 1.0])
    nothing = jnp.zeros((1, 4, 4))
    blank = Render(jnp.zeros((1, 4, 4, 3)), nothing, nothing, jnp.zeros((1, 4, 4, 3)), nothing)
    same = blank.replace(rgb=given[None, ..., :3], alpha=jnp.ones((1, 4, 4)))
    guidance = known_view(KnownViewConfig(rgb=6.0, mask=2.0))
    nobody = Cond(jnp.zeros((1, 1)))
    cond = Condition(plain=nobody, null=nobody, given=given)
    shot = Shot(0, None, None, blank)
    value, told = guidance.loss(None, None, shot, cond, None, None)
    np.testing.assert_allclose(value, 6.0 * 1.25 / 3 + 2.0, rtol=1e-6)
    np.testing.assert_allclose(told["known_mask"], 1.0)
    assert guidance.loss(None, None, shot._replace(render=same), cond, None, None)[0] == 0


def test_the_known_view_comes_to_look_like_the_picture(folder, picture):
    critic = open_critic(folder)
    recipe = small("zero123", steps=30, lambda_sds=(0.0,), lambda_known=(1.0,), lr=(3.0,))
    opened = recipe.open(critic)
    cond = opened.condition(Prompt("", image=picture))
    task = Task(cond, recipe.knobs_of(0), (30,))
    (stage,) = opened.stages

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda state, _: stage.step(state, stage.shared, cond, task.knobs), state, length=30
        )

    _, told = run(jax.jit(stage.start)(task, None))
    assert told["known_rgb_1"][-1] < 0.5 * told["known_rgb_1"][0]
    assert told["known_mask_1"][-1] < 0.7 * told["known_mask_1"][0]


def test_the_command_makes_an_asset_of_a_picture(folder, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.uint8(picture * 255), "RGBA").save("bar.png")
    options = reconstruct.Options(
        pictures=("bar.png",), prior=str(folder), recipe=small("zero123"), cache=False
    )
    rows, code = making.make(options, reconstruct.jobs_of(options), Stop())
    assert (code, rows[0]["status"], rows[0]["steps"]) == (0, "done", 2)
    record = json.loads((tmp_path / "out" / rows[0]["path"] / "asset.json").read_text())
    assert record["critic"].startswith("Zero123")
    assert record["recipe"]["known"]["rgb"] == 10_000


@pytest.mark.slow
def test_imagedreams_recipe_takes_two_steps(tmp_path, picture):
    critic = open_critic(write_folder(tmp_path, "imagedream_folder"))
    recipe = small("imagedream", size=8)
    opened = recipe.open(critic)
    cond = opened.condition(Prompt("a bar", image=picture))
    (stage,) = opened.stages
    task = Task(cond, recipe.knobs_of(0), (2,))
    state = jax.jit(stage.start)(task, None)
    step = jax.jit(stage.step)
    for _ in range(2):
        state, told = step(state, stage.shared, cond, task.knobs)
    assert all(np.isfinite(x) for x in told.values())


def test_who_reads_no_picture_says_so(picture):
    with pytest.raises(ValueError, match="reads no picture"):
        Recipe().condition(embedded.open(), "a red chair", picture)
    with pytest.raises(ValueError, match="goes by a picture"):
        dataclasses.replace(Recipe(), known=KnownViewConfig()).condition(
            embedded.open(), "a red chair"
        )


def test_the_recipes_cameras_stand_where_the_pictures_does():
    config = recipes.load("zero123").optimize.camera
    np.testing.assert_allclose(config.distance, zero123.RADIUS)
    np.testing.assert_allclose(np.radians(config.fovy), zero123.FOVY)
