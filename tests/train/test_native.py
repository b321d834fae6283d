"""The native generator's training at toy size."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import weights
from jax3d.data import props
from jax3d.models import props_native
from jax3d.nn.props_flow import FlowConfig
from jax3d.train import native

TINY = native.NativeTraining(
    network=FlowConfig(width=8, hidden=16, blocks=1, embedding=8, frequencies=2),
    shapes=native.ShapesConfig(each=1, seed=5, survey=1),
    fit=1,
    components=6,
    steps=4,
    batch=16,
    warmup=1,
    save_every=2,
)


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """A world of twelve shapes, whose grids take a twelfth of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "SHAPES", native.SHAPES[::7])
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its checkpoint halfway, and what it told."""
    folder, told = tmp_path_factory.mktemp("run"), []

    def report(text):
        told.append(text)
        if text.startswith("step 4 "):
            # A step is told before it is saved: now the disk still holds the one before.
            shutil.copy(folder / "checkpoint.safetensors", folder / "halfway.safetensors")

    path = native.train(TINY, folder, report)
    return folder, path, told


def test_training_goes_on_from_its_checkpoint(run, tmp_path):
    folder, _, told = run
    assert any(text.startswith("shapes: 0 of 12") for text in told)
    again, retold = tmp_path / "again", []
    shutil.copytree(folder, again)
    shutil.copy(folder / "halfway.safetensors", again / "checkpoint.safetensors")
    native.train(TINY, again, retold.append)
    assert retold[0] == "going on from step 2"
    for name in ("checkpoint", "native", "codec"):
        one, other = (where / f"{name}.safetensors" for where in (folder, again))
        assert one.read_bytes() == other.read_bytes()


def test_it_ships_the_running_mean(run):
    folder, path, _ = run
    init, _ = native.make(TINY)
    state = weights.load_tree(folder / "checkpoint.safetensors", jax.eval_shape(init))
    shipped = props_native.load(path)
    np.testing.assert_allclose(shipped["words"], state.ema["words"], rtol=1e-3)
    model = props_native.open_model(path)
    assert model.params["codec"].basis.shape[0] == TINY.components


def test_a_folder_with_other_shapes_is_refused(run):
    other = dataclasses.replace(TINY, shapes=dataclasses.replace(TINY.shapes, seed=6))
    with pytest.raises(ValueError, match="choose another folder"):
        native.train(other, run[0], lambda text: None)


def test_a_folder_with_another_codec_is_refused(run):
    other = dataclasses.replace(TINY, components=5)
    with pytest.raises(weights.WeightsError, match=r"codec\.safetensors"):
        native.train(other, run[0], lambda text: None)


def test_training_starts_from_given_weights(run, tmp_path):
    folder, path, _ = run
    for name in ("shapes.npy", "cells.npy", "shapes.json", "codec.safetensors"):
        shutil.copy(folder / name, tmp_path)
    still = dataclasses.replace(TINY, start_from=path, steps=1, lr=0.0, decay=0.0, seed=3)
    made = native.train(still, tmp_path, lambda text: None)
    assert made.read_bytes() == path.read_bytes()


def test_weights_of_another_codec_are_no_start(run, tmp_path):
    folder, path, _ = run
    for name in ("shapes.npy", "cells.npy", "shapes.json"):
        shutil.copy(folder / name, tmp_path)
    other = dataclasses.replace(TINY, start_from=path, label_weight=0.9)
    with pytest.raises(ValueError, match="another codec"):
        native.train(other, tmp_path, lambda text: None)


def test_no_held_out_combination_is_ever_told():
    world = native.told()
    for (name, attribute), allowed in zip(native.SHAPES, world.allowed, strict=True):
        for color, may in zip(props.COLORS, allowed, strict=True):
            assert bool(may) == (not props.is_held_out(props.Spec(name, color, attribute)))
    # A batch draws by these odds: one that is forbidden never comes.
    shape = jnp.repeat(jnp.arange(len(native.SHAPES)), 200)
    odds = jnp.log(jnp.asarray(world.allowed)[shape])
    drawn = np.asarray(jax.random.categorical(jax.random.key(0), odds))
    assert world.allowed[np.asarray(shape), drawn].all()


def test_captions_name_their_shape_and_colour():
    world, words = native.told(), props.vocabulary()
    for s, (name, attribute) in enumerate(native.SHAPES):
        for c, color in enumerate(props.COLORS):
            said = [{words[i - 1] for i in row if i} for row in world.ids[s, c]]
            full = {name, color} | ({attribute} if attribute else set())
            assert said == [full] * 4 + [full - {color}]


def test_a_step_lowers_the_loss():
    config = dataclasses.replace(TINY, steps=60, lr=1e-2, batch=64, decay=0.0)
    init, step = native.make(config)
    latents = jax.random.normal(jax.random.key(0), (len(native.SHAPES), config.components))
    spread = jnp.ones(config.components + 9)
    state, losses = init(), []
    step = jax.jit(step)
    for _ in range(config.steps):
        state, value = step(state, latents, spread)
        losses.append(float(value))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
