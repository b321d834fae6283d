import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jax3d import camera

sample = jax.jit(camera.sample, static_argnums=(1, 2))
orbit = jax.jit(camera.orbit)
rays_of = jax.jit(camera.rays, static_argnums=1)

X, Y, Z = np.eye(3, dtype=np.float32)


def assert_rotations(c2w):
    r = np.asarray(c2w)[..., :3, :3]
    np.testing.assert_allclose(
        r @ np.swapaxes(r, -1, -2), np.broadcast_to(np.eye(3), r.shape), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.det(r), 1.0, atol=2e-6)


def test_azimuth_zero_stands_on_plus_x_with_plus_y_to_its_right():
    c2w = orbit(0.0, 0.0, 2.0, 0.7).c2w
    np.testing.assert_allclose(c2w[:3].T, [Y, Z, X, 2 * X], atol=1e-6)


def test_orbit_is_look_at_with_z_up_away_from_the_poles():
    azimuth, elevation = np.meshgrid(np.linspace(0, 6, 7), np.linspace(-1.4, 1.4, 5))
    cam = orbit(azimuth, elevation, 1.7, 0.8, center=jnp.array([0.1, 0.2, 0.3]))
    eye = cam.c2w[..., :3, 3]
    center = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3]), eye.shape)
    expected = camera.look_at(eye, center, jnp.broadcast_to(Z, eye.shape))
    np.testing.assert_allclose(cam.c2w, expected, atol=3e-6)


def test_poles_are_rotations_with_finite_gradients():
    cam = orbit(jnp.array([0.3, 0.3]), jnp.array([np.pi / 2, -np.pi / 2]), 2.0, 0.7)
    assert_rotations(cam.c2w)
    jacobian = jax.jacobian(lambda e: orbit(0.3, e, 2.0, 0.7).c2w)(jnp.pi / 2)
    assert jnp.isfinite(jacobian).all()
    for axis in (X, Y, Z):
        pose = lambda eye, axis=axis: camera.look_at(eye, jnp.zeros(3), jnp.asarray(axis))  # noqa: E731
        assert_rotations(pose(jnp.asarray(2 * axis)))
        assert jnp.isfinite(jax.jacobian(pose)(jnp.asarray(2 * axis))).all()


def test_the_middle_ray_looks_at_the_centre_and_the_border_spans_fovy():
    cam = orbit(jnp.array([0.4, 2.0]), jnp.array([0.3, -0.2]), 2.0, 0.8)
    rays = rays_of(cam, (101, 51))
    assert rays.directions.shape == (2, 101, 51, 3)
    np.testing.assert_allclose(
        rays.directions[:, 50, 25], -rays.origins[:, 50, 25] / 2.0, atol=1e-6
    )
    top, bottom = rays.directions[:, 0, 25], rays.directions[:, 100, 25]
    # Pixel centres are half a pixel inside the border.
    half = np.arctan(np.tan(0.4) * 100 / 101)
    np.testing.assert_allclose(np.sum(top * bottom, -1), np.cos(2 * half), atol=1e-6)
    assert (top[:, 2] > bottom[:, 2]).all()


def test_project_inverts_rays():
    cam = orbit(jnp.array([0.4, 2.0]), jnp.array([0.3, -0.2]), 2.0, 0.8)
    rays = rays_of(cam, (6, 8))
    for v in range(2):
        points = (rays.origins + 1.5 * rays.directions)[v].reshape(-1, 3)
        pixels, depth = camera.project(jax.tree.map(lambda a, v=v: a[v], cam), points, (6, 8))
        row, column = np.mgrid[:6, :8] + 0.5
        np.testing.assert_allclose(pixels.reshape(6, 8, 2)[..., 0], column, atol=1e-4)
        np.testing.assert_allclose(pixels.reshape(6, 8, 2)[..., 1], row, atol=1e-4)
        assert ((depth > 1.2) & (depth <= 1.5)).all()


def test_project_behind_the_camera_is_finite():
    cam = orbit(0.0, 0.0, 2.0, 0.8)
    pixels, depth = camera.project(cam, jnp.array([[2.0, 0.1, 0.0], [3.0, 0.0, 0.0]]), (4, 4))
    assert jnp.isfinite(pixels).all()
    assert (depth < 1e-6).all()


def test_sample_follows_its_config():
    cfg = camera.CameraConfig()
    cam = sample(jax.random.key(0), cfg, 4000)
    assert_rotations(cam.c2w)
    steps = np.diff(cam.azimuth)
    np.testing.assert_allclose(steps, 2 * np.pi / 4000, atol=1e-5)
    low, high = np.radians(cfg.elevation)
    assert cam.elevation.min() >= low - 1e-6
    assert cam.elevation.max() <= high + 1e-6
    # Uniform in angle has mean (low + high) / 2; on the sphere E[e] is a closed form.
    sphere = (np.cos(high) + high * np.sin(high) - np.cos(low) - low * np.sin(low)) / (
        np.sin(high) - np.sin(low)
    )
    expected = ((low + high) / 2 + sphere) / 2
    np.testing.assert_allclose(cam.elevation.mean(), expected, atol=4 * 0.36 / np.sqrt(4000))
    factor = cam.radius * np.sin(cam.fovy / 2) / 0.95
    assert factor.min() >= 1.0 - 1e-5
    assert factor.max() <= 1.15 + 1e-5
    eye = orbit(cam.azimuth, cam.elevation, cam.radius, cam.fovy).c2w[:, :3, 3]
    shift = np.abs(cam.c2w[:, :3, 3] - eye)
    assert 0.029 < shift.max() <= 0.03 + 1e-5


def test_sample_without_jitter_is_orbit_and_absolute_distance_is_metres():
    cfg = camera.CameraConfig(
        distance=(1.5, 2.0), fit_radius=None, eye_jitter=0.0, center_jitter=0.0, up_jitter=0.0
    )
    cam = sample(jax.random.key(1), cfg, 64)
    assert ((cam.radius >= 1.5) & (cam.radius <= 2.0)).all()
    expected = orbit(cam.azimuth, cam.elevation, cam.radius, cam.fovy)
    np.testing.assert_allclose(cam.c2w, expected.c2w, atol=2e-6)


def test_azimuth_offset_is_uniform_in_its_stratum():
    draw = jax.vmap(lambda k: sample(k, camera.CameraConfig(), 4).azimuth)
    azimuth = np.asarray(draw(jax.random.split(jax.random.key(2), 500)))
    assert (np.floor(azimuth / (np.pi / 2)) == np.arange(4)).all()
    np.testing.assert_allclose(azimuth[:, 0].mean(), np.pi / 4, atol=4 * 0.45 / np.sqrt(500))


def test_groups_go_all_around_at_one_height_distance_and_lens():
    cfg = camera.CameraConfig(
        distance=(0.8, 1.0),
        fit_radius=1.0,
        fit="disc",
        fovy=(15.0, 60.0),
        group=4,
        eye_jitter=0.0,
        center_jitter=0.0,
        up_jitter=0.0,
    )
    cam = sample(jax.random.key(3), cfg, 8)
    turned = np.diff(cam.azimuth.reshape(2, 4), axis=1)
    np.testing.assert_allclose(turned, np.pi / 2, atol=1e-6)
    for numbers in (cam.elevation, cam.fovy, cam.radius):
        rows = np.asarray(numbers).reshape(2, 4)
        assert (rows == rows[:, :1]).all()
        assert rows[0, 0] != rows[1, 0]
    # At distance 1 a disc of radius 1 that faces the camera spans the field of view.
    relative = cam.radius * np.tan(cam.fovy / 2)
    assert ((relative >= 0.8 - 1e-6) & (relative <= 1.0 + 1e-6)).all()
    # All azimuths together are as evenly spaced as without groups.
    np.testing.assert_allclose(np.diff(np.sort(cam.azimuth)), np.pi / 4, atol=1e-6)


@pytest.mark.parametrize("group", [0, 3])
def test_cameras_must_come_in_groups(group):
    with pytest.raises(ValueError, match="multiple of the camera's group"):
        sample(jax.random.key(0), camera.CameraConfig(group=group), 4)


@pytest.mark.parametrize("elevation", [-0.3, 0.8, np.pi / 2])
def test_gradients_match_finite_differences(elevation):
    with jax.enable_x64(True):
        point = jnp.array([[0.1, -0.2, 0.3]])

        def picture(x):
            cam = orbit(x[0], x[1], x[2], x[3], x[4:])
            pixels, depth = camera.project(cam, point, (3, 4))
            return rays_of(cam, (3, 4)).directions.sum(), pixels, depth

        check_grads(
            jax.jit(picture), (jnp.array([0.4, elevation, 2.0, 0.7, 0.1, 0.0, -0.1]),), order=1
        )

        def pose(eye, target, up):
            return camera.look_at(eye, target, up)

        arguments = (jnp.array([1.0, 2.0, 0.5]), jnp.array([0.1, 0.0, 0.2]), jnp.array([0.0, 0, 1]))
        check_grads(jax.jit(pose), arguments, order=1)
