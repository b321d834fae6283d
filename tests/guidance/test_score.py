import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs

from jax3d.camera import orbit
from jax3d.guidance import score
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Prior
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Cond, Condition, Ramp

CAMERA = orbit(jnp.radians(jnp.array([0.0, 90.0, 180.0])), 0.0, 2.0, 0.7)
COND = Condition(
    views=Cond(jnp.arange(4.0).reshape(4, 1, 1)),
    null=Cond(jnp.full((1, 1), -1.0)),
    plain=Cond(jnp.full((1, 1), 7.0)),
)


def test_draw_t_covers_the_range_with_both_ends():
    ts = score.draw_t(jax.random.key(0), 0, knobs(t_min=0.02, t_max=0.025), 1000, (300,))
    assert set(ts.tolist()) == set(range(20, 26))


def test_draw_t_stays_inside_the_schedule():
    ts = score.draw_t(jax.random.key(0), 0, knobs(t_min=-1.0, t_max=2.0), 10, (300,))
    assert set(ts.tolist()) == set(range(10))


def test_draw_t_follows_its_ramp():
    annealed = knobs(t_min=0.1, t_max=Ramp.of(0.9, 0.1, begin=10, steps=100))
    key = jax.random.key(0)
    tops = [score.draw_t(key, step, annealed, 1000, (500,)).max() for step in (0, 10, 60, 110, 500)]
    np.testing.assert_allclose(tops, [900, 900, 500, 100, 100], atol=6)


@pytest.mark.parametrize("shared", [False, True])
def test_draw_shares_time_and_noise_on_demand(shared):
    config = ScoreConfig(shared_t=shared, shared_noise=shared)
    prior = gaussian(4)
    z = jnp.zeros((3, 4, 4, 3))
    at = score.draw(prior, jax.random.key(1), 0, z, knobs(), config)
    alone = len(set(at.t.tolist())) == 1
    same = bool(jnp.all(at.noise[0] == at.noise[1]))
    assert (alone, same) == (shared, shared)
    sigma = jnp.sqrt(1 - prior.alphas_cumprod[at.t])[:, None, None, None]
    np.testing.assert_allclose(at.z_t, sigma * at.noise, rtol=1e-6)


@pytest.mark.parametrize(
    ("view_words", "expected"), [("hard", [1, 0, 2]), ("soft", [1, 0, 2]), ("none", [7, 7, 7])]
)
def test_view_texts(view_words, expected):
    text, null = score.view_texts(COND, CAMERA, ScoreConfig(view_words=view_words))
    np.testing.assert_allclose(text.tokens[:, 0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(null.tokens[:, 0, 0], -1)


def test_view_texts_asks_for_the_wordings():
    with pytest.raises(ValueError, match="no wordings"):
        score.view_texts(COND.replace(views=None), CAMERA, ScoreConfig(view_words="hard"))


@pytest.mark.parametrize("use_camera", [False, True])
def test_ask_is_one_call_of_the_critic(use_camera):
    calls = []

    def denoise(params, z_t, t, text, camera):
        calls.append((z_t.shape, camera))
        told = 0.0 if camera is None else camera.azimuth[:, None, None, None]
        return params * text.tokens[:, :, :, None] + t[:, None, None, None] + told

    prior = Prior(None, None, denoise, jnp.ones(10), 1)
    config = ScoreConfig(use_camera=use_camera)
    texts = score.view_texts(COND, CAMERA, config)
    t = jnp.array([1, 2, 3])
    text, null = score.ask(prior, 10.0, jnp.zeros((3, 1, 1, 1)), t, texts, CAMERA, config)
    told = np.radians([0, 90, 180]) if use_camera else 0.0
    np.testing.assert_allclose(text.ravel(), np.array([11, 2, 23]) + told, rtol=1e-6)
    np.testing.assert_allclose(null.ravel(), np.array([-9, -8, -7]) + told, rtol=1e-6)
    assert len(calls) == 1
    assert calls[0][0] == (6, 1, 1, 1)


@pytest.mark.parametrize(
    ("weighting", "expected"), [("sds", 0.75), ("uniform", 1.0), ("fantasia3d", 0.375)]
)
def test_weight(weighting, expected):
    w = score.weight(jnp.array([0.9, 0.25]), jnp.array([1]), weighting)
    np.testing.assert_allclose(w, np.full((1, 1, 1, 1), expected))


def test_distil_has_the_residual_as_its_gradient():
    z, residual = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
    w = jnp.array([1.0, 2.0, 0.5])[:, None, None, None]
    (_, metrics), gradient = jax.value_and_grad(score.distil, has_aux=True)(z, residual, w)
    np.testing.assert_allclose(gradient, w * residual / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["residual_norm"], np.sqrt(np.mean(residual**2)), rtol=1e-6)
    np.testing.assert_allclose(metrics["z_grad_norm"], np.linalg.norm(gradient), rtol=1e-6)


def test_encode_resizes_to_the_critic():
    data = GaussianData(jnp.zeros((4, 4, 3)), jnp.float32(1))
    rgb = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3]), (2, 6, 6, 3))
    z = score.encode(gaussian(4), data, jax.random.key(0), rgb)
    np.testing.assert_allclose(z, rgb[:, :4, :4], rtol=1e-6)
