"""Zero-1-to-3 against its diffusers pipeline on the same weights, and its words to people."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, write_folder, write_network

from jax3d import cli, diffusion, image
from jax3d.camera import orbit
from jax3d.nn import clip_image, vae
from jax3d.priors import zero123
from jax3d.priors.open import open_critic
from jax3d.priors.zero123 import absolute_pose, relative_pose
from jax3d.types import Cond, Prompt

BAR = np.ones((40, 30, 3), np.float32)
BAR[10:30, 10:20] = 0.4
TOLERANCE = 2e-4
"""Of the vectors, as they are told."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("zero123"), "zero123")


@pytest.fixture(scope="module")
def io():
    with np.load(GOLDEN / "zero123.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def critic(folder):
    return open_critic(folder)


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def moved(io, elevation=0.0):
    """The views that the vectors ask for, by polar angles from above, and the picture's."""
    lift, turn = np.radians(io["in_elevation_deg"]), np.radians(io["in_azimuth_deg"])
    height = np.radians(elevation)
    camera = orbit(turn, height - lift, 2.0 + io["in_distance"], 0.8)
    return camera, orbit(np.zeros(2), np.full(2, height), 2.0, 0.8)


@pytest.fixture(scope="module")
def looked(folder, io):
    """Tokens and latents of the vectors' pictures."""
    eye = zero123.Eye(
        *clip_image.load(folder / "image_encoder"), *vae.load(folder / "vae"), size=32
    )
    mean, std = jnp.array(clip_image.MEAN), jnp.array(clip_image.STD)
    pixels = nhwc(io["in_clip_pixels"]) * std + mean
    return jax.jit(lambda p, c: zero123.embedded(eye, p, c))(pixels, nhwc(io["in_image"]))


def test_what_it_sees_of_a_picture(looked, io):
    tokens, latents = looked
    np.testing.assert_allclose(tokens[:, 0], io["clip_image_embeds"], atol=TOLERANCE)
    np.testing.assert_allclose(nchw(latents), io["image_latents_unscaled"], atol=TOLERANCE)


def test_what_it_is_told_of_a_camera(io):
    np.testing.assert_allclose(relative_pose(*moved(io)), io["camera_vec"], atol=1e-6)
    stable = absolute_pose(*moved(io, -5.0))
    np.testing.assert_allclose(stable, io["stable_camera_vec_defel5"], atol=1e-6)


def test_the_residual_of_a_view(critic, looked, io):
    tokens, latents = looked
    camera, reference = moved(io)
    twice = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)  # noqa: E731
    told = Cond(
        jnp.concatenate([jnp.zeros_like(tokens), tokens]),
        image=jnp.concatenate([jnp.zeros_like(latents), latents]),
        source=twice(reference),
    )
    denoise = jax.jit(critic.prior.denoise)
    z, noise, t = nhwc(io["in_latents"]), nhwc(io["sds_noise"]), jnp.asarray(io["sds_t"])
    eps = denoise(critic.params, twice(z), jnp.full(4, io["in_t"]), told, twice(camera))
    np.testing.assert_allclose(nchw(eps), io["eps"], atol=TOLERANCE)
    z_t = diffusion.q_sample(critic.prior.alphas_cumprod, z, t, noise)
    null, cond = jnp.split(denoise(critic.params, twice(z_t), twice(t), told, twice(camera)), 2)
    weight = 1 - critic.prior.alphas_cumprod[t][:, None, None, None]
    residual = weight * (diffusion.cfg(null, cond, 5.0) - noise)
    np.testing.assert_allclose(nchw(residual), io["sds_grad_gs5"], atol=TOLERANCE)


def test_a_picture_is_read_as_the_pipeline_does(critic, io):
    picture = np.zeros((48, 64, 4), np.float32)
    picture[10:30, 20:50] = [0.9, 0.2, 0.1, 1.0]
    cond = critic.condition(Prompt("", image=picture, elevation=20.0))
    assert np.any(cond.plain.tokens != 0)
    assert not np.any(cond.null.tokens)
    assert not np.any(cond.null.image)
    np.testing.assert_allclose(cond.plain.source.elevation, np.radians(20), rtol=1e-6)
    # White around the object, whose longer side spans its share.
    square = image.squared(picture, zero123.SHARE, 1.0)
    again = critic.condition(Prompt("", image=square, elevation=20.0))
    likeness = np.corrcoef(again.plain.image.ravel(), cond.plain.image.ravel())[0, 1]
    assert likeness > 0.95
    assert cond.given.shape == (32, 32, 4)


def test_it_has_to_be_given_a_picture_and_a_camera(critic, io):
    with pytest.raises(ValueError, match="give it one"):
        critic.condition(Prompt("a red chair"))
    cond = critic.condition(Prompt("", image=BAR))
    told = jax.tree.map(lambda x: x[None], cond.plain)
    with pytest.raises(ValueError, match="has to be told the camera"):
        critic.prior.denoise(critic.params, jnp.zeros((1, 8, 8, 4)), jnp.ones(1), told, None)


def test_a_folders_path_tells_the_stable_one(critic, tmp_path):
    # As the hub's cache has it.
    folder = tmp_path / "models--ashawkey--stable-zero123-diffusers" / "snapshots" / "8f3b"
    folder.parent.mkdir(parents=True)
    other = open_critic(write_folder(folder, "zero123"))
    assert critic.name.startswith("Zero123")
    assert other.name.startswith("Stable-Zero123")
    assert other.digest != critic.digest


def test_another_denoiser_is_told(tmp_path):
    write_folder(tmp_path, "zero123")
    shutil.rmtree(tmp_path / "unet")
    write_network(tmp_path, "sd15", "unet")
    with pytest.raises(ValueError, match="takes 4 channels and gives 4"):
        open_critic(tmp_path)


def test_the_command_draws_other_sides(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image.write("chair.png", BAR)
    few = ["--prior", str(folder), "--views", "2", "--steps", "2", "--no-cache"]
    assert cli.main(["views", "chair.png", "chair.png", *few]) == 0
    assert image.read_image("views.png").shape == (64, 64, 3)
    assert cli.main(["views", "chair.png", *few, "--out", "orbit.gif"]) == 0
    assert Path("orbit.gif").stat().st_size > 0
    for wrong, told in (
        (["views", *few], "no picture"),
        (["views", "chair.png"], "no critic"),
        (["views", "chair.png", "chair.png", *few, "--out", "orbit.mp4"], "one picture's object"),
        (["views", "missing.png", *few], r"missing.png"),
    ):
        assert cli.main(wrong) == 2
        assert told in capsys.readouterr().err


def test_threestudios_table():
    degrees = np.array([[10.0, 0.0], [-5.0, 120.0]])
    camera = orbit(jnp.radians(degrees[:, 1]), jnp.radians(degrees[:, 0]), 3.6, 0.7)
    reference = orbit(jnp.radians(20.0), jnp.radians(5.0), 3.8, 0.7)
    expected = [
        [-0.08726646, -0.34202012, 0.9396926, -0.2],
        [0.17453292, 0.98480775, -0.17364818, -0.2],
    ]
    np.testing.assert_allclose(relative_pose(camera, reference), expected, atol=1e-6)


def test_the_picture_itself_is_no_movement():
    camera = orbit(jnp.array([0.3, -2.0]), jnp.full(2, 0.4), 2.0, 0.7)
    one = jax.tree.map(lambda x: x[0], camera)
    np.testing.assert_allclose(relative_pose(camera, one)[0], [0, 0, 1, 0], atol=1e-6)
