"""Pictures from a critic alone."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write_pixels, write_usable
from toys import no_condition

from jax3d import cli, diffusion, image
from jax3d.camera import in_groups, orbit
from jax3d.priors import sampling, schedulers
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


TABLES = json.loads(Path(__file__).with_name("schedulers.json").read_text())
OWN = [name for name in TABLES if name != "euler_svd"]


@pytest.mark.parametrize("name", OWN)
def test_a_critics_own_sampler_draws_the_steps_of_its_table(name, tmp_path):
    """From diffusers' first input to its last output, through the function that draws."""
    table = TABLES[name]
    if "in_noises" in table:
        pytest.skip("draws noise of its own")
    config = table["config"]
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    schedule = schedulers.read(tmp_path, bounded=True)
    outputs = jnp.array(table["in_model_outputs"])
    steps = len(outputs) - (config["_class_name"] == "PNDMScheduler")
    asked = []
    own = schedule.sampler(steps)

    def denoise(z, t):
        # The network's output, by its place in the table, as the noise that critics answer with.
        output = outputs[len(asked)]
        asked.append(float(t))
        with jax.disable_jit(False):  # its interpolation has a loop
            levels = diffusion.noise_level(schedule.alphas_cumprod, jnp.asarray(t)[None], 1)
        return diffusion.x0_and_eps(output, z, *levels, schedule.prediction)[1]

    with jax.disable_jit():
        last = own.sample(denoise, jnp.array(table["scaled_inputs"][0]), own.grid)
    np.testing.assert_allclose(asked, table["timesteps"], rtol=1e-5, atol=1e-5)
    if "Euler" in config["_class_name"]:
        last = last / own.grid.next_alpha[-1]
    # Karras' levels lie between whole timesteps, and mere noise tells x0 in few digits.
    rough = config.get("use_karras_sigmas") or config.get("rescale_betas_zero_snr")
    np.testing.assert_allclose(
        last, table["prev_samples"][-1], rtol=2e-2 if rough else 1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", [
    "DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "DPMSolverMultistep",
])  # fmt: skip
def test_the_makers_sampler_draws_the_data(tmp_path, kind):
    config = {"_class_name": f"{kind}Scheduler", "num_train_timesteps": 200, "beta_end": 0.1}
    config |= {"timestep_spacing": "trailing", "clip_sample": False}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    schedule = schedulers.read(tmp_path, bounded=True)
    chosen = critic(alphas_cumprod=schedule.alphas_cumprod)
    prior = gaussian(4, schedule.alphas_cumprod)
    chosen = chosen._replace(prior=prior, sampler=schedule.sampler)
    pixels = jnp.concatenate(
        [
            sampling.sampler(chosen, None, 1.0, 50)(jax.random.key(k), Prompt("x"), AROUND)
            for k in (0, 1)
        ]
    )
    np.testing.assert_allclose(pixels.mean(0), MEAN, atol=6 * 0.05 / np.sqrt(8))
    np.testing.assert_allclose((pixels - MEAN).std(), 0.05, rtol=0.4)


def test_a_makers_sampler_that_is_not_supported_asks_for_a_method(tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "UniPCMultistepScheduler"}')
    chosen = critic()._replace(sampler=schedulers.read(tmp_path, bounded=False).sampler)
    with pytest.raises(
        ValueError, match=r"'UniPCMultistepScheduler' is not known.*or name a method"
    ):
        sampling.sampler(chosen)
    sampling.sampler(chosen, method="ddim")


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
    pytest.param("sdxl", ("--views", "1", "--method", "ddpm"), (64, 64), marks=pytest.mark.slow),
    pytest.param("mvdream", ("--views", "4"), (128, 512), marks=pytest.mark.slow),
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
    [
        (("--mode", "camera"), "not told cameras"),
        (("--steps", "0"), "--steps is 0; expected a whole number from 1 to 1000"),
    ],
)
def test_questions_that_a_critic_cannot_answer(capsys, tmp_path, options, message):
    write_pixels(tmp_path / "critic")
    assert cli.main(["sample", "a cat", "--prior", str(tmp_path / "critic"), *options]) == 2
    assert message in capsys.readouterr().err
