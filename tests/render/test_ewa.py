"""Footprints: against gsplat's, the library's own cameras, and integrals over the sphere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenes

from jax3d import camera
from jax3d.render import ewa
from jax3d.types import Gaussians


def one(mean, scales=(0.1, 0.2, 0.05), opacity=0.8, quat=(1.0, 0, 0, 0)) -> Gaussians:
    """A scene of one grey Gaussian."""
    rows = (jnp.array([x]) for x in (mean, quat, scales))
    return Gaussians(*rows, jnp.array([opacity]), jnp.zeros((1, 1, 3)))


project = jax.jit(ewa.project, static_argnums=2, static_argnames=("antialiased", "blur"))
AHEAD = ewa.View(jnp.eye(4)[None], jnp.array([[[128.0, 0, 64], [0, 128, 64], [0, 0, 1]]]))


def test_a_footprint_by_hand():
    prints = project(one((0.2, -0.1, 4.0)), AHEAD, (128, 128))
    np.testing.assert_allclose(prints.means2d[0, 0], [70.4, 60.8], rtol=1e-6)
    cov = np.array([[10.2464 + 0.3, -0.0032], [-0.0032, 40.9616 + 0.3]])
    (a, b, c) = prints.conics[0, 0]
    np.testing.assert_allclose([[a, b], [b, c]], np.linalg.inv(cov), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(prints.compensations[0, 0], 0.98208472, rtol=1e-6)
    np.testing.assert_allclose(prints.extents[0, 0], [10.5912, 20.9492], rtol=1e-5)
    assert prints.radii[0, 0].tolist() == [11, 22]
    assert prints.opacities[0, 0] == np.float32(0.8)
    dimmed = project(one((0.2, -0.1, 4.0)), AHEAD, (128, 128), antialiased=True)
    np.testing.assert_allclose(dimmed.opacities, 0.8 * prints.compensations, rtol=1e-6)


def test_footprints_are_gsplats():
    known = scenes.golden()
    prints = project(known.gaussians, known.view, known.size)
    for name in ("means2d", "conics", "depths", "compensations"):
        np.testing.assert_allclose(getattr(prints, name), known.arrays[name], atol=1e-5)
    np.testing.assert_allclose(prints.rgb, known.arrays["sh_rgb"], atol=1e-6)
    np.testing.assert_array_equal(prints.radii, known.arrays["radii"])


@jax.jit
@partial(jax.grad, has_aux=True)
def slopes_of_shown(gaussians):
    prints = ewa.project(gaussians, AHEAD, (128, 128), antialiased=True)
    weight = prints.shown.astype(jnp.float32)
    total = sum(jnp.einsum("vn...,vn->", x, weight) for x in prints if x.dtype == jnp.float32)
    return total, prints.shown


@pytest.mark.parametrize(
    ("mean", "shown"),
    [
        ((0.0, 0.0, 2.0), True),
        ((0.0, 0.0, -2.0), False),
        ((0.0, 0.0, 0.005), False),
        ((0.0, 0.0, 1e11), False),
        ((3.0, 0.0, 2.0), False),
        ((1.1, 0.0, 2.0), True),
        ((0.0, -2.2, 2.0), False),
        ((0.0, 0.0, 0.0), False),
    ],
)
def test_who_is_shown_and_finite_gradients_for_all(mean, shown):
    slopes, seen = slopes_of_shown(one(mean))
    assert bool(seen[0, 0]) is shown
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_views_are_the_librarys_cameras():
    size = (40, 60)
    x = jax.random.uniform(jax.random.key(0), (9, 3), minval=-1, maxval=1)
    still = jnp.ones((9, 4)), jnp.full((9, 3), 0.1), jnp.ones(9), jnp.zeros((9, 1, 3))
    prints = project(Gaussians(x, *still), ewa.view_of(scenes.CAMERAS, size), size)
    pixels, depth = camera.project(scenes.CAMERAS, x, size)
    np.testing.assert_allclose(prints.means2d, pixels, rtol=1e-4)
    np.testing.assert_allclose(prints.depths, depth, rtol=1e-5)
    eyes = scenes.CAMERAS.c2w[:, :3, 3]
    toward = jnp.einsum("vni,vni->vn", prints.normals, eyes[:, None] - x)
    assert np.all(toward > 0)


def test_a_small_footprint_is_that_of_its_samples():
    """The covariance of many projected samples, which knows no Jacobian."""
    scene, view = scenes.gaussians(3, 1, size=0.01), scenes.view((64, 64))
    a, b, c = project(scene, view, (64, 64), blur=0.0).conics[1, 0]
    offsets = np.random.default_rng(0).normal(size=(100_000, 3)) * scene.scales[0]
    points = scene.means[0] + offsets @ np.asarray(jax.jit(ewa.rotations)(scene.quats)[0]).T
    local = points @ np.asarray(view.viewmats[1, :3, :3]).T + view.viewmats[1, :3, 3]
    places = (local @ np.asarray(view.intrinsics[1]).T)[:, :2] / local[:, 2:]
    np.testing.assert_allclose(
        np.linalg.inv([[a, b], [b, c]]), np.cov(places.T), rtol=0.05, atol=1e-3
    )


def test_harmonics_are_orthonormal():
    """By quadrature that is exact for polynomials of degree 7: Gauss-Legendre times 8 meridians."""
    z, wz = np.polynomial.legendre.leggauss(4)
    phi = 2 * np.pi * np.arange(8) / 8
    z, phi = np.meshgrid(z, phi, indexing="ij")
    ring = np.sqrt(1 - z**2)
    directions = np.stack([ring * np.cos(phi), ring * np.sin(phi), z], axis=-1)
    basis = np.stack(
        [
            ewa.harmonics(jnp.zeros((16, 3)).at[k].set(1.0), jnp.asarray(directions, jnp.float32))[
                ..., 0
            ]
            for k in range(16)
        ]
    )
    weight = wz[:, None] * 2 * np.pi / 8
    np.testing.assert_allclose(
        np.einsum("azp,bzp,zp->ab", basis, basis, weight * np.ones_like(z)), np.eye(16), atol=1e-5
    )


def test_a_lower_degree_is_the_same_without_the_rest():
    directions = scenes.gaussians(0, 7).means
    sh = jax.random.normal(jax.random.key(0), (16, 3))
    whole = jax.jit(jax.vmap(ewa.harmonics, (0, None)))
    counts = np.array([1, 4, 9])
    padded = jnp.where(np.arange(16) < counts[:, None], 1.0, 0.0)[..., None] * sh
    for k, values in zip(counts, whole(padded, directions), strict=True):
        part = jax.jit(ewa.harmonics)(sh[:k], directions)
        np.testing.assert_allclose(part, values, atol=1e-6)


def test_rotations_turn_as_quaternions_do():
    half = np.sqrt(0.5)
    rotations = jax.jit(ewa.rotations)
    quarter = rotations(3.0 * jnp.array([[half, 0, 0, half], [half, half, 0, 0]]))
    np.testing.assert_allclose(quarter[0] @ jnp.array([1.0, 0, 0]), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(quarter[1] @ jnp.array([0, 1.0, 0]), [0, 0, 1], atol=1e-6)
    many = rotations(jax.random.normal(jax.random.key(1), (5, 4)))
    np.testing.assert_allclose(
        many @ jnp.swapaxes(many, 1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(many), 1, atol=1e-5)
