"""The grid: against a ball's closed forms, and its lookups against their own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera as cameras
from jax3d.fields import grid as grids
from jax3d.fields.grid import GridConfig, grid
from jax3d.mesh import extract
from jax3d.types import Look

CONFIG = GridConfig(resolution=48, bound=1.0, radius=0.6, beta=0.01, samples=128)


@pytest.fixture(scope="module")
def ball():
    rep = grid(CONFIG)
    params = rep.init(jax.random.key(0))
    return rep, {**params, "rgb": jnp.zeros_like(params["rgb"]) + jnp.array([2.0, 0.0, -2.0])}


def test_a_ball_looks_like_a_ball(ball):
    rep, params = ball
    camera = cameras.orbit(jnp.array([0.4]), jnp.array([0.3]), 3.0, 0.7)
    size = (33, 33)
    shown = rep.render(params, None, camera, Look.albedo(), size)
    rays = cameras.rays(camera, size)
    middle = -jnp.sum(rays.origins * rays.directions, -1)
    miss = jnp.sqrt(jnp.sum(rays.origins**2, -1) - middle**2)
    inside, outside = miss < 0.57, miss > 0.68
    assert np.all(np.asarray(shown.alpha)[inside] > 0.99)
    assert np.all(np.asarray(shown.alpha)[outside] < 0.02)
    depth = middle - jnp.sqrt(jnp.maximum(0.6**2 - miss**2, 0.0))
    deep = miss < 0.5
    np.testing.assert_allclose(shown.depth[deep], depth[deep], atol=0.03)
    hit = rays.origins + depth[..., None] * rays.directions
    np.testing.assert_allclose(shown.normal[deep], (hit / 0.6)[deep], atol=0.12)
    want = jax.nn.sigmoid(jnp.array([2.0, 0.0, -2.0]))
    np.testing.assert_allclose(shown.rgb[deep], jnp.broadcast_to(want, (deep.sum(), 3)), atol=0.01)


def test_the_density_is_half_its_peak_on_the_surface(ball):
    rep, params = ball
    x = jnp.array([[0.6, 0, 0], [0, -0.6, 0], [0, 0, 0], [0.9, 0, 0]], jnp.float32)
    sigma = np.asarray(rep.density(params, x)) * CONFIG.beta
    np.testing.assert_allclose(sigma[:2], 0.5, atol=0.08)
    np.testing.assert_allclose(sigma[2:], [1, 0], atol=1e-6)


def test_lookups_are_exact_on_linear_grids():
    axis = jnp.linspace(-1.0, 1.0, 5)
    x, y, z = jnp.meshgrid(axis, axis, axis, indexing="ij")
    values = jnp.stack([2 * x - y + 3 * z, x, y, z], -1)
    points = jax.random.uniform(jax.random.key(0), (50, 3), minval=-1, maxval=1)
    cfg = GridConfig(resolution=5, bound=1.0)
    got = grids._gather(values, points, cfg)
    np.testing.assert_allclose(got[:, 0], points @ jnp.array([2.0, -1, 3]), atol=1e-5)
    np.testing.assert_allclose(got[:, 1:4], points, atol=1e-5)
    np.testing.assert_allclose(
        got[:, 4:], jnp.broadcast_to(jnp.array([2.0, -1, 3]), (50, 3)), atol=1e-5
    )


@pytest.mark.parametrize("normals", [True, False])
def test_scatter_is_the_transpose_of_gather(normals):
    cfg = GridConfig(resolution=4, bound=1.0, normals=normals)
    table = jax.random.normal(jax.random.key(0), (4, 4, 4, 4))
    x = jax.random.uniform(jax.random.key(1), (20, 3), minval=-1, maxval=1)
    h, pull = jax.vjp(lambda table: grids._gather(table, x, cfg), table)
    dh = jax.random.normal(jax.random.key(2), h.shape)
    want = pull(dh)[0]
    got = grids._scatter(jnp.zeros_like(table), x, dh, cfg)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_total_variation_is_that_of_a_slope():
    axis = jnp.linspace(-1.0, 1.0, 5)
    x, _, _ = jnp.meshgrid(axis, axis, axis, indexing="ij")
    params = {"sdf": x, "rgb": jnp.zeros((5, 5, 5, 3))}
    tv = grid(GridConfig(resolution=5, bound=1.0)).regularise(params)
    np.testing.assert_allclose(tv["tv"], 0.25, rtol=1e-6)


def test_its_mesh_is_the_ball(ball):
    rep, params = ball
    density = jax.jit(lambda x: rep.density(params, x))
    sampled = extract.sample_density(density, rep.bound, 48)
    mesh = extract.extract_surface(density, sampled, 0.5 / CONFIG.beta, rep.bound)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=-1), 0.6, atol=0.01)
