"""Comparing programs on a shared machine: CPU time, alternated, as ratios.

Wall time says little where others compute. The CPU time (user + system) of one pinned core does;
programs take turns, so that a slow minute hits all of them, and figures are quotients.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table


def pin() -> None:
    """Keep this process on one core, the last of those it may use. Call before JAX starts."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def alternate(programs: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """CPU seconds of each program, `repeats` times in turn.

    Each turn runs the program twice and times the second run, as a loop would see it: with its
    memory mapped and its caches warm.
    """
    seconds = {name: [] for name in programs}
    for program in programs.values():
        program()
    for _ in range(repeats):
        for name, program in programs.items():
            program()
            start = time.process_time()
            program()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Median [lowest..highest]."""
    middle, low, high = np.median(values), values.min(), values.max()
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def figure(values: np.ndarray) -> dict[str, float]:
    """`spread` for JSON."""
    return {
        "median": float(np.median(values)),
        "low": float(values.min()),
        "high": float(values.max()),
    }


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def save(path: Path | None, figures: dict) -> None:
    """Write the figures as JSON, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")
