"""The ledger of a sweep: one row an asset, with what it was, what it cost and how good it is.

`ledger.csv` is written from the `asset.json` of the finished assets, so it can be made again at
any time and from any number of processes, and it never holds what is not on disk.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

FIRST = ("index", "prompt", "seed", "steps", "status", "best")
LAST = ("device_seconds", "finish_seconds", "model_flops", "path", "error")


def row(folder: str, record: Mapping) -> dict:
    """The ledger's row of an asset, from its `asset.json`."""
    return {
        "index": record["index"],
        "prompt": record["prompt"],
        "seed": record["seed"],
        "steps": record["steps"],
        "status": record["status"],
        "best": record.get("best", ""),
        **{name: " ".join(f"{x:g}" for x in values) for name, values in record["knobs"].items()},
        **record["metrics"],
        "device_seconds": record["seconds"]["optimize"],
        "finish_seconds": record["seconds"]["finish"],
        "model_flops": record["model_flops"],
        "path": folder,
        "error": record.get("error", ""),
    }


def write(out: epath.PathLike, rows: Sequence[Mapping]) -> epath.Path:
    """Writes `ledger.csv`, rows by index; what varies from row to row has a column of its own."""
    rows = sorted(rows, key=lambda row: row["index"])
    middle = dict.fromkeys(
        name for row in rows for name in row if name not in FIRST and name not in LAST
    )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*FIRST, *middle, *LAST], restval="")
    writer.writeheader()
    writer.writerows(rows)
    path = epath.Path(out) / "ledger.csv"
    fresh = path.with_name("ledger.csv.new")
    fresh.write_text(text.getvalue(), encoding="utf-8")
    fresh.replace(path)
    return path


def records(out: epath.PathLike, folders: Iterable[str]) -> dict[str, dict]:
    """The `asset.json` of those folders that have one, by folder."""
    found = {}
    for folder in folders:
        path = epath.Path(out) / folder / "asset.json"
        if path.exists():
            found[folder] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(rows: Sequence[Mapping], dollars_per_hour: float | None = None) -> str:
    """What a sweep cost, in a line: assets by status, device time and FLOPs of an asset."""
    if not rows:
        return "0 assets"
    counts: dict[str, int] = {}
    for one in rows:
        counts[one["status"]] = counts.get(one["status"], 0) + 1
    seconds = float(np.mean([one["device_seconds"] for one in rows]))
    flops = float(np.mean([one["model_flops"] for one in rows]))
    finish = float(np.mean([one["finish_seconds"] for one in rows]))
    kinds = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    text = (
        f"{len(rows)} assets ({kinds}); an asset: {seconds:.2f} device-seconds, "
        f"{flops:.3g} model FLOPs, {finish:.2f} s to finish on the host"
    )
    if dollars_per_hour is not None:
        text += f", {seconds / 3600 * dollars_per_hour:.4f} dollars"
    return text
