"""The reconstructor's training at toy size."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import EYE

from jax3d import weights
from jax3d.data import props
from jax3d.models import props_latents, props_lrm, props_native
from jax3d.train import lrm

TINY = lrm.LrmTraining(
    encoder=dataclasses.replace(EYE, out=256),
    bank=lrm.PicturesConfig(each=1, pictures=2, size=72),
    steps=4,
    batch=6,
    noises=2,
    warmup=1,
    save_every=2,
)


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """A world of six shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lrm, "SHAPES", lrm.SHAPES[::14])
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run and its checkpoint halfway."""
    folder = tmp_path_factory.mktemp("run")

    def report(text):
        if text.startswith("step 4 "):
            # A step is told before it is saved: now the disk still holds the one before.
            shutil.copy(folder / "checkpoint.safetensors", folder / "halfway.safetensors")

    return folder, lrm.train(TINY, folder, report)


def bank(folder):
    codec = props_native.load()["codec"]
    return lrm.open_bank(folder, TINY.bank, codec, lambda text: pytest.fail("made again"))


def test_training_goes_on_from_its_checkpoint(run, tmp_path):
    folder, _ = run
    again, told = tmp_path / "again", []
    shutil.copytree(folder, again)
    shutil.copy(folder / "halfway.safetensors", again / "checkpoint.safetensors")
    lrm.train(TINY, again, told.append)
    assert told[0] == "going on from step 2"
    for name in ("checkpoint", "lrm"):
        one, other = (where / f"{name}.safetensors" for where in (folder, again))
        assert one.read_bytes() == other.read_bytes()


def test_it_ships_the_running_mean_which_opens(run):
    _, path = run
    model = props_lrm.open_model(path, 2)
    given = props_native.load()
    # Four steps from the native generator's weights are near them, and elsewhere.
    moved = np.abs(model.params["words"] - given["words"]).max()
    assert 0 < moved < 0.01


def test_a_picture_shows_the_object_of_its_latent(run):
    """What is drawn and what is encoded are one object, in a colour that is not held out."""
    found = bank(run[0])
    assert len(found.pictures) == 2 * len(found.latents)
    codec = props_native.load()["codec"]
    for n, (picture, k) in enumerate(zip(found.pictures, found.spec, strict=True)):
        spec = props.specs()[k]
        assert (spec.name, spec.attribute) == lrm.SHAPES[n % len(lrm.SHAPES)]
        assert not props.is_held_out(spec)
        covered = picture[..., 3] > 128
        assert 0.02 < covered.mean() < 0.9
    paints = props_latents.paint_latents(lrm.prop_fields.paints("red"))
    z = jnp.concatenate([found.latents[0], paints])
    # The decoded object has the size that its pictures show, whose cameras see a ball of 0.95 m.
    grid = jax.jit(props_latents.decode)(codec, z)["sdf"]
    assert np.any(grid < 0)


def test_boxes_hold_the_object(run):
    found = bank(run[0])
    for picture, (row, column, side) in zip(found.pictures, found.boxes, strict=True):
        rows, columns = np.nonzero(picture[..., 3] > 25)
        assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(row)
        assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(column)
        assert side == max(np.ptp(rows), np.ptp(columns)) + 1


def test_the_encoder_sees_framed_pictures_with_and_without_a_matte(run):
    found = bank(run[0])
    for unmatted in (0.0, 1.0):
        pictures, boxes = map(jnp.asarray, (found.pictures, found.boxes))
        seen = lrm.look(jax.random.key(0), pictures, boxes, unmatted)
        assert seen.shape == (len(found.pictures), props_lrm.SIZE, props_lrm.SIZE, 4)
        alpha = np.asarray(seen[..., 3])
        assert np.all(alpha == 1) == (unmatted == 1.0)
        assert seen.min() > -0.05
        assert seen.max() < 1.05
        if not unmatted:
            rows = [np.flatnonzero((a > 0.5).any(1)) for a in alpha]
            columns = [np.flatnonzero((a > 0.5).any(0)) for a in alpha]
            sides = [max(np.ptp(r), np.ptp(c)) + 1 for r, c in zip(rows, columns, strict=True)]
            assert np.all(np.abs(np.array(sides) / props_lrm.SIZE - props_lrm.RATIO) < 0.1)


def test_a_batch_is_a_function_of_its_step(run):
    found = bank(run[0])
    one, again, other = (lrm.draw_batch(found, TINY, k) for k in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(one, other, strict=True))
    assert one.latents.shape == (6, found.latents.shape[1] + 9)


def test_a_folder_of_another_bank_is_refused(run):
    other = dataclasses.replace(TINY, bank=dataclasses.replace(TINY.bank, seed=1))
    with pytest.raises(ValueError, match="choose another folder"):
        lrm.train(other, run[0], lambda text: None)


@pytest.mark.slow
def test_steps_lower_the_loss(run):
    found = bank(run[0])
    given = props_native.load()
    config = dataclasses.replace(TINY, steps=24, lr=3e-3, decay=0.0, drop_text=1.0, noises=4)
    init, step = lrm.make(config, given["codec"])
    # A flow that knows nothing: the given one leaves too little to learn in so few steps.
    network = props_native.read_config(props_native.WEIGHTS)[0]
    fresh = props_native.init(jax.random.key(1), network, given["codec"].basis.shape[0])
    state, losses = init(fresh), []
    step = jax.jit(step)
    for k in range(24):
        state, value = step(state, lrm.draw_batch(found, config, k % 4))
        losses.append(float(value))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_config_writes_what_its_description_says(run):
    encoder, flow, codec = props_lrm.read_config(run[1])
    assert encoder == TINY.encoder
    assert flow == props_native.read_config(props_native.WEIGHTS)[0]
    assert codec == weights.digest(props_native.load()["codec"])
