"""Checkpoint names: full-size manifests are covered, old and original names are understood."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import MANIFESTS, NETWORKS, tensors, vectors
from flax import traverse_util

from jax3d import weights
from jax3d.nn import clip_text, unet, vae
from jax3d.priors import ldm
from jax3d.weights import WeightsError


def manifest(name):
    """The network of a manifest and stand-ins of its tensors that take no memory."""
    config, keys = dict(MANIFESTS[name]["config"]), MANIFESTS[name]["keys"]
    flat = {k: np.broadcast_to(np.float32(0), shape) for k, shape in keys.items()}
    if name.endswith("_vae"):
        return vae.abstract_params(vae.from_config(config)), vae.rename(flat)
    if name.startswith("clip"):
        config["architectures"] = [
            "CLIPTextModelWithProjection" if "proj" in name else "CLIPTextModel"
        ]
        return clip_text.abstract_params(clip_text.from_config(config)), clip_text.rename(flat)
    if name.startswith("mvdream"):
        flat = ldm.unet_names(flat, config["num_res_blocks"])
        config = ldm.unet_config(config)
    return unet.abstract_params(unet.from_config(config)), flat


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_checkpoints_are_covered(name):
    like, flat = manifest(name)
    views = weights.demand_fit(flat, like)
    ours = sum(np.prod(x.shape) for x in views.values())
    assert ours == sum(np.prod(shape) for shape in MANIFESTS[name]["keys"].values())
    lost = sorted(flat)[3]
    with pytest.raises(WeightsError, match="1 missing"):
        weights.demand_fit({k: v for k, v in flat.items() if k != lost}, like)
    with pytest.raises(WeightsError, match="1 surplus: stray"):
        weights.demand_fit(flat | {"stray": flat[lost]}, like)


@pytest.mark.parametrize("conv_shaped", [False, True])
def test_old_autoencoder_attention_names(conv_shaped):
    flat = tensors("sd15", "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    aged = {}
    for name, tensor in flat.items():
        match = re.search(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", name)
        if match and conv_shaped and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        aged[name.replace(match[0], old[match[0]]) if match else name] = tensor
    assert sum(".query." in name for name in aged) == 4
    like = vae.abstract_params(vae.from_config(NETWORKS["sd15"]["vae"]["config"]))
    assert_same_tree(weights.to_flax(vae.rename(aged), like), weights.to_flax(flat, like))


def assert_same_tree(a, b):
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def ldm_vae(flat, levels):
    """diffusers' autoencoder names turned into the original ones, written independently."""

    def back(name):
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1.", name)
        name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d)\.resnets\.(\d)",
            lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}",
            name,
        )
        return re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"up.{levels - 1 - int(m[1])}.upsample",
            name,
        )

    return {back(name): tensor for name, tensor in flat.items()}


def test_original_autoencoder_names():
    flat = tensors("sd15", "vae")
    config = NETWORKS["sd15"]["vae"]["config"]
    original = ldm_vae(flat, 3)
    assert "decoder.up.0.block.0.nin_shortcut.weight" in original
    assert "encoder.mid.attn_1.q.weight" in original
    assert ldm.vae_names(original, 3).keys() == flat.keys()
    inferred = ldm.infer_vae_config(original)
    assert {k: config[k] for k in inferred} == inferred


def test_original_multi_view_configuration_follows_from_shapes():
    config = {k: v for k, v in MANIFESTS["mvdream_unet"]["config"].items()}
    keys = MANIFESTS["mvdream_unet"]["keys"]
    flat = {k: np.broadcast_to(np.float32(0), shape) for k, shape in keys.items()}
    inferred = ldm.infer_unet_config(flat)
    assert sorted(inferred.pop("attention_resolutions")) == sorted(
        config.pop("attention_resolutions")
    )
    assert inferred == config


def test_openclip_tower_computes_as_the_renamed_one():
    flat = tensors("sd21", "text_encoder")
    config = NETWORKS["sd21"]["text_encoder"]["config"] | {"num_hidden_layers": 2}
    original = {
        "positional_embedding": flat["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": flat["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": flat["text_model.final_layer_norm.weight"],
        "ln_final.bias": flat["text_model.final_layer_norm.bias"],
        "text_projection": np.zeros((32, 32), np.float16),
        "logit_scale": np.zeros((), np.float16),
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    inside |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for i in range(3):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            qkv = [flat[f"{ours}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            original[f"{theirs}.attn.in_proj_{leaf}"] = np.concatenate(qkv)
            for new, old in inside.items():
                original[f"{theirs}.{old}.{leaf}"] = flat[f"{ours}.{new}.{leaf}"]
    tower = clip_text.from_config(config)
    params = weights.to_flax(ldm.openclip_names(original, 2), clip_text.abstract_params(tower))
    io = vectors("sd21/text_encoder_io")
    out = tower.apply({"params": params}, jnp.asarray(io["in_input_ids"]))
    # The third layer is left out, so the last state is the golden tower's last but one.
    np.testing.assert_allclose(out.hidden_states[-1], io["hidden_minus2"], atol=2e-5)


def test_flax_names_of_diffusers_are_ours():
    # Names of a FlaxUNet2DConditionModel checkpoint, as diffusers 0.39 writes them.
    like = unet.abstract_params(unet.from_config(NETWORKS["sd15"]["unet"]["config"]))
    names = traverse_util.flatten_dict(like, sep="/")
    block = "down_blocks_0/attentions_0/transformer_blocks_0"
    for name in (
        f"{block}/attn1/to_out_0/kernel",
        f"{block}/ff/net_0/proj/kernel",
        f"{block}/ff/net_2/bias",
        f"{block}/norm3/scale",
        "down_blocks_0/downsamplers_0/conv/kernel",
        "up_blocks_0/resnets_1/conv_shortcut/kernel",
        "mid_block/attentions_0/proj_in/kernel",
        "time_embedding/linear_1/kernel",
    ):
        assert name in names
    flat = {name.replace("/", "."): np.zeros(x.shape, x.dtype) for name, x in names.items()}
    assert_same_tree(weights.to_flax(flat, like), jax.tree.map(jnp.zeros_like, like))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
    ],
)
def test_what_a_unet_config_may_not_ask(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        unet.from_config(NETWORKS["sd15"]["unet"]["config"] | change)


def test_what_the_other_configs_may_not_ask():
    with pytest.raises(ValueError, match="VQModel"):
        vae.from_config({"_class_name": "VQModel"})
    with pytest.raises(ValueError, match="latents_mean"):
        vae.from_config({"latents_mean": [0.1]})
    with pytest.raises(ValueError, match="T5EncoderModel"):
        clip_text.from_config({"architectures": ["T5EncoderModel"]})
    with pytest.raises(ValueError, match="relu"):
        clip_text.from_config({"hidden_act": "relu"})
