"""Our networks against the official implementations, on the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import NETWORKS, tensors, vectors, write_network

from jax3d import weights
from jax3d.nn import clip_text, unet, vae
from jax3d.priors import ldm

TOLERANCE = 2e-5


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def assert_close(ours, theirs):
    """Compares with channels first; values are O(1)."""
    ours = np.moveaxis(np.asarray(ours), -1, 1) if theirs.ndim == 4 else ours
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def run_unet(folder, io, added=None):
    net, params = unet.load(folder)

    @jax.jit
    def apply(params, x, t, context, added):
        return net.apply({"params": params}, x, t, context, None, added, capture_intermediates=True)

    out, aside = apply(
        params,
        nhwc(io["in_sample"]),
        jnp.asarray(io["in_timestep"]),
        io["in_encoder_hidden_states"],
        added,
    )
    return out, aside["intermediates"]


def test_sd15_unet_and_its_insides(tmp_path):
    io = vectors("sd15/unet_io")
    out, inside = run_unet(write_network(tmp_path, "sd15", "unet"), io)
    assert_close(out, io["out"])
    assert_close(inside["mid_block"]["__call__"][0], io["mid_mid"])
    assert_close(inside["down_blocks_0"]["__call__"][0][0], io["mid_down0"])
    assert_close(inside["down_blocks_0"]["attentions_0"]["__call__"][0], io["mid_attn0_out"])
    assert_close(inside["up_blocks_0"]["__call__"][0], io["mid_up0"])


@pytest.mark.slow
def test_sizes_that_do_not_halve(tmp_path):
    io = vectors("sd15/unet_odd_io")
    assert_close(run_unet(write_network(tmp_path, "sd15", "unet"), io)[0], io["out"])


@pytest.mark.slow
def test_sd21_unet(tmp_path):
    io = vectors("sd21/unet_io")
    assert_close(run_unet(write_network(tmp_path, "sd21", "unet"), io)[0], io["out"])


def test_sdxl_unet_with_its_added_conditions(tmp_path):
    io = vectors("sdxl/unet_io")
    added = unet.AddedConditions(io["in_added_text_embeds"], io["in_added_time_ids"])
    assert_close(run_unet(write_network(tmp_path, "sdxl", "unet"), io, added)[0], io["out"])


def test_downsampling_without_padding_is_padded_right_and_below(tmp_path):
    io = vectors("sd15/unet_io")
    net, params = unet.load(write_network(tmp_path, "sd15", "unet"))
    net = unet.from_config(NETWORKS["sd15"]["unet"]["config"] | {"downsample_padding": 0})
    x, t = nhwc(io["in_sample"])[:1, :4, :4], jnp.array([300])
    run = jax.jit(partial(net.apply, capture_intermediates=True))
    _, aside = run({"params": params}, x, t, io["in_encoder_hidden_states"][:1])
    block = aside["intermediates"]["down_blocks_0"]
    before, after = block["attentions_1"]["__call__"][0], block["downsamplers_0"]["__call__"][0]
    conv = params["down_blocks_0"]["downsamplers_0"]["conv"]
    corner = jnp.einsum("bhwc,hwcd->bd", before[:, 2:, 2:], conv["kernel"][:2, :2]) + conv["bias"]
    np.testing.assert_allclose(after[:, 1, 1], corner, atol=1e-5)


def test_pixel_unet_of_deepfloyds_blocks(tmp_path):
    io = vectors("deepfloyd/unet_io")
    assert_close(run_unet(write_network(tmp_path, "deepfloyd", "unet"), io)[0], io["out"])


@pytest.fixture(scope="module")
def mvdream():
    config = NETWORKS["mvdream"]["unet"]["config"]
    net = unet.from_config(ldm.unet_config(config))
    renamed = ldm.unet_names(tensors("mvdream", "unet"), config["num_res_blocks"])
    return net, weights.to_flax(renamed, unet.abstract_params(net))


@pytest.mark.parametrize(
    ("views", "told", "expected"),
    [
        (4, True, "out"),
        pytest.param(1, True, "out_num_frames1", marks=pytest.mark.slow),
        pytest.param(4, False, "out_no_camera", marks=pytest.mark.slow),
    ],
)
def test_mvdream_unet(mvdream, views, told, expected):
    net, params = mvdream
    io = vectors("mvdream/unet_io")
    out = jax.jit(net.clone(views=views).apply)(
        {"params": params},
        nhwc(io["in_x"]),
        io["in_timesteps"],
        io["in_context"],
        io["in_camera"] if told else None,
    )
    assert_close(out, io[expected])


def test_autoencoder(tmp_path):
    io = vectors("sd15/vae_io")
    coder, params = vae.load(write_network(tmp_path, "sd15", "vae"))
    moments = jax.jit(lambda p, x: coder.apply({"params": p}, x, method="encode"))(
        params, nhwc(io["in_image"])
    )
    assert_close(moments.mean, io["mean"])
    assert_close(moments.logvar, io["logvar"])
    decoded = jax.jit(lambda p, z: coder.apply({"params": p}, z, method="decode"))(
        params, nhwc(io["in_latents"])
    )
    assert_close(decoded, io["decoded"])


def test_the_autoencoders_last_activation_is_silu_whatever_the_others_are(tmp_path):
    io = vectors("sd15/vae_io")
    coder, params = vae.load(write_network(tmp_path, "sd15", "vae"))

    def still(path, leaf):
        return 0 * leaf if "conv2" in jax.tree_util.keystr(path) else leaf

    # Without their second convolutions the residual layers' activations have no effect.
    params = jax.tree.map_with_path(still, params)
    z = nhwc(io["in_latents"])[:1, :4, :4]
    images = [
        jax.jit(partial(coder.clone(act_fn=act).apply, method="decode"))({"params": params}, z)
        for act in ("silu", "relu")
    ]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("system", "part"),
    [("sd15", "text_encoder"), ("sd21", "text_encoder"), ("sdxl", "text_encoder_2")],
)
def test_text_towers(tmp_path, system, part):
    io = vectors(f"{system}/{part}_io")
    tower, params = clip_text.load(write_network(tmp_path, system, part))
    out = jax.jit(tower.apply)({"params": params}, jnp.asarray(io["in_input_ids"]))
    assert_close(out.last_hidden_state, io["last_hidden_state"])
    assert_close(out.hidden_states[-2], io["hidden_minus2"])
    if part == "text_encoder_2":
        assert_close(out.text_embeds, io["text_embeds"])
    else:
        assert_close(out.pooled, io["pooler_output"])


@pytest.mark.parametrize(
    "system",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("sd15", "sdxl", "mvdream")] + ["sd21"],
)
def test_bfloat16_keeps_the_direction_of_the_residual(tmp_path, system):
    io = vectors(f"{system}/unet_io")
    added, labels = None, None
    if system == "mvdream":
        config = NETWORKS["mvdream"]["unet"]["config"]
        net = unet.from_config(ldm.unet_config(config)).clone(views=4, dtype=jnp.bfloat16)
        renamed = ldm.unet_names(tensors("mvdream", "unet"), config["num_res_blocks"])
        params = weights.to_flax(renamed, unet.abstract_params(net))
        z, t, context = io["in_x"], io["in_timesteps"], io["in_context"]
        labels = io["in_camera"]
    else:
        net, params = unet.load(write_network(tmp_path, system, "unet"), jnp.bfloat16)
        z, t, context = io["in_sample"], io["in_timestep"], io["in_encoder_hidden_states"]
        if system == "sdxl":
            added = unet.AddedConditions(io["in_added_text_embeds"], io["in_added_time_ids"])
    assert params["conv_in"]["kernel"].dtype == jnp.bfloat16
    assert params["conv_norm_out"]["scale"].dtype == jnp.float32
    out = jax.jit(net.apply)({"params": params}, nhwc(z), jnp.asarray(t), context, labels, added)
    residual = np.moveaxis(np.asarray(out), -1, 1).ravel() - z.ravel()
    exact = io["out"].ravel() - z.ravel()
    cosine = residual @ exact / np.linalg.norm(residual) / np.linalg.norm(exact)
    assert 0.999 <= cosine < 1 - 1e-9


@pytest.mark.slow
def test_remat_changes_no_gradient(tmp_path):
    io = vectors("sd21/unet_io")
    net, params = unet.load(write_network(tmp_path, "sd21", "unet"))
    x, t = nhwc(io["in_sample"])[:1, :4, :4], jnp.array([300])
    context = jnp.asarray(io["in_encoder_hidden_states"][:1])

    def gradient(net):
        def loss(scale):
            tree = params | {"conv_in": jax.tree.map(lambda w: scale * w, params["conv_in"])}
            return jnp.sum(net.apply({"params": tree}, x, t, context) ** 2)

        return jax.jit(jax.grad(loss))(1.0)

    np.testing.assert_allclose(gradient(net), gradient(net.clone(remat=True)), rtol=1e-5)
