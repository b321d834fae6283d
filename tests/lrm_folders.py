"""Tiny feed-forward models in the official layouts, and what the official code makes of them.

`models/lrm.json.gz` holds configs and tensor shapes, of the tiny models and of the full-size ones;
`models/lrm.npz` inputs, outputs and the tensors that do not follow from a seed and a name.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import yaml
from checkpoints import torch_tensor, weight, write_torch
from safetensors.numpy import save_file

from jax3d.nn.dino import DinoConfig

HERE = Path(__file__).parent / "models"
KNOWN = json.loads(gzip.decompress((HERE / "lrm.json.gz").read_bytes()))
ENCODERS = {
    "triposr": DinoConfig(
        patch_size=4,
        grid=6,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    ),
    "openlrm": DinoConfig(
        patch_size=7,
        grid=10,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        layer_norm_eps=1e-6,
        registers=4,
        layer_scale=True,
        antialias=True,
    ),
}


def vectors(system: str) -> dict[str, np.ndarray]:
    """Inputs, outputs and a few tensors of one system."""
    with np.load(HERE / "lrm.npz") as file:
        names = [name for name in file.files if name.startswith(f"{system}/")]
        return {name.removeprefix(f"{system}/"): file[name] for name in names}


def tensors(system: str) -> dict[str, np.ndarray]:
    """A tiny model's weights under the official names."""
    known, given = KNOWN[system], vectors(system)
    drawn = {k: weight(known["seed"], k, tuple(s), np.float32) for k, s in known["keys"].items()}
    return {name: given.get(name, tensor) for name, tensor in drawn.items()}


def write_triposr(folder: Path, **changes) -> Path:
    """A folder of TripoSR; `changes` replace entries of the config, by dotted names."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(KNOWN["triposr"]["config"]))
    for name, value in changes.items():
        *section, last = name.split(".")
        (config[section[0]] if section else config)[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    flat = tensors("triposr")
    content = {k: torch_tensor(str(i), v) for i, (k, v) in enumerate(flat.items())}
    write_torch(folder / "model.ckpt", content, {str(i): v for i, v in enumerate(flat.values())})
    return folder


def write_openlrm(folder: Path, **changes) -> Path:
    """A folder of OpenLRM; `changes` replace entries of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = KNOWN["openlrm"]["config"] | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors("openlrm"), folder / "model.safetensors")
    return folder
