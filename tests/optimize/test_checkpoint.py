"""Checkpoints: exact, kept few, and never believed when damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.optimize.checkpoint import Checkpoints

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
