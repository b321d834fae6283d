"""A lock that a process holds on a folder, in a file that says who it is.

On the host where its process runs, a lock is as good as the process: it is stale once that is dead,
whatever has its number now. From another host only the file is seen: its holder touches it every
`BEAT` seconds, and it is stale when that has not happened for `STALE` seconds, by the clock of the
file system.

A bucket (gs://) has no exclusive creation: of two processes that ask within the same second both
may believe to hold the lock there. Whoever comes later is refused all the same.
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

BEAT = 10.0
"""Seconds between two signs of life."""
STALE = 120.0
"""Seconds without one after which a holder on another host counts as dead."""


class Holder(NamedTuple):
    """Who holds a lock."""

    host: str
    place: str
    """Where its number means the same process: a boot of a host and a space of numbers in it."""
    pid: int
    born: str | None
    """When the process began, as the system tells it; numbers are used again."""
    begun: float
    """When it took the lock, seconds since 1970."""
    token: str
    """Of this lock alone."""


@contextlib.contextmanager
def held(path: epath.Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock `path`, a file in a folder that exists, while the context lasts.

    Args:
      path: Of the lock; `.json`.
      wait: Whether to wait for a live holder instead of being refused.

    Raises:
      ValueError: Another process holds it; the message names host, process and age.
    """
    me = Holder(socket.gethostname(), _place(), os.getpid(), _born(os.getpid()), time.time(), _id())
    told = False
    while not _create(path, me):
        holder = read(path)
        if is_stale(path, holder):
            _take_away(path, holder)
        elif not wait:
            raise ValueError(
                f"{_says(path, holder)}. Wait for it by --wait, or choose another --out"
            )
        else:
            if not told:
                warnings.warn(f"waiting: {_says(path, holder)}", stacklevel=3)
                told = True
            time.sleep(1.0)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, me, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if read(path) == me:
            path.unlink(missing_ok=True)


def read(path: epath.Path) -> Holder | None:
    """Who holds a lock; None where nobody does, or nobody who can be read."""
    try:
        found = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    kinds = (str, str, int, str | None, float, str)
    if not all(map(isinstance, found, kinds)) or not 0 < found.pid < 2**31:
        return None
    return found


def is_stale(path: epath.Path, holder: Holder | None) -> bool:
    """Whether the holder of a lock is dead."""
    if holder is not None and holder.place == _place():
        return not _is_alive(holder.pid, holder.born)
    with contextlib.suppress(FileNotFoundError):
        return _silence(path) > STALE
    return False


def _create(path: epath.Path, me: Holder) -> bool:
    text = json.dumps(me._asdict()) + "\n"
    if _is_url(path):
        if path.exists():
            return False
        path.write_text(text, encoding="utf-8")
        return read(path) == me
    with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        file.write(text)
        return True
    return False


def _take_away(path: epath.Path, stale: Holder | None) -> None:
    """Removes a stale lock, and no other: a second process may have done so and hold it by now."""
    if _is_url(path):
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.{_id()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if read(aside) != stale:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)


def _beat(path: epath.Path, me: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT):
        # A beat that is missed, of a folder that is gone or a server that is away, ends nothing.
        with contextlib.suppress(OSError):
            if _is_url(path):
                path.write_text(json.dumps(me._asdict()) + "\n", encoding="utf-8")
            else:
                os.utime(path)


def _silence(path: epath.Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{_id()}")
    probe.write_text("")
    try:
        return float(probe.stat().mtime - path.stat().mtime)
    finally:
        probe.unlink(missing_ok=True)


def _says(path: epath.Path, holder: Holder | None) -> str:
    folder = path.parent.parent
    if holder is None:
        return (
            f"{folder} is locked by {path}, which cannot be read and is younger than {STALE:.0f} s"
        )
    age = max(time.time() - holder.begun, 0.0)
    since = f"{age:.0f} s" if age < 120 else f"{age / 60:.0f} min"
    return f"{folder} is written to by process {holder.pid} on {holder.host}, since {since}"


def _is_url(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _id() -> str:
    return uuid.uuid4().hex


def _place() -> str:
    """A host, its boot and its space of process numbers, as far as the system tells them."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_alive(pid: int, born: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _born(pid) in (born, None)


def _born(pid: int) -> str | None:
    """When a process began, or "dead" for one that only waits to be buried; None: unknown."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        with contextlib.suppress(OSError):
            state, *fields = stat.read_text().rpartition(")")[2].split()
            return "dead" if state in "ZX" else fields[18]
        return None
    with contextlib.suppress(OSError):
        ps = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        said = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.split()
        return "dead" if not said or said[0].startswith("Z") else " ".join(said[1:])
    return None
