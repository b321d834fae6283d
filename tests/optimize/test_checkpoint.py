"""Checkpoints: exact, kept few, and never believed when damaged."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.optimize.checkpoint import Checkpoints, absolute

# What orbax leaves behind when a file is damaged under it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TREE = {
    "planes": np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32),
    "moments": (np.arange(3, dtype=np.int32), None, jnp.ones((3, 2), jnp.bfloat16)),
}


def abstract(about):
    del about
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


def version(n):
    return jax.tree.map(lambda x: x + np.asarray(n, x.dtype), TREE)


@pytest.fixture
def folder(tmp_path):
    """Three saves, of which two are kept."""
    checkpoints = Checkpoints(tmp_path / "worker", keep=2)
    for n in range(3):
        checkpoints.save(version(n), {"n": n, "best": float("inf")})
    checkpoints.close()
    return tmp_path / "worker"


def reopened(folder):
    checkpoints = Checkpoints(folder)
    found = checkpoints.load(abstract)
    checkpoints.close()
    return found


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def assert_version(found, n):
    states, about = found
    assert about == {"n": n, "best": float("inf")}
    assert jax.tree.structure(states) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(version(n)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_newest_comes_back_exactly(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    assert_version(reopened(folder), 2)


def test_an_empty_folder_has_none(tmp_path):
    assert reopened(tmp_path / "new") is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, truncate, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(folder, harm):
    harm(largest_file(folder / "3"))
    with pytest.warns(UserWarning, match="3 is damaged and skipped"):
        assert_version(reopened(folder), 1)


@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
def test_every_file_is_guarded(folder):
    # Whatever file is lost, what comes back is a state that was saved, never a wrong one.
    for path in sorted(p for p in (folder / "3").rglob("*") if p.is_file()):
        kept = path.read_bytes()
        path.unlink()
        found = reopened(folder)
        assert found[1]["n"] in (1, 2)
        assert_version(found, found[1]["n"])
        path.write_bytes(kept)


def test_half_a_write_is_no_checkpoint(folder):
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    assert_version(reopened(folder), 2)


def test_all_damaged_is_as_none(folder):
    for step in ("2", "3"):
        truncate(largest_file(folder / step))
    with pytest.warns(UserWarning, match="damaged and skipped"):
        assert reopened(folder) is None


def test_other_shapes_are_refused(folder):
    checkpoints = Checkpoints(folder)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.load(lambda about: {"planes": jax.ShapeDtypeStruct((2,), "f4")}) is None
    checkpoints.close()


def test_saving_goes_on_after_a_damaged_one(folder):
    truncate(largest_file(folder / "3"))
    checkpoints = Checkpoints(folder)
    checkpoints.save(version(7), {"n": 7, "best": float("inf")})
    assert_version(checkpoints.load(abstract), 7)
    checkpoints.close()


STRAYS = [".DS_Store", "notes.txt", "²", "Thumbs.db", "7x", "-1", " 4"]


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("name", STRAYS)
def test_what_is_no_checkpoint_is_passed_over(folder, name, directory):
    stray = folder / name
    stray.mkdir() if directory else stray.write_text("")
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [2, 3]
    checkpoints.save(version(4), {"n": 4, "best": float("inf")})
    checkpoints.close()
    assert stray.exists()
    assert_version(reopened(folder), 4)


def test_a_relative_folder_is_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("out/checkpoints/main")
    monkeypatch.chdir("/")
    checkpoints.save(version(1), {"n": 1, "best": float("inf")})
    checkpoints.close()
    assert_version(reopened(tmp_path / "out" / "checkpoints" / "main"), 1)


@pytest.mark.parametrize("url", ["gs://bucket/props", "gs://bucket/a/../b"])
def test_a_url_is_left_alone(url):
    assert os.fspath(absolute(url)) == url


# In processes of their own, since what hung was their end.
FAILING = """
import os, pathlib, resource, shutil, signal, sys, time
import numpy as np
from jax3d.optimize.checkpoint import Checkpoints

tree = {"a": np.random.default_rng(0).normal(size=(3, 100, 200)).astype(np.float32)}

def gone(root):
    shutil.rmtree(root)

def a_file(root):
    shutil.rmtree(root)
    root.write_text("")

def too_large(root):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

def full(root):
    with open(root.parent / "fill", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def no_inodes(root):
    try:
        for k in range(10**6):
            (root.parent / f"fill{k}").touch()
    except OSError:
        pass

def no_folder(root):
    def refused(path, *args, **kwargs):
        raise OSError(28, os.strerror(28), str(path))
    os.mkdir = refused

mkdir, free = os.mkdir, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
for harm in sys.argv[2:]:
    os.mkdir = mkdir
    resource.setrlimit(resource.RLIMIT_FSIZE, free)
    for each in pathlib.Path(sys.argv[1]).glob("fill*"):
        each.unlink()
    try:
        with Checkpoints(pathlib.Path(sys.argv[1]) / harm) as checkpoints:
            checkpoints.save(tree, {})
            checkpoints.wait()
            globals()[harm](checkpoints.root)
            began = time.monotonic()
            checkpoints.save(tree, {})
            checkpoints.wait()
    except OSError as error:
        print(f"{time.monotonic() - began}|{error}")
"""


def demand_that_they_end(root, **harms):
    argv = [sys.executable, "-c", FAILING, str(root), *harms]
    # With the start of a Python; what hung did so for 300 s.
    said = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    lines = said.stdout.splitlines()
    for line, (harm, why) in zip(lines, harms.items(), strict=True):
        seconds, told = line.split("|")
        assert told == f"no checkpoint could be written to {root / harm}: {why}"
        assert float(seconds) < 10


def test_failed_saves_end_at_once(tmp_path):
    demand_that_they_end(
        tmp_path,
        gone="its folder is gone",
        a_file=f"[Errno 20] Not a directory: '{tmp_path / 'a_file'}'",
        too_large="File too large",
        no_folder="No space left on device",
    )


def test_a_full_disk_ends_a_save_at_once(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a disk")
    try:
        full = "No space left on device"
        demand_that_they_end(disk, full=full, no_inodes=full)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
