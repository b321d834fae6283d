"""Score distillation must recover an object from a critic that holds its renders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, no_condition, optimizer, run_block

from jax3d import camera
from jax3d.camera import CameraConfig, orbit
from jax3d.fields.gaussians import GaussiansConfig, gaussians
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.guidance.sds import sds
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.priors.empirical import EmpiricalData, empirical
from jax3d.render import volume
from jax3d.types import Look, Ramp

ELEVATION = 20.0
FOVY = 42.0
BALLS = jnp.array([[0.3, 0.0, -0.15, 0.45], [-0.3, 0.15, 0.3, 0.3]])
"""Centre and radius, metres."""
COLORS = jnp.array([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9]])


def balls(params, x):
    """A big red ball in front and a small blue one up behind it."""
    del params
    inside = jnp.linalg.norm(x[:, None] - BALLS[:, :3], axis=-1) < BALLS[:, 3]
    rgb = jnp.where(inside[:, :1], COLORS[0], COLORS[1])
    return volume.Samples(100.0 * inside.any(axis=1), rgb)


def ring(azimuth):
    """Cameras as `CameraConfig` below draws them."""
    fovy = np.radians(FOVY)
    return orbit(azimuth, np.radians(ELEVATION), 0.95 / np.sin(fovy / 2), fovy)


def photograph(cameras, size):
    rays = camera.rays(cameras, (size, size))
    config = volume.VolumeConfig(samples=96)
    return volume.render_reference(balls, None, rays, Look.albedo(), config, None).over(1.0)


def distances(a, b):
    """From each point of `a` to the nearest of `b`."""
    return np.min(np.linalg.norm(a[:, None] - b, axis=-1), axis=1)


def planes(resolution):
    return triplane(TriplaneConfig(resolution=resolution, channels=8, coarse=16, samples=24))


SPLATS = gaussians(GaussiansConfig(capacity=768, start=512, radius=0.7))


@pytest.mark.parametrize(
    ("field", "lr", "size", "steps", "least_psnr", "most_chamfer"),
    [
        pytest.param(planes(16), 2.0, 16, 140, 25.0, 0.06, id="triplane"),
        pytest.param(
            planes(32), 2.0, 24, 300, 25.0, 0.06, id="fine-triplane", marks=pytest.mark.slow
        ),
        pytest.param(SPLATS, 1.0, 24, 300, 23.0, 0.08, id="gaussians", marks=pytest.mark.slow),
    ],
)
def test_sds_recovers_the_object_of_the_empirical_critic(
    field, lr, size, steps, least_psnr, most_chamfer
):
    show = jax.jit(photograph, static_argnums=1)
    known = ring(jnp.radians(jnp.arange(72) * 5.0))
    data = EmpiricalData(show(known, size), known, jnp.zeros(72, jnp.int32))
    prior = empirical(size)
    config = AssetConfig(
        camera=CameraConfig(
            elevation=(ELEVATION, ELEVATION),
            fovy=(FOVY, FOVY),
            distance=(1.0, 1.0),
            eye_jitter=0.0,
            center_jitter=0.0,
            up_jitter=0.0,
        ),
        views=4,
        stages=(StageConfig(steps, size),),
        p_grey=0.0,
    )
    init, step = optimizer(field, sds(prior), config)
    knob = knobs(
        0,
        lr=Ramp.of(lr, 0.1, begin=steps / 3, steps=steps * 2 / 3),
        guidance_scale=1.0,
        t_max=Ramp.of(0.98, 0.3, steps=steps),
    ).replace(steps=jnp.float32(steps))
    one = (jax.tree.map(lambda x: x[None], x) for x in (jax.jit(init)(knob), no_condition(5), knob))
    states, conds, numbers = one
    states, _ = run_block(step, steps, size)(states, data, conds, numbers)
    params = jax.tree.map(lambda x: x[0], states.params)

    # Between the known cameras.
    unseen = ring(jnp.radians(jnp.arange(8) * 45.0 + 2.5))
    shown = jax.jit(
        lambda params: field.render(params, None, unseen, Look.albedo(), (size, size)).over(1.0)
    )(params)
    psnr = -10 * np.log10(np.mean((shown - show(unseen, size)) ** 2))

    # The surface found, against points of the true surface that lie outside the other ball.
    axis = jnp.linspace(-0.95, 0.95, 40)
    x = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    solid = np.asarray(jax.jit(field.density)(params, x.reshape(-1, 3)).reshape(x.shape[:3])) > 10
    edge = np.zeros_like(solid)
    for i in range(3):
        edge |= solid & ~(np.roll(solid, 1, i) & np.roll(solid, -1, i))
    found = np.asarray(x)[edge]
    normals = np.random.default_rng(0).normal(size=(2, 400, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    true = np.asarray(BALLS[:, None, :3] + BALLS[:, None, 3:] * normals)
    true = np.concatenate(
        [
            p[np.linalg.norm(p - c[:3], axis=-1) > c[3]]
            for p, c in zip(true, BALLS[::-1], strict=True)
        ]
    )
    chamfer = (distances(found, true).mean() + distances(true, found).mean()) / 2
    # Seen at the larger size, on a grid of 0.049 m: 28.1 dB and 0.041 m; Gaussians 24.7 and 0.067.
    print(f"{psnr:.2f} dB, {chamfer:.4f} m")
    assert psnr > least_psnr
    assert chamfer < most_chamfer
