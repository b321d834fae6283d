"""What a sweep makes: jobs, from a file or from a grid, and the recipe of each.

A manifest has one asset a line. In a `.jsonl` file a line is an object, in a `.csv` file a row
under a header; both name a `prompt` and, where the recipe's value shall not do, a `seed`, `steps`,
a `negative` prompt, and any field of `recipe.KnobValues`: a number, or the numbers of a ramp (a
list in JSON, separated by spaces in CSV). What is empty or null is not given.

Files are read as people have them: UTF-8, or UTF-16 and UTF-32 with a byte-order mark; lines that
end as on any system; names in any case, with spaces or hyphens; columns separated by commas, tabs,
or by semicolons, beside which Excel writes its numbers with a decimal comma. Where a reading would
be a guess it is a mistake, told by file, line and field.
"""

import codecs
import csv
import dataclasses
import difflib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jax3d import bounds
from jax3d.bounds import Count, Seed, Text
from jax3d.knobs import KnobValues, Values
from jax3d.recipe import Recipe

KNOBS = tuple(f.name for f in dataclasses.fields(KnobValues))
TEXTS = ("prompt", "negative", "picture")
FIELDS = ("prompt", "seed", "steps", "negative", "picture", *KNOBS)


@dataclass(frozen=True)
class Job:
    """One asset to make."""

    prompt: Text
    seed: Seed = 0
    steps: Count | None = None
    """In place of the recipe's."""
    negative: Text | None = None
    """In place of the recipe's."""
    knobs: Mapping[str, Values] = field(default_factory=dict)
    """In place of the recipe's, by the names of `KnobValues`."""
    picture: Text | None = None
    """Path of a picture of it, for models that look at one; the prompt may then be empty."""

    @property
    def title(self) -> str:
        """What people call it: the prompt, or the picture's name."""
        return self.prompt if self.prompt.strip() else Path(self.picture or "").stem

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of this asset; raises `ValueError` for steps that no recipe can have."""
        if self.steps is not None:
            recipe = recipe.with_steps(self.steps)
        if self.negative is not None:
            recipe = dataclasses.replace(recipe, negative=self.negative)
        if not self.knobs:
            return recipe
        knobs = dataclasses.replace(recipe.knobs, **self.knobs)
        return dataclasses.replace(recipe, knobs=knobs)

    def check(self, recipe: Recipe) -> None:
        """Raises `ValueError` for values that no asset of this recipe can have.

        For every asset before the first is made: it takes 0.1 ms and asks no device.
        """
        _check_fields(vars(self))
        told = dataclasses.replace(recipe.knobs, **self.knobs).mistake()
        if told is not None:
            raise ValueError(told)


def read(path: epath.PathLike, seed: int = 0) -> list[Job]:
    """The jobs of a manifest.

    Args:
      path: A `.jsonl` or `.csv` file, or a bucket's URL of one.
      seed: Of the first asset; assets without a seed of their own count on from it.

    Raises:
      ValueError: The file is no manifest; the message names the line and the mistake.
      OSError: The file cannot be read.
    """
    path = epath.Path(path)
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise ValueError(f"manifest {path}: expected a .jsonl or .csv file")
    where = f"manifest {path}, line"
    text = _decode(path.read_bytes(), where)
    jobs = []
    for line, row in _json_rows(text, where) if kind == ".jsonl" else _csv_rows(text, where):
        try:
            jobs.append(_job(row, seed, len(jobs)))
        except ValueError as error:
            raise ValueError(f"{where} {line}: {error}") from None
    if not jobs:
        raise ValueError(f"manifest {path} names no asset; give one a line")
    return jobs


def chunks(count: int, size: int) -> list[range]:
    """The indices of `count` assets in pieces of at most `size`, in order.

    Raises `ValueError` for a size below 1.
    """
    if size < 1:
        raise ValueError(f"chunk is {size}; it takes 1 asset or more")
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def seeds(first: int, count: int) -> range:
    """The seeds of `count` assets that count on from the first.

    Raises `ValueError` where they leave what a seed may be: 0 to 2^32 - 1.
    """
    bounds.check_value(first, Seed, "seed")
    last = first + count - 1
    if last >= 2**32:
        raise ValueError(
            f"seed is {first}: counting on from it, asset {count} would have {last}, and the "
            f"greatest is {2**32 - 1}"
        )
    return range(first, first + count)


def grid(**axes: Iterable) -> list[Job]:
    """Every combination of the values given for fields of a manifest's line.

    `grid(prompt=["a red chair"], guidance_scale=[7.5, 30, 100], seed=range(8))` is 24 jobs, the
    last axis fastest. Raises `ValueError` for an unknown field, a missing prompt, a value that no
    asset can have.
    """
    names = list(axes)
    return [
        _job(dict(zip(names, values, strict=True)), 0, 0)
        for values in itertools.product(*(list(axis) for axis in axes.values()))
    ]


# ------------------------------------------------------------------------------ bytes to rows

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as the mark of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def _decode(data: bytes, where: str) -> str:
    mark, encoding = next((m for m in _MARKS if data.startswith(m[0])), (b"", "utf-8"))
    data = data.removeprefix(mark)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(_lines(data[: error.start].decode(encoding)))
        raise ValueError(
            f"{where} {line}: byte 0x{data[error.start]:02x} is no {encoding.upper()}; save the "
            "file as UTF-8 (in Excel: 'CSV UTF-8')"
        ) from None
    if "\0" in text:
        line = len(_lines(text[: text.index("\0")]))
        raise ValueError(
            f"{where} {line}: a NUL character is no text; save the file as UTF-8, or as UTF-16 "
            "with a byte-order mark"
        )
    return text


def _lines(text: str) -> list[str]:
    """Lines end at `\\n`, `\\r\\n` or `\\r` and nowhere else: JSON strings hold other breaks."""
    return re.split("\r\n|\n|\r", text)


class _Written(str):
    """A number as the file has it, of any length; text in quotes is a plain `str`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [_name(key) for key, _ in pairs]
    _demand_once(names, "key")
    return dict(zip(names, (value for _, value in pairs), strict=True))


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Written, parse_float=_Written, parse_constant=_Written
)


def _json_rows(text: str, where: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = _JSON.decode(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} {number}: not JSON: {error}") from None
        except RecursionError:
            raise ValueError(f"{where} {number}: lists in lists, too deep to read") from None
        except ValueError as error:
            raise ValueError(f"{where} {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f'{where} {number}: expected an object, {{"prompt": ...}}')
        yield number, row


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict]]:
    delimiter = _delimiter(text)
    records = _records(text, delimiter, where)
    line, header = next(records, (1, []))
    names = [_name(cell) for cell in header]
    try:
        _demand_known(filter(None, names))
        _demand_once(filter(None, names), "column")
        if names and not {"prompt", "picture"} & {*names}:
            raise ValueError("no column is named 'prompt'; the first line names the columns")
    except ValueError as error:
        raise ValueError(f"{where} {line}: {error}") from None
    for line, cells in records:
        cells += [""] * (len(names) - len(cells))  # Excel leaves out empty ones at the end
        beyond = [cell for cell in cells[len(names) :] if cell.strip()]
        if beyond:
            raise ValueError(
                f"{where} {line}: {len(cells)} cells, and the header has {len(names)}: put a cell "
                f"that holds {delimiter!r} in double quotes"
            )
        row = {}
        for column, (name, cell) in enumerate(zip(names, cells, strict=False), 1):
            if not name and cell.strip():
                raise ValueError(f"{where} {line}: column {column} has no name, but {cell!r}")
            decimal_comma = delimiter == ";" and name not in TEXTS
            try:
                row[name] = _with_point(name, cell) if decimal_comma else cell
            except ValueError as error:
                raise ValueError(f"{where} {line}: {error}") from None
        row.pop("", None)
        yield line, row


def _delimiter(text: str) -> str:
    """What separates the columns: that by which the header names a prompt."""
    for delimiter in ",;\t":
        try:
            header = next(_records(text, delimiter, ""), (1, []))[1]
        except ValueError:
            continue
        if {"prompt", "picture"} & {*map(_name, header)}:
            return delimiter
    return ","


def _records(text: str, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold anything, each with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where} {line}: not CSV: {error}") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _with_point(name: str, cell: str) -> str:
    """Numbers with a decimal comma, which Excel writes where semicolons separate the cells."""
    for part in cell.split():
        if re.fullmatch(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", part):
            plain, comma = part.replace(".", ""), part.replace(".", ",", 1)
            raise ValueError(
                f"{name} is {part}: beside semicolons that may be {plain} or {comma}; write either"
            )
    return cell.replace(",", ".")


# ------------------------------------------------------------------------------- rows to jobs


def _name(written: str) -> str:
    """A field's name: any case, spaces and hyphens for underscores."""
    return re.sub(r"[\s-]+", "_", written.strip().removeprefix("\ufeff").lower())


def _demand_once(names: Iterable[str], kind: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{kind} {name!r} is there twice")
        seen.add(name)


def _demand_known(names: Iterable[str]) -> None:
    for name in names:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name)[:60], FIELDS, 1)
            hint = f"nearest: {near[0]!r}; " if near else ""
            told = bounds.shown(str(name))
            raise ValueError(f"unknown field {told} ({hint}fields: {', '.join(FIELDS)})")


def _job(row: Mapping[str, Any], first_seed: int, index: int) -> Job:
    """The job that a row describes; without a seed of its own it counts on from the first."""
    _demand_known(row)
    given = {name: value for name, value in row.items() if not _is_blank(value)}
    if not {"prompt", "picture"} & {*given}:
        raise ValueError("no prompt")
    for name in TEXTS:
        if isinstance(given.get(name), _Written):
            raise ValueError(f"{name} is {bounds.shown(given[name])}; expected a text")
    fields = {
        "prompt": given.get("prompt", ""),
        "seed": _whole(given["seed"]) if "seed" in given else seeds(first_seed, index + 1)[-1],
        "steps": _whole(given["steps"]) if "steps" in given else None,
        "negative": given.get("negative"),
        "picture": given.get("picture"),
        "knobs": {name: _numbers(name, given[name]) for name in KNOBS if name in given},
    }
    _check_fields(fields)
    return Job(**fields)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, hint in bounds.hints(Job).items():
        bounds.check_value(fields[name], hint, name)
    if not fields["prompt"].strip() and not fields["picture"]:
        raise ValueError("no prompt")
    of_knobs = bounds.hints(KnobValues)
    for name, values in fields["knobs"].items():
        if name not in of_knobs:
            raise ValueError(f"unknown knob {name!r} (knobs: {', '.join(KNOBS)})")
        bounds.check_value(values, of_knobs[name], name)


def _number(value: Any) -> float:
    """A number however it is written; raises `ValueError`, `TypeError` or `OverflowError`."""
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return float(value)


def _whole(value: Any) -> Any:
    """7, 7.0, "7" and "7.0" are 7; what is no whole number is left for `_check_fields` to tell."""
    try:
        number = _number(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return int(number) if number.is_integer() else value


def _numbers(name: str, value: Any) -> Values:
    if isinstance(value, str):
        parts = value.split()
    else:
        parts = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    try:
        return tuple(_number(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {bounds.shown(value)}; expected a number or several") from None
