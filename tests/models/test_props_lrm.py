"""The embedded reconstructor and its picture encoder: framing, sampling, files."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import write_lrm, write_native
from toys import knobs, stack

from jax3d import weights
from jax3d.models import props_lrm, props_native
from jax3d.models.open import open_model
from jax3d.models.props_lrm import RATIO, SIZE
from jax3d.models.props_native import spreads
from jax3d.types import Prompt

STEPS = 4


@pytest.fixture(scope="module")
def codec():
    return props_native.load()["codec"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_lrm(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def model(saved):
    return props_lrm.open_model(saved, STEPS)


def block(size=(90, 60), box=(20, 50, 10, 30), color=(0.8, 0.1, 0.1)):
    """A rectangle before transparency."""
    rgba = np.zeros((*size, 4), np.float32)
    rgba[box[0] : box[1], box[2] : box[3]] = (*color, 1.0)
    return rgba


def extent(seen):
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_a_picture_is_framed_by_its_object():
    seen = props_lrm.prepare(block())
    assert seen.shape == (SIZE, SIZE, 4)
    top, bottom, left, right = extent(seen[..., 3] > 0.5)
    assert bottom - top == pytest.approx(RATIO * SIZE, abs=2)
    assert (bottom - top) / (right - left) == pytest.approx(30 / 20, rel=0.1)
    assert (top + bottom) / 2 == pytest.approx(SIZE / 2, abs=1)
    assert (left + right) / 2 == pytest.approx(SIZE / 2, abs=1)
    np.testing.assert_allclose(seen[SIZE // 2, SIZE // 2], [0.8, 0.1, 0.1, 1.0], atol=0.02)
    np.testing.assert_allclose(seen[0, 0], [1, 1, 1, 0], atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.0])
def test_size_and_place_of_the_object_do_not_matter(scale):
    size = tuple(int(scale * s) for s in (90, 60))
    box = tuple(int(scale * s) for s in (50, 80, 35, 55))
    near = props_lrm.prepare(block(size, box))
    assert np.mean(np.abs(near - props_lrm.prepare(block()))) < 0.03


def test_without_transparency_a_plain_ground_is_cut_away():
    rgba = block()
    over_white = rgba[..., :3] + 1.0 - rgba[..., 3:]
    assert np.mean(np.abs(props_lrm.prepare(over_white) - props_lrm.prepare(rgba))) < 0.02


def test_the_box_of_an_empty_picture_is_the_whole():
    np.testing.assert_array_equal(props_lrm.box(jnp.zeros((8, 8), bool)), [4, 4, 8])


def test_what_it_is_asked_must_be_a_picture(model):
    with pytest.raises(ValueError, match="makes assets from pictures"):
        model.condition(Prompt("a red chair"))
    with pytest.raises(ValueError, match=re.escape("no word 'chiar'")):
        model.condition(Prompt("a red chiar", image=block()))
    with pytest.raises(ValueError, match="transparent"):
        model.condition(Prompt("", image=np.zeros((8, 8, 4), np.float32)))


def sample(model, asked, knobs, first=0, latent=None):
    latent = model.begin(jax.random.key(knobs.seed), asked) if latent is None else latent
    take = functools.partial(model.advance, model.params)
    return jax.lax.fori_loop(first, STEPS, lambda i, z: take(z, i, asked, knobs), latent)


def test_pictures_and_words_both_matter(model):
    draw = jax.jit(functools.partial(sample, model))
    asked = [
        model.condition(Prompt(text, image=block(color=color)))
        for text, color in (
            ("", (0.8, 0.1, 0.1)),
            ("", (0.1, 0.1, 0.8)),
            ("a chair", (0.8, 0.1, 0.1)),
        )
    ]
    red, blue, chair = (draw(a, knobs(3)).z for a in asked)
    assert not np.allclose(red, blue, atol=1e-3)
    assert not np.allclose(red, chair, atol=1e-3)
    np.testing.assert_array_equal(red, draw(asked[0], knobs(3)).z)


def test_a_batch_is_each_of_them(model):
    asked = [model.condition(Prompt("", image=block(color=(c, 0.5, 0.2)))) for c in (0.1, 0.9)]
    numbers = [knobs(k, model_scale=1.0 + k) for k in range(2)]
    alone = [
        jax.jit(functools.partial(sample, model))(*each)
        for each in zip(asked, numbers, strict=True)
    ]
    many = jax.jit(jax.vmap(functools.partial(sample, model)))(stack(asked), stack(numbers))
    for k, one in enumerate(alone):
        np.testing.assert_allclose(many.z[k], one.z, rtol=1e-4, atol=1e-4)


def test_guidance_is_linear_in_its_scale(model, codec):
    asked = jax.tree.map(jnp.asarray, model.condition(Prompt("", image=block())))
    z = jax.random.normal(jax.random.key(1), spreads(codec).shape)

    advance = jax.jit(model.advance)

    def last(scale):
        latent = props_lrm.Latent(z, asked.picture)
        own = knobs(model_scale=scale)
        return advance(model.params, latent, jnp.int32(STEPS - 1), asked, own).z

    none, one, three = map(last, (0.0, 1.0, 3.0))
    np.testing.assert_allclose(three, none + 3.0 * (one - none), rtol=1e-3, atol=1e-3)


def test_it_shows_the_picture_that_it_saw(model):
    asked = model.condition(Prompt("", image=block()))
    shown = model.show(model.begin(jax.random.key(0), asked))
    np.testing.assert_array_equal(shown, asked.picture[None, ..., :3])


def test_an_asset_has_the_parameters_of_its_representation(model):
    asked = model.condition(Prompt("", image=block()))
    made = jax.eval_shape(model.decode, model.params, model.begin(jax.random.key(0), asked))
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, like)


def test_weights_of_another_codec_are_refused(saved, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(saved.read_bytes())
    described = saved.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(re.sub(r'"codec": "\w+"', '"codec": "0"', described))
    with pytest.raises(weights.WeightsError, match="another codec"):
        props_lrm.load(path)


@pytest.mark.parametrize("text", [None, "{}", "[]", '{"encoder": {"widths": 3}}'])
def test_weights_without_a_description_are_refused(saved, tmp_path, text):
    path = tmp_path / "lone.safetensors"
    path.write_bytes(saved.read_bytes())
    if text is not None:
        path.with_suffix(".json").write_text(text)
    with pytest.raises(weights.WeightsError, match=r"lone\.json.*jax3d train lrm"):
        props_lrm.load(path)


def test_open_model_tells_it_from_a_native_generator(saved, tmp_path):
    native = write_native(tmp_path / "native.safetensors")
    assert open_model(saved).name == props_lrm.NAME
    assert open_model(native).name == props_native.NAME
    (tmp_path / "native.json").unlink()
    with pytest.raises(ValueError, match="no model that is known"):
        open_model(native)


def test_its_config_opens_it(saved):
    config = props_lrm.LrmConfig(steps=STEPS, weights=str(saved))
    assert config.build(None).steps == STEPS
    assert dataclasses.replace(config, steps=7).build(None).steps == 7
