"""Image encoders beside the golden vectors of `models/test_lrm.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import resample
from jax3d.nn import dino
from jax3d.nn.dino import Dino, DinoConfig
from jax3d.weights import WeightsError

SMALL = DinoConfig(
    patch_size=2,
    grid=3,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    registers=2,
)


@pytest.fixture(scope="module")
def encoder():
    net = Dino(SMALL)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))["params"]
    return net, params


def test_tokens_are_class_registers_and_patches(encoder):
    net, params = encoder
    images = jax.random.uniform(jax.random.key(1), (2, 4, 6, 3))
    run = jax.jit(lambda p, x: net.apply({"params": p}, x))
    tokens = run(params, images)
    assert tokens.shape == (2, 1 + 2 + 2 * 3, 8)
    # Patches without positions are a set: another order moves their tokens alone.
    table = params["embeddings"]["position_embeddings"]
    lost = {**params, "embeddings": {**params["embeddings"], "position_embeddings": 0 * table}}
    swapped = images.reshape(2, 2, 2, 6, 3)[:, ::-1].reshape(images.shape)
    plain, moved = run(lost, images), run(lost, swapped)
    np.testing.assert_allclose(moved[:, :3], plain[:, :3], atol=1e-5)
    np.testing.assert_allclose(moved[:, 3:6], plain[:, 6:], atol=1e-5)
    assert jnp.abs(run(params, swapped)[:, :3] - tokens[:, :3]).max() > 1e-4


def test_sides_must_be_multiples_of_the_patch(encoder):
    net, params = encoder
    with pytest.raises(ValueError, match="6 x 5 pixels; sides must be multiples of 2"):
        net.apply({"params": params}, jnp.zeros((1, 5, 6, 3)))


def test_positions_of_the_trained_size_are_the_table():
    table = jax.random.normal(jax.random.key(0), (10, 4))
    for antialias in (False, True):
        np.testing.assert_array_equal(dino.positions(table, 3, 3, antialias), table)


def test_positions_of_another_size():
    table = jnp.zeros((17, 1)).at[1:, 0].set(jnp.tile(jnp.arange(4.0), 4)).at[0].set(7.0)
    found = dino.positions(table, 2, 8, True).reshape(-1)
    assert found[0] == 7.0
    rows = found[1:].reshape(2, 8)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    # Columns alone vary: between samples 1 and 2, a quarter and three quarters of the way.
    np.testing.assert_allclose(rows[0, 3:5], [1.25, 1.75], atol=1e-6)
    # Without antialiasing the square is read as if it were 0.1 patches larger.
    larger = resample.bicubic(4, (np.arange(8) + 0.5) * (4 / 8.1) - 0.5) @ np.arange(4.0)
    first = dino.positions(table, 2, 8, False)[1:].reshape(2, 8)[0]
    np.testing.assert_allclose(first, larger, atol=1e-6)
    assert np.abs(first - rows[0]).max() > 0.02


def test_layer_scale_of_zero_is_no_layer():
    net = Dino(DinoConfig(**{**vars(SMALL), "layer_scale": True}))
    x = jax.random.uniform(jax.random.key(1), (1, 4, 4, 3))
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    block = params["blocks_0"]
    still = {k: {"gamma": 0 * block[k]["gamma"]} for k in ("ls1", "ls2")}
    params = {**params, "blocks_0": {**block, **still}}
    out, aside = jax.jit(lambda p, x: net.apply({"params": p}, x, capture_intermediates=True))(
        params, x
    )
    tokens = aside["intermediates"]["embeddings"]["__call__"][0]
    norm = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    np.testing.assert_allclose(out, norm, atol=1e-4)


def test_colours_are_normalised_channel_by_channel():
    one = dino.normalise(jnp.array([[dino.MEAN, np.add(dino.MEAN, dino.STD)]], jnp.float32))
    np.testing.assert_allclose(one, [[[0, 0, 0], [1, 1, 1]]], atol=1e-6)


def test_names_of_dinov2():
    qkv = np.arange(12.0).reshape(6, 2)
    found = dino.from_dinov2(
        {
            "blocks.11.attn.qkv.weight": qkv,
            "blocks.11.attn.proj.bias": np.zeros(2),
            "blocks.11.mlp.fc1.weight": np.zeros((2, 2)),
            "patch_embed.proj.weight": np.zeros((2, 3, 1, 1)),
            "mask_token": np.zeros((1, 2)),
        }
    )
    assert set(found) == {
        *(f"blocks.11.attn.to_{k}.weight" for k in "qkv"),
        "blocks.11.attn.to_out.0.bias",
        "blocks.11.fc1.weight",
        "embeddings.projection.weight",
    }
    np.testing.assert_array_equal(found["blocks.11.attn.to_v.weight"], qkv[4:])
    with pytest.raises(WeightsError, match=r"qkv\.bias of shape"):
        dino.from_dinov2({"blocks.0.attn.qkv.bias": np.zeros(4)})
