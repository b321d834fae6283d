"""Photographs as guidance: which are drawn, what they are compared with, and by what measure."""

import jax
import jax.numpy as jnp
import numpy as np
import photographed
import pytest
from skimage.metrics import structural_similarity

from jax3d.data import photographs, transforms
from jax3d.data.photographs import shown
from jax3d.guidance import photometric
from jax3d.guidance.base import Shot
from jax3d.guidance.photometric import PhotometricConfig
from jax3d.metrics.pictures import decibels, ssim
from jax3d.types import Look, Render

SIZE = 16


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    photographed.write(folder, 6)
    return transforms.scan(folder)


@pytest.fixture(scope="module")
def cond(scene):
    return photographs.read(scene, SIZE, 6)


def test_ssim_is_that_of_others():
    a, b = np.random.default_rng(0).uniform(size=(2, 20, 24, 3)).astype(np.float32)
    b = 0.6 * a + 0.4 * b
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, wanted = structural_similarity(a, b, channel_axis=-1, data_range=1.0, full=True, **how)
    a, b = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(ssim(a, b), wanted[5:-5, 5:-5], atol=1e-5)
    np.testing.assert_allclose(ssim(a, a), 1.0, atol=1e-5)
    assert ssim(a[:8, :8], b[:8, :8]).shape == (1, 1, 3)


def test_decibels():
    np.testing.assert_allclose(decibels(jnp.array([0.01, 0.0])), [20, 100], rtol=1e-6)


def test_room_changes_nothing_of_what_is_drawn(scene, cond):
    roomy = photographs.read(scene, SIZE, 9)
    for seed in range(5):
        key = jax.random.key(seed)
        a, b = photometric.cameras(key, cond, 3), photometric.cameras(key, roomy, 3)
        np.testing.assert_array_equal(a.c2w, b.c2w)
    index = photometric.drawn(jax.random.key(0), roomy, 500)
    assert {*np.asarray(index).tolist()} == set(range(6))


def test_photographs_over_a_background_are_pooled(cond):
    ground = jnp.array([0.2, 0.5, 0.8])
    whole, _ = shown(cond, jnp.array([2]), ground, SIZE)
    half, known = shown(cond, jnp.array([2]), ground, SIZE // 2)
    np.testing.assert_allclose(whole[0, 0, 0], ground, atol=1e-6)
    pooled = whole.reshape(1, SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(half, pooled, atol=1e-6)
    assert known.all()
    _, known = shown(cond, jnp.array([2]), ground, SIZE, "unknown")
    np.testing.assert_array_equal(known, cond.rgba[2:3, ..., 3] == 255)
    with pytest.raises(ValueError, match="no whole multiple of 5"):
        shown(cond, jnp.array([2]), ground, 5)


def judge(cond, key, change, config=PhotometricConfig()):  # noqa: B008
    """The loss of the photographs themselves, changed, and its gradient in their colours."""
    index = photometric.drawn(key, cond, 2)
    rgba = jnp.asarray(cond.rgba[index], jnp.float32) / 255
    look = Look.albedo().replace(background=jnp.array([0.3, 0.4, 0.9]))
    nothing = jnp.zeros(rgba.shape[:3])

    def loss(rgb):
        render = Render(rgb, rgba[..., 3], nothing, jnp.zeros_like(rgb), nothing)
        shot = Shot(0, photometric.cameras(key, cond, 2), look, render, key)
        return config.build().loss({}, key, shot, cond, None, None)

    return jax.value_and_grad(loss, has_aux=True)(change(rgba[..., :3]))


def test_the_photographs_themselves_are_best(cond):
    (value, metrics), _ = judge(cond, jax.random.key(1), lambda x: x)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert metrics["psnr"] > 60
    (worse, metrics), _ = judge(cond, jax.random.key(1), lambda x: x + 0.1)
    np.testing.assert_allclose(metrics["psnr"], 20, rtol=1e-3)
    (plain, _), _ = judge(cond, jax.random.key(1), lambda x: x + 0.1, PhotometricConfig(ssim=0.0))
    np.testing.assert_allclose(plain, 0.1, rtol=1e-4)
    assert worse > 0.8 * plain


def test_what_photographs_do_not_say_has_no_gradient(cond):
    known = np.zeros_like(cond.known)
    known[:, :8] = True
    half = cond.replace(known=known)
    (_, metrics), gradient = judge(half, jax.random.key(1), lambda x: x + 0.1)
    assert np.abs(gradient[:, :8]).min() > 0
    np.testing.assert_array_equal(gradient[:, 8:], 0)
    np.testing.assert_allclose(metrics["psnr"], 20, rtol=1e-3)
