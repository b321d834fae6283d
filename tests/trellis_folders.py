"""A tiny TRELLIS in the official layout, and what the official code makes of it.

`models/trellis.json.gz` holds settings and tensor shapes, of the tiny networks and of the full-size
ones; `models/trellis.npz` inputs and outputs.
"""

import gzip
import json
from pathlib import Path

import numpy as np
from checkpoints import NETWORKS, weight, write_network, write_tokenizer
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "models"
KNOWN = json.loads(gzip.decompress((HERE / "trellis.json.gz").read_bytes()))
PARTS = {
    "sparse_structure_flow_model": "ss_flow",
    "sparse_structure_decoder": "ss_dec",
    "slat_flow_model": "slat_flow",
    "slat_decoder_gs": "slat_dec_gs",
}
WIDTH = NETWORKS["sd15"]["text_encoder"]["config"]["hidden_size"]
"""Of a text's tokens."""


def vectors(prefix: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of "structure", "sampler" or "latents"."""
    with np.load(HERE / "trellis.npz") as file:
        names = [name for name in file.files if name.startswith(prefix + "/")]
        return {name.removeprefix(prefix + "/"): file[name] for name in names}


def places(resolution: int, patch: int, width: int) -> np.ndarray:
    """The buffer of positions that a flow of structures comes with."""
    xyz = np.indices((resolution // patch,) * 3).reshape(3, -1).T
    count = width // 6
    angles = xyz[..., None] / 1e4 ** (np.arange(count) / count)
    found = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(xyz), -1)
    return np.pad(found, ((0, 0), (0, width - found.shape[1]))).astype(np.float16)


def write_part(stem: Path, part: str, args: dict | None = None, **shapes) -> Path:
    """A network's two files; `args` and `shapes` replace entries, None leaves a tensor out."""
    known = KNOWN[part]
    stem.parent.mkdir(parents=True, exist_ok=True)
    settings = known["config"] | {"args": known["config"]["args"] | (args or {})}
    Path(f"{stem}.json").write_text(json.dumps(settings))
    flat = {
        k: weight(known["seed"], k, tuple(s))
        for k, s in (known["keys"] | shapes).items()
        if s is not None
    }
    if "pos_emb" in flat:
        c = settings["args"]
        flat["pos_emb"] = places(c["resolution"], c["patch_size"], c["model_channels"])
    if "offset_perturbation" in flat:
        offsets = vectors("latents")["gs_offset_perturbation"]
        flat["offset_perturbation"] = offsets.astype(np.float16)
    save_file(flat, f"{stem}.safetensors")
    return stem


def pipeline(**changes) -> dict:
    """`pipeline.json` of a model of texts."""
    sampler = {
        "name": "FlowEulerGuidanceIntervalSampler",
        "args": {"sigma_min": 1e-5},
        "params": {"steps": 3, "cfg_strength": 5, "cfg_interval": [0.0, 1], "rescale_t": 3.0},
    }
    args = {
        "models": {name: f"ckpts/{part}" for name, part in PARTS.items()},
        "sparse_structure_sampler": sampler,
        "slat_sampler": sampler,
        "slat_normalization": {"mean": [0.1] * 8, "std": [0.5] * 8},
        "text_cond_model": "openai/clip-vit-large-patch14",
    }
    return {"name": "TrellisTextTo3DPipeline", "args": args | changes}


def write_core(folder: Path, width: int = WIDTH, **changes) -> Path:
    """What texts and pictures share, told tokens of a width; `changes` are of the pipeline's args.

    The vectors' networks read contexts of their own width, and structures of their own resolution;
    flows have one block here.
    """
    for part in PARTS.values():
        args, shapes = {}, {}
        if part.endswith("_flow"):
            args = {"cond_channels": width, "num_blocks": 1}
            for k, s in KNOWN[part]["keys"].items():
                if k.endswith("to_kv.weight"):
                    shapes[k] = [s[0], width]
                if k.startswith("blocks.1."):
                    shapes[k] = None
        if part == "ss_flow":
            args["resolution"] = 4
        write_part(folder / "ckpts" / part, part, args, **shapes)
    (folder / "pipeline.json").write_text(json.dumps(pipeline(**changes)))
    return folder


def write_texts(folder: Path) -> Path:
    """A whole folder that reads texts."""
    write_core(folder)
    write_network(folder, "sd15", "text_encoder")
    write_tokenizer(folder / "tokenizer")
    return folder
