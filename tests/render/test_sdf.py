"""The sphere tracer against shapes with a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera as cameras
from jax3d.render import sdf

P = sum(sdf.SLOTS.values())
FIRST = {"box": 0, "cone": 14, "ellipsoid": 26, "torus": 38}


def scene_of(*parts):
    """Parts are (kind, slot of that kind, center, shape, role, color)."""
    scene = sdf.Scene(
        center=np.zeros((P, 3), np.float32),
        rotation=np.tile(np.eye(3, dtype=np.float32), (P, 1, 1)),
        shape=np.ones((P, 4), np.float32),
        role=np.zeros(P, np.int32),
        color=np.zeros((P, 2, 3), np.float32),
        pattern=np.zeros(P, np.int32),
        period=np.ones(P, np.float32),
    )
    for kind, slot, center, shape, role, color in parts:
        i = FIRST[kind] + slot
        scene.center[i], scene.shape[i], scene.role[i] = center, shape, role
        scene.color[i] = color
    return jax.tree.map(jnp.asarray, scene)


BALL = ("ellipsoid", 0, (0, 0, 0), (0.5, 0.5, 0.5, 0), sdf.ADD, (1, 0, 0))


def test_slots_start_where_the_test_thinks():
    starts = np.cumsum([0, *sdf.SLOTS.values()])[:-1]
    assert dict(zip(sdf.SLOTS, starts, strict=True)) == FIRST


@pytest.mark.parametrize(
    ("part", "point", "expected"),
    [
        (BALL, (2.0, 0.0, 0.0), 1.5),
        (("box", 0, (0, 0, 0), (0.5, 0.2, 0.1, 0.0), sdf.ADD, (1, 1, 1)), (1.5, 0.0, 0.0), 1.0),
        (("box", 0, (0, 0, 0), (0.5, 0.5, 0.5, 0.1), sdf.ADD, (1, 1, 1)), (0.0, 0.0, 0.0), -0.5),
        (("cone", 0, (0, 0, 0), (0.3, 0.3, 0.5, 0.0), sdf.ADD, (1, 1, 1)), (1.0, 0.0, 0.0), 0.7),
        (("cone", 0, (0, 0, 0), (0.3, 0.1, 0.5, 0.0), sdf.ADD, (1, 1, 1)), (0.0, 0.0, 2.0), 1.5),
        (("torus", 0, (0, 0, 0), (0.5, 0.1, 0, 0), sdf.ADD, (1, 1, 1)), (1.0, 0.0, 0.0), 0.4),
    ],
)
def test_distance_of_each_primitive(part, point, expected):
    found = sdf.distance(scene_of(part), jnp.array([point]))
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_carving_spares_what_is_added_late():
    hole = ("ellipsoid", 1, (0, 0, 0), (0.4, 0.4, 0.4, 0), sdf.CARVE, (0, 0, 0))
    pea = ("ellipsoid", 2, (0, 0, 0), (0.1, 0.1, 0.1, 0), sdf.LATE, (0, 1, 0))
    points = jnp.array([[0.03, 0.0, 0.0], [0.25, 0.0, 0.0], [0.45, 0.0, 0.0]])
    d = sdf.distance(scene_of(BALL, hole, pea), points)
    assert (np.sign(d) == [-1, 1, -1]).all()


def test_trace_of_a_ball_gives_its_disc_depth_and_normals():
    camera = cameras.orbit(0.3, 0.4, 2.5, 0.7)
    rays = jax.tree.map(lambda x: x.reshape(-1, 3), cameras.rays(camera, (48, 48)))
    pixel = 2 * jnp.tan(camera.fovy / 2) / 48
    point, t, coverage = sdf.trace(scene_of(BALL), rays, 1.0, pixel, steps=64)
    b = -jnp.sum(rays.origins * rays.directions, -1)
    miss = jnp.sqrt(jnp.sum(rays.origins**2, -1) - b**2)
    inside = miss < 0.49
    np.testing.assert_allclose(coverage[inside], 1.0, atol=0.06)
    np.testing.assert_allclose(coverage[miss > 0.55], 0.0, atol=1e-6)
    np.testing.assert_allclose(t[inside], (b - jnp.sqrt(0.25 - miss**2))[inside], atol=8e-3)
    n = sdf.normal(scene_of(BALL), point[inside])
    np.testing.assert_allclose(n, point[inside] / 0.5, atol=1e-2)


def test_albedo_is_of_the_nearest_and_stripes_take_turns():
    scene = scene_of(BALL)
    striped = scene.replace(
        pattern=scene.pattern.at[FIRST["ellipsoid"]].set(sdf.STRIPES),
        color=scene.color.at[FIRST["ellipsoid"], 1].set(jnp.array([0.0, 0.0, 1.0])),
        period=scene.period.at[FIRST["ellipsoid"]].set(0.4),
    )
    points = jnp.array([[0.4, 0.0, 0.0], [0.4, 0.0, 0.2]])
    np.testing.assert_allclose(sdf.albedo(striped, points), [[0, 0, 1], [1, 0, 0]], atol=1e-6)
