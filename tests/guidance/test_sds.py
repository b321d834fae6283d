import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, linear_critic, linear_weights, no_condition, pages, shot

from jax3d.camera import orbit
from jax3d.guidance import score
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig, sds
from jax3d.priors.base import Prior
from jax3d.types import Cond, Condition, Look

CAMERA = orbit(jnp.radians(jnp.array([0.0, 120.0])), 0.0, 2.0, 0.7)
PAGES = pages(3, 4)
ABAR = jnp.linspace(0.99, 0.01, 50)
COND = Condition(
    plain=Cond(jnp.full((1, 1), 7.0)),
    null=Cond(jnp.full((1, 1), -1.0)),
    views=Cond(jnp.arange(4.0).reshape(4, 1, 1)),
)


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
@pytest.mark.parametrize("convention", ["standard", "threestudio"])
def test_gradient_is_the_weighted_residual_through_the_render(weighting, convention):
    with jax.enable_x64(True):
        config = SDSConfig(ScoreConfig(weighting=weighting), convention=convention)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), PAGES.init(jax.random.key(0)))
        critic, prior = linear_weights(jnp.float64), linear_critic(ABAR, 4)
        key, knob = jax.random.key(5), knobs(guidance_scale=7.0)

        def image(params):
            return PAGES.render(params, None, CAMERA, Look.albedo(), (4, 4))

        def loss(params):
            guidance = sds(prior, config)
            return guidance.loss(critic, key, shot(image(params), CAMERA, 3), COND, knob, None)[0]

        # By hand: z, the same draw, the residual, and the transpose of dz/dtheta.
        encode_key, draw_key = jax.random.split(key)
        z, pull = jax.vjp(lambda p: prior.encode(critic, encode_key, image(p).over(1.0)), params)
        at = score.draw(prior, draw_key, 3, z, knob, config.score)
        abar = np.asarray(ABAR, np.float64)[np.asarray(at.t)][:, None, None, None]
        z_t = np.sqrt(abar) * z + np.sqrt(1 - abar) * at.noise
        azimuth = np.asarray(CAMERA.azimuth)[:, None, None, None]
        bare = z_t @ critic["unet"] + azimuth
        text = np.array([1.0, 0.0])[:, None, None, None]  # The front and a side.
        scale = 7.0 + (convention == "threestudio")
        eps_hat = (bare - 1) + scale * (text + 1)
        w = {"sds": 1 - abar, "uniform": 1.0, "fantasia3d": np.sqrt(abar) * (1 - abar)}[weighting]
        (expected,) = pull(jnp.asarray(w * (eps_hat - at.noise) / 2))

        gradient = jax.grad(loss)(params)
        assert np.abs(gradient["rgb"]).max() > 0.1
        for name in gradient:
            np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-5, atol=1e-8)


def test_no_gradient_reaches_the_critic():
    render = PAGES.render(PAGES.init(jax.random.key(0)), None, CAMERA, Look.albedo(), (4, 4))

    def loss(critic):
        return sds(linear_critic(ABAR, 4)).loss(
            critic, jax.random.key(1), shot(render, CAMERA), COND, knobs(), None
        )[0]

    gradient = jax.grad(loss)(linear_weights(jnp.float32))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_no_residual_where_the_critic_knows_the_noise():
    # A critic that is certain of the picture at hand predicts the very noise that was added.
    size = 4
    render = PAGES.render(PAGES.init(jax.random.key(0)), None, CAMERA, Look.albedo(), (4, 4))

    def denoise(params, z_t, t, text, camera):
        z = jnp.concatenate([render.over(1.0)] * 2)
        abar = ABAR[t][:, None, None, None]
        return (z_t - jnp.sqrt(abar) * z) / jnp.sqrt(1 - abar)

    prior = Prior(lambda params, key, rgb: rgb, None, denoise, ABAR, size)
    _, metrics = sds(prior).loss(
        None,
        jax.random.key(1),
        shot(render, CAMERA),
        no_condition(),
        knobs(guidance_scale=50.0),
        None,
    )
    assert metrics["residual_norm"] < 1e-4
