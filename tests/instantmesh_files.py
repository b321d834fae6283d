"""Tiny InstantMesh checkpoints under the official names, and what the official code makes of them.

`models/instantmesh.npz` holds inputs, outputs and the tensors that do not follow from a seed and a
name.
"""

from pathlib import Path

import numpy as np
import yaml
from checkpoints import torch_tensor, weight, write_torch
from safetensors.numpy import save_file

from jax3d.nn.dino import DinoConfig

ENCODER = DinoConfig(
    patch_size=8,
    grid=3,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
)
PARAMS = {
    "encoder_feat_dim": 48,
    "transformer_dim": 64,
    "transformer_layers": 2,
    "transformer_heads": 4,
    "triplane_low_res": 4,
    "triplane_high_res": 8,
    "triplane_dim": 8,
    "rendering_samples_per_ray": 24,
}
LATTICE = {"grid_res": 8, "grid_scale": 2.1}


def vectors() -> dict[str, np.ndarray]:
    """Inputs, outputs and two tensors."""
    with np.load(Path(__file__).parent / "models" / "instantmesh.npz") as file:
        return dict(file)


def config(kind: str, **changes) -> dict:
    """The tiny models' config as the official files nest it; `changes` are of its params."""
    target = {"nerf": "src.models.lrm.InstantNeRF", "mesh": "src.models.lrm_mesh.InstantMesh"}
    params = PARAMS | (LATTICE if kind == "mesh" else {}) | changes
    return {"model_config": {"target": target[kind], "params": params}}


def shapes(kind: str, encoder: DinoConfig, params: dict) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a checkpoint's tensors, without the generator's prefix."""
    found = {}

    def linear(name, into, out, bias=True):
        found[f"{name}.weight"] = (out, into)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name, width):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    e, inner, patch = encoder.hidden_size, encoder.intermediate_size, encoder.patch_size
    vit = "encoder.model"
    found[f"{vit}.embeddings.cls_token"] = (1, 1, e)
    found[f"{vit}.embeddings.position_embeddings"] = (1, 1 + encoder.grid**2, e)
    found[f"{vit}.embeddings.patch_embeddings.projection.weight"] = (e, 3, patch, patch)
    found[f"{vit}.embeddings.patch_embeddings.projection.bias"] = (e,)
    for i in range(encoder.num_hidden_layers):
        layer = f"{vit}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.attention.{part}", e, e)
        linear(f"{layer}.attention.output.dense", e, e)
        linear(f"{layer}.intermediate.dense", e, inner)
        linear(f"{layer}.output.dense", inner, e)
        norm(f"{layer}.layernorm_before", e)
        norm(f"{layer}.layernorm_after", e)
        linear(f"{layer}.adaLN_modulation.1", e, 4 * e)
    norm(f"{vit}.layernorm", e)
    linear("encoder.camera_embedder.0", 16, e)
    linear("encoder.camera_embedder.2", e, e)
    d, channels = params["transformer_dim"], params["triplane_dim"]
    found["transformer.pos_embed"] = (1, 3 * params["triplane_low_res"] ** 2, d)
    for i in range(params["transformer_layers"]):
        layer = f"transformer.layers.{i}"
        for k in (1, 2, 3):
            norm(f"{layer}.norm{k}", d)
        for part, into in (("q", d), ("k", e), ("v", e)):
            found[f"{layer}.cross_attn.{part}_proj_weight"] = (d, into)
        found[f"{layer}.self_attn.in_proj_weight"] = (3 * d, d)
        for attention in ("cross", "self"):
            linear(f"{layer}.{attention}_attn.out_proj", d, d, bias=False)
        linear(f"{layer}.mlp.0", d, 4 * d)
        linear(f"{layer}.mlp.3", 4 * d, d)
    norm("transformer.norm", d)
    found["transformer.deconv.weight"] = (d, channels, 2, 2)
    found["transformer.deconv.bias"] = (channels,)
    heads = {"net": (3, 4)}
    if kind == "mesh":
        heads = {"net_sdf": (3, 1), "net_rgb": (3, 3), "net_deformation": (3, 3)}
        heads["net_weight"] = (24, 21)
    for name, (planes, out) in heads.items():
        widths = (planes * channels, 64, 64, 64, out)
        for i in range(4):
            linear(f"synthesizer.decoder.{name}.{2 * i}", widths[i], widths[i + 1])
    return found


def tensors(kind: str) -> dict[str, np.ndarray]:
    """A tiny model's weights under the official names, and one of its training."""
    given, flat = vectors(), {"lpips.net.0.weight": np.zeros((2, 2), np.float32)}
    for name, shape in shapes(kind, ENCODER, PARAMS).items():
        drawn = name.removeprefix("synthesizer.") if ".net_" in name else name
        whole = f"lrm_generator.{name}"
        flat[whole] = given.get(whole, weight(802 if ".net_" in name else 801, drawn, shape, "f4"))
    return flat


def write(folder: Path, kind: str, suffix: str = ".ckpt", **changes) -> Path:
    """A checkpoint with its config beside; `changes` are of the config's params."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config(kind, **changes))
    (folder / f"instant-{kind}-tiny.yaml").write_text(text)
    flat, path = tensors(kind), folder / f"instant_{kind}_tiny{suffix}"
    if suffix == ".safetensors":
        save_file(flat, path)
        return path
    content = {k: torch_tensor(str(i), v) for i, (k, v) in enumerate(flat.items())}
    storages = {str(i): v for i, v in enumerate(flat.values())}
    write_torch(path, {"state_dict": content}, storages)
    return path
