"""Opening checkpoint folders, good and bad."""

import json
import re
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import (
    NETWORKS,
    Call,
    Callable,
    tensors,
    torch_tensor,
    write_folder,
    write_network,
    write_pixels,
    write_torch,
    write_usable,
)
from safetensors.numpy import save_file

from jax3d import weights
from jax3d.nn import unet, vae
from jax3d.priors import embedded, schedulers, stable_diffusion
from jax3d.priors.open import open_critic
from jax3d.types import Prompt


def z_shape(critic):
    side = critic.prior.size
    rgb = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
    return jax.eval_shape(critic.prior.encode, critic.params, jax.random.key(0), rgb).shape


def test_stable_diffusion(tmp_path):
    critic = open_critic(str(write_usable(tmp_path, "sd15")))
    assert critic.name == f"Stable Diffusion, 64 px, eps-prediction, from {tmp_path}"
    assert critic.prior.views == 1
    assert z_shape(critic) == (4, 16, 16, 4)
    cond = critic.condition(Prompt("a cat", "in that"))
    assert cond.views.tokens.shape == (4, 16, 32)
    assert cond.plain.tokens.shape == cond.null.tokens.shape == (16, 32)
    assert not np.allclose(cond.plain.tokens, cond.null.tokens)
    # Causal towers read the same words alike whatever follows.
    np.testing.assert_allclose(cond.views.tokens[0, :4], cond.plain.tokens[:4], atol=1e-5)
    with pytest.raises(ValueError, match="prompt is empty"):
        critic.condition(Prompt(" "))


def test_v_prediction_comes_from_the_scheduler(tmp_path):
    assert "v-prediction" in open_critic(str(write_usable(tmp_path, "sd21"))).name


def test_stable_diffusion_xl_has_two_towers(tmp_path):
    critic = open_critic(str(write_usable(tmp_path, "sdxl")), jnp.bfloat16)
    assert critic.name.startswith("Stable Diffusion XL")
    assert critic.params["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16
    assert critic.params["vae"]["quant_conv"]["kernel"].dtype == jnp.float32
    cond = critic.condition(Prompt("a cat"))
    assert cond.views.tokens.shape == (4, 16, 72)
    assert cond.views.pooled.shape == (4, 20)


@pytest.fixture(scope="module")
def mvdream_folder(tmp_path_factory):
    return write_usable(tmp_path_factory.mktemp("mvdream"), "mvdream")


def test_mvdream_folders_of_both_conversions(mvdream_folder):
    critic = open_critic(str(mvdream_folder))
    assert critic.name.startswith("MVDream, 4 views of 128 px")
    assert critic.prior.views == 4
    file = mvdream_folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"unet.{k}": np.array(v) for k, v in weights.load(file).items()}, file)
    other = open_critic(str(mvdream_folder))
    assert jax.tree.all(jax.tree.map(np.array_equal, critic.params, other.params))


def test_pixel_critics_read_embeddings_from_a_file(tmp_path):
    known = write_pixels(tmp_path)
    critic = open_critic(str(tmp_path))
    assert critic.name.startswith("pixel-space critic, 16 px")
    cond = critic.condition(Prompt("a cat"))
    np.testing.assert_array_equal(cond.views.tokens[1], known["a cat, front view"])
    np.testing.assert_array_equal(cond.null.tokens, known["<empty>"])
    with pytest.raises(ValueError, match=r"lacks T5 embeddings of: 'a dog, side view'"):
        critic.condition(Prompt("a dog"))
    rgb = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    z = critic.prior.encode(critic.params, None, rgb)
    np.testing.assert_allclose(critic.prior.decode(critic.params, z), rgb, atol=1e-6)
    shape = jax.eval_shape(
        critic.prior.denoise,
        critic.params,
        z,
        jnp.array([1, 2]),
        jax.tree.map(lambda x: x[:2], cond.views),
        None,
    )
    assert shape.shape == z.shape


def original_checkpoint():
    """The three networks of an MVDream file at the least sizes that ldm's fixed numbers allow."""
    rng = np.random.default_rng(0)
    net = {}
    widths = {"block": (64, 64), "emb": 256}

    def linear(name, out, ins, *kernel, bias=True):
        net[f"{name}.weight"] = rng.standard_normal((out, ins, *kernel)).astype(np.float16) / 8
        if bias:
            net[f"{name}.bias"] = np.zeros(out, np.float16)

    def norm(name, width=64):
        net[f"{name}.weight"], net[f"{name}.bias"] = (
            np.ones(width, np.float16),
            np.zeros(width, np.float16),
        )

    def resnet(name, ins):
        norm(f"{name}.in_layers.0", ins)
        linear(f"{name}.in_layers.2", 64, ins, 3, 3)
        linear(f"{name}.emb_layers.1", 64, widths["emb"])
        norm(f"{name}.out_layers.0")
        linear(f"{name}.out_layers.3", 64, 64, 3, 3)
        if ins != 64:
            linear(f"{name}.skip_connection", 64, ins, 1, 1)

    def transformer(name):
        norm(f"{name}.norm")
        linear(f"{name}.proj_in", 64, 64)
        linear(f"{name}.proj_out", 64, 64)
        block = f"{name}.transformer_blocks.0"
        for i, context in (("1", 64), ("2", 128)):
            linear(f"{block}.attn{i}.to_q", 64, 64, bias=False)
            linear(f"{block}.attn{i}.to_k", 64, context, bias=False)
            linear(f"{block}.attn{i}.to_v", 64, context, bias=False)
            linear(f"{block}.attn{i}.to_out.0", 64, 64)
        for i in "123":
            norm(f"{block}.norm{i}")
        linear(f"{block}.ff.net.0.proj", 512, 64)
        linear(f"{block}.ff.net.2", 64, 256)

    for name, ins in (("time_embed", 64), ("camera_embed", 16)):
        linear(f"{name}.0", 256, ins)
        linear(f"{name}.2", 256, 256)
    linear("input_blocks.0.0", 64, 4, 3, 3)
    resnet("input_blocks.1.0", 64)
    transformer("input_blocks.1.1")
    linear("input_blocks.2.0.op", 64, 64, 3, 3)
    resnet("input_blocks.3.0", 64)
    resnet("middle_block.0", 64)
    transformer("middle_block.1")
    resnet("middle_block.2", 64)
    for block in range(4):
        resnet(f"output_blocks.{block}.0", 128)
        if block >= 2:
            transformer(f"output_blocks.{block}.1")
    linear("output_blocks.1.1.conv", 64, 64, 3, 3)
    norm("out.0")
    linear("out.2", 4, 64, 3, 3)
    return net


def original_autoencoder():
    coder = vae.AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1)
    flat = {}
    for path, x in jax.tree_util.tree_flatten_with_path(vae.abstract_params(coder))[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        order = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[x.ndim]
        shape = tuple(x.shape[axis] for axis in order)
        name = re.sub(r"(kernel|scale)$", "weight", name)
        name = name.replace("mid_block.resnets_0", "mid.block_1")
        name = name.replace("mid_block.resnets_1", "mid.block_2")
        name = name.replace("mid_block.attentions_0.group_norm", "mid.attn_1.norm")
        name = re.sub(r"mid_block\.attentions_0\.to_([qkv])", r"mid.attn_1.\1", name)
        name = name.replace("mid_block.attentions_0.to_out_0", "mid.attn_1.proj_out")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks_(\d)\.resnets_(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks_(\d)\.downsamplers_0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks_(\d)\.resnets_", lambda m: f"up.{1 - int(m[1])}.block.", name)
        name = re.sub(
            r"up_blocks_(\d)\.upsamplers_0", lambda m: f"up.{1 - int(m[1])}.upsample", name
        )
        flat[name] = np.full(shape, 0.01, np.float16)
    return flat


def original_tower():
    flat = {
        "token_embedding.weight": np.ones((300, 128), np.float16),
        "positional_embedding": np.ones((16, 128), np.float16),
        "ln_final.weight": np.ones(128, np.float16),
        "ln_final.bias": np.zeros(128, np.float16),
        "text_projection": np.zeros((128, 128), np.float16),
        "logit_scale": np.zeros((), np.float16),
    }
    for i in range(2):
        layer = f"transformer.resblocks.{i}"
        for name, shape in (
            ("attn.in_proj_", (384, 128)),
            ("attn.out_proj.", (128, 128)),
            ("mlp.c_fc.", (512, 128)),
            ("mlp.c_proj.", (128, 512)),
            ("ln_1.", (128,)),
            ("ln_2.", (128,)),
        ):
            flat[f"{layer}.{name}weight"] = np.full(shape, 0.01, np.float16)
            flat[f"{layer}.{name}bias"] = np.zeros(shape[:1], np.float16)
    return flat


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_original_mvdream_file(tmp_path, suffix):
    parts = {
        "model.diffusion_model.": original_checkpoint(),
        "first_stage_model.": original_autoencoder(),
        "cond_stage_model.model.": original_tower(),
    }
    flat = {prefix + k: v for prefix, part in parts.items() for k, v in part.items()}
    path = tmp_path / f"sd-v2.1-base-4view{suffix}"
    if suffix == ".pt":
        content = {
            k: torch_tensor(str(i), v, "HalfStorage") for i, (k, v) in enumerate(flat.items())
        }
        write_torch(path, content, {str(i): v for i, v in enumerate(flat.values())})
    else:
        save_file(flat, path)
    with pytest.raises(ValueError, match="tokenizer"):
        open_critic(str(tmp_path))
    source = write_folder(tmp_path / "other", "sd15")
    (source / "tokenizer").rename(tmp_path / "tokenizer")
    critic = open_critic(str(tmp_path))
    assert critic.name == f"MVDream, 4 views of 64 px, from {path}"
    kernel = critic.params["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    theirs = parts["model.diffusion_model."]["input_blocks.1.0.in_layers.2.weight"]
    np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))
    assert critic.condition(Prompt("a cat")).views.tokens.shape == (4, 16, 128)


def test_a_missing_folder_and_a_strange_one(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_critic(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no critic that is known; known are"):
        open_critic(str(tmp_path))
    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no denoiser that knows cameras"):
        open_critic(str(tmp_path))


def test_a_hub_name_without_a_network(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network\nwith details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"someone/model: .*\(no network\).*pass its folder"):
        open_critic("someone/model")


def break_config(folder):
    (folder / "unet" / "config.json").unlink()
    return r"unet/config\.json is missing"


def break_json(folder):
    (folder / "unet" / "config.json").write_text("{")
    return "not JSON"


def break_class(folder):
    (folder / "unet" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    return "describes a FluxTransformer2DModel"


def break_length(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "truncated"


def break_safety(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    call = Call(Callable("os", "system"), f"touch {folder / 'ran'}")
    write_torch(path.with_suffix(".bin"), {"a": call}, {})
    return r"os\.system"


def break_shapes(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    flat = tensors("sd15", "unet")
    flat["conv_in.bias"] = np.zeros(31, np.float16)
    save_file(flat, path)
    return r"1 misshapen: conv_in\.bias \(31,\)"


def break_coverage(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    flat = tensors("sd15", "unet")
    flat["lora.weight"] = flat.pop("conv_in.bias")
    save_file(flat, path)
    return r"1 missing: conv_in/bias; 1 surplus: lora\.weight"


def break_tower(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()
    return "no weights in .*text_encoder"


def break_widths(folder):
    return "reads text embeddings of width 24, its text encoders make 32"


def break_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    return r"scheduler_config\.json is missing"


@pytest.mark.parametrize(
    "damage",
    [
        break_config,
        break_json,
        break_class,
        break_length,
        break_safety,
        break_shapes,
        break_coverage,
        break_tower,
        break_scheduler,
        break_widths,
    ],
)
def test_bad_folders_say_what_is_wrong(tmp_path, damage):
    folder = write_folder(tmp_path, "sd15")
    with pytest.raises(ValueError, match=damage(folder)):
        open_critic(str(folder))
    assert not (folder / "ran").exists()


def test_zero_terminal_snr_is_read(tmp_path):
    config = NETWORKS["sd15"]["scheduler"] | {"rescale_betas_zero_snr": True}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    assert schedulers.read(tmp_path, bounded=False).alphas_cumprod[-1] == 2.0**-24


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def sd15_folder(tmp_path_factory):
    return write_usable(tmp_path_factory.mktemp("sd15"), "sd15")


@pytest.fixture
def sd15(sd15_folder, tmp_path):
    return shutil.copytree(sd15_folder, tmp_path / "sd15")


@pytest.mark.parametrize("channels", [5, 7, 8, 9])
def test_networks_that_are_told_a_picture_are_refused(sd15, channels):
    edit(sd15 / "unet" / "config.json", in_channels=channels)
    file = sd15 / "unet" / "diffusion_pytorch_model.safetensors"
    flat = {k: np.array(v) for k, v in weights.load(file).items()}
    flat["conv_in.weight"] = np.zeros((32, channels, 3, 3), np.float16)
    save_file(flat, file)
    with pytest.raises(ValueError, match=f"takes {channels} channels .*inpainting, depth, edit"):
        open_critic(sd15)


def test_upscalers_of_pixels_are_refused(tmp_path):
    write_pixels(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    flat = {k: np.array(v) for k, v in weights.load(file).items()}
    flat["conv_in.weight"] = np.zeros((32, 6, 3, 3), np.float16)
    save_file(flat, file)
    edit(tmp_path / "unet" / "config.json", in_channels=6)
    with pytest.raises(ValueError, match="takes 6 channels"):
        open_critic(tmp_path)


def test_the_digest_is_of_all_that_judges(sd15):
    schedule = sd15 / "scheduler" / "scheduler_config.json"
    changes = [
        lambda: None,
        lambda: edit(schedule, prediction_type="v_prediction"),
        lambda: edit(schedule, beta_end=0.02),
        lambda: edit(sd15 / "vae" / "config.json", scaling_factor=0.2),
        lambda: edit(sd15 / "text_encoder" / "config.json", hidden_act="gelu"),
        lambda: edit(sd15 / "unet" / "config.json", attention_head_dim=8),
    ]
    seen = []
    for change in changes:
        change()
        seen.append(open_critic(sd15).digest)
    seen.append(open_critic(sd15, "bfloat16").digest)
    assert len(set(seen)) == len(seen)
    edit(schedule, _diffusers_version="9.9")
    edit(schedule, timestep_spacing="trailing")  # how it is sampled is not what it judges
    assert open_critic(sd15, "bfloat16").digest == seen[-1]


def test_the_embedded_critic_by_name_and_by_file():
    by_name, by_file = open_critic(), open_critic(embedded.WEIGHTS)
    assert by_name.name == by_file.name == embedded.NAME
    assert by_name.digest == by_file.digest
    assert len(by_name.digest) == 64


@pytest.mark.parametrize(("index", "zero"), [
    (None, True),
    ({"force_zeros_for_empty_prompt": True}, True),
    ({"_class_name": "StableDiffusionXLPipeline"}, True),
    ({"force_zeros_for_empty_prompt": False}, False),
])  # fmt: skip
def test_the_null_text_of_xl(sdxl, index, zero):
    (sdxl / "model_index.json").unlink(missing_ok=True)
    if index is not None:
        (sdxl / "model_index.json").write_text(json.dumps(index))
    towers = stable_diffusion.read_towers(sdxl, jnp.float32)
    condition = stable_diffusion.text_encoder(towers, stable_diffusion._zero_null(sdxl))
    cond = condition(Prompt("a cat"))
    assert bool(jnp.all(cond.null.tokens == 0) & jnp.all(cond.null.pooled == 0)) == zero
    assert jnp.any(cond.plain.pooled != 0)
    given = condition(Prompt("a cat", "a dog"))
    assert jnp.any(given.null.tokens != 0)
    assert jnp.any(given.null.pooled != 0)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return write_usable(tmp_path_factory.mktemp("sdxl"), "sdxl")


def test_unet_folder_of_the_wrong_class(tmp_path):
    folder = write_network(tmp_path, "sd15", "vae")
    with pytest.raises(ValueError, match="AutoencoderKL, not of a UNet2DConditionModel"):
        unet.load(folder)
