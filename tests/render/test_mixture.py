"""Sums of Gaussians at points: the fast one against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np

from jax3d.render import mixture as mixtures
from jax3d.render.mixture import Kernels, mixture, mixture_reference


def kernels(n):
    """Ellipsoids at random, the half sides of their boxes; the last reaches nothing."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    scales = 0.1 * np.exp(0.7 * rng.normal(size=(n, 3)))
    reach = rng.uniform(0.5, 3.3, n)
    sides = reach[:, None] * np.sqrt(((turn * scales[:, None]) ** 2).sum(-1))
    sides[-1], reach[-1] = -1.0, 0.0
    whiten = np.swapaxes(turn / scales[:, None], 1, 2)
    many = Kernels(rng.uniform(-1, 1, (n, 3)), whiten, reach, rng.normal(size=(n, 2)))
    return jax.tree.map(jnp.asarray, many), jnp.asarray(1.0001 * sides)


def test_the_sum_and_its_gradients_are_those_of_all_at_every_point():
    with jax.enable_x64(True):
        many, sides = kernels(150)
        x = jnp.asarray(np.random.default_rng(1).uniform(-1.2, 1.2, (600, 3)))

        def slopes(f, many, x):
            return jax.value_and_grad(lambda m, x: jnp.sum(jnp.sin(f(m, x))), (0, 1))(many, x)

        fast = jax.jit(lambda m, x: slopes(lambda m, x: mixture(m, sides, x), m, x))(many, x)
        plain = jax.jit(lambda m, x: slopes(mixture_reference, m, x))(many, x)
        for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
        assert np.any(np.asarray(plain[1][1]) != 0)


def test_a_point_does_not_feel_who_else_is_asked():
    many, sides = kernels(100)
    x = np.random.default_rng(2).uniform(-1, 1, (700, 3))
    ask = jax.jit(lambda x: mixture(many, sides, x))
    whole = ask(jnp.asarray(x, jnp.float32))
    order = np.random.default_rng(3).permutation(700)
    np.testing.assert_allclose(ask(jnp.asarray(x[order], jnp.float32)), whole[order], atol=1e-5)
    alone = jax.jit(lambda x: mixture_reference(many, x))(jnp.asarray(x[:5], jnp.float32))
    np.testing.assert_allclose(whole[:5], alone, atol=1e-5)


def test_the_curve_keeps_near_points_together():
    axis = jnp.linspace(0.0, 1.0, 16)
    x = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    cells = x[jnp.argsort(mixtures._morton(x))].reshape(-1, 512, 3)
    np.testing.assert_allclose(jnp.ptp(cells, axis=1), 7 / 15, atol=1e-6)
