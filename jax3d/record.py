"""An asset's record, `asset.json`: what was asked, what became of it, what it cost, its files.

The status of an asset is one of

- `done`: it took all its steps;
- `plateau`: it was stopped early, since it did not get better any more;
- `nonfinite`: a step gave numbers that are not finite; it is delivered as it was before;
- `failed`: that happened before it was anything but its start, or there was no surface where it was
  to become a mesh. It has no files beside the record, and no place among the results.

A recipe is written with the kind of each of its parts, and can be read back.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from etils import epath

from jax3d import strict_json
from jax3d.recipe import Recipe

NAME = "asset.json"

Status = Literal["done", "plateau", "nonfinite", "failed"]

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MEMBERS = {
    "index": int,
    "prompt": str,
    "seed": int,
    "steps": int,
    "status": str,
    "knobs": dict,
    "critic": str,
    "model_flops": int,
    "seconds": dict,
    "recipe": dict,
    "metrics": dict,
    "errors": dict,
    "files": dict,
    "versions": dict,
}


def dumps(value: Any) -> str:
    """JSON, indented; what is no finite number becomes null."""
    return strict_json.dumps(value) + "\n"


def encode(value: Any) -> Any:
    """A dataclass, or what its fields hold, as JSON that `decode` reads."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, Mapping):
        return {key: encode(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [encode(each) for each in value]
    return value


def decode(hint: Any, data: Any, where: str = "recipe") -> Any:
    """What `encode` wrote, as the type that `hint` names.

    Knows dataclasses and named tuples, tuples, unions, `Literal`, plain values and None. Raises
    `ValueError` for whatever does not fit; the message says where, and what was expected.
    """
    kind = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, where)
    if kind is Literal and data in arguments and type(data) in map(type, arguments):
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, tuple) and isinstance(data, list):
        if hasattr(kind, "_fields"):
            arguments = tuple(typing.get_type_hints(kind).values())
        elif arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(data)
        if len(arguments) == len(data):
            parts = enumerate(zip(arguments, data, strict=True))
            parts = [decode(each, x, f"{where}[{i}]") for i, (each, x) in parts]
            return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
    if kind is float and type(data) in (int, float):
        return float(data)
    if (kind in (int, str, bool) and type(data) is kind) or (
        kind is types.NoneType and data is None
    ):
        return data
    raise ValueError(f"{where} is {_short(data)}; expected {_name(hint)}")


def _decode_union(options, data, where):
    if isinstance(data, dict):
        for each in options:
            if dataclasses.is_dataclass(each) and data.get("kind") == each.__name__:
                return decode(each, data, where)
    for each in options:
        if not dataclasses.is_dataclass(each):
            try:
                return decode(each, data, where)
            except ValueError:
                continue
    kind = data.get("kind") if isinstance(data, dict) else data
    names = " or ".join(_name(each) for each in options)
    raise ValueError(f"{where} is {_short(kind)}; expected {names}")


def _decode_dataclass(kind, data, where):
    if not isinstance(data, dict) or data.get("kind") != kind.__name__:
        raise ValueError(f"{where} is {_short(data)}; expected a {kind.__name__}")
    hints = typing.get_type_hints(kind)
    wanted = {f.name for f in dataclasses.fields(kind)}
    if strange := sorted({*data} ^ {*wanted, "kind"}):
        problem = "has an unknown field" if strange[0] in data else "lacks the field"
        raise ValueError(f"{where} {problem} {strange[0]!r}: it was written by another jax3d")
    return kind(**{name: decode(hints[name], data[name], f"{where}.{name}") for name in wanted})


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def recipe_from_json(data: Any, where: str = "recipe") -> Recipe:
    """The recipe that `encode` wrote; raises `ValueError` for another thing."""
    return decode(Recipe, data, where)


def read(path: epath.PathLike) -> dict:
    """The record in a file.

    Raises:
      ValueError: It is no record; the message names the file and what is wrong with it.
      OSError: It cannot be read; `FileNotFoundError` where there is none.
    """
    record = read_json(path)
    for name, kind in _MEMBERS.items():
        if type(record.get(name)) is not kind:
            raise ValueError(
                f"{path} is no record of an asset: {name!r} is missing or no {kind.__name__}"
            )
    if record["status"] not in typing.get_args(Status):
        raise ValueError(f"{path} has the status {_short(record['status'])}, which is none")
    for name in ("optimize", "finish"):
        if type(record["seconds"].get(name)) not in (int, float):
            raise ValueError(f"{path} is no record of an asset: it lacks its seconds of {name!r}")
    for name, about in record["files"].items():
        sound = isinstance(about, dict) and type(about.get("bytes")) is int
        if not sound or not _FILE.fullmatch(name) or type(about.get("sha256")) is not str:
            raise ValueError(f"{path} is no record of an asset: of {_short(name)} it tells no size")
    return record


def read_json(path: epath.PathLike) -> dict:
    """The JSON object in a file; errors as those of `read`."""
    try:
        data = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: it is truncated or no JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {_short(data)} where an object was expected")
    return data


def picture_of(path: str | None) -> str | None:
    """What a record has of the picture that an asset is made from: the file's SHA-256.

    Of a folder of photographs it is that of its files' names and digests. An empty text where it
    cannot be read; None where an asset is made from words.
    """
    if path is None:
        return None
    try:
        if not Path(path).is_dir():
            return _digest(path)
        files = sorted(each for each in Path(path).rglob("*") if each.is_file())
        names = (f"{each.relative_to(path)} {_digest(each)}\n" for each in files)
        return hashlib.sha256("".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    except OSError:
        return ""


def _digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asked(prompt: str, seed: int, recipe: Recipe, picture: str | None = None) -> dict:
    """What an asset is made from, as its record has it: all that changes its parameters.

    How it is meshed and shown is left out: that can be done again. `picture` is of `picture_of`.
    """
    recipe = _essence(encode(recipe))
    return {"prompt": prompt, "seed": seed, "recipe": recipe, "picture": picture}


def answers(record: Mapping, wanted: Mapping) -> str | None:
    """The first thing in which a record differs from what is `asked`; None where it does not."""
    own = {**record, "recipe": _essence(record["recipe"])}
    for name in ("prompt", "seed"):
        if own[name] != wanted[name]:
            return f"its {name} is {_short(own[name])}, and {_short(wanted[name])} is asked for"
    if own.get("picture") != wanted["picture"]:
        return "it was made from another picture"
    there, here = own["recipe"], wanted["recipe"]
    part = next((k for k in (*here, *there) if here.get(k) != there.get(k)), None)
    return None if part is None else f"it was made with other settings ({part})"


def _essence(recipe: Mapping) -> dict:
    return {k: v for k, v in recipe.items() if k not in ("mesh", "pictures")}


def files_of(folder: Path) -> dict[str, dict]:
    """Size and checksum of every file of a folder on this machine, the record aside."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != NAME:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return found
