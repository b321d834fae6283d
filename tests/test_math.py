import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import math


@pytest.mark.parametrize("x", [0.0, 1e-30, 1e-8, 1.0, 1e8])
def test_norm_and_normalize_are_finite_with_finite_gradients(x):
    vector = jnp.array([x, 0.0, -x])
    assert math.safe_norm(vector) == pytest.approx(np.sqrt(2) * x, rel=1e-6, abs=1e-20)
    assert jnp.isfinite(jax.grad(lambda v: math.safe_norm(v))(vector)).all()
    assert jnp.isfinite(jax.jacobian(math.normalize)(vector)).all()


def test_normalize_gives_unit_length():
    vectors = jax.random.normal(jax.random.key(0), (50, 3))
    np.testing.assert_allclose(math.safe_norm(math.normalize(vectors)), 1.0, rtol=1e-6)


def test_safe_exp_is_exp_then_its_tangent():
    np.testing.assert_allclose(math.safe_exp(jnp.array(3.0)), np.exp(3.0), rtol=1e-6)
    np.testing.assert_allclose(math.safe_exp(jnp.array(20.0)), 6 * np.exp(15.0), rtol=1e-6)
    slope = jax.grad(lambda x: math.safe_exp(x))
    np.testing.assert_allclose(slope(jnp.array(3.0)), np.exp(3.0), rtol=1e-6)
    np.testing.assert_allclose(slope(jnp.array(1e6)), np.exp(15.0), rtol=1e-6)
    assert slope(jnp.array(-1e6)) == 0.0
