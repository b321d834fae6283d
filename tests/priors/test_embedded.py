"""The embedded critic: its three ways of being asked, and its weights on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera as cameras
from jax3d.data import props
from jax3d.nn.props_unet import UNetConfig, _patch, _unpatch
from jax3d.priors import embedded as critic
from jax3d.types import Prompt
from jax3d.weights import WeightsError

TINY = UNetConfig(
    widths=(8, 16), blocks=(1, 1), attention=(False, True), heads=2, embedding=16, word_width=8
)


@pytest.fixture(scope="module")
def params():
    """Random weights everywhere, so that nothing is hidden behind a zero initialisation."""
    fresh = jax.jit(lambda key: critic.init(key, TINY))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def question():
    camera = cameras.orbit(jnp.array([0.3, 2.0]), 0.2, 2.6, 0.7)
    z = jax.random.normal(jax.random.key(2), (2, 64, 64, 3))
    return z, jnp.array([300, 700]), camera


def ask(params, question, prompt, told=True):
    z, t, camera = question
    text = jax.tree.map(
        lambda x: jnp.stack([x] * 2), critic.condition(params, Prompt(prompt)).plain
    )
    prior = critic.props_prior(TINY)
    return jax.jit(prior.denoise)(params, z, t, text, camera if told else None)


def test_patches_are_a_bijection():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_array_equal(_unpatch(_patch(x, 4), 4), x)


def test_text_and_camera_both_matter(params, question):
    eps = ask(params, question, "a red chair")
    assert eps.shape == (2, 64, 64, 3)
    assert jnp.isfinite(eps).all()
    other_text = ask(params, question, "a blue chair")
    untold = ask(params, question, "a red chair", told=False)
    assert float(jnp.abs(eps - other_text).max()) > 1e-4
    assert float(jnp.abs(eps - untold).max()) > 1e-4
    # Words are a bag: their order means nothing, nor do articles.
    np.testing.assert_allclose(eps, ask(params, question, "chair, the red"), atol=1e-5)


def test_an_untold_camera_is_the_same_as_none(params, question):
    z, t, camera = question
    words = jnp.zeros((2, props.MAX_WORDS, TINY.word_width))
    predict = jax.jit(critic.predict_x0, static_argnums=1)
    args = (params, TINY, z, t.astype(jnp.float32), words)
    masked = predict(*args, camera, jnp.zeros(2, bool))
    np.testing.assert_allclose(masked, predict(*args, None), atol=1e-6)


def test_padding_words_are_not_seen(params, question):
    z, t, camera = question
    tokens = critic.condition(params, Prompt("a red chair")).plain.tokens
    predict = jax.jit(critic.predict_x0, static_argnums=1)
    longer = jnp.concatenate([tokens, jnp.zeros((3, tokens.shape[1]))])
    out = [
        predict(params, TINY, z, t.astype(jnp.float32), jnp.stack([words] * 2), camera)
        for words in (tokens, longer)
    ]
    np.testing.assert_allclose(*out, atol=1e-5)


def test_the_condition_words_each_view(params):
    cond = critic.condition(params, Prompt("a red chair", "a blue chair"))
    assert cond.views.tokens.shape == (4, props.MAX_WORDS, TINY.word_width)
    table = params["words"]["embedding"]
    for row, word in zip(cond.views.tokens, props.VIEW_WORDS, strict=True):
        np.testing.assert_array_equal(row[2], table[props.word_ids([word])[0, 0]])
    np.testing.assert_array_equal(cond.plain.tokens[:2], cond.views.tokens[0, :2])
    assert (cond.plain.tokens[2:] == 0).all()
    assert (cond.null.tokens[0] == table[props.word_ids(["blue"])[0, 0]]).all()
    assert (critic.condition(params, Prompt("a red chair")).null.tokens == 0).all()


def test_eight_words_leave_no_room_for_a_view(params):
    with pytest.raises(ValueError, match="no room for a view word"):
        critic.condition(params, Prompt("a tall round long striped spotted red chair hat"))


def test_plucker_coordinates_are_of_the_ray():
    camera = cameras.orbit(jnp.array([0.4]), 0.3, 2.5, 0.7)
    rays = critic.plucker(camera, 8)
    direction, moment = rays[..., :3], rays[..., 3:]
    np.testing.assert_allclose(jnp.sum(direction * moment, -1), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(direction, axis=-1), 1.0, atol=1e-5)


def test_weights_and_config_travel_together(params, tmp_path):
    path = tmp_path / "mine.safetensors"
    critic.save(path, params, TINY)
    loaded = critic.load(path)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    critic.save(path, params, UNetConfig())
    with pytest.raises(WeightsError, match="does not fit"):
        critic.load(path)
    path.with_suffix(".json").write_text('{"depth": 3}')
    with pytest.raises(WeightsError, match="depth"):
        critic.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"mine\.json"):
        critic.load(path)


def test_shipped_weights_are_small_and_load():
    assert critic.WEIGHTS.stat().st_size < 16e6
    loaded = critic.load()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(loaded))
