"""Checkpoints of running assets: asynchronous, atomic, and believed only if every byte is right.

Orbax writes each checkpoint beside the others and renames it when it is whole, but it hands back a
file with a flipped bit without a word, and fails on a truncated one while still naming it the
latest. So every array carries a checksum, and a checkpoint that is damaged in any way is skipped
for the one before it.

States are stored as one flat dictionary of arrays `[n, ...]`, by the names of their leaves, on the
host: what was saved on eight devices is read on one.
"""

import contextlib
import errno
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

Json = Any


def demand_storage(root: epath.PathLike) -> None:
    """Raises `ValueError` for a place that Orbax does not know: it writes to paths and to gs://."""
    scheme, url, _ = os.fspath(root).partition("://")
    if url and scheme != "gs":
        raise ValueError(
            f"{root}: checkpoints go to a local path or a gs:// URL, not to {scheme}://; mount the "
            "bucket as a folder and name that"
        )


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that means the same wherever the process goes, as Orbax asks; URLs are left alone."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.expanduser().absolute()


def within(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds: nothing where it is missing, as a bucket's empty folders are."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


class Checkpoints:
    """The checkpoints in one folder, which may be a gs:// URL; a context that closes itself."""

    def __init__(self, root: epath.PathLike, keep: int = 2, *, mine: bool = True):
        """Opens the folder and makes it where it is missing; the newest `keep` are kept.

        Where it is not `mine` but another process's, it is only read from, and may vanish
        meanwhile.
        """
        self.root = absolute(root)
        if mine:
            self.root.mkdir(parents=True, exist_ok=True)
        if jax.process_count() > 1:
            # Orbax would wait for all of them at each save, and write arrays from one only.
            raise ValueError(
                f"{jax.process_count()} processes share one JAX: start each as a JAX of its own "
                "(launch/README.md says how), since each has its own assets and checkpoints"
            )
        context = ocp.Context()
        # A folder that cannot be made in the background is waited for when the process ends: 300 s.
        context.asynchronous.create_directories_asynchronously = False
        self._orbax = ocp.training.Checkpointer(
            self.root,
            context=context,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=mine,
        )
        self._pending = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None:
            self.close()
            return
        # What ends the run is told; that a save in the background fails as well is no news.
        with contextlib.suppress(Exception):
            self.close()

    def steps(self) -> list[int]:
        """The checkpoints that claim to be whole, oldest first; what else lies there is no step."""
        return sorted(int(p.name) for p in within(self.root) if re.fullmatch("[0-9]+", p.name))

    def save(self, states: Any, about: Json) -> None:
        """Writes the next checkpoint in the background; waits for the one before.

        Args:
          states: A tree of arrays; they are copied to the host before this returns.
          about: What belongs to it, as JSON.

        Raises:
          OSError: This checkpoint or the one before could not be written: the disk is full, the
            folder is gone.
        """
        self.wait()
        arrays = {name: np.asarray(leaf) for name, leaf in _named(jax.device_get(states)).items()}
        sums = {name: zlib.crc32(np.ascontiguousarray(x)) for name, x in arrays.items()}
        note = json.dumps([about, sums])
        with self._told():
            self._pending = self._orbax.save_checkpointables_async(
                1 + max(self.steps(), default=0),
                {"states": arrays, "note": {"json": note, "sum": zlib.crc32(note.encode())}},
                force=True,
            )

    @contextlib.contextmanager
    def _told(self):
        """Whatever a writer raises, of its many layers, as one `OSError` that names the folder."""
        try:
            yield
        except Exception as error:
            local = "://" not in os.fspath(self.root)
            why = "its folder is gone" if local and not self.root.exists() else _reason(error)
            raise OSError(f"no checkpoint could be written to {self.root}: {why}") from error

    def load(self, abstract: Callable[[Json], Any]) -> tuple[Any, Json] | None:
        """The newest whole checkpoint as `(states, about)` with NumPy leaves; None without one.

        A damaged one is told by a warning and passed over.

        Args:
          abstract: From `about`, the shapes and structure that the states must have, or None
            where this checkpoint holds nothing of interest.
        """
        self.wait()
        for step in reversed(self.steps()):
            try:
                return self._load(step, abstract)
            except Exception as error:
                # Whatever a damaged file makes of its reader, the one before may be whole. One
                # that is gone was removed by its owner, who is alive.
                if not (self.root / str(step)).exists():
                    continue
                warnings.warn(
                    f"checkpoint {self.root / str(step)} is damaged and skipped: "
                    f"{type(error).__name__}: {_first_line(error)}",
                    stacklevel=2,
                )
        return None

    def _load(self, step: int, abstract: Callable[[Json], Any]) -> tuple[Any, Json] | None:
        note = self._orbax.load_checkpointables(step, {"note": None})["note"]
        if zlib.crc32(note["json"].encode()) != note["sum"]:
            raise ValueError("its note does not match its checksum")
        about, sums = json.loads(note["json"])
        wanted = abstract(about)
        if wanted is None:
            return None
        shapes = {name: np.empty(x.shape, x.dtype) for name, x in _named(wanted).items()}
        arrays = self._orbax.load_checkpointables(step, {"states": shapes})["states"]
        for name, wanted_sum in sums.items():
            if zlib.crc32(np.ascontiguousarray(arrays[name])) != wanted_sum:
                raise ValueError(f"{name} does not match its checksum")
        leaves = [np.asarray(arrays[name]) for name in shapes]
        return jax.tree.unflatten(jax.tree.structure(wanted), leaves), about

    def wait(self) -> None:
        """Waits until what was saved is on disk; raises `OSError` where it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._told():
                pending.result()

    def close(self) -> None:
        """Waits and lets go of the folder; raises `OSError` where a save has failed."""
        try:
            self.wait()
        finally:
            with self._told():
                self._orbax.close()


def _reason(error: Exception) -> str:
    """What the system said, which the writers wrap in the paths of their own files."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    said = (os.strerror(code) for code in codes)
    return next((text for text in said if text in str(error)), _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _named(tree: Any) -> Mapping[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
