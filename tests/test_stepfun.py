import jax
import jax.numpy as jnp
import numpy as np

from jax3d import stepfun


def test_points_are_one_per_interval_and_centred_at_one_half():
    edges = stepfun.even_edges(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]), 4)
    np.testing.assert_allclose(edges, [[1, 1.25, 1.5, 1.75, 2], [2] * 5])
    middle = stepfun.points(edges, jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(middle, [[1.125, 1.375, 1.625, 1.875], [2] * 4])


def test_resample_inverts_the_cdf_of_a_step_function():
    rng = np.random.default_rng(0)
    edges = np.sort(rng.uniform(1, 3, (5, 9)), -1).astype(np.float32)
    weights = rng.uniform(0, 1, (5, 8)).astype(np.float32)
    weights[:, 3] = 0.0
    out = np.asarray(stepfun.resample(jnp.asarray(edges), jnp.asarray(weights), 16, floor=0.1))
    for e, w, t in zip(edges, weights, out, strict=True):
        mass = 0.9 * w / w.sum() + 0.1 * np.diff(e) / (e[-1] - e[0])
        cdf = np.concatenate([[0], np.cumsum(mass)])
        np.testing.assert_allclose(np.interp(t, e, cdf), np.linspace(0, 1, 17), atol=1e-5)
        np.testing.assert_allclose(t[[0, -1]], e[[0, -1]])


def test_resample_of_nothing_is_even_and_of_a_point_is_finite():
    edges = jnp.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]])
    out = stepfun.resample(edges, jnp.zeros((2, 2)), 4)
    np.testing.assert_allclose(out, [[0, 0.5, 1, 1.5, 2], [3] * 5], atol=1e-6)


def test_resample_concentrates_where_the_mass_is():
    edges = jnp.linspace(0.0, 1.0, 11)[None]
    weights = jnp.zeros((1, 10)).at[0, 4].set(1.0)
    out = stepfun.resample(edges, weights, 50)[0]
    assert ((out >= 0.4) & (out <= 0.5)).sum() >= 47


def test_resample_is_constant_for_gradients():
    edges = jnp.linspace(0.0, 1.0, 5)[None]
    gradient = jax.grad(lambda w: stepfun.resample(edges, w, 4).sum())(jnp.ones((1, 4)))
    assert (gradient == 0).all()
