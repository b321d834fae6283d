import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera, math
from jax3d.fields.mlp import MlpConfig, mlp
from jax3d.types import Look

LIT = Look(jnp.ones(3), jnp.array(0.2), jnp.array(0.3), jnp.array([0.6, 0.0, 0.8]))
CAMERAS = camera.orbit(jnp.array([0.3, 2.0]), jnp.array([0.2, 0.4]), 2.7, 0.7)


def test_starts_as_a_blob():
    rep = mlp()
    x = jnp.array([[0.0, 0, 0], [0, 0.25, 0], [0, 0, 0.9]])
    sigma = jax.jit(rep.density)(rep.init(jax.random.key(0)), x)
    np.testing.assert_allclose(sigma, np.logaddexp(0, [10.0, 5.0, -8.0]), atol=1.5)


@pytest.mark.parametrize("normals", ["none", "analytic"])
def test_gradients_match_finite_differences(normals):
    with jax.enable_x64(True):
        rep = mlp(MlpConfig(frequencies=2, hidden=5, normals=normals, coarse=0, samples=5))
        params = jax.tree.map(
            lambda a: jnp.asarray(a + 0.3, jnp.float64), rep.init(jax.random.key(0))
        )
        look = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), LIT)

        @jax.jit
        def loss(params):
            out = rep.render(params, None, CAMERAS, look, (2, 2))
            return jnp.mean(out.rgb[..., 0]) + jnp.mean(out.alpha * out.depth)

        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        way = [1e-6 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        ahead = loss(tree.unflatten([a + b for a, b in zip(leaves, way, strict=True)]))
        behind = loss(tree.unflatten([a - b for a, b in zip(leaves, way, strict=True)]))
        slope = sum(map(jnp.vdot, jax.tree.leaves(jax.grad(loss)(params)), way))
        np.testing.assert_allclose(2 * slope, ahead - behind, rtol=1e-5)


def test_normals_point_out_of_the_blob():
    rep = mlp(MlpConfig(normals="analytic"))
    params = jax.tree.map(lambda a: 0.1 * a, rep.init(jax.random.key(0)))
    out = jax.jit(lambda p: rep.render(p, None, CAMERAS, LIT, (9, 9)))(params)
    direction = math.normalize(out.normal[:, 4, 4])
    np.testing.assert_allclose(direction, CAMERAS.c2w[:, :3, 2], atol=0.02)
