"""More assets like those of a folder: a queue of them, and the sweeps that make it.

    out/queue.jsonl       lines of a manifest that wait
    out/more/001.jsonl    a batch: what waited when its sweep began
    out/more/001/         what `jax3d sweep` makes of it; a folder like `out`
    out/more/001.log      what the sweep says

A pause asks the sweep to end as Ctrl-C does; it goes on by the same command. A batch that is
cancelled is renamed to `001.cancelled` and keeps what was made.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from jax3d import folder, manifest

QUEUE = "queue.jsonl"
MORE = "more"
MOST_QUEUED = 10_000
"""Lines of the queue."""
_SWEEP = (sys.executable, "-m", "jax3d", "sweep")


class Batches:
    """The queue of a folder; its methods may be called from several threads."""

    def __init__(
        self, out: epath.Path, options: Sequence[str] | None, command: Sequence[str] = _SWEEP
    ):
        """`options` are those of the sweep, such as `--recipe native`; None: none is begun here."""
        self.out, self.options, self.command = out, options, command
        self._one_at_a_time = threading.RLock()
        self._process: subprocess.Popen | None = None
        self._name = ""
        """Of the batch that the process makes."""
        self._asked_to_end = False

    def add(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Adds lines to the queue; returns how many it has now.

        Raises `ValueError` where one is no line of a manifest, or the queue is full or damaged.
        """
        for line in lines:
            manifest.grid(**{name: [value] for name, value in line.items()})
        with self._one_at_a_time:
            waiting = self.waiting()
            if len(waiting) + len(lines) > MOST_QUEUED:
                raise ValueError(f"{QUEUE} has {len(waiting)} lines; it holds {MOST_QUEUED}")
            path = self.out / QUEUE
            text = path.read_text(encoding="utf-8") if waiting else ""
            fresh = path.with_name(f"{QUEUE}.new")
            fresh.unlink(missing_ok=True)  # a link would be written through
            text += "\n" * (text[-1:] not in ("", "\n"))
            fresh.write_text(
                text + "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
            )
            fresh.replace(path)
            return len(waiting) + len(lines)

    def waiting(self) -> list[manifest.Job]:
        """The lines of the queue; raises `ValueError` where it is damaged."""
        folder.refuse_links(self.out, [QUEUE, MORE])
        path = self.out / QUEUE
        return manifest.read(path) if path.exists() and path.stat().length else []

    def state(self) -> dict[str, Any]:
        """What a page shows: lines that `wait`, whether a sweep `can` begin, the last `batch`, and
        what is the `mistake` where these cannot be read.

        The batch has its `name`, how many of `total` are `made`, what the sweep `told` last, and a
        `state`: running, ending, paused, done or failed.
        """
        found = {"wait": 0, "can": self.options is not None, "batch": None, "mistake": ""}
        with self._one_at_a_time:
            try:
                found["wait"] = len(self.waiting())
                if (name := self._last()) is not None:
                    found["batch"] = self._batch(name)
            except (ValueError, OSError) as error:
                found["mistake"] = str(error)
        return found

    def _last(self) -> str | None:
        """The last batch that is not cancelled."""
        names = (path.name for path in (self.out / MORE).glob("*.jsonl"))
        return max((n[:-6] for n in names if re.fullmatch(r"[0-9]{3,}\.jsonl", n)), default=None)

    def _batch(self, name: str) -> dict[str, Any]:
        more = self.out / MORE
        total, made = len(manifest.read(more / f"{name}.jsonl")), len(folder.names(more / name))
        ours = name == self._name
        if ours and self._is_running():
            state = "ending" if self._asked_to_end else "running"
        elif made >= total:
            state = "done"
        else:
            state = "failed" if ours and not self._asked_to_end else "paused"
        told = _last_line(Path(more / f"{name}.log"))
        return {"name": name, "state": state, "made": made, "total": total, "told": told}

    def start(self) -> None:
        """Begins a sweep of what waits, or goes on with the last batch where that is not done.

        Raises `ValueError` where a sweep is at work, or there is nothing to do.
        """
        with self._one_at_a_time:
            if self.options is None:
                raise ValueError("jax3d serve was given no --sweep: it cannot begin one")
            if self._is_running():
                raise ValueError("a sweep is at work: pause or cancel it first")
            name = self._last()
            if name is None or self._batch(name)["state"] == "done":
                name = self._take()
            more = Path(self.out / MORE)
            log = more / f"{name}.log"
            log.unlink(missing_ok=True)
            argv = [*self.command, os.fspath(more / f"{name}.jsonl"), "--out", str(more / name)]
            with open(log, "xb") as file:
                self._process = subprocess.Popen(
                    [*argv, *self.options],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self._name, self._asked_to_end = name, False

    def _take(self) -> str:
        """Makes a batch of all that waits."""
        if not self.waiting():
            raise ValueError("nothing is queued")
        more = self.out / MORE
        more.mkdir(exist_ok=True)
        numbers = [int(found[0]) for p in more.iterdir() if (found := re.match("[0-9]+", p.name))]
        name = f"{max(numbers, default=0) + 1:03d}"
        (self.out / QUEUE).replace(more / f"{name}.jsonl")
        return name

    def pause(self) -> None:
        """Asks the sweep to save and end; raises `ValueError` where none is at work."""
        with self._one_at_a_time:
            if not self._is_running():
                raise ValueError("no sweep is at work")
            if not self._asked_to_end:  # a second signal would end it without saving
                self._asked_to_end = True
                self._process.send_signal(signal.SIGTERM)

    def cancel(self) -> None:
        """Ends the sweep, if it is at work, and puts its batch aside."""
        with self._one_at_a_time:
            name = self._last()
            if name is None or self._batch(name)["state"] == "done":
                raise ValueError("no batch is unfinished")
            if self._is_running():
                self.pause()
            more = self.out / MORE
            (more / f"{name}.jsonl").replace(more / f"{name}.cancelled")

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _last_line(path: Path) -> str:
    """The end of what a process said."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[-300:]
