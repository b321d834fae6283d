import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import diffusion
from jax3d.camera import orbit
from jax3d.priors.empirical import EmpiricalData, condition, empirical
from jax3d.prompts import select, soft_weights
from jax3d.types import Cond

AZIMUTH = np.radians([0.0, 90.0, 180.0, 270.0])


@pytest.fixture
def data():
    """Two prompts, each seen by four cameras."""
    camera = orbit(jnp.asarray(np.tile(AZIMUTH, 2), jnp.float32), 0.1, 3.0, 0.7)
    images = jax.random.uniform(jax.random.key(0), (8, 4, 4, 3))
    return EmpiricalData(images, camera, prompt=jnp.repeat(jnp.arange(2), 4))


PRIOR = empirical(4)
T = jnp.array([30, 400, 990])
Z = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))


def clean(data, z, t, text, camera=None):
    """The posterior mean that the noise estimate stands for, as an image."""
    eps = PRIOR.denoise(data, z, t, text, camera)
    alpha, sigma = diffusion.noise_level(PRIOR.alphas_cumprod, t, 4)
    return PRIOR.decode(data, (z - sigma * eps) / alpha)


def any_text(b):
    return Cond(jnp.zeros((b, 1, 6)))


def repeat(text: Cond, b):
    return Cond(jnp.broadcast_to(text.tokens, (b, *text.tokens.shape)))


def test_denoise_against_bayes_rule_in_float64(data):
    x = 2 * np.asarray(data.images, np.float64) - 1
    # Near the data at the low noise levels, as in optimisation.
    noise = np.asarray(Z, np.float64)
    abar = np.asarray(PRIOR.alphas_cumprod, np.float64)[np.asarray(T)][:, None, None, None]
    z = np.sqrt(abar) * x[:3] + np.sqrt(1 - abar) * noise
    far = np.sum((z[:, None] - np.sqrt(abar)[:, None] * x) ** 2, axis=(2, 3, 4))
    logits = -far / (2 * (1 - abar[:, :, 0, 0]))
    weight = np.exp(logits - logits.max(1, keepdims=True))
    mean = np.einsum("bn,nhwc->bhwc", weight / weight.sum(1, keepdims=True), x)
    eps = PRIOR.denoise(data, jnp.asarray(z, jnp.float32), T, any_text(3), None)
    np.testing.assert_allclose(eps, (z - np.sqrt(abar) * mean) / np.sqrt(1 - abar), atol=1e-4)


def test_a_prompt_leaves_only_its_images(data):
    text = condition(1, 2, views=False).views
    high = jnp.full(3, 999)
    expected = data.images[4:].mean(0)
    one = Cond(text.tokens[:3])
    np.testing.assert_allclose(clean(data, jnp.zeros_like(Z), high, one)[0], expected, atol=0.05)
    other = data.replace(images=data.images.at[:4].set(0.5))
    np.testing.assert_array_equal(clean(data, Z, T, one), clean(other, Z, T, one))


def test_a_camera_of_the_set_leaves_its_images_alone(data):
    camera = jax.tree.map(lambda x: x[5:8], data.camera)
    text = Cond(condition(1, 2, views=False).views.tokens[:3])
    x0 = clean(data, Z, jnp.array([30, 400, 700]), text, camera)
    np.testing.assert_allclose(x0, data.images[5:8], atol=1e-3)


def test_a_camera_between_is_answered_by_the_nearest(data):
    camera = orbit(jnp.radians(jnp.array([-40.0, 50.0, 185.0])), 0.3, 3.0, 0.7)
    text = Cond(condition(0, 2, views=False).views.tokens[:3])
    x0 = clean(data, Z, jnp.array([30, 400, 700]), text, camera)
    np.testing.assert_allclose(x0, data.images[jnp.array([0, 1, 2])], atol=1e-3)


def test_view_words_choose_views(data):
    text = condition(0, 2).views
    x0 = clean(data, jnp.zeros((3, 4, 4, 3)), jnp.full(3, 400), Cond(text.tokens[:3]))
    np.testing.assert_allclose(x0[1], data.images[0], atol=1e-3)
    np.testing.assert_allclose(x0[2], data.images[2], atol=1e-3)


def test_mixed_wordings_weigh_the_images(data):
    # Where noise hides the image, the posterior is the prior: 3/4 the front, 1/4 each of two sides.
    camera = orbit(jnp.radians(jnp.array([22.5])), 0.0, 3.0, 0.7)
    text = select(condition(0, 2).views, soft_weights(camera))
    t = jnp.array([999])
    eps = PRIOR.denoise(data, jnp.zeros((1, 4, 4, 3)), t, text, None)
    alpha, sigma = diffusion.noise_level(PRIOR.alphas_cumprod, t, 4)
    x = 2 * data.images - 1
    expected = (0.75 * x[0] + 0.25 * (x[1] + x[3])) / 1.25
    np.testing.assert_allclose((-sigma * eps / alpha)[0], expected, atol=1e-3)


def test_null_text_means_any_image(data):
    null = condition(0, 2).null
    all_images = clean(data, Z, T, repeat(null, 3))
    np.testing.assert_array_equal(all_images, clean(data, Z, T, any_text(3)))


def test_a_view_that_no_image_shows_is_any_view(data):
    overhead = Cond(condition(0, 2).views.tokens[3:])
    anywhere = Cond(condition(0, 2, views=False).views.tokens[3:])
    ask = lambda text: PRIOR.denoise(data, Z[:1], T[2:], text, None)  # noqa: E731
    np.testing.assert_array_equal(ask(overhead), ask(anywhere))
