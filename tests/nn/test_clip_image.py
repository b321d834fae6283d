"""CLIP's encoder of pictures: against the official code, and what it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shap_e_folders as folders
from PIL import Image

from jax3d.nn import clip_image
from jax3d.weights import WeightsError


def test_the_tower_is_the_official_code(tmp_path):
    io = folders.vectors()
    tower, params = clip_image.load(folders.write_part(tmp_path, "image_encoder"))
    pixels = jnp.asarray(np.moveaxis(io["in_clip_pixels"], 1, -1))
    out = jax.jit(tower.apply)({"params": params}, pixels)
    np.testing.assert_allclose(out.image_embeds, io["clip_image_embeds"], atol=2e-5)
    np.testing.assert_allclose(out.last_hidden_state, io["clip_last_hidden"], atol=2e-5)
    np.testing.assert_allclose(out.hidden_states[-2], io["clip_hidden_minus2"], atol=2e-5)


def test_without_the_projection(tmp_path):
    config = {"architectures": ["CLIPVisionModel"]}
    missing = {"visual_projection.weight": None}
    tower, params = clip_image.load(
        folders.write_part(tmp_path, "image_encoder", config, **missing)
    )
    assert "visual_projection" not in params
    x = jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.float32)
    out = jax.eval_shape(tower.apply, {"params": params}, x)
    assert out.image_embeds is None
    assert out.pooled.shape == (2, 32)


def test_pictures_of_another_size_are_told(tmp_path):
    tower, params = clip_image.load(folders.write_part(tmp_path, "image_encoder"))
    with pytest.raises(ValueError, match="32 x 32 pixels; the encoder reads 28 x 28"):
        tower.apply({"params": params}, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ViTModel"]}, "of a 'ViTModel', not of a CLIPVisionModel"),
        ({"hidden_act": "tanh"}, "hidden_act = 'tanh' is not supported"),
        ({"num_channels": 4}, "num_channels = 4"),
        ({"num_hidden_layers": 129}, "129 layers"),
        ({"image_size": 1 << 20}, "pictures of 1048576 pixels"),
        ({"patch_size": 0}, "patches of 0"),
        ({"image_size": 35}, "misshapen"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000"),
    ],
)
def test_lying_configs(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as caught:
        clip_image.load(folders.write_part(tmp_path, "image_encoder", changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (9, 9), (12, 40)])
def test_pictures_are_resized_as_pillow_does_and_cut(shape):
    side, image = 12, np.random.default_rng(0).random((*shape, 3), np.float32)
    short = min(shape)
    height, width = (int(side * n / short) for n in shape)
    whole = np.stack(
        [
            np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC))
            for c in np.moveaxis(image, -1, 0)
        ],
        -1,
    )
    top, left = (height - side) // 2, (width - side) // 2
    want = np.clip(whole[top : top + side, left : left + side], 0.0, 1.0)
    np.testing.assert_allclose(clip_image.picture(image, side), want, atol=1e-5)


def test_colours_are_normalised_channel_by_channel():
    both = [clip_image.MEAN, np.add(clip_image.MEAN, clip_image.STD)]
    one = clip_image.normalise(jnp.array([both], jnp.float32))
    np.testing.assert_allclose(one, [[[0, 0, 0], [1, 1, 1]]], atol=1e-6)
