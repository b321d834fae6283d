"""Zero123++ against its pipeline on the same weights, and the sheet that it draws."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, write_folder
from zero123plus_files import SIDE, write_zero123plus

from jax3d import cli, image
from jax3d.nn import unet
from jax3d.priors import zero123plus
from jax3d.priors.open import open_critic
from jax3d.types import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_zero123plus(tmp_path_factory.mktemp("zero123plus"))


@pytest.fixture(scope="module")
def model(folder):
    return zero123plus.open(folder, steps=3, side=SIDE)


@pytest.fixture(scope="module")
def picture():
    rgba = np.zeros((40, 30, 4), np.float32)
    rgba[5:30, 4:20] = [0.8, 0.3, 0.1, 1.0]
    return rgba


def test_sheets_beside_pictures_are_denoised_as_the_pipeline_does(folder):
    with np.load(GOLDEN / "zero123plus.npz") as file:
        io = {name: file[name] for name in file.files}
    nhwc = lambda x: jnp.asarray(np.moveaxis(x, 1, -1))  # noqa: E731
    net, params = unet.load(folder / "unet")
    run = jax.jit(partial(zero123plus.denoise, net))
    z, seen = nhwc(io["unet_in_scaled"]), nhwc(io["noisy_cond_scaled"])
    out = run(params, z, jnp.asarray(io["t"]), jnp.asarray(io["prompt_cfg"]), seen)
    np.testing.assert_allclose(np.moveaxis(np.asarray(out), -1, 1), io["out"], atol=2e-4)


def test_scales_are_each_others_inverse():
    x = jnp.linspace(-2, 2, 5)
    for there, back in (
        (zero123plus.scaled_latents, zero123plus.unscaled_latents),
        (zero123plus.scaled_image, zero123plus.unscaled_image),
    ):
        np.testing.assert_allclose(back(there(x)), x, atol=1e-6)


def test_a_sheet_is_cut_into_its_views(model):
    z = jax.random.normal(jax.random.key(0), (24, 16, 4))
    views = jax.jit(model.decode)(model.params, z)
    assert views.shape == (6, SIDE, SIDE, 3)
    sheet = zero123plus.sheet(np.asarray(views))
    assert sheet.shape == (3 * SIDE, 2 * SIDE, 3)
    # Row by row.
    np.testing.assert_array_equal(sheet[SIDE : 2 * SIDE, :SIDE], views[2])


def test_later_tokens_are_told_more_of_the_picture(model, picture):
    told = model.condition(Prompt("", image=picture))
    apart = np.abs(told.tokens - told.null).max(-1)
    assert apart[0] == 0
    np.testing.assert_allclose(apart / apart[-1], np.arange(11) / 10, atol=1e-5)
    assert np.abs(told.latents - told.away).max() > 0.1
    with pytest.raises(ValueError, match="give it one"):
        model.condition(Prompt("a red chair"))


@pytest.mark.slow
def test_a_sampler_stopped_and_gone_on_with_is_the_whole_one(model, picture):
    told, key = model.condition(Prompt("", image=picture)), jax.random.key(3)
    whole = jax.jit(partial(zero123plus.sample, model))(model.params, key, told, 4.0)
    z = model.begin(jax.random.fold_in(key, model.steps), told)
    step = jax.jit(model.advance)
    for i in range(model.steps):
        z = np.asarray(step(model.params, z, jnp.int32(i), told, 4.0, key))
    np.testing.assert_allclose(model.decode(model.params, jnp.asarray(z)), whole, atol=1e-4)
    assert np.ptp(whole) > 0.1


def test_the_command_writes_the_sheet(folder, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zero123plus, "SIDE", SIDE)
    monkeypatch.setattr(
        zero123plus, "open", lambda path, dtype, steps: _open(path, dtype, steps, SIDE)
    )
    image.write("chair.png", picture[..., :3])
    few = ["--prior", str(folder), "--steps", "2", "--no-cache"]
    assert cli.main(["views", "chair.png", *few, "--out", "sheet.png"]) == 0
    assert image.read_image("sheet.png").shape == (3 * SIDE, 2 * SIDE, 3)
    assert cli.main(["views", "chair.png", *few, "--views", "4"]) == 2
    assert "places of its own" in capsys.readouterr().err


_open = zero123plus.open


def test_it_is_no_critic(folder):
    with pytest.raises(ValueError, match="judges none"):
        open_critic(folder)


@pytest.mark.parametrize("ramp", [[0.0, 1.0], ["a"] * 11, 3])
def test_a_ramp_that_does_not_fit_is_told(tmp_path, ramp):
    write_folder(tmp_path, "zero123plus")
    (tmp_path / "model_index.json").write_text(json.dumps({"ramping_coefficients": ramp}))
    with pytest.raises(ValueError, match="ramping_coefficients"):
        zero123plus.open(tmp_path, side=SIDE)
