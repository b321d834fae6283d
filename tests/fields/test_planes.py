import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import interp
from jax3d.fields import planes

PLANES = jax.random.normal(jax.random.key(0), (3, 5, 5, 2))
X = jax.random.uniform(jax.random.key(1), (7, 3))


def test_concatenated_lookup_is_the_triplane():
    out = planes.gather(PLANES, X, "concat")
    np.testing.assert_allclose(out[:, 0], interp.triplane(PLANES, X).reshape(7, 6), atol=1e-6)


def test_folding_moves_the_first_layer_before_the_lookup():
    w = jax.random.normal(jax.random.key(2), (6, 4))
    expected = planes.gather(PLANES, X, "concat")[:, 0] @ w
    out = planes.gather(planes.fold(PLANES, w), X, "sum")[:, 0]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("join", ["sum", "concat"])
def test_slopes_are_those_of_the_lookup(join):
    value = lambda x: planes.gather(PLANES, x[None], join)[0, 0]  # noqa: E731
    exact = planes.gather(PLANES, X, join, "exact")
    np.testing.assert_allclose(exact[:, 0], jax.vmap(value)(X), atol=1e-6)
    jacobian = jax.vmap(jax.jacfwd(value))(X)
    np.testing.assert_allclose(exact[:, 1:].swapaxes(1, 2), jacobian, atol=1e-5)
    shifted = planes.gather(PLANES, X, join, "shifted", 0.01)
    for axis in range(3):
        expected = jax.vmap(value)(X + 0.01 * jnp.eye(3)[axis])
        np.testing.assert_allclose(shifted[:, 1 + axis], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("join", "slopes"),
    [("sum", "none"), ("concat", "none"), ("concat", "exact"), ("sum", "shifted")],
)
def test_scatter_is_the_transpose_of_gather(join, slopes):
    read = lambda p: planes.gather(p, X, join, slopes, 0.01)  # noqa: E731
    out, pull = jax.vjp(read, PLANES)
    dh = jax.random.normal(jax.random.key(3), out.shape)
    added = planes.scatter(PLANES, X, dh, join, slopes, 0.01) - PLANES
    np.testing.assert_allclose(added, pull(dh)[0], atol=1e-5)
