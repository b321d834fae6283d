"""Network weights between files and parameter trees, with exact coverage.

A loaded file is a flat `dict` of names to NumPy views that are mapped from the disk: nothing is
read until a leaf is copied, so loading costs the tree plus one leaf of memory. Rules that rename
tensors are plain functions from such a dict to such a dict (slicing a view reads nothing), and
`to_flax` then places every tensor or says by name which it cannot.

Readable: safetensors (one file, or shards behind an index), the zip pickles of torch (`.bin`,
`.ckpt`, `.pt`; nothing in them is ever executed) and Flax msgpack.

Files are not trusted: what they claim is held against their size, their types and the shapes of the
network that their config describes before anything of the claimed size is allocated.
"""

import collections
import dataclasses
import hashlib
import io
import json
import math
import mmap
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax3d.types import Params

Settings = TypeVar("Settings")
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


MOST_JSON = 1 << 25
"""Bytes of a JSON file that is read; the largest of known checkpoints, a tokenizer, has 4 MB."""
_MOST_YAML = 1 << 16
_MOST_PICKLE = 1 << 24
"""Bytes of the pickle beside a checkpoint's storages; tens of thousands of tensors fit."""
_MOST_TUPLES = 30_000
_MOST = 1 << 20
"""The greatest whole number that a config may hold: no width, vocabulary or count is as large."""
_MOST_ENTRIES = 16
"""The longest list that a config may hold: one number a level of the network."""


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


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
      WeightsError: the file is missing, larger than `MOST_JSON`, or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is missing: is the checkpoint folder complete?")
    if (size := path.stat().st_size) > MOST_JSON:
        raise WeightsError(f"{path}: {size} bytes; a JSON file may have {MOST_JSON}")
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise WeightsError(f"{path}: not JSON that can be read (nested too deeply)") from error
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error


def read_yaml(path: str | Path) -> Any:
    """What a YAML file of plain values holds; anchors and tags are not read.

    Raises:
      WeightsError: the file is missing, larger than 64 KB, or no such YAML.
    """
    # Imported here: few checkpoints have one.
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent, index):
            # What aliases refer to can grow exponentially.
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases")
            return super().compose_node(parent, index)

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is missing: is the checkpoint folder complete?")
    if (size := path.stat().st_size) > _MOST_YAML:
        raise WeightsError(f"{path}: {size} bytes; a YAML file may have {_MOST_YAML}")
    try:
        return yaml.load(path.read_text("utf-8"), Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not YAML that can be read ({first_line(error)})") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """A network's configuration, in YAML if the suffix says so, else in JSON.

    Raises:
      WeightsError: the file is missing, not what its suffix says, or holds no object.
    """
    kind = "YAML mapping" if Path(path).suffix == ".yaml" else "JSON object"
    config = read_yaml(path) if Path(path).suffix == ".yaml" else read_json(path)
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: holds a {type(config).__name__}, not a {kind}")
    return config


def checked(config: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that have a kind here, lists as tuples.

    Args:
      config: as the JSON file has it.
      kinds: types by name, in annotations' form: `int`, `float` (a whole number will do), `bool`,
        `str`, `None`, `tuple[int, ...]` and unions of these.

    Raises:
      WeightsError: an entry is of another kind, not finite, negative
        where whole, or absurdly large.
    """
    chosen = {}
    for name, kind in kinds.items():
        if name in config:
            value = config[name]
            value = tuple(value) if isinstance(value, list) else value
            if not _is_of(value, kind):
                wanted = kind.__name__ if isinstance(kind, type) else str(kind)
                raise WeightsError(f"{name} = {shown(config[name])}: no {wanted} that can be meant")
            chosen[name] = value
    return chosen


def checked_fields(config: Mapping[str, Any], cls: type, but: tuple[str, ...] = ()) -> dict:
    """`checked` entries for the fields of a dataclass, without those named in `but`."""
    return checked(config, {f.name: f.type for f in dataclasses.fields(cls) if f.name not in but})


def settings(config: Any, cls: type[Settings]) -> Settings:
    """The dataclass of which a config of this package holds the fields.

    Raises:
      WeightsError: it is no object, has entries that are no fields, or see `checked`.
    """
    if not isinstance(config, dict):
        raise WeightsError(f"settings are a JSON object, not {shown(config)}")
    if unknown := set(config) - {f.name for f in dataclasses.fields(cls)}:
        raise WeightsError(f"unknown settings {shown(sorted(unknown))}")
    return cls(**checked_fields(config, cls))


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _is_of(value, get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        few = isinstance(value, tuple) and len(value) <= _MOST_ENTRIES
        return few and all(_is_of(v, get_args(kind)[0]) for v in value)
    if kind is int:
        return type(value) is int and 0 <= value <= _MOST
    if kind is float:
        number = type(value) is float or (type(value) is int and abs(value) <= _MOST)
        return number and math.isfinite(value)
    return value is None if kind in (None, type(None)) else type(value) is kind


def shown(value: Any) -> str:
    """A value of a file for a message: one short line."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def described(
    path: str | Path, from_config: Callable[[dict], Any], abstract_params: Callable[[Any], Params]
) -> tuple[Any, Params]:
    """The network that a config file describes and the shapes of its weights; allocates nothing.

    Args:
      path: the config.
      from_config: the network of a parsed config.
      abstract_params: the shapes of a network's weights.

    Raises:
      WeightsError: the file is missing or no JSON, or no network can be built as it says.
    """
    config = read_config(path)
    try:
        network = from_config(config)
        return network, abstract_params(network)
    except Exception as error:  # flax and jax raise a dozen classes for sizes that clash
        raise WeightsError(f"{path}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it is none of ours."""
    line = next(iter(str(error).splitlines()), "")
    line = line if isinstance(error, WeightsError) else f"{type(error).__name__}: {line}"
    return line if len(line) <= 300 else line[:297] + "..."


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

    The library checks the header (its length, names, types, and that the tensors lie end to end
    and fill the file: https://github.com/huggingface/safetensors); the arrays are views of a map of
    our own, because the library copies each tensor while its mapped pages stay resident, which
    doubles the peak memory of a load.

    Raises:
      WeightsError: missing, truncated or malformed file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            entries = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except (SafetensorError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or a truncated or malformed one "
            f"({first_line(error)}); fetch the file again"
        ) from error
    data = np.memmap(path, np.uint8, "r")
    begin = 8 + int(data[:8].view("<u8")[0])
    tensors = {}
    for name, (kind, shape) in entries.items():
        if (dtype := _SAFETENSORS_DTYPES.get(kind)) is None:
            raise WeightsError(f"{path}: tensor {shown(name)} is of type {kind}, which is not read")
        end = begin + dtype.itemsize * math.prod(shape)
        try:
            tensors[name] = data[begin:end].view(dtype).reshape(shape)
        except ValueError as error:  # no elements, and sides beyond NumPy's
            raise WeightsError(f"{path}: tensor {shown(name)} of shape {shown(shape)}") from error
        begin = end
    return tensors


def _load_shards(path: Path) -> Flat:
    weight_map = read_config(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path}: not an index of shards (it has no weight_map)")
    for shard in weight_map.values():
        # Links are followed: folders of the Hugging Face hub's cache consist of them.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", shard):
            raise WeightsError(
                f"{path}: the shard {shown(shard)} is no .safetensors or .bin file beside the index"
            )
    tensors: Flat = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= load(path.parent / shard)
    if lost := sorted(set(weight_map) - set(tensors)):
        raise WeightsError(f"{path}: the shards lack {_listed(lost)}")
    return tensors


def _load_msgpack(path: Path) -> Flat:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep=".").items()}
    except Exception as error:  # msgpack raises half a dozen unrelated classes on damaged input
        raise WeightsError(
            f"{path}: not a Flax msgpack checkpoint ({first_line(error)})"
        ) from error
    known = set(_SAFETENSORS_DTYPES.values())
    if strange := [name for name, array in flat.items() if array.dtype not in known]:
        raise WeightsError(f"{path}: no numbers: {_listed(strange)}")
    return flat


class _Storage(NamedTuple):
    data: np.ndarray


def _rebuild_tensor(
    storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None
) -> np.ndarray:
    del requires_grad, hooks, metadata
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    outside = last >= max(storage.data.size, 1) or math.prod(size) > storage.data.size
    if min((offset, *size, *stride), default=0) < 0 or outside:
        raise WeightsError(f"a tensor of shape {shown(tuple(size))} reaches outside of its storage")
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

    Tensors under a `state_dict` key, as trainers keep them, are taken from there. Of a file that
    holds dicts of several networks, names begin with the network's.

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

            code = _pickle_of(archive, entries[pickled])
            content = _TensorUnpickler(io.BytesIO(code), read_storage).load()
    except WeightsError as error:
        raise WeightsError(f"{path}: refused: {error}") from error
    except (zipfile.BadZipFile, StopIteration) as error:
        raise WeightsError(
            f"{path}: not a zip pickle of torch, or a truncated one; "
            "fetch it again, or use a safetensors version"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(f"{path}: damaged pickle ({first_line(error)})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    if not any(isinstance(v, np.ndarray) for v in content.values()):
        parts = {k: part for k, part in content.items() if isinstance(part, dict)}
        content = {f"{k}.{name}": v for k, part in parts.items() for name, v in part.items()}
    tensors = {str(k): v for k, v in content.items() if isinstance(v, np.ndarray)}
    # Tied weights share a storage; a storage that is shared by all is a trap.
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
        raise WeightsError(f"{path}: its tensors claim more than twice the size of the file")
    return tensors


def _pickle_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A checkpoint's pickle, once it is known that unpickling it takes little memory and stack."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MOST_PICKLE:
        raise WeightsError(f"{info.filename} is compressed, or larger than {_MOST_PICKLE} bytes")
    code = archive.read(info)
    tuples = 0
    for opcode, argument, _ in pickletools.genops(code):
        # The unpickler would allocate a table up to the greatest index.
        if "PUT" in opcode.name and argument is not None and int(argument) > len(code):
            raise WeightsError(f"{opcode.name} {shown(argument)} in a pickle of {len(code)} bytes")
        tuples += "TUPLE" in opcode.name
    # Nested in a key, more would exhaust the stack when it is hashed; a tensor takes four.
    if tuples > _MOST_TUPLES:
        raise WeightsError(f"{info.filename} has {tuples} tuples; {_MOST_TUPLES} are read")
    return code


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


def digest(tree: Params, facts: Any = None) -> str:
    """SHA-256 in hexadecimal of every leaf's name, type, shape and bytes, without a copy.

    Args:
      tree: any pytree of arrays.
      facts: what else decides, as JSON can hold it.
    """
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, leaf in _named_leaves(tree):
        # An array on an accelerator would keep the host's copy that is made here.
        away = isinstance(leaf, jax.Array) and leaf.device.platform != "cpu"
        array = np.asarray(leaf.copy() if away else leaf, order="C")
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
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
