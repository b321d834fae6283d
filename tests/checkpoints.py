"""Tiny checkpoints in the official layouts, and what the official implementations make of them.

`golden/networks.json.gz` and `pictures.json.gz` hold configurations and tensor shapes; the weights
follow from a seed, a name and a shape. `golden/vectors.npz` and its neighbours hold inputs and
outputs of torch-diffusers and transformers (MVDream: its authors' code) on those weights, channels
first.
"""

import gzip
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {
    system: parts
    for name in ("networks", "pictures")
    for system, parts in json.loads(
        gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes())
    ).items()
}
MANIFESTS = json.loads(gzip.decompress((GOLDEN / "manifests.json.gz").read_bytes()))
_TABLES = ("embedding", "embeddings", "token", "pos_embed", "latents", "query_tokens")
_LAYERS = ("proj", "linear", "conv")


def vectors(prefix: str) -> dict[str, np.ndarray]:
    """The arrays under e.g. `sd15/unet_io`."""
    with np.load(GOLDEN / "vectors.npz") as file:
        names = [name for name in file.files if name.startswith(prefix + "/")]
        return {name.removeprefix(prefix + "/"): file[name] for name in names}


def weight(seed: int, name: str, shape: tuple[int, ...], dtype=np.float16) -> np.ndarray:
    """A weight that depends on nothing but its name, its shape and a seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "little")))
    n = rng.standard_normal(shape, dtype=np.float32)
    tail = ".".join(name.split(".")[-3:])
    if len(shape) <= 1:
        w = 0.1 * n if name.endswith("bias") else 1 + 0.2 * n
    elif any(e in tail for e in _TABLES) and not any(e in tail for e in _LAYERS):
        w = 0.5 * n
    else:
        w = n / np.sqrt(np.float32(np.prod(shape[1:])))
    return np.asarray(w, dtype)


def tensors(system: str, part: str) -> dict[str, np.ndarray]:
    """The weights of one network under their official names."""
    network = NETWORKS[system][part]
    return {k: weight(network["seed"], k, tuple(s)) for k, s in network["keys"].items()}


def write_network(folder: Path, system: str, part: str) -> Path:
    """Writes one network's folder and returns it."""
    target = folder / part
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(NETWORKS[system][part]["config"]))
    save_file(tensors(system, part), target / NETWORKS[system][part]["file"])
    return target


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer that fits the tiny text towers: ASCII's letters, and view words as one token."""
    folder.mkdir(parents=True)
    symbols = byte_symbols()[:94]
    merges = [("i", "n"), ("t", "h")]
    for word in ("side", "front", "back", "overhead", "view"):
        ends = [*word[:-1], word[-1] + "</w>"]
        merges += [("".join(ends[:i]), ends[i]) for i in range(1, len(ends))]
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    lines = "\n".join(f"{left} {right}" for left, right in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
    return folder


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in the vocabulary's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_folder(folder: Path, system: str) -> Path:
    """A whole checkpoint folder: networks, tokenizers, schedule."""
    for part in NETWORKS[system]:
        if part == "scheduler":
            (folder / part).mkdir(parents=True)
            config = json.dumps(NETWORKS[system][part])
            (folder / part / "scheduler_config.json").write_text(config)
        else:
            write_network(folder, system, part)
        if part.startswith("text_encoder"):
            write_tokenizer(folder / part.replace("text_encoder", "tokenizer"))
    return folder


def write_usable(folder: Path, system: str) -> Path:
    """A folder to ask by prompts: as `write_folder`, with a UNet as wide as its text towers.

    The vectors' UNets read contexts of their own widths, so their text layers are drawn anew.
    """
    write_folder(folder, "sdxl" if system == "sdxl" else "sd15")
    scheduler = folder / "scheduler"
    scheduler.mkdir(exist_ok=True)
    config = json.dumps(NETWORKS["sd21" if system == "sd21" else "sd15"]["scheduler"])
    (scheduler / "scheduler_config.json").write_text(config)
    towers = [NETWORKS[system if system == "sdxl" else "sd15"]["text_encoder"]["config"]]
    towers += [NETWORKS["sdxl"]["text_encoder_2"]["config"]] if system == "sdxl" else []
    width = sum(tower["hidden_size"] for tower in towers)
    network = NETWORKS[system]["unet"]
    config = dict(network["config"])
    config["context_dim" if system == "mvdream" else "cross_attention_dim"] = width
    added = 0
    if system == "sdxl":
        added = towers[1]["projection_dim"] + 6 * config["addition_time_embed_dim"]
        config["projection_class_embeddings_input_dim"] = added
    flat = {}
    for name, shape in network["keys"].items():
        if re.search(r"attn2\.to_[kv]\.weight$", name):
            shape = (shape[0], width)
        elif name == "add_embedding.linear_1.weight":
            shape = (shape[0], added)
        flat[name] = weight(network["seed"], name, tuple(shape))
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    save_file(flat, folder / "unet" / network["file"])
    return folder


def write_pixels(folder: Path) -> dict[str, np.ndarray]:
    """A folder of a pixel-space critic; returns its embeddings of "a cat" by wording."""
    config = dict(NETWORKS["sd15"]["unet"]["config"], in_channels=3, out_channels=6)
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    flat = tensors("sd15", "unet")
    flat["conv_in.weight"] = flat["conv_in.weight"][:, :3].copy()
    flat["conv_out.weight"] = np.concatenate([flat["conv_out.weight"]] * 2)[:6]
    flat["conv_out.bias"] = np.concatenate([flat["conv_out.bias"]] * 2)[:6]
    save_file(flat, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    views = ("side", "front", "back", "overhead")
    texts = ["a cat", "<empty>", *(f"a cat, {view} view" for view in views)]
    rng = np.random.default_rng(0)
    known = {text: rng.standard_normal((7, 24)).astype(np.float16) for text in texts}
    save_file(known, folder / "prompt_embeds.safetensors")
    return known


# torch.save's format, written without torch: a zip with a pickle that refers to raw storages.


class FakeGlobal:
    """Pickles as the global `module.name`."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class TorchPickler(pickle._Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = FakeGlobal("torch", obj.kind)
            return ("storage", kind, obj.key, "cpu", obj.count)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, FakeGlobal):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            return
        super().save(obj, save_persistent_id)


class Call:
    """Pickles as a call of a global."""

    def __init__(self, target, *args):
        self.target, self.args = target, args

    def __reduce__(self):
        return self.target, self.args


class Callable(FakeGlobal):
    def __call__(self):  # pickle demands that a reduction's target is callable
        raise AssertionError


def torch_tensor(key, array, kind="FloatStorage", offset=0, strides=None):
    if strides is None:
        strides = tuple(s // array.itemsize for s in array.strides)
    storage = Storage(kind, key, array.size)
    rebuild = Callable("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, array.shape, strides, False, OrderedDict())


def write_torch(path, content, storages):
    buffer = io.BytesIO()
    TorchPickler(buffer, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
