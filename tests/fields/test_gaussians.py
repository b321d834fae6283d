"""Gaussians as a representation: what they start from, how they look, what field they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balls import ball_recipe, red_ball

from jax3d import camera as cameras
from jax3d.fields import densify
from jax3d.fields.densify import Mcmc
from jax3d.fields.gaussians import (
    GaussiansConfig,
    alive,
    from_gaussians,
    from_mesh,
    from_points,
    gaussians,
    scene,
)
from jax3d.making import generate
from jax3d.manifest import Job
from jax3d.mesh import MeshConfig, of
from jax3d.optimize import engine
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.stage import Task
from jax3d.types import Gaussians, Look, Mesh

CONFIG = GaussiansConfig(capacity=40, start=30, degree=1, normals=True)
KEY = jax.random.key(0)


def of_one(mean, scales, opacity=0.9, rgb=0.5, quat=(1.0, 0, 0, 0)):
    """Parameters of one Gaussian among 40 places."""
    rows = [np.array([x], np.float32) for x in (mean, quat, scales)]
    sh = np.full((1, 1, 3), (rgb - 0.5) / 0.28209479, np.float32)
    return from_gaussians(Gaussians(*rows, np.array([opacity]), sh), CONFIG, KEY)


def ball(n=4000):
    """A ball of 0.5 m of opaque Gaussians, as a config and parameters."""
    config = GaussiansConfig(capacity=n, start=n, opacity=0.9)
    return config, jax.jit(gaussians(config).init)(KEY)


def test_starts_as_a_ball():
    config, params = ball(2000)
    known = scene(params)
    radius = np.linalg.norm(known.means, axis=-1)
    assert radius.max() <= 0.5
    np.testing.assert_allclose(np.mean(radius < 0.25), 1 / 8, atol=0.03)
    again = from_points(known.means, np.full((2000, 3), 0.5), config, KEY)
    widths = np.exp([params["scales"], again["scales"]])
    np.testing.assert_allclose(widths[0], np.mean(widths[1]), rtol=0.1)
    fresh = gaussians(CONFIG)
    params = jax.jit(fresh.init)(KEY)
    assert np.sum(densify.there(params)) == 30
    assert fresh.memory(params)["alive"].tolist() == [True] * 30 + [False] * 10


def test_starts_from_points():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]])
    colors = np.linspace(0, 1, 15).reshape(5, 3)
    known = alive(from_points(points, colors, CONFIG, KEY))
    np.testing.assert_allclose(known.means, points)
    np.testing.assert_allclose(known.scales[0], np.sqrt((1 + 4 + 9) / 3), rtol=1e-5)
    np.testing.assert_allclose(known.opacities, CONFIG.opacity, rtol=1e-5)
    np.testing.assert_allclose(known.sh[:, 0] * 0.28209479 + 0.5, colors, atol=1e-6)
    assert known.sh.shape == (5, 4, 3)
    many = np.random.default_rng(0).normal(size=(100, 3))
    few = alive(from_points(many, np.abs(many), CONFIG, KEY))
    assert len(few.means) == CONFIG.capacity
    assert {tuple(x) for x in few.means} <= {tuple(x) for x in many.astype(np.float32)}
    for bad in (np.zeros((1, 3)), np.full((5, 3), np.nan)):
        with pytest.raises(ValueError, match="two or more, all finite"):
            from_points(bad, bad, CONFIG, KEY)


def test_starts_from_a_mesh():
    square = np.array([[0.0, 0, 1], [2, 0, 1], [2, 1, 1], [0, 1, 1]])
    mesh = Mesh(square, np.array([[0, 1, 2], [0, 2, 3]]), colors=square / 2)
    config = GaussiansConfig(capacity=500, start=400)
    known = alive(from_mesh(mesh, config, KEY))
    assert len(known.means) == 400
    np.testing.assert_allclose(known.means[:, 2], 1.0, atol=1e-6)
    np.testing.assert_allclose(known.means.mean(0)[:2], [1, 0.5], atol=0.1)
    np.testing.assert_allclose(np.var(known.means, axis=0)[:2], [1 / 3, 1 / 12], rtol=0.15)
    np.testing.assert_allclose(known.sh[:, 0] * 0.28209479 + 0.5, known.means / 2, atol=1e-5)
    texture = np.zeros((4, 4, 3))
    texture[:, 2:] = [1.0, 0, 0]
    uvs = square[:, :2] / np.array([2, 1])
    painted = alive(from_mesh(mesh.replace(colors=None, uvs=uvs, texture=texture), config, KEY))
    red = painted.sh[:, 0, 0] > 0
    np.testing.assert_array_equal(red, painted.means[:, 0] > 1)
    with pytest.raises(ValueError, match="no area"):
        from_mesh(mesh.replace(faces=np.array([[0, 0, 1]])), config, KEY)


def test_parameters_hold_the_true_values():
    params = jax.jit(gaussians(CONFIG).init)(KEY)
    known = alive(params)
    same = alive(from_gaussians(known, CONFIG, KEY))
    for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


CAMERA = cameras.orbit(jnp.array([0.0]), 0.0, 3.0, 0.8)
LIT = Look(jnp.ones(3), jnp.array(0.25), jnp.array(0.0), jnp.array([0.0, 0.0, 1.0]))


@pytest.fixture(scope="module")
def shown():
    """The picture of parameters, 33 x 33, under a look."""
    rep = gaussians(CONFIG)
    return jax.jit(lambda params, look: rep.render(params, None, CAMERA, look, (33, 33)))


def test_depth_is_the_distance_along_the_ray(shown):
    mean = jnp.array([0.4, 0.6, -0.5])
    out = shown(of_one(mean, (0.05, 0.05, 0.05)), Look.albedo())
    (column, row), _ = (x[0, 0] for x in cameras.project(CAMERA, mean[None], (33, 33)))
    pixel = (0, int(row), int(column))
    np.testing.assert_allclose(
        out.depth[pixel], np.linalg.norm(mean - np.array([3, 0, 0])), rtol=0.01
    )
    assert out.overflow.tolist() == [0]


def test_light_falls_on_the_shortest_axis(shown):
    # Flat along x = y, seen from +x, lit from above.
    half = np.sqrt(0.5)
    tilt = (np.cos(np.pi / 8), 0, np.sin(np.pi / 8), 0)
    params = of_one((0.0, 0, 0), (0.4, 0.4, 0.01), 0.99, 0.8, tilt)
    out = shown(params, LIT)
    middle = (0, 16, 16)
    np.testing.assert_allclose(out.normal[middle] / out.alpha[middle], [half, 0, half], atol=1e-4)
    lit = 0.8 * (0.25 + 0.75 * half)
    np.testing.assert_allclose(out.rgb[middle] / out.alpha[middle], lit, rtol=1e-4)


def test_the_density_makes_flat_gaussians_as_opaque_as_they_are_shown():
    thin = dataclasses.replace(CONFIG, thickness=0.003)
    rep = gaussians(thin)
    params = of_one((0.1, 0.0, 0.0), (0.02, 0.3, 0.4), opacity=0.8, rgb=0.3)
    x = np.stack([np.linspace(-0.1, 0.3, 2001), np.zeros(2001), np.zeros(2001)], -1)
    x = x.astype(np.float32)
    sigma, rgb = jax.jit(lambda p, x: (rep.density(p, x), rep.color(p, x)))(params, x)
    np.testing.assert_allclose(1 - np.exp(-np.trapezoid(sigma, x[:, 0])), 0.8, atol=2e-3)
    np.testing.assert_allclose(rgb[sigma > 1.0], 0.3, atol=1e-4)
    np.testing.assert_allclose(rgb[sigma == 0], 0.5, atol=1e-4)


@pytest.mark.slow
def test_its_mesh_is_the_ball():
    config, params = ball()
    rep = gaussians(config)
    mesh = of(rep, params, MeshConfig(resolution=40, faces=400, texture=32))
    radius = np.linalg.norm(mesh.vertices, axis=-1)
    assert 0.46 < np.median(radius) < 0.6
    assert np.percentile(np.abs(radius - np.median(radius)), 90) < 0.04
    np.testing.assert_allclose(mesh.texture, 0.5, atol=0.1)


def test_centres_slow_down_exponentially():
    rates = gaussians(CONFIG).rates
    np.testing.assert_allclose(rates(0.0)["means"], 0.01)
    np.testing.assert_allclose(rates(0.5)["means"], np.sqrt(0.01 * 0.0002))
    np.testing.assert_allclose(rates(jnp.float32(1.0))["means"], 0.0002, rtol=1e-5)
    assert rates(0.3)["shN"] == rates(0.3)["sh0"] / 20
    assert "shN" not in gaussians(GaussiansConfig()).rates(0.0)


def test_what_does_not_fit_together_is_told():
    assert "40 places" in dataclasses.replace(CONFIG, start=50).mistake()
    assert "end of 0" in dataclasses.replace(CONFIG, rate_means=(0.1, 0.0)).mistake()
    assert CONFIG.mistake() is None


RECIPE = dataclasses.replace(
    ball_recipe(steps=8),
    field=GaussiansConfig(
        capacity=48, start=24, densify=Mcmc(every=2, span=(0.0, 1.0), growth=0.2)
    ),
)


def test_a_run_that_is_stopped_goes_on_with_the_same_gaussians(tmp_path):
    critic = red_ball()
    stages = RECIPE.build(critic)

    def made(stop=lambda: False, **where):
        found = []
        task = lambda k: Task(RECIPE.condition(critic, "a ball"), RECIPE.knobs_of(k), (8,))  # noqa: E731
        config = EngineConfig(block=2, slots=1)
        engine.run(stages, task, [3], found.append, config=config, stop=stop, **where)
        (outcome,) = found
        assert outcome.track.status == "done"
        return outcome.params

    whole = made()
    # 24 become 28, 33, 39 and 46.
    assert np.sum(densify.there(whole)) == 46
    stopped = iter([False, True])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(engine.Interrupted):
        made(stop=lambda: next(stopped), checkpoints=checkpoints)
    with Checkpoints(tmp_path) as checkpoints:
        resumed = made(checkpoints=checkpoints)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_generate_makes_all_files_of_gaussians(tmp_path):
    recipe = RECIPE.with_steps(40)
    field = dataclasses.replace(RECIPE.field, capacity=300, start=200)
    recipe = dataclasses.replace(recipe, field=field)
    (made,) = generate(recipe, red_ball(), [Job("a ball")], tmp_path)
    folder = tmp_path / made["path"]
    assert made["status"] == "done"
    assert (folder / "mesh.glb").exists()
    header, *_, last = (folder / "history.csv").read_text().splitlines()
    assert dict(zip(header.split(","), last.split(","), strict=True))["overflow"] == "0"
