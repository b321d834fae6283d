"""A tiny Shap-E in diffusers' layout, and what the official code makes of it.

`models/shap_e.json.gz` holds configs and tensor shapes, of the tiny networks and of the full-size
ones; `models/shap_e.npz` inputs, outputs and the tensors that do not follow from a seed and a name.
"""

import gzip
import json
from pathlib import Path

import numpy as np
from checkpoints import weight, write_tokenizer
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "models"
KNOWN = json.loads(gzip.decompress((HERE / "shap_e.json.gz").read_bytes()))


def vectors() -> dict[str, np.ndarray]:
    """Inputs and outputs."""
    with np.load(HERE / "shap_e.npz") as file:
        return {name: file[name] for name in file.files}


def write_part(folder: Path, part: str, config: dict | None = None, **shapes) -> Path:
    """One network's folder; `config` and `shapes` replace entries, None leaves a tensor out."""
    known = KNOWN[part]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(known["config"] | (config or {})))
    kind = np.float16 if known["f16"] else np.float32
    flat = {
        k: weight(known["seed"], k, tuple(s), kind)
        for k, s in (known["keys"] | shapes).items()
        if s is not None
    }
    given = {k.removeprefix("tensor/"): v for k, v in vectors().items() if k.startswith("tensor/")}
    if part == "shap_e_renderer":
        flat |= given | {"mesh_decoder.cases": given["mesh_decoder.cases"].astype(np.int64)}
    save_file(flat, folder / known["file"])
    return folder


def write_core(folder: Path, **prior) -> Path:
    """What texts and pictures share; `prior` replaces entries of the prior's config."""
    write_part(folder / "prior", "prior", prior)
    write_part(folder / "shap_e_renderer", "shap_e_renderer")
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    config = json.dumps(KNOWN["scheduler"])
    (folder / "scheduler" / "scheduler_config.json").write_text(config)
    return folder


WORDS = 256


def write_texts(folder: Path) -> Path:
    """A whole folder that reads texts, by a tower of more words than the vectors'."""
    write_core(folder)
    name = "text_model.embeddings.token_embedding.weight"
    width = KNOWN["text_encoder"]["config"]["hidden_size"]
    write_part(
        folder / "text_encoder", "text_encoder", {"vocab_size": WORDS}, **{name: [WORDS, width]}
    )
    write_tokenizer(folder / "tokenizer")
    return folder


def write_pictures(folder: Path) -> Path:
    """A whole folder that reads pictures, by a prior that is told as wide tokens as are seen."""
    write_core(folder)
    width = KNOWN["image_encoder"]["config"]["hidden_size"]
    inner = KNOWN["prior_img2img"]["keys"]["embedding_proj.bias"][0]
    write_part(
        folder / "prior",
        "prior_img2img",
        {"embedding_proj_dim": width},
        **{
            "embedding_proj.weight": [inner, width],
            "embedding_proj_norm.weight": [width],
            "embedding_proj_norm.bias": [width],
        },
    )
    write_part(folder / "image_encoder", "image_encoder")
    return folder
