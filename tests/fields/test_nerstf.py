"""Shap-E's network as a representation: closed forms, and where its two passes look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax3d import camera as cameras
from jax3d.fields import nerstf as fields
from jax3d.fields.nerstf import NerstfConfig, nerstf
from jax3d.render import volume
from jax3d.types import Look

TINY = NerstfConfig(hidden=6, layers=2, coarse=8, samples=8)
CAMERAS = cameras.orbit(jnp.array([0.3, 2.0]), jnp.array([0.2, 0.4]), 3.0, 0.7)
SIZE = (4, 5)


def uniform(density, color):
    """An asset that is everywhere the same."""
    params = jax.tree.map(jnp.zeros_like, nerstf(TINY).init(jax.random.key(0)))
    last = params["mlp"][-1]["b"].at[fields.DENSITY].set(density).at[fields.RGB].set(color)
    params["mlp"][-1]["b"] = last
    return params


def test_points_are_read_by_their_sinusoids():
    x = np.array([[0.3, -0.7, 0.05]])
    read = np.asarray(fields.encode(jnp.asarray(x, jnp.float32)))[0]
    assert read.shape == (fields.ENCODED,)
    np.testing.assert_allclose(read[:3], x[0], rtol=1e-6)
    angles = (2.0 ** np.arange(15)[:, None] * x).ravel()
    # Rounding of 2^14 x is a thousandth of a turn.
    np.testing.assert_allclose(read[3:48], np.sin(angles), atol=2e-3)
    np.testing.assert_allclose(read[48:], np.cos(angles), atol=2e-3)
    np.testing.assert_allclose(read[3:18], np.sin(angles[:15]), atol=1e-5)


def test_a_cube_of_fog_is_as_thick_as_it_is_long():
    params = uniform(0.8, jnp.array([2.0, 0.0, -2.0]))
    rep = nerstf(TINY)
    rays = cameras.rays(CAMERAS, SIZE)
    flat = jax.tree.map(lambda a: a.reshape(-1, 3), rays)
    near, far = volume.near_far(flat, volume.VolumeConfig(shape="box", bound=1.0))
    want = 1 - np.exp(-0.8 * np.asarray(far - near)).reshape(2, *SIZE)
    color = jax.nn.sigmoid(jnp.array([2.0, 0.0, -2.0]))
    shown = jax.jit(lambda p, k: rep.render(p, k, CAMERAS, Look.albedo(), SIZE))(
        params, jax.random.key(1)
    )
    np.testing.assert_allclose(shown.alpha, want, atol=1e-5)
    np.testing.assert_allclose(shown.rgb, want[..., None] * color, atol=1e-5)
    x = jnp.zeros((2, 3, 3))
    np.testing.assert_allclose(rep.density(params, x), 0.8)
    np.testing.assert_allclose(rep.color(params, x), jnp.broadcast_to(color, x.shape))


def test_what_a_head_says_is_its_own():
    params = uniform(0.0, 0.0)
    values = jnp.linspace(-1.1, 1.1, fields.OUTPUTS)
    params["mlp"][-1]["b"] = values
    x = jnp.zeros((1, 3))
    np.testing.assert_allclose(fields.outputs(params, x)[0], values, rtol=1e-6)
    np.testing.assert_allclose(fields.sdf(params, x), np.tanh(-1.1), rtol=1e-5)
    np.testing.assert_allclose(fields.texture(params, x)[0], jax.nn.sigmoid(values[3:6]), rtol=1e-5)
    np.testing.assert_allclose(nerstf(TINY).color(params, x)[0], jax.nn.sigmoid(values[9:]))


def test_samples_go_where_the_coarse_density_is():
    n, cfg = 3, NerstfConfig(coarse=16, samples=32)
    near, far = jnp.array([1.0, 0.0, 2.0]), jnp.array([3.0, 1.0, 6.0])
    draws = fields.draws(jnp.array([0.5, 0.1, 0.9]), cfg)
    for numbers in draws:
        assert np.all((numbers >= 0) & (numbers < 1))

    def density(t):
        share = (t - near[:, None]) / (far - near)[:, None]
        return 50.0 * ((share > 0.5) & (share < 0.75))

    t = np.asarray(fields.place(density, near, far, draws))
    assert t.shape == (n, cfg.coarse + cfg.samples)
    assert np.all(np.diff(t) >= 0)
    share = (t - np.asarray(near)[:, None]) / np.asarray(far - near)[:, None]
    assert share.min() >= 0
    assert share.max() <= 1
    inside = ((share > 0.43) & (share < 0.82)).sum(1)
    assert np.all(inside >= cfg.samples)
    # The first pass is even, and all of it is kept.
    empty = np.asarray(fields.place(lambda t: 0 * t, near, far, draws))
    assert np.max(np.diff((empty - np.asarray(near)[:, None]), axis=1)) < 4 / 16 + 1e-6


def test_rays_that_miss_see_nothing():
    camera = cameras.orbit(jnp.zeros(1), jnp.zeros(1), 3.0, 2.6)
    shown = jax.jit(lambda p: nerstf(TINY).render(p, None, camera, Look.albedo(), (5, 5)))(
        uniform(5.0, 0.0)
    )
    assert np.all(shown.alpha[0, [0, 4], :] == 0)
    assert shown.alpha[0, 2, 2] > 0.99
    assert np.all(np.isfinite(shown.rgb))


def test_tiles_change_nothing():
    params = nerstf(TINY).init(jax.random.key(0))
    pictures = [
        jax.jit(lambda p, cfg=cfg: nerstf(cfg).render(p, None, CAMERAS, Look.albedo(), SIZE).rgb)(
            params
        )
        for cfg in (TINY, dataclasses.replace(TINY, tile=7))
    ]
    np.testing.assert_allclose(*pictures, atol=1e-6)


def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        rep = nerstf(dataclasses.replace(TINY, tile=11))
        params = jax.tree.map(
            lambda a: jnp.asarray(a + 0.1, jnp.float64), rep.init(jax.random.key(0))
        )
        # Where samples lie is not differentiated: the coarse density holds still.
        params["mlp"][-1]["w"] = params["mlp"][-1]["w"].at[:, fields.COARSE_DENSITY].set(0.0)
        look = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), Look.albedo())

        @jax.jit
        def loss(params):
            out = rep.render(params, None, CAMERAS, look, SIZE)
            return jnp.mean(out.rgb[..., 0]) + jnp.mean(out.alpha * out.depth)

        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        way = [1e-7 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        ahead = loss(tree.unflatten([a + b for a, b in zip(leaves, way, strict=True)]))
        behind = loss(tree.unflatten([a - b for a, b in zip(leaves, way, strict=True)]))
        gradient = jax.jit(jax.grad(loss))(params)
        slope = sum(map(jnp.vdot, jax.tree.leaves(gradient), way))
        np.testing.assert_allclose(2 * slope, ahead - behind, rtol=1e-5)
        assert not np.any(gradient["mlp"][-1]["w"][:, fields.COARSE_DENSITY])
