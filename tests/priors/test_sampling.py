"""Pictures from a critic alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_pixels, write_usable
from toys import no_condition

from jax3d import cli, diffusion, image
from jax3d.camera import in_groups, orbit
from jax3d.priors import sampling
from jax3d.priors.base import Critic
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Prompt

ABAR = diffusion.cosine(200)
MEAN = jnp.linspace(0.3, 0.7, 4 * 4 * 3).reshape(4, 4, 3)
AROUND = orbit(jnp.arange(4) * jnp.pi / 2, 0.2, 2.0, 0.7)


def critic(**changes):
    """Of one Gaussian cloud of pictures, whatever the text."""
    prior = gaussian(4, ABAR)._replace(**changes)
    data = GaussianData(MEAN, jnp.float32(0.05))
    return Critic(prior, data, lambda prompt: no_condition(), "a cloud", "")


@pytest.mark.parametrize("method", ["ddim", "ddpm", "euler"])
def test_every_method_draws_the_data(method):
    sample = sampling.sampler(critic(), None, 1.0, 50, method)
    first, again, other = (sample(jax.random.key(k), Prompt("a cat"), AROUND) for k in (0, 0, 1))
    assert first.shape == (4, 4, 4, 3)
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-2
    pixels = jnp.concatenate([first, other])
    np.testing.assert_allclose(pixels.mean(0), MEAN, atol=5 * 0.05 / np.sqrt(8))
    np.testing.assert_allclose((pixels - MEAN).std(), 0.05, rtol=0.35)


@pytest.mark.parametrize(("mode", "views", "same"), [
    ("words", 1, True),
    ("text", 1, False),
    ("words", 4, False),
])  # fmt: skip
def test_views_share_their_noise_where_the_view_alone_shall_differ(mode, views, same):
    pictures = sampling.sampler(critic(views=views), mode, 1.0, 5)(
        jax.random.key(0), Prompt("a cat"), AROUND
    )
    assert bool(jnp.all(pictures == pictures[:1])) == same


def test_cameras_are_told_where_the_critic_reads_them():
    told = []

    def denoise(params, z_t, t, text, camera):
        told.append(camera)
        return z_t

    for reads in (True, False):
        asked = critic(denoise=denoise)
        asked = asked._replace(prior=asked.prior._replace(reads_camera=reads))
        sampling.sampler(asked, steps=2)(jax.random.key(0), Prompt("a cat"), AROUND)
    assert [camera is not None for camera in told] == [True, False]
    with pytest.raises(ValueError, match="not told cameras"):
        sampling.sampler(critic(), "camera")


def test_groups_go_all_around():
    camera = orbit(jnp.arange(8) * jnp.pi / 4, 0.2, 2.0, 0.7)
    turns = np.diff(in_groups(camera, 4).azimuth.reshape(2, 4), axis=1)
    np.testing.assert_allclose(turns, np.pi / 2, atol=1e-6)
    np.testing.assert_array_equal(in_groups(camera, 1).azimuth, camera.azimuth)
    with pytest.raises(ValueError, match="multiple of 3"):
        in_groups(camera, 3)
    with pytest.raises(ValueError, match="looks at 3 together"):
        sampling.sampler(critic(views=3), "text")(jax.random.key(0), Prompt("a cat"), AROUND)


@pytest.mark.parametrize(("system", "options", "shape"), [
    ("sd21", ("--views", "2", "--method", "euler", "--negative", "in that"), (64, 128)),
    ("sdxl", ("--views", "1", "--method", "ddpm"), (64, 64)),
    ("mvdream", ("--views", "4"), (128, 512)),
    ("pixels", ("--views", "2", "--mode", "words"), (16, 32)),
])  # fmt: skip
def test_the_command_draws_from_any_folder(tmp_path, system, options, shape):
    folder, out = tmp_path / "critic", tmp_path / "samples.png"
    write_pixels(folder) if system == "pixels" else write_usable(folder, system)
    argv = ["sample", "a cat", "--prior", str(folder), "--out", str(out), "--steps", "2", *options]
    assert cli.main(argv) == 0
    picture = image.read_image(out)
    assert picture.shape[:2] == shape
    assert picture.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--mode", "camera"), "not told cameras"), (("--steps", "0"), "takes 1 to 1000 steps")],
)
def test_questions_that_a_critic_cannot_answer(capsys, tmp_path, options, message):
    write_pixels(tmp_path / "critic")
    assert cli.main(["sample", "a cat", "--prior", str(tmp_path / "critic"), *options]) == 2
    assert message in capsys.readouterr().err
