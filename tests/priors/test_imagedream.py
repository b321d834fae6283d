"""ImageDream against its authors' code on the same weights, and how it is told a picture."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, NETWORKS, tensors, write_folder

from jax3d.camera import orbit
from jax3d.priors import imagedream, sampling
from jax3d.priors.open import open_critic
from jax3d.types import Cond, Prompt

SIDE = 32
AROUND = orbit(jnp.arange(4) * jnp.pi / 2, 0.2, 2.0, 0.8)


@pytest.fixture(scope="module")
def io():
    with np.load(GOLDEN / "imagedream.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def networks():
    config = NETWORKS["imagedream"]["unet"]["config"]
    return imagedream.networks(tensors("imagedream", "unet"), config, "the vectors")


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagedream")
    return open_critic(write_folder(folder, "imagedream_folder"))


@pytest.fixture(scope="module")
def picture():
    rgba = np.zeros((40, 30, 4), np.float32)
    rgba[5:30, 4:20] = [0.8, 0.3, 0.1, 1.0]
    return rgba


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def test_the_picture_is_one_view_more(networks, io):
    """The authors overwrite the fifth of each group; we put it there."""
    net, params, reader, reader_params = networks
    tokens = jax.jit(reader.apply)({"params": reader_params}, io["in_ip"])
    read = io["mid_image_embed"].reshape(2, 5, *tokens.shape[1:])[:, 0]
    np.testing.assert_allclose(tokens, read, atol=2e-4)
    views = lambda x: x.reshape(2, 5, *x.shape[1:])[:, :4].reshape(8, *x.shape[1:])  # noqa: E731
    text = views(io["in_context"])
    each = lambda x: jnp.repeat(jnp.asarray(x), 4, axis=0)  # noqa: E731
    told = Cond(jnp.concatenate([text, each(tokens)], axis=1), image=each(nhwc(io["in_ip_img"])))
    poses = views(io["in_camera"]).reshape(8, 4, 4)
    camera = jax.tree.map(lambda x: jnp.tile(x, (2, *[1] * (x.ndim - 1))), AROUND)
    camera = camera.replace(c2w=jnp.asarray(poses))
    network = imagedream.picture_network(net, pixel=True)
    z, t = views(np.moveaxis(io["in_x"], 1, -1)), views(io["in_timesteps"])
    # Its positions are at distance 1 already, where ours are brought.
    distance = np.linalg.norm(poses[:, :3, 3], axis=-1)
    out = jax.jit(network)(params, jnp.asarray(z), jnp.asarray(t), told, camera)
    theirs = views(np.moveaxis(io["out"], 1, -1))
    if np.allclose(distance, 1):
        np.testing.assert_allclose(out, theirs, atol=2e-4)
    else:
        pytest.fail(f"the vectors' cameras stand at {distance}")


def test_a_text_and_a_picture_are_told_together(critic, picture):
    cond = critic.condition(Prompt("a chair", image=picture))
    text = 11
    assert cond.plain.tokens.shape == (text + 5, 24)
    assert np.any(cond.plain.tokens[text:] != cond.null.tokens[text:])
    assert not np.any(cond.null.image)
    assert np.any(cond.plain.image)
    other = critic.condition(Prompt("a cat", image=picture))
    np.testing.assert_array_equal(other.plain.tokens[text:], cond.plain.tokens[text:])
    assert np.any(other.plain.tokens[:text] != cond.plain.tokens[:text])
    with pytest.raises(ValueError, match="say what to make"):
        critic.condition(Prompt("", image=picture))
    with pytest.raises(ValueError, match="give it one"):
        critic.condition(Prompt("a chair"))


def test_it_draws_four_views_of_a_picture(critic, picture):
    draw = sampling.sampler(critic, "camera", 3.0, 2, "ddim")
    views = draw(jax.random.key(0), Prompt("a chair", image=picture), AROUND)
    assert views.shape == (4, SIDE, SIDE, 3)
    assert np.isfinite(views).all()
    assert critic.prior.views == 4


def test_a_path_tells_the_local_mode(critic, tmp_path):
    folder = write_folder(tmp_path / "imagedream-ipmv-local-diffusers", "imagedream_folder")
    other = open_critic(folder)
    assert "pixel mode" in critic.name
    assert "local mode" in other.name
    assert other.digest != critic.digest


def test_another_image_encoder_is_told(tmp_path):
    write_folder(tmp_path, "imagedream_folder")
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_dim": 48}))
    with pytest.raises(ValueError, match=r"does not fit"):
        open_critic(tmp_path)
