"""Meshed between two stages, repainted in the last: DreamGaussian's second half."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balls import ball_recipe, red_ball
from toys import knobs, no_condition, pages

from jax3d import finish, image, weights
from jax3d import mesh as meshes
from jax3d.camera import orbit
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.fields.grid import GridConfig
from jax3d.guidance.base import Shot
from jax3d.guidance.sdedit import SDEditConfig, first_step, sdedit
from jax3d.guidance.sds import sds
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.mesh import MeshConfig
from jax3d.optimize import asset, engine
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.stage import Host, Left, Task
from jax3d.optimize.texture import TextureConfig
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.render.splat import SplatConfig
from jax3d.types import Look, Ramp, Render

SIZE = 8
PRIOR = gaussian(SIZE)
MEAN = jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3))
DATA = GaussianData(MEAN, jnp.float32(0.05))


# ------------------------------------------------------------------------------ repainting


def test_repainting_begins_where_dreamgaussian_does():
    strengths = jnp.array([0.2, 0.125, 0.05, 0.0, 1.0])
    np.testing.assert_array_equal(first_step(strengths, 50), [40, 43, 47, 50, 0])


@jax.jit
def repainted(strength):
    """The target of a grey picture, from the gradient of the loss."""
    guidance = sdedit(PRIOR, SDEditConfig(steps=20))
    camera = orbit(jnp.zeros(1), 0.2, 2.7, 0.7)

    def loss(rgb):
        shape = rgb.shape[:3]
        render = Render(rgb, jnp.ones(shape), jnp.ones(shape), rgb, jnp.zeros(shape))
        shot = Shot(3, camera, Look.albedo(), render)
        own = knobs(guidance_scale=1.0, strength=Ramp.of(strength))
        return guidance.loss(DATA, jax.random.key(0), shot, no_condition(), own, None)[0]

    rgb = jnp.full((1, SIZE, SIZE, 3), 0.5)
    return 0.5 - jax.grad(loss)(rgb)[0] * rgb.size / 2


def test_the_target_is_what_the_critic_makes_of_the_picture():
    far, near, none = (np.abs(repainted(s) - MEAN).mean() for s in (0.9, 0.1, 0.0))
    # The critic knows one picture, with a spread of its own.
    assert far < 0.05
    assert far < near < none
    np.testing.assert_allclose(none, np.abs(0.5 - MEAN).mean(), rtol=1e-5)


# ------------------------------------------------------------------------------ the engine


def between(run):
    """Two stages of a distillation with work of the host between them."""
    config = AssetConfig(views=2, stages=(StageConfig(4, SIZE), StageConfig(6, SIZE)))
    first, last = asset.distil(pages(4, SIZE), PRIOR, sds(PRIOR), DATA, config)
    return first, last._replace(before=Host(run, lambda left: left))


def swept(stages, indices, stop=lambda: False, **where):
    outcomes = {}

    def keep(outcome):
        outcomes[outcome.track.index] = outcome

    def task(index):
        return Task(no_condition(), knobs(index), (4, 6))

    config = EngineConfig(block=2, slots=2)
    engine.run(stages, task, indices, keep, config=config, stop=stop, **where)
    return outcomes


def dark(left: Left) -> Left:
    """The host turns the pages black; what has too bright a corner for it, it refuses."""
    if left.params["rgb"][0, 0, 0, 0] > 0.5:
        raise ValueError("too bright")
    return left._replace(rest=left.rest.replace(params={k: 0 * x for k, x in left.params.items()}))


@pytest.fixture(scope="module")
def outcomes():
    return swept(between(dark), range(6))


def test_the_host_fails_its_asset_and_no_other(outcomes):
    failed = {k for k, outcome in outcomes.items() if outcome.track.status == "failed"}
    assert len(outcomes) == 6
    assert 0 < len(failed) < 6
    for k, outcome in outcomes.items():
        assert outcome.track.status in ("failed", "done")
        assert outcome.track.taken == (4 if k in failed else 10)
        assert outcome.track.why == ("too bright" if k in failed else "")


def test_an_asset_is_stopped_and_resumed_at_the_host(outcomes, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    blocks = iter([False, True])
    with pytest.raises(engine.Interrupted):
        swept(between(dark), range(6), stop=lambda: next(blocks), checkpoints=checkpoints)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    resumed = swept(between(dark), range(6), checkpoints=checkpoints)
    checkpoints.close()
    assert resumed.keys() == outcomes.keys()
    for k, outcome in resumed.items():
        assert outcome.track.status == outcomes[k].track.status
        for a, b in zip(
            jax.tree.leaves(outcome.params), jax.tree.leaves(outcomes[k].params), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_what_has_no_room_is_not_gone_on_from():
    first, last = between(dark)

    def step(state, shared, cond, knobs):
        state, metrics = first.step(state, shared, cond, knobs)
        return state, metrics | {"overflow": (state.step == 3).astype(jnp.float32)}

    with pytest.raises(engine.Overflow, match="stage 1"):
        swept((first._replace(step=step), last), range(2))


# ------------------------------------------------------------------------------ recipes


@pytest.mark.slow
def test_a_textured_asset_is_exported_again_and_the_same_among_others(tmp_path):
    recipe, critic = textured(), red_ball()
    jobs = [Job("a red chair"), Job("a blue car", seed=4)]
    rows = generate(recipe, critic, jobs, tmp_path / "out")
    alone = generate(recipe, critic, jobs[1:], tmp_path / "alone")
    both = [tmp_path / "out" / rows[1]["path"], tmp_path / "alone" / alone[0]["path"]]
    one, other = ((place / "params.safetensors").read_bytes() for place in both)
    assert one == other

    folder = both[0]
    again = finish.export(folder, tmp_path / "again")
    assert again["errors"] == {}
    views = [image.read_image(at / "views.png") for at in (folder, tmp_path / "again")]
    # Parameters are kept in half precision: samples on an edge may see another face.
    assert np.mean(np.abs(np.subtract(*views))) < 2e-3
    with pytest.raises(ValueError, match="a mesh already"):
        finish.export(folder, tmp_path / "other", mesh=MeshConfig(resolution=9))


@pytest.mark.slow
def test_a_run_without_room_is_compiled_anew(tmp_path):
    field = GaussiansConfig(capacity=24, start=24, densify=None)
    narrow = dataclasses.replace(field, splat=SplatConfig(hits=40))
    made = []
    for name, own in (("narrow", narrow), ("wide", field)):
        recipe = dataclasses.replace(ball_recipe(3), field=own)
        told = pytest.warns(UserWarning, match="compiled anew with twice the room")
        with told if name == "narrow" else contextlib.nullcontext():
            (row,) = generate(recipe, red_ball(), [Job("a red chair")], tmp_path / name)
        made.append(weights.load_safetensors(tmp_path / name / row["path"] / "params.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, *made)


def textured(steps=3, **mesh):
    ball = ball_recipe(3)
    return dataclasses.replace(
        ball,
        field=GridConfig(resolution=12, samples=8),
        texture=TextureConfig(
            steps=steps,
            size=16,
            views=1,
            mesh=dataclasses.replace(ball.mesh, **mesh),
            guidance=SDEditConfig(dataclasses.replace(ball.guidance.score), steps=10),
        ),
        knobs=dataclasses.replace(ball.knobs, strength=(0.6,)),
    )


def test_assets_are_meshed_and_repainted(tmp_path):
    recipe, critic = textured(), red_ball()
    assert recipe.steps == 6
    jobs = [Job("a red chair")]
    (row,) = generate(recipe, critic, jobs, tmp_path / "out")
    assert (row["status"], row["steps"]) == ("done", 6)
    folder = tmp_path / "out" / row["path"]
    record = json.loads((folder / "asset.json").read_text())
    assert record["errors"] == {}
    assert {"mesh.glb", "views.png", "params.safetensors"} <= record["files"].keys()
    params = weights.load_safetensors(folder / "params.safetensors")
    assert params["texture"].shape == (16, 16, 3)
    made = meshes.load_glb(folder / "mesh.glb")
    assert 0 < len(made.faces) == record["metrics"]["faces"] <= 100
    assert record["metrics"]["mesh_psnr"] > 25

    with pytest.raises(ValueError, match="it is a mesh, from which no field can go on"):
        generate(recipe, critic, jobs, tmp_path / "other", start_from=folder)


def test_an_asset_without_a_surface_fails_alone(tmp_path):
    (row,) = generate(textured(level=1e9), red_ball(), [Job("a red chair")], tmp_path / "out")
    assert (row["status"], row["steps"]) == ("failed", 3)
    assert "no surface at level" in row["error"]
    assert (tmp_path / "out" / row["path"] / "history.csv").exists()


def test_a_shortened_recipe_keeps_its_shares():
    recipe = textured(9).with_steps(24)
    assert recipe.lengths == (6, 18)
    assert isinstance(recipe.texture.mesh, MeshConfig)
