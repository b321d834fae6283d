"""Network weights between files and parameter trees, with exact coverage.

A loaded file is a flat `dict` of names to NumPy views that are mapped from the disk: nothing is
read until a leaf is copied, so loading costs the tree plus one leaf of memory. Rules that rename
tensors are plain functions from such a dict to such a dict (slicing a view reads nothing), and
`to_flax` then places every tensor or says by name which it cannot.

Readable: safetensors (one file, or shards behind an index), the zip pickles of torch (`.bin`,
`.ckpt`, `.pt`; nothing in them is ever executed) and Flax msgpack.
"""

import collections
import hashlib
import json
import mmap
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from jax3d.types import Params

Flat = dict[str, np.ndarray]
"""Tensor names, as the file has them, to arrays mapped from the disk."""

_BFLOAT16 = np.dtype(jnp.bfloat16)
_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": _BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_TORCH_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class WeightsError(ValueError):
    """A weight file that is missing, damaged, unsafe or made for another network."""


def find_weights(folder: str | Path, stem: str) -> Path:
    """The weight file of one network in a diffusers or transformers folder.

    Full precision is preferred to `.fp16`, safetensors to pickles, pickles to msgpack.

    Args:
      folder: e.g. `.../unet`.
      stem: the customary name, `diffusion_pytorch_model` or `model`.

    Raises:
      WeightsError: nothing is there; the message lists what was looked for.
    """
    flax_stem = {"diffusion_pytorch_model": "diffusion_flax_model", "model": "flax_model"}[stem]
    bin_stem = {"diffusion_pytorch_model": stem, "model": "pytorch_model"}[stem]
    names = [
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16.safetensors.index.json",
        f"{stem}.bf16.safetensors",
        f"{bin_stem}.bin",
        f"{bin_stem}.bin.index.json",
        f"{bin_stem}.fp16.bin",
        f"{flax_stem}.msgpack",
    ]
    for name in names:
        if (path := Path(folder) / name).is_file():
            return path
    raise WeightsError(f"no weights in {folder}: looked for {', '.join(names)}")


def read_config(path: str | Path) -> dict[str, Any]:
    """A network's JSON configuration.

    Raises:
      WeightsError: the file is missing or not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is missing: is the checkpoint folder complete?")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: holds a {type(config).__name__}, not a JSON object")
    return config


def load(path: str | Path) -> Flat:
    """The tensors of a weight file of any readable kind, told by its suffix.

    Raises:
      WeightsError: missing, damaged or unsafe file, or an unknown suffix.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    match path.suffix:
        case ".safetensors":
            return load_safetensors(path)
        case ".json":
            return _load_shards(path)
        case ".bin" | ".ckpt" | ".pt" | ".pth":
            return load_torch(path)
        case ".msgpack":
            return _load_msgpack(path)
    raise WeightsError(
        f"{path}: unknown kind of weight file; "
        "known are .safetensors, .index.json, .bin, .ckpt, .pt, .pth and .msgpack"
    )


def load_safetensors(path: str | Path) -> Flat:
    """The tensors of one safetensors file, mapped and not read.

    The format: a little-endian u64, so many bytes of JSON header, then the data
    (https://github.com/huggingface/safetensors). The header is read here and not by the library
    because the library copies each tensor while its mapped pages stay resident, which doubles
    the peak memory of a load.

    Raises:
      WeightsError: missing, truncated or malformed file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    size = path.stat().st_size
    if size < 8:
        raise WeightsError(f"{path}: truncated ({size} bytes); fetch the file again")
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    if start > size:
        raise WeightsError(f"{path}: not a safetensors file, or a truncated one")
    try:
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        entries = {
            name: (_SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"], *entry["data_offsets"])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: malformed safetensors header ({error!r})") from error
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if start + end > size:
            raise WeightsError(
                f"{path}: truncated at tensor {name}: {start + end} bytes wanted, {size} there; "
                "fetch the file again"
            )
        if end - begin != dtype.itemsize * int(np.prod(shape)):
            raise WeightsError(f"{path}: tensor {name} has {end - begin} bytes for shape {shape}")
        tensors[name] = data[start + begin : start + end].view(dtype).reshape(shape)
    return tensors


def _load_shards(path: Path) -> Flat:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not an index of shards ({error!r})") from error
    tensors: Flat = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= load(path.parent / Path(shard).name)
    if lost := sorted(set(weight_map) - set(tensors)):
        raise WeightsError(f"{path}: the shards lack {_listed(lost)}")
    return tensors


def _load_msgpack(path: Path) -> Flat:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep=".").items()}
    except Exception as error:  # msgpack raises half a dozen unrelated classes on damaged input
        raise WeightsError(f"{path}: not a Flax msgpack checkpoint ({error!r})") from error


class _Storage(NamedTuple):
    data: np.ndarray


def _rebuild_tensor(
    storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None
) -> np.ndarray:
    del requires_grad, hooks, metadata
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or last >= max(storage.data.size, 1):
        raise WeightsError(f"a tensor of shape {tuple(size)} reaches outside of its storage")
    if 0 in size:
        return np.zeros(size, storage.data.dtype)
    strides = tuple(s * storage.data.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage.data[offset:], size, strides, writeable=False)


def _rebuild_parameter(data, requires_grad=False, hooks=None) -> np.ndarray:
    del requires_grad, hooks
    return data


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; any other global is refused before it is imported."""

    _GLOBALS = {  # noqa: RUF012
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): dtype for name, dtype in _TORCH_STORAGES.items()},
    }

    def __init__(self, file, read_storage):
        super().__init__(file)
        self._read_storage = read_storage

    def find_class(self, module, name):
        if (module, name) not in self._GLOBALS:
            raise WeightsError(
                f"it asks for {module}.{name}, which is no tensor; nothing was run. "
                "Use a safetensors version of the checkpoint"
            )
        return self._GLOBALS[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _location, _count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise WeightsError(f"unknown persistent object {kind!r}")
        return _Storage(self._read_storage(dtype, str(key)))


def load_torch(path: str | Path) -> Flat:
    """The tensors of a zip pickle as `torch.save` writes it, mapped; no code in it can run.

    Tensors under a `state_dict` key, as trainers keep them, are taken from there.

    Raises:
      WeightsError: another kind of file, a damaged one, or one that holds anything but tensors
        and plain containers.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickled = next(name for name in entries if name.endswith("data.pkl"))
            prefix = pickled.removesuffix("data.pkl")
            data = np.memmap(path, np.uint8, "r")

            def read_storage(dtype: np.dtype, key: str) -> np.ndarray:
                info = entries[f"{prefix}data/{key}"]
                if info.compress_type != zipfile.ZIP_STORED:
                    raise WeightsError(f"entry {info.filename} is compressed")
                # The local header repeats the name and has its own padding.
                header = data[info.header_offset : info.header_offset + 30]
                name_length, extra_length = header[26:30].view("<u2").tolist()
                begin = info.header_offset + 30 + name_length + extra_length
                return data[begin : begin + info.file_size].view(dtype)

            with archive.open(pickled) as file:
                content = _TensorUnpickler(file, read_storage).load()
    except WeightsError as error:
        raise WeightsError(f"{path}: refused: {error}") from error
    except (zipfile.BadZipFile, StopIteration) as error:
        raise WeightsError(
            f"{path}: not a zip pickle of torch, or a truncated one; "
            "fetch it again, or use a safetensors version"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(f"{path}: damaged pickle ({error!r})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return {str(k): v for k, v in content.items() if isinstance(v, np.ndarray)}


def to_flax(tensors: Flat, like: Params, source: str | Path = "the checkpoint") -> Params:
    """A parameter tree from the tensors of a torch-style or a Flax-style checkpoint.

    Dots become levels and an index joins the name before it: `down_blocks.0.conv.weight` goes to
    `down_blocks_0/conv/kernel`. A torch `weight` is what the tree has in its place: a `kernel`
    (transposed: linear OI to IO, convolution OIHW to HWIO), a norm's `scale` or an `embedding`.
    A 1x1 convolution and a linear layer pass for each other.

    Args:
      tensors: what `load` returned, renamed where the checkpoint's names differ from ours.
      like: the tree to fill, of arrays or `jax.ShapeDtypeStruct`; its dtypes decide the casts.
      source: named in errors.

    Returns:
      A tree like `like`, of arrays on the default device.

    Raises:
      WeightsError: missing, surplus or misshapen tensors, all of them by name.
    """
    views = demand_fit(tensors, like, source)
    wanted = traverse_util.flatten_dict(like, sep="/")
    filled = {path: _read(views.pop(path), wanted[path].dtype) for path in wanted}
    return traverse_util.unflatten_dict(filled, sep="/")


def demand_fit(tensors: Flat, like: Params, source: str | Path = "the checkpoint") -> Flat:
    """The tensors under their places in the tree and in its layout, as views; reads nothing.

    Arguments and errors are those of `to_flax`.
    """
    wanted = traverse_util.flatten_dict(like, sep="/")
    views: Flat = {}
    surplus, misshapen = [], []
    for name, tensor in tensors.items():
        path = _flax_path(name, wanted)
        if path is None or path in views:
            surplus.append(name)
            continue
        shape = tuple(wanted[path].shape)
        transposed = name.endswith(".weight") and path.endswith("/kernel")
        view = _as_kernel(tensor, len(shape)) if transposed else tensor
        if view.shape != shape:
            misshapen.append(f"{name} {tensor.shape} (wanted {shape} as {path})")
        views[path] = view
    missing = [path for path in wanted if path not in views]
    _refuse_misfits(source, missing, surplus, misshapen)
    return views


def _flax_path(name: str, wanted: dict[str, Any]) -> str | None:
    module, _, leaf = name.rpartition(".")
    level = re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/")
    leaves = ("kernel", "scale", "embedding") if leaf == "weight" else (leaf,)
    paths = (f"{level}/{leaf}" if level else leaf for leaf in leaves)
    return next((path for path in paths if path in wanted), None)


def _as_kernel(weight: np.ndarray, ndim: int) -> np.ndarray:
    """Output-input-space to space-input-output, to as many dimensions as the kernel has."""
    if ndim == 2 and weight.ndim > 2 and set(weight.shape[2:]) == {1}:
        weight = weight.reshape(weight.shape[:2])
    elif ndim > 2 and weight.ndim == 2:
        weight = weight.reshape(*weight.shape, *[1] * (ndim - 2))
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _read(view: np.ndarray, dtype: Any) -> jax.Array:
    """Copies a mapped view to the device, then drops its pages from this process."""
    array = jnp.asarray(np.array(view, dtype, order="C"))
    base: Any = view
    while not isinstance(base, mmap.mmap) and getattr(base, "base", None) is not None:
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
    return array


def save_safetensors(tree: Params, path: str | Path, dtype: Any = None) -> None:
    """Writes a tree of arrays under its own names, levels joined by `/`; replaces atomically.

    Args:
      tree: any pytree of arrays.
      path: the file to write.
      dtype: what floating-point leaves are stored as, e.g. `jnp.float16`; None keeps theirs.
    """

    def stored(leaf) -> np.ndarray:
        floating = jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        return np.array(leaf, dtype if floating else None, order="C")

    temporary = Path(f"{path}.tmp")
    save_file({name: stored(leaf) for name, leaf in _named_leaves(tree)}, temporary)
    os.replace(temporary, path)


def load_tree(path: str | Path, like: Params) -> Params:
    """Reads what `save_safetensors` wrote.

    Args:
      path: the file.
      like: the tree to fill, of arrays or `jax.ShapeDtypeStruct`; its dtypes decide the casts.

    Raises:
      WeightsError: missing or damaged file, or one whose names or shapes are not those of `like`.
    """
    tensors = load_safetensors(path)
    wanted = _named_leaves(like)
    names = [name for name, _ in wanted]
    misshapen = [
        f"{name} {tensors[name].shape} (wanted {tuple(leaf.shape)})"
        for name, leaf in wanted
        if name in tensors and tensors[name].shape != tuple(leaf.shape)
    ]
    missing = [name for name in names if name not in tensors]
    _refuse_misfits(path, missing, sorted(set(tensors) - set(names)), misshapen)
    leaves = [_read(tensors[name], leaf.dtype) for name, leaf in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def digest(tree: Params) -> str:
    """SHA-256 of every leaf's name, type, shape and bytes, in hexadecimal."""
    total = hashlib.sha256()
    for name, leaf in _named_leaves(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _named_leaves(tree: Params) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in flat]


def _refuse_misfits(
    source: str | Path, missing: list[str], surplus: list[str], misshapen: list[str]
) -> None:
    kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    problems = [f"{len(found)} {kind}: {_listed(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise WeightsError(f"{source} does not fit the network: {'; '.join(problems)}")


def _listed(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
