"""The names of the original latent-diffusion checkpoints, rewritten to those of diffusers.

`.ckpt` files of Stable Diffusion 2 and MVDream hold three networks side by side: the denoiser
under `model.diffusion_model.`, the autoencoder under `first_stage_model.` and the OpenCLIP text
tower under `cond_stage_model.model.`. The denoiser's blocks are numbered through
(`input_blocks.4.1`), so what block a number means depends on the layers per level.
"""

import re
from typing import Any

from jax3d.weights import Flat, checked

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def part(tensors: Flat, prefix: str) -> Flat:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def unet_names(tensors: Flat, layers_per_block: int) -> Flat:
    """A denoiser's tensors under diffusers' names; unknown names stay as they are."""
    return {_unet_name(name, layers_per_block): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, layers: int) -> str:
    for old, new in _ENDS.items():
        if name.startswith(old + "."):
            return _inside_resnet(new + name.removeprefix(old))
    if not (match := re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", name)):
        return name
    way, block, layer, rest = match[1], int(match[2]), int(match[3]), match[4]
    # On the way down a level has its layers and a downsampler, after conv_in; on the way up it
    # has a layer more, and its upsampler shares the last one's number.
    level, index = divmod(block - (way == "input"), layers + 1)
    level = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{level}.upsamplers.0.{rest}"
    return _inside_resnet(f"{level}.{'attentions' if layer else 'resnets'}.{index}.{rest}")


def _inside_resnet(name: str) -> str:
    for old, new in _RESNET.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


_KINDS = {
    "attention_resolutions": tuple[int, ...],
    "camera_dim": int | None,
    "channel_mult": tuple[int, ...],
    "context_dim": int,
    "image_size": int,
    "in_channels": int,
    "model_channels": int,
    "num_head_channels": int,
    "num_res_blocks": int,
    "out_channels": int,
    "transformer_depth": int,
}
"""MVDream's settings, by what they may be."""


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """A multi-view denoiser's configuration (MVDream) under diffusers' names.

    The camera enters where diffusers has a class embedding, as a projected vector.
    """
    config = checked(config, _KINDS)
    widths = [config["model_channels"] * m for m in config["channel_mult"]]
    attends = [2**i in config["attention_resolutions"] for i in range(len(widths))]
    camera_dim = config.get("camera_dim")

    def blocks(way):
        return [f"{'CrossAttn' if a else ''}{way}Block2D" for a in attends]

    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "sample_size": config["image_size"],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": blocks("Down"),
        "up_block_types": blocks("Up")[::-1],
        "attention_head_dim": [width // config["num_head_channels"] for width in widths],
        "transformer_layers_per_block": config.get("transformer_depth", 1),
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": True,
        "class_embed_type": "projection" if camera_dim else None,
        "projection_class_embeddings_input_dim": camera_dim,
    }


def infer_unet_config(tensors: Flat) -> dict[str, Any]:
    """A multi-view denoiser's configuration, in MVDream's words, from its tensors' shapes.

    Shapes do not tell the width of a head; it is 64 in all published checkpoints.
    """
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    blocks = [k for k in range(1, 99) if any(n.startswith(f"input_blocks.{k}.") for n in shape)]
    down = [k for k in blocks if f"input_blocks.{k}.0.op.weight" in shape]
    layers = (down[0] if down else blocks[-1] + 1) - 1
    firsts = [1, *[k + 1 for k in down]]
    channels = shape["input_blocks.0.0.weight"][0]
    depth = {n.split(".")[3] for n in shape if re.match(r"middle_block\.1\.transformer_blocks", n)}
    attends = [f"input_blocks.{k}.1.norm.weight" in shape for k in firsts]
    return {
        "image_size": 32,
        "in_channels": shape["input_blocks.0.0.weight"][1],
        "out_channels": shape["out.2.weight"][0],
        "model_channels": channels,
        "num_res_blocks": layers,
        "attention_resolutions": [2**i for i, attend in enumerate(attends) if attend],
        "channel_mult": [
            shape[f"input_blocks.{k}.0.out_layers.3.weight"][0] // channels for k in firsts
        ],
        "num_head_channels": 64,
        "transformer_depth": len(depth),
        "context_dim": shape["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "camera_dim": shape["camera_embed.0.weight"][1],
    }


def infer_vae_config(tensors: Flat) -> dict[str, Any]:
    """An autoencoder's configuration, in diffusers' words, from its tensors' shapes."""
    firsts = [k for k in tensors if re.match(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", k)]
    layers = [k for k in tensors if re.match(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", k)]
    return {
        "block_out_channels": [tensors[k].shape[0] for k in sorted(firsts)],
        "layers_per_block": len(layers),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
    }


def infer_openclip_config(tensors: Flat) -> dict[str, Any]:
    """An OpenCLIP text tower's configuration, in transformers' words, from its tensors' shapes.

    Without its last layer, whose output Stable Diffusion 2 and MVDream do not read. Shapes do not
    tell the width of a head; it is 64 in all published checkpoints.
    """
    width = tensors["ln_final.weight"].shape[0]
    return {
        "vocab_size": len(tensors["token_embedding.weight"]),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": sum(name.endswith(".ln_1.weight") for name in tensors) - 1,
        "num_attention_heads": width // 64,
        "max_position_embeddings": len(tensors["positional_embedding"]),
        "hidden_act": "gelu",
    }


def vae_names(tensors: Flat, levels: int) -> Flat:
    """An autoencoder's tensors under diffusers' names; `levels` is the number of resolutions."""
    return {_vae_name(name, levels): tensor for name, tensor in tensors.items()}


def _vae_name(name: str, levels: int) -> str:
    def on_the_way(match: re.Match) -> str:
        way, level, rest = match[1], int(match[2]), match[3]
        # The original counts the decoder's levels from the image up.
        level = level if way == "down" else levels - 1 - level
        rest = rest.replace("block.", "resnets.", 1)
        rest = re.sub(r"^(down|up)sample\.", r"\1samplers.0.", rest)
        return f".{way}_blocks.{level}.{rest}"

    name = re.sub(r"\.(down|up)\.(\d+)\.(.*)", on_the_way, name)
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    name = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    if "mid.attn_1" in name:
        name = name.replace("mid.attn_1", "mid_block.attentions.0")
        name = name.replace(".norm.", ".group_norm.").replace("proj_out", "to_out.0")
        name = re.sub(r"\.([qkv])\.", r".to_\1.", name)
    return name


def openclip_names(tensors: Flat, layers: int) -> Flat:
    """An OpenCLIP text tower's first `layers` layers under transformers' names.

    Stable Diffusion 2 and MVDream read the state before the last layer, so the last layer, the
    projection to the image space and the temperature have no place and are left out.
    """
    renamed: Flat = {}
    ends = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    inside = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in tensors.items():
        if name in ends:
            renamed[f"text_model.{ends[name]}"] = tensor
        if not (match := re.match(r"transformer\.resblocks\.(\d+)\.(.*)\.?(weight|bias)$", name)):
            continue
        if int(match[1]) >= layers:
            continue
        layer, module, leaf = f"text_model.encoder.layers.{match[1]}", match[2], match[3]
        if module == "attn.in_proj_":
            width = len(tensor) // 3
            for i, letter in enumerate("qkv"):
                rows = tensor[i * width : (i + 1) * width]
                renamed[f"{layer}.self_attn.{letter}_proj.{leaf}"] = rows
        else:
            renamed[f"{layer}.{inside[module.rstrip('.')]}.{leaf}"] = tensor
    return renamed
