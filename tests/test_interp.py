import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jax3d import interp


def test_bilinear_reproduces_bilinear_functions_and_holds_the_border():
    h, w = 4, 6
    row, column = np.mgrid[:h, :w].astype(np.float32)
    plane = jnp.asarray(np.stack([row, 2 * column - row, row * column], -1))
    uv = jax.random.uniform(jax.random.key(0), (200, 2), minval=-0.2, maxval=1.2)
    r, c = np.clip(np.asarray(uv), 0, 1).T * [[h - 1], [w - 1]]
    expected = np.stack([r, 2 * c - r, r * c], -1)
    np.testing.assert_allclose(interp.bilinear(plane, uv), expected, atol=1e-5)


def test_triplane_reads_the_planes_in_order_xy_xz_yz():
    ramp = np.linspace(0, 1, 5, dtype=np.float32)
    first, second = np.meshgrid(ramp, ramp, indexing="ij")
    planes = jnp.asarray(np.stack([np.stack([first, second], -1)] * 3))
    x = jnp.array([[0.1, 0.5, 0.9]])
    expected = [[[0.1, 0.5], [0.1, 0.9], [0.5, 0.9]]]
    np.testing.assert_allclose(interp.triplane(planes, x), expected, atol=1e-6)


def test_nearest_finds_the_sample_and_holds_the_border():
    grid = jnp.arange(27.0).reshape(3, 3, 3)
    x = jnp.array([[0.0, 0.5, 0.8], [-1.0, 2.0, 0.3]])
    np.testing.assert_array_equal(interp.nearest(grid, x), [grid[0, 1, 2], grid[0, 2, 1]])


def test_positional_encoding_matches_the_formula():
    out = interp.positional_encoding(jnp.array([0.25, -1.0]), 2)
    x = np.array([0.25, -1.0])
    waves = [f(2**level * np.pi * x) for level in range(2) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(out, np.concatenate([x, *waves]), atol=1e-5)


def test_bilinear_gradients_match_finite_differences():
    with jax.enable_x64(True):
        plane = jax.random.normal(jax.random.key(1), (3, 4, 2))
        uv = jnp.array([[0.3, 0.2], [0.9, 0.55]])
        check_grads(jax.jit(interp.bilinear), (plane, uv), order=1)
