"""The ledger of a sweep: one row an asset, with what it was, what it cost and how good it is.

`ledger.csv` is written from the `asset.json` of the finished assets, so it can be made again at
any time and from any number of processes, and it never holds what is not on disk.

Spreadsheets run cells that begin with `=`, `+`, `-` or `@`, also behind white space, so a text that
does so, or begins with a tab or a line break, has an apostrophe in front, and so has a text that
begins with one; `text_of` takes it away again. Plain numbers are left as they are. What a record
does not know, or has as null, is an empty cell.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

FIRST = ("index", "prompt", "seed", "steps", "status", "best")
LAST = ("device_seconds", "finish_seconds", "model_flops", "path", "error")

_RUN = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What begins a formula, in the wide forms of East Asian keyboards too."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)


def row(folder: str, record: Mapping) -> dict:
    """The ledger's row of an asset, from its `asset.json`."""
    seconds = record.get("seconds") or {}
    known = {
        **{name: record.get(name) for name in FIRST},
        **{name: _ramp(values) for name, values in (record.get("knobs") or {}).items()},
        **(record.get("metrics") or {}),
        "device_seconds": seconds.get("optimize"),
        "finish_seconds": seconds.get("finish"),
        "model_flops": record.get("model_flops"),
        "path": folder,
        "error": _errors(record),
    }
    return {name: "" if value is None else value for name, value in known.items()}


def _ramp(values: Sequence[float | None]) -> str:
    return " ".join("nan" if x is None else f"{x:g}" for x in values)


def _errors(record: Mapping) -> str:
    """What went wrong, part by part, in a line."""
    parts = (f"{part}: {told}" for part, told in (record.get("errors") or {}).items())
    return " ".join("; ".join(parts).split())


def write(out: epath.PathLike, rows: Sequence[Mapping]) -> epath.Path:
    """Writes `ledger.csv`, rows by index; what varies from row to row has a column of its own."""
    rows = sorted(rows, key=_place)
    middle = dict.fromkeys(
        name for row in rows for name in row if name not in FIRST and name not in LAST
    )
    columns = [*FIRST, *middle, *LAST]
    path = epath.Path(out) / "ledger.csv"
    fresh = path.with_name("ledger.csv.new")
    fresh.write_bytes(table(columns, rows))
    fresh.replace(path)
    return path


def table(columns: Sequence[str], rows: Iterable[Mapping]) -> bytes:
    """CSV in which no cell is a formula; what a row does not have is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _place(row: Mapping) -> tuple[int | float, str]:
    index = row.get("index")
    return (index if isinstance(index, int) else math.inf, str(row.get("path")))


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    runs = value.startswith(("'", "\t", "\r", "\n")) or value.lstrip().startswith(_RUN)
    return f"'{value}" if runs else value


def text_of(cell: str) -> str:
    """The text that a cell of the ledger stands for."""
    return cell.removeprefix("'")


def summary(rows: Sequence[Mapping], dollars_per_hour: float | None = None) -> str:
    """What a sweep made and cost, in a line: assets by status and with errors, time and FLOPs.

    Means are over the rows that know the number.
    """
    if not rows:
        return "0 assets"
    counts = Counter(row.get("status") or "unknown" for row in rows)
    kinds = [f"{n} {status}" for status, n in sorted(counts.items())]
    if errors := sum(bool(row.get("error")) for row in rows):
        kinds.append(f"{errors} with an error")
    told = []
    if (seconds := _mean(rows, "device_seconds")) is not None:
        told.append(f"{seconds:.2f} device-seconds")
    if (flops := _mean(rows, "model_flops")) is not None:
        told.append(f"{flops:.3g} model FLOPs")
    if (finish := _mean(rows, "finish_seconds")) is not None:
        told.append(f"{finish:.2f} s to finish on the host")
    if seconds is not None and dollars_per_hour is not None:
        told.append(f"{seconds / 3600 * dollars_per_hour:.4f} dollars")
    text = f"{len(rows)} assets ({', '.join(kinds)})"
    return f"{text}; an asset: {', '.join(told)}" if told else text


def _mean(rows: Sequence[Mapping], name: str) -> float | None:
    known = [row.get(name) for row in rows]
    known = [x for x in known if isinstance(x, int | float) and math.isfinite(x)]
    return sum(known) / len(known) if known else None
