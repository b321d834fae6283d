"""Recipes: their knobs, their stages, their files."""

import dataclasses

import numpy as np
import pytest

from jax3d import recipe as recipes
from jax3d.optimize.asset import AssetConfig, Stage
from jax3d.recipe import KnobValues, Recipe


def test_knobs_of_one_two_and_four_numbers():
    values = KnobValues(lr=(2.0,), t_max=(0.9, 0.1), guidance_scale=(5.0, 9.0, 10.0, 20.0))
    recipe = dataclasses.replace(
        Recipe(), knobs=values, optimise=AssetConfig(stages=(Stage(40, 16), Stage(60, 32)))
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
    assert [s.size for s in recipe.optimise.stages] == [s.size for s in Recipe().optimise.stages]


@pytest.mark.parametrize("steps", [0, -5])
def test_steps_must_be_positive(steps):
    with pytest.raises(ValueError, match="takes at least 1"):
        Recipe().with_steps(steps)


def test_every_shipped_config_loads():
    import pathlib

    root = pathlib.Path(__file__).parents[1] / "configs"
    assert isinstance(recipes.load(root / "props.py"), Recipe)


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
    with pytest.raises(ValueError, match="FileNotFoundError"):
        recipes.load(tmp_path / "none.py")
