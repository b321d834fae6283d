"""The few names that most programs need, from the package itself."""

import subprocess
import sys

import pytest

import jax3d


def test_every_public_name_is_there():
    from jax3d.manifest import Job
    from jax3d.models.open import open_model
    from jax3d.priors.open import open_critic
    from jax3d.recipe import Recipe
    from jax3d.types import Prompt

    assert jax3d.Job is Job
    assert jax3d.Prompt is Prompt
    assert jax3d.Recipe is Recipe
    assert jax3d.open_critic is open_critic
    assert jax3d.open_model is open_model
    assert callable(jax3d.generate)
    assert set(jax3d.__all__) <= set(dir(jax3d))


def test_another_name_is_told():
    with pytest.raises(AttributeError, match="module 'jax3d' has no attribute 'recipes'"):
        _ = jax3d.recipes


@pytest.mark.parametrize(
    "first", ["import jax3d.cli.making", "import jax3d.making", "from jax3d import generate"]
)
def test_generate_is_the_function_whatever_was_imported_before(first):
    probe = f"{first}\nfrom jax3d import generate\nimport jax3d\nprint(jax3d.generate.__name__)\n"
    done = subprocess.run(
        [sys.executable, "-c", probe + "assert callable(generate)"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "generate\n"), done.stderr
