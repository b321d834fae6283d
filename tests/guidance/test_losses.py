import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs

from jax3d.guidance import losses
from jax3d.types import Ramp, Render


def test_opacity_entropy_of_known_probabilities():
    np.testing.assert_allclose(losses.opacity_entropy(jnp.full((1, 2, 2), 0.5)), np.log(2), 1e-6)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(losses.opacity_entropy(jnp.full((1, 2, 2), 0.25)), quarter, 1e-6)
    assert losses.opacity_entropy(jnp.array([[[0.0, 1.0]]])) < 0.01


def test_sparsity_is_least_for_nothing():
    np.testing.assert_allclose(losses.sparsity(jnp.zeros((1, 2, 2))), 0.1, rtol=1e-6)
    np.testing.assert_allclose(losses.sparsity(jnp.ones((1, 2, 2))), np.sqrt(1.01), rtol=1e-6)


def test_normal_smoothness_counts_one_edge():
    normal = jnp.zeros((1, 2, 4, 3)).at[:, :, :2, 0].set(1.0)
    # One of three steps to the right in each row has a squared difference of 1.
    np.testing.assert_allclose(losses.normal_smoothness(normal), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.opacity_entropy, losses.sparsity, losses.orientation])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_gradients_are_finite_at_the_ends(loss, value):
    gradient = jax.grad(loss)(jnp.full((1, 2, 2), value))
    assert np.all(np.isfinite(gradient))


def test_regularisers_are_weighed_by_ramps():
    alpha = jnp.full((1, 2, 2), 0.5)
    render = Render(
        rgb=jnp.zeros((1, 2, 2, 3)),
        alpha=alpha,
        depth=alpha,
        normal=jnp.zeros((1, 2, 2, 3)),
        orient=4 * alpha,
    )
    k = knobs(lambda_orient=Ramp.of(0.0, 10.0, steps=10), lambda_tv=2.0)
    terms = losses.of_pictures(render) | {"tv": jnp.float32(0.25)}
    total = losses.weigh(terms, k, 5)
    np.testing.assert_allclose(total, 5.0 * 2.0 + 2.0 * 0.25)
    np.testing.assert_allclose(terms["opacity"], np.log(2), rtol=1e-6)
    assert set(terms) == {"opacity", "sparsity", "orient", "normal", "tv"}
