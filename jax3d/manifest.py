"""What a sweep makes: jobs, from a file or from a grid, and the recipe of each.

A manifest has one asset a line. In a `.jsonl` file a line is an object, in a `.csv` file a row
under a header; both name a `prompt` and, where the recipe's value shall not do, a `seed`, `steps`,
a `negative` prompt, and any field of `recipe.KnobValues`: a number, or the numbers of a ramp (a
list in JSON, separated by spaces in CSV).
"""

import csv
import dataclasses
import difflib
import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from etils import epath

from jax3d.bounds import Count, Seed, Text
from jax3d.knobs import KnobValues, Values
from jax3d.recipe import Recipe

KNOBS = tuple(f.name for f in dataclasses.fields(KnobValues))
FIELDS = ("prompt", "seed", "steps", "negative", *KNOBS)


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

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of this asset; raises `ValueError` for values that no recipe can have."""
        if self.steps is not None:
            recipe = recipe.with_steps(self.steps)
        if self.negative is not None:
            recipe = dataclasses.replace(recipe, negative=self.negative)
        knobs = dataclasses.replace(recipe.knobs, **self.knobs)
        return dataclasses.replace(recipe, knobs=knobs)


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
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"manifest {path}: expected a .jsonl or .csv file")
    read_rows = _json_rows if path.suffix == ".jsonl" else _csv_rows
    rows = read_rows(text, f"manifest {path}, line")
    jobs = []
    for line, row in rows:
        try:
            jobs.append(_job(row, seed + len(jobs)))
        except ValueError as error:
            raise ValueError(f"manifest {path}, line {line}: {error}") from None
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


def grid(**axes: Iterable) -> list[Job]:
    """Every combination of the values given for fields of a manifest's line.

    `grid(prompt=["a red chair"], guidance_scale=[7.5, 30, 100], seed=range(8))` is 24 jobs, the
    last axis fastest. Raises `ValueError` for an unknown field or a missing prompt.
    """
    names = list(axes)
    return [
        _job(dict(zip(names, values, strict=True)), 0)
        for values in itertools.product(*(list(axis) for axis in axes.values()))
    ]


def _json_rows(text: str, where: str):
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f'{where} {number}: expected an object, {{"prompt": ...}}')
        yield number, row


def _csv_rows(text: str, where: str):
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{where} {reader.line_num}: not as many cells as the header")
            yield reader.line_num, {name: cell for name, cell in row.items() if cell.strip()}
    except csv.Error as error:
        raise ValueError(f"{where} {reader.line_num}: {error}") from None


def _job(row: Mapping, seed: int) -> Job:
    for name in row:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, 1)
            hint = f"nearest: {near[0]!r}; " if near else ""
            raise ValueError(f"unknown field {name!r} ({hint}fields: {', '.join(FIELDS)})")
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("no prompt")
    steps = _whole("steps", row["steps"], 1) if "steps" in row else None
    negative = row.get("negative")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"negative is {negative!r}; expected a text")
    knobs = {name: _numbers(name, row[name]) for name in KNOBS if name in row}
    return Job(prompt, _whole("seed", row.get("seed", seed), 0), steps, negative, knobs)


def _whole(name: str, value, least: int) -> int:
    try:
        number = int(value)
        if number != float(value) or not least <= number < 2**32 or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least} on") from None
    return number


def _numbers(name: str, value) -> Values:
    parts = value.split() if isinstance(value, str) else np.atleast_1d(value).tolist()
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; expected a number or several") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {value!r}; expected finite numbers")
    return numbers
