"""A tiny Hunyuan3D 2 in the official layout, and what the official code makes of it.

`models/hunyuan3d.json.gz` holds configs and tensor shapes, of the tiny networks and of the
full-size ones; `models/hunyuan3d.npz` inputs and outputs. The weights follow from seeds and names.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import yaml
from checkpoints import torch_tensor, weight, write_torch
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "models"
KNOWN = json.loads(gzip.decompress((HERE / "hunyuan3d.json.gz").read_bytes()))
ENCODER = "main_image_encoder.model."


def vectors() -> dict[str, np.ndarray]:
    """Inputs and outputs."""
    with np.load(HERE / "hunyuan3d.npz") as file:
        return {name: file[name] for name in file.files}


def tensors(part: str, prefix: str = "") -> dict[str, np.ndarray]:
    """A tiny network's weights under the official names."""
    known = KNOWN[part]
    drawn_as = known.get("drawn_as", "")
    return {
        prefix + k: weight(known["seed"], drawn_as + k, tuple(s)) for k, s in known["keys"].items()
    }


def config(dit: dict, vae: dict, dino: dict, turbo: bool = False, size: int = 512) -> dict:
    """A `config.yaml` of the parts' settings."""
    kind = "Consistency" * turbo + "FlowMatchEulerDiscreteScheduler"
    settings = {"num_train_timesteps": 1000} | ({"pcm_timesteps": 100} if turbo else {})
    encoder = {
        "type": "DinoImageEncoder",
        "kwargs": {"config": dino, "image_size": dino["image_size"]},
    }
    return {
        "model": {"target": "hy3dgen.shapegen.models.Hunyuan3DDiT", "params": dit},
        "vae": {"target": "hy3dgen.shapegen.models.ShapeVAE", "params": vae},
        "conditioner": {
            "target": "hy3dgen.shapegen.models.SingleImageEncoder",
            "params": {"main_image_encoder": encoder},
        },
        "scheduler": {"target": f"hy3dgen.shapegen.schedulers.{kind}", "params": settings},
        "image_processor": {
            "target": "hy3dgen.shapegen.preprocessors.ImageProcessorV2",
            "params": {"size": size},
        },
    }


def tiny(turbo: bool = False) -> dict:
    """The config of the tiny model; `turbo`: of one whose steps and guidance were distilled."""
    parts = ("told_dit" if turbo else "dit", "vae", "dino")
    return config(*(dict(KNOWN[part]["config"]) for part in parts), turbo=turbo, size=32)


def write(folder: Path, described: dict | None = None, turbo: bool = False, pickled=False) -> Path:
    """A whole folder; `described` replaces its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(described or tiny(turbo)))
    parts = {
        "model": tensors("told_dit" if turbo else "dit"),
        "vae": tensors("vae"),
        "conditioner": tensors("dino", ENCODER),
    }
    flat = {f"{part}.{k}": v for part, inner in parts.items() for k, v in inner.items()}
    if not pickled:
        save_file(flat, folder / "model.fp16.safetensors")
        return folder
    content = {
        part: {k: torch_tensor(f"{part}.{k}", v, "HalfStorage") for k, v in inner.items()}
        for part, inner in parts.items()
    }
    write_torch(folder / "model.fp16.ckpt", content, flat)
    return folder


def write_vae(folder: Path) -> Path:
    """The folder of another decoder, as narrow as the turbo's, with its encoder."""
    folder.mkdir(parents=True)
    described = {"target": "hy3dgen.shapegen.models.ShapeVAE"}
    described["params"] = KNOWN["narrow_vae"]["config"]
    (folder / "config.yaml").write_text(yaml.safe_dump(described))
    save_file(tensors("narrow_vae"), folder / "model.fp16.safetensors")
    return folder
