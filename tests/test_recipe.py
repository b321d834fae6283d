"""Recipes: their knobs, their stages, their files."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import write_usable

from jax3d import recipe as recipes
from jax3d.guidance.csd import CSDConfig
from jax3d.guidance.hifa import HiFAConfig
from jax3d.guidance.ism import ISMConfig
from jax3d.guidance.nfsd import NFSDConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.guidance.vsd import VSDConfig
from jax3d.knobs import KnobValues
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.stage import Task
from jax3d.priors import embedded
from jax3d.priors.open import open_critic
from jax3d.recipe import Pictures, Recipe
from jax3d.types import Prompt


def test_knobs_of_one_two_and_four_numbers():
    values = KnobValues(lr=(2.0,), t_max=(0.9, 0.1), guidance_scale=(5.0, 9.0, 0.1, 0.2))
    recipe = dataclasses.replace(
        Recipe(),
        knobs=values,
        optimize=AssetConfig(stages=(StageConfig(40, 16), StageConfig(60, 32))),
    )
    knobs = recipe.knobs_of(7)
    assert int(knobs.seed) == 7
    assert float(knobs.lr.at(50)) == 2.0
    np.testing.assert_allclose(knobs.t_max.at(50), 0.5, atol=1e-6)
    np.testing.assert_allclose(knobs.guidance_scale.at(20), 7.0, atol=1e-6)
    bad = dataclasses.replace(recipe, knobs=KnobValues(lr=(1.0, 2.0, 3.0)))
    with pytest.raises(ValueError, match=r"knobs\.lr has 3 numbers"):
        bad.knobs_of(0)


@pytest.mark.parametrize("steps", [1, 7, 100, 333])
def test_stages_stretch_to_the_asked_steps(steps):
    recipe = Recipe().with_steps(steps)
    assert recipe.steps == steps
    assert [s.size for s in recipe.optimize.stages] == [s.size for s in Recipe().optimize.stages]


@pytest.mark.parametrize("steps", [7, 100, 1234])
@pytest.mark.parametrize("name", ["dreamfusion_sd", "mvdream", "prolificdreamer"])
def test_a_shortened_recipe_anneals_and_shades_at_the_same_fractions(name, steps):
    whole = recipes.load(CONFIGS / f"{name}.py")
    short = whole.with_steps(steps)
    for share in (0.0, 0.1, 0.35, 0.8, 1.0):
        a, b = (
            {
                f.name: float(getattr(r.knobs_of(0), f.name).at(share * r.steps))
                for f in dataclasses.fields(KnobValues)
                if f.name != "background"
            }
            for r in (whole, short)
        )
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("steps", [0, -5])
def test_steps_must_be_positive(steps):
    with pytest.raises(ValueError, match="takes at least 1"):
        Recipe().with_steps(steps)


CONFIGS = Path(__file__).parents[1] / "configs"


def test_the_recipe_of_the_embedded_critic_is_the_default():
    assert recipes.load(CONFIGS / "distil.py") == Recipe()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny folders of Stable Diffusion and of MVDream."""
    root = tmp_path_factory.mktemp("folders")
    for system in ("sd15", "mvdream"):
        write_usable(root / system, system)
    return root


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        pytest.param("mvdream", "mvdream", marks=pytest.mark.slow),
        pytest.param("dreamfusion_sd", "sd15", marks=pytest.mark.slow),
        pytest.param("prolificdreamer", "sd15", marks=pytest.mark.slow),
    ],
)
def test_the_peers_recipes_take_two_steps(folders, name, folder):
    recipe = recipes.load(CONFIGS / f"{name}.py")
    field = dataclasses.replace(recipe.field, resolution=8, channels=2, hidden=4, samples=8)
    optimize = dataclasses.replace(recipe.optimize, stages=(StageConfig(2, 8),))
    recipe = dataclasses.replace(recipe, field=field, optimize=optimize)
    critic = open_critic(str(folders / folder))
    (stage,) = recipe.build(critic)
    task = Task(recipe.condition(critic, "a cat"), recipe.knobs_of(3), (2,))
    before = state = jax.jit(stage.start)(task, None)
    step = jax.jit(stage.step)
    for _ in range(2):
        state, metrics = step(state, critic.params, task.cond, task.knobs)
        assert np.isfinite(metrics["residual_norm"])
    assert state.step == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    leaves = map(jax.tree.leaves, (before.params, state.params))
    assert not all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    learnt = jax.tree.leaves(state.guidance)
    assert (len(learnt) > 0) == isinstance(recipe.guidance, VSDConfig)
    assert all(np.all(np.isfinite(leaf)) for leaf in learnt)


@pytest.mark.parametrize(
    "guidance", [SDSConfig(), CSDConfig(), NFSDConfig(), ISMConfig(), HiFAConfig(), VSDConfig()]
)
def test_any_guidance_is_made_from_its_config(guidance):
    critic = embedded.open()
    recipe = Recipe(guidance=guidance, negative="a blue mug")
    assert (guidance.build(critic).init is not None) == isinstance(guidance, VSDConfig)
    cond = recipe.condition(critic, "a red chair")
    assert (cond.negative is not None) == isinstance(guidance, NFSDConfig)
    unwanted = critic.condition(Prompt("a blue mug")).plain
    where = cond.null if cond.negative is None else cond.negative
    np.testing.assert_array_equal(where.tokens, unwanted.tokens)


def test_nfsd_asks_for_a_negative_prompt():
    with pytest.raises(ValueError, match="--negative"):
        Recipe(guidance=NFSDConfig()).condition(embedded.open(), "a red chair")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from jax3d.recipe import Recipe\nrecipe = Recipe(colour=1)", "colour"),
        ("import", "SyntaxError"),
        ("x = 1", "defines no `recipe`"),
    ],
)
def test_bad_configs_are_told_by_name(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        recipes.load(path)
    assert "mine.py" in str(error.value)


def test_a_missing_config_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.py: there is no such file"):
        recipes.load(tmp_path / "none.py")


@pytest.mark.slow
def test_dreamgaussian_goes_through_both_stages(folders, tmp_path):
    recipe = recipes.load("dreamgaussian")
    assert recipe.knobs_of(0).strength.at(500) == pytest.approx(0.2)
    assert recipe.knobs_of(0).t_max.at(250) == pytest.approx(0.5)
    small = MeshConfig(resolution=12, faces=60, texture=16, level=1e-3)
    field = dataclasses.replace(recipe.field, capacity=32, start=24, bound=0.8)
    texture = dataclasses.replace(recipe.texture, steps=1, size=8, mesh=small)
    optimize = dataclasses.replace(recipe.optimize, stages=(StageConfig(1, 8),))
    recipe = dataclasses.replace(
        recipe,
        field=field,
        optimize=optimize,
        texture=texture,
        pictures=Pictures(size=8, frames=0),
    )
    critic = open_critic(str(folders / "sd15"))
    (row,) = generate(recipe, critic, [Job("a cat")], tmp_path / "out")
    assert (row["status"], row["steps"]) == ("done", 2)
    assert (tmp_path / "out" / row["path"] / "mesh.glb").exists()
