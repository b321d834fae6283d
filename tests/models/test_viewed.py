"""A picture to six views to an asset, as one model."""

import dataclasses

import instantmesh_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instantmesh_files import ENCODER
from tiny_models import write_native
from toys import knobs
from zero123plus_files import SIDE, write_zero123plus

from jax3d.models import instantmesh
from jax3d.models.open import DiskConfig
from jax3d.models.viewed import SCALE, viewed
from jax3d.priors import zero123plus
from jax3d.recipe import Recipe
from jax3d.types import Prompt

STEPS = 2


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    folder = write_zero123plus(tmp_path_factory.mktemp("drawer"))
    return zero123plus.open(folder, steps=STEPS, side=SIDE)


@pytest.fixture(scope="module")
def reconstructor(tmp_path_factory):
    path = files.write(tmp_path_factory.mktemp("nerf"), "nerf")
    variant, params = instantmesh.load(path, encoder=ENCODER, side=SIDE)
    return instantmesh.model(variant, params, "tiny")


def test_the_views_are_drawn_and_then_made_an_asset(drawer, reconstructor):
    model = viewed(drawer, reconstructor)
    rgba = np.zeros((40, 30, 4), np.float32)
    rgba[5:30, 4:20] = [0.8, 0.3, 0.1, 1.0]
    told, own = model.condition(Prompt("", image=rgba)), knobs(seed=3, model_scale=SCALE)
    advance = jax.jit(model.advance)
    latent = model.begin(jax.random.key(5), told)
    for i in range(model.steps):
        assert not np.any(latent.views != 1)
        latent = advance(model.params, latent, jnp.int32(i), told, own)
    # As the two do it by themselves.
    views = drawer.decode(drawer.params, latent.sheet)
    np.testing.assert_allclose(model.show(latent), views, atol=1e-5)
    alone = reconstructor.advance(reconstructor.params, None, 0, views, own)
    made, asset = model.decode(model.params, latent), reconstructor.decode
    np.testing.assert_allclose(
        made["planes"][0], asset(reconstructor.params, alone)["planes"][0], atol=1e-4
    )
    assert model.digest != viewed(drawer._replace(digest="other"), reconstructor).digest


def test_a_reconstructor_of_other_pictures_is_refused(drawer, reconstructor):
    with pytest.raises(ValueError, match="does not read 6 views"):
        viewed(drawer, reconstructor._replace(steps=2))
    with pytest.raises(ValueError, match="of 32 pixels"):
        viewed(drawer, reconstructor._replace(advance=lambda p, z, i, views, k: views @ z))


def test_a_folder_that_draws_no_views_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder of Zero123"):
        DiskConfig("embedded", views=str(tmp_path)).build(None)


def test_a_recipe_takes_the_guidance_of_the_models_authors(tmp_path, monkeypatch):
    path = write_native(tmp_path / "native.safetensors")
    model = DiskConfig(str(path)).build(None)
    monkeypatch.setattr(DiskConfig, "build", lambda self, critic: model._replace(scale=4.0))
    assert Recipe().made_by(str(path)).knobs.model_scale == (4.0,)
    own = dataclasses.replace(Recipe().knobs, model_scale=(2.0,))
    kept = dataclasses.replace(Recipe(), knobs=own).made_by(str(path))
    assert kept.knobs.model_scale == (2.0,)
