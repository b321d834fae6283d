"""What an OUT folder is: who may write to it, whose it is, and which of its assets are whole.

    out/sweep.json           what this folder holds, so that another run cannot mix with it
    out/NNNN-prompt/         the files of an asset; it is finished when `asset.json` is there
    out/checkpoints/WORKER/  the assets on their way, until the worker has finished its share
    out/locks/WORKER.json    which process is that worker, while it runs
    out/staging/WORKER/      files in the making, on this machine's disks only
    out/choices.json         what a person keeps (`choices`)
    out/queue.jsonl, more/   more that is to be made like these (`batches`)
    out/replaced/            what `--overwrite` replaces, until the first block of steps is done

`out` may be a gs:// URL. Only what has one of these names is ever removed or written to, and never
through a link.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jax3d import choices, lock, record, weights
from jax3d.manifest import Job
from jax3d.optimize.checkpoint import Checkpoints, within
from jax3d.optimize.engine import EngineConfig
from jax3d.recipe import Opened, Recipe
from jax3d.types import Params

SWEEP = "sweep.json"
PARAMS = "params.safetensors"
_OWN = re.compile(r"[0-9]{4,}-[a-z0-9][a-z0-9-]{0,47}")
"""The folders of assets, as `gallery.slug` names them."""
_PARTS = ("checkpoints", "locks", "staging", "replaced", "viewer")
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


# ---------------------------------------------------------------- one process at a time


@contextlib.contextmanager
def held(out: epath.Path, worker: str, *, wait: bool, alone: bool = False) -> Iterator[None]:
    """Is the only process that works on `out` as this worker; makes the folder where it is missing.

    Where the context ends without a thing in the folder, it is removed again if it was made here.

    Args:
      out: The folder.
      worker: Of several that share it.
      wait: Whether to wait for the process that is this worker, instead of being refused.
      alone: Whether all other workers shall be refused, too.

    Raises:
      ValueError: Another process is at work there, or a part of the folder is a link.
      OSError: The folder cannot be written to.
    """
    if not _WORKER.fullmatch(worker):
        raise ValueError(f"worker is {worker!r}; expected letters, digits, '.', '_' and '-'")
    new = not out.exists()
    refuse_links(out, _PARTS)
    locks = out / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with lock.held(locks / f"{worker}.json", wait=wait):
            if alone and (others := _others(out, worker)):
                raise ValueError(
                    f"{out} is in use by {', '.join(others)}; stop them before it is overwritten"
                )
            staging = out / "staging" / worker
            if not is_url(out):
                staging.rmtree(missing_ok=True)  # of a process that was killed
                staging.mkdir(parents=True)
            try:
                yield
            finally:
                if not is_url(out):
                    staging.rmtree(missing_ok=True)
    finally:
        _remove_empty(out / "staging", locks, *([out] if new else []))


def _others(out: epath.Path, worker: str) -> list[str]:
    """The live workers beside this one."""
    found = []
    for path in within(out / "locks"):
        if path.suffix == ".json" and path.stem != worker:
            holder = lock.read(path)
            if not lock.is_stale(path, holder):
                found.append(path.stem)
    return sorted(found)


def _remove_empty(*folders: epath.Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # of buckets' folders it is a ValueError
            folder.rmdir()


def refuse_links(out: epath.Path, names: Iterable[str]) -> None:
    """Raises `ValueError` where a name in `out` is a link: nothing is written elsewhere."""
    if is_url(out):
        return
    for name in names:
        if os.path.islink(out / name):
            raise ValueError(f"{out / name} is a link, and not followed: remove it")


def is_url(path: epath.PathLike) -> bool:
    """Whether it is no path of this machine."""
    return "://" in os.fspath(path)


# ---------------------------------------------------------------- whose folder it is


def identity(
    recipe: Recipe, opened: Opened, jobs: Sequence[Job], candidates: int, config: EngineConfig
) -> dict[str, Any]:
    """All that changes the results of a run, by what a person would call it."""
    return {
        "recipe": _digest(recipe),
        "jobs": _digest(list(jobs)),
        "critic": opened.digest,
        "candidates": candidates,
        "early stop": [config.patience, config.tolerance],
        "x64": bool(jax.config.jax_enable_x64),
        "matmul precision": str(jax.config.jax_default_matmul_precision),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()


def demand_claimable(out: epath.Path, about: Mapping, overwrite: bool) -> None:
    """Raises `ValueError` where `out` is another run's and shall not be overwritten.

    What this jax3d or this JAX may make otherwise than the one that began is told by a warning.
    """
    refuse_links(out, about["folders"])
    try:
        note = _read_note(out)
    except ValueError as error:
        if not overwrite:
            raise ValueError(
                f"{error}. Choose another --out, or repair it by --overwrite"
            ) from None
        return
    if note is None:
        return
    differs = _differences(note, about)
    if differs and not overwrite:
        raise ValueError(
            f"{out} holds another run: {note['assets']} assets by {note['critic']}; it differs in "
            f"{', '.join(differs)}. Choose another --out, or lose what it holds by --overwrite"
        )
    for name in ("jax", "jax3d"):
        before, now = note["versions"].get(name), about["versions"][name]
        if before != now and not differs:
            warnings.warn(
                f"{out} was begun with {name} {before} and goes on with {now}: its assets may "
                "differ by more than their seeds",
                stacklevel=3,
            )


def _differences(note: Mapping, about: Mapping) -> list[str]:
    there, here = note["identity"], about["identity"]
    return [name for name in {**here, **there} if there.get(name) != here.get(name)]


def _read_note(out: epath.Path) -> dict | None:
    """What `sweep.json` says; None without one, `ValueError` for one that cannot be read."""
    path = out / SWEEP
    if not path.exists():
        return None
    note = record.read_json(path)
    kinds = {"identity": dict, "assets": int, "critic": str, "versions": dict, "folders": list}
    for name, kind in kinds.items():
        if type(note.get(name)) is not kind:
            raise ValueError(f"{path} tells of no run: {name!r} is missing or no {kind.__name__}")
    return note


@contextlib.contextmanager
def claimed(
    out: epath.Path, about: Mapping, *, overwrite: bool, worker: str
) -> Iterator[Callable[[], None]]:
    """Makes the folder this run's own; yields what is to be called when the run has got going.

    Where the context ends by an error before that, the folder is as it was. What was replaced in a
    bucket is gone by then: there it cannot be put aside.

    Args:
      out: The folder, `held`.
      about: What `sweep.json` is to say; its `identity`, `assets`, `critic`, `versions` and
        `folders` are read.
      overwrite: Whether another run that is there shall be lost.
      worker: This one.

    Raises:
      ValueError: The folder is another run's.
    """
    demand_claimable(out, about, overwrite)
    aside = out / "replaced"
    aside.rmtree(missing_ok=True)
    _put_aside(out, about, aside)
    fresh = _create(out / SWEEP, record.dumps(about), worker)
    if not fresh:
        demand_claimable(out, about, False)
    going = not fresh  # by others, or by this worker in an earlier life

    def begun():
        nonlocal going
        if not going:
            going = True
            aside.rmtree(missing_ok=True)

    try:
        yield begun
    except BaseException:
        if not going and not _others(out, worker):
            _give_back(out, aside)
        raise
    begun()


def _put_aside(out: epath.Path, about: Mapping, aside: epath.Path) -> None:
    """Clears the folder of another run, if there is one."""
    try:
        note = _read_note(out)
        if note is None or not _differences(note, about):
            return
        names = [name for name in note["folders"] if isinstance(name, str)]
    except ValueError:
        # Nobody knows what it held: what has the names and the records of assets.
        names = [p.name for p in within(out) if (p / record.NAME).exists()]
    names = [name for name in names if _OWN.fullmatch(name)]
    rest = ("checkpoints", "index.html", "ledger.csv", choices.NAME, SWEEP)
    for name in (*dict.fromkeys(names), *rest):
        _move(out / name, aside / name)


def _move(path: epath.Path, to: epath.Path) -> None:
    if is_url(path):
        if path.is_dir():
            path.rmtree(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
    elif os.path.lexists(path):
        to.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, to)  # of a link the link itself


def _give_back(out: epath.Path, aside: epath.Path) -> None:
    (out / SWEEP).unlink(missing_ok=True)
    for path in within(aside):
        _move(path, out / path.name)
    _remove_empty(aside)


def _create(path: epath.Path, text: str, worker: str) -> bool:
    """Writes a file that must not be there yet, whole or not at all; False where it is.

    On file systems without hard links, and in buckets, of two who create it at once the later one
    wins, and both believe to.
    """
    fresh = path.with_name(f"{path.name}.{worker}")
    if is_url(path):
        if path.exists():
            return False
        path.write_text(text, encoding="utf-8")
        return True
    fresh.unlink(missing_ok=True)
    fresh.write_text(text, encoding="utf-8")
    try:
        os.link(fresh, path)
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return True


# ---------------------------------------------------------------- its assets


class Found(NamedTuple):
    """What a folder has of an asset."""

    record: dict
    damaged: list[str]
    """Its files that are missing or of another size than the record says."""


def find(folder: epath.Path, wanted: Mapping) -> Found | None:
    """The asset in a folder; None where there is none, or another than is `record.asked` for.

    A record that cannot be read, or is another's, is told by a warning that names it.
    """
    path = folder / record.NAME
    try:
        if not path.exists():
            return None
        found = record.read(path)
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}; its asset is made anew", stacklevel=2)
        return None
    if difference := record.answers(found, wanted):
        warnings.warn(f"{path} is another asset's: {difference}; it is made anew", stacklevel=2)
        return None
    sizes = {name: about["bytes"] for name, about in found["files"].items()}
    return Found(found, [name for name, size in sizes.items() if _size(folder / name) != size])


def _size(path: epath.Path) -> int | None:
    try:
        return path.stat().length
    except OSError:
        return None


def names(out: epath.Path) -> list[str]:
    """The folders of assets that have a record, in order; links are none."""
    return sorted(path.name for path in within(out) if is_asset(out, path.name))


def is_asset(out: epath.Path, name: str) -> bool:
    """Whether a name in `out` is the folder of an asset that has a record."""
    if not _OWN.fullmatch(name) or (not is_url(out) and os.path.islink(out / name)):
        return False
    return (out / name / record.NAME).exists()


def records(out: epath.Path, names: Iterable[str]) -> dict[str, dict]:
    """The records of those folders that have a sound one, by folder."""
    found = {}
    for name in names:
        with contextlib.suppress(ValueError, OSError):
            found[name] = record.read(out / name / record.NAME)
    return found


@contextlib.contextmanager
def staging(out: epath.Path, worker: str, name: str) -> Iterator[Path]:
    """A folder on this machine in which an asset's files are made, gone when the context ends.

    `out` is `held` by the worker. Where it is local, so is the folder, on the same disk, and what a
    kill leaves of it is removed by the worker's next start.
    """
    if is_url(out):
        with tempfile.TemporaryDirectory() as local:
            yield Path(local)
        return
    local = Path(out) / "staging" / worker / name
    local.mkdir()
    try:
        yield local
    finally:
        shutil.rmtree(local, ignore_errors=True)


def publish(local: Path, target: epath.Path) -> None:
    """Puts an asset's files in their place, the record last; each is there whole or not at all.

    Files that an earlier version of the asset had and this one has not are removed.
    """
    target.mkdir(parents=True, exist_ok=True)
    before, now = set(), set(record.read(local / record.NAME)["files"])
    with contextlib.suppress(ValueError, OSError):
        before = set(record.read(target / record.NAME)["files"])
    for path in sorted(local.iterdir(), key=lambda path: path.name == record.NAME):
        if is_url(target):
            fresh = target / f"{path.name}.new"
            epath.Path(path).copy(fresh, overwrite=True)
            fresh.replace(target / path.name)
        else:
            os.replace(path, target / path.name)
    for name in before - now:
        (target / name).unlink(missing_ok=True)


def write_record(target: epath.Path, about: Mapping) -> None:
    """Replaces the record of an asset whose files stay as they are."""
    fresh = target / f"{record.NAME}.new"
    fresh.unlink(missing_ok=True)
    fresh.write_text(record.dumps(about), encoding="utf-8")
    fresh.replace(target / record.NAME)


@contextlib.contextmanager
def checkpoints(
    out: epath.Path, worker: str, keep: int
) -> Iterator[tuple[Checkpoints, list[Checkpoints]]]:
    """The checkpoints of a worker, and those of all others to read from.

    Its own are removed when the context ends well.
    """
    folder = out / "checkpoints"
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(Checkpoints(path, mine=False))
            for path in within(folder)
            if path.name != worker and path.is_dir()
        ]
        try:
            with Checkpoints(folder / worker, keep) as own:
                yield own, others
        except BaseException:
            _remove_empty(folder / worker, folder)
            raise
    (folder / worker).rmtree(missing_ok=True)


# ---------------------------------------------------------------- its parameters


class Asset(NamedTuple):
    """An asset as its folder keeps it."""

    recipe: Recipe
    params: Params
    """Of what the recipe makes, float32, from the half precision of the file."""
    record: dict


def save_params(params: Params, path: Path) -> None:
    """Writes parameters in half precision, save those leaves whose numbers it cannot hold."""
    with np.errstate(over="ignore"):
        weights.save_safetensors(jax.tree.map(_halved, params), path)


def _halved(leaf):
    leaf = np.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    half = leaf.astype(np.float16)
    return half if np.isfinite(half).all() else leaf


def load_asset(folder: epath.PathLike) -> Asset:
    """Recipe, parameters and record of an asset's folder.

    Raises:
      ValueError: It holds no asset, one that failed, or files that are not those of the record.
      OSError: It cannot be read.
    """
    folder = epath.Path(folder)
    path = folder / record.NAME
    if not path.exists():
        raise ValueError(f"{folder} holds no asset: there is no {record.NAME}")
    found = record.read(path)
    recipe = record.recipe_from_json(found["recipe"], f"{path}: recipe")
    if PARAMS not in found["files"]:
        raise ValueError(f"{folder} has no {PARAMS}: {found['errors'].get(PARAMS, 'it failed')}")
    with _on_this_machine(folder / PARAMS) as local:
        with open(local, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != found["files"][PARAMS]["sha256"]:
            raise ValueError(f"{folder / PARAMS} is damaged: it does not match its checksum")
        like = jax.eval_shape(recipe.outcome.build().init, jax.random.key(0))
        return Asset(recipe, weights.load_tree(local, like), found)


@contextlib.contextmanager
def _on_this_machine(path: epath.Path) -> Iterator[Path]:
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as local:
        copy = Path(local) / path.name
        path.copy(copy)
        yield copy
