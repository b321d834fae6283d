"""Sparse networks against dense ones, and against the formulas by loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.nn import sparse

SIDE, ROOM = 6, 80
RNG = np.random.default_rng(0)
GRID = RNG.random((SIDE, SIDE, SIDE)) < 0.3
COUNT = int(GRID.sum())
occupied = jax.jit(sparse.occupied, static_argnums=1)
levels_of = jax.jit(sparse.levels, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def levels():
    place, lost = occupied(GRID, ROOM)
    assert int(lost) == 0
    return levels_of(place, SIDE, (27,))


def spread(x, coords):
    """Features of rows on a dense grid."""
    dense = np.zeros((SIDE, SIDE, SIDE, x.shape[-1]), np.float32)
    dense[tuple(np.asarray(coords).T)] = x
    return dense


def test_voxels_are_sorted_and_the_rest_is_nobodys(levels):
    fine = levels.voxels[0]
    np.testing.assert_array_equal(fine.coords[:COUNT], np.argwhere(GRID))
    np.testing.assert_array_equal(fine.there, np.arange(ROOM) < COUNT)
    assert np.all(np.asarray(fine.near[:, COUNT:]) == ROOM)
    np.testing.assert_array_equal(fine.near[13, :COUNT], np.arange(COUNT))


def test_more_voxels_than_there_is_room_for_are_counted(levels):
    place, lost = occupied(GRID, COUNT - 7)
    assert int(lost) == 7
    assert np.all(np.asarray(place) < SIDE**3)
    place = levels.voxels[0].place
    full = int(levels.voxels[1].there.sum())
    assert int(levels_of(place, SIDE, (full - 2,)).overflow) == 2
    with pytest.raises(ValueError, match="side 6 cannot be halved 2 times"):
        levels_of(place, SIDE, (27, 8))


def test_a_convolution_is_the_dense_one_where_voxels_are(levels):
    fine = levels.voxels[0]
    net = sparse.SparseConv(5)
    # What nobody's rows hold is not read.
    x = jnp.asarray(RNG.standard_normal((2, ROOM, 3)), jnp.float32)
    params = net.init(jax.random.key(0), x, fine.near)
    params["params"]["bias"] = jnp.arange(5.0)
    y = jax.jit(net.apply)(params, x, fine.near)
    dense = spread(x[1, :COUNT], fine.coords[:COUNT])
    wanted = jax.lax.conv_general_dilated(
        dense[None], params["params"]["kernel"], (1, 1, 1), "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )[0] + jnp.arange(5.0)  # fmt: skip
    np.testing.assert_allclose(y[1, :COUNT], wanted[GRID], atol=1e-5)


def test_coarser_places_hold_the_mean_with_one_more(levels):
    coarse = levels.voxels[1]
    links, count = levels.links[0], int(coarse.there.sum())
    parents = np.argwhere(GRID) // 2
    known = np.unique(parents, axis=0)
    np.testing.assert_array_equal(coarse.coords[:count], known)
    x = np.float32(RNG.standard_normal((1, ROOM, 3)))
    y = np.asarray(sparse.coarsened(jnp.asarray(x), links))[0]
    for row, place in enumerate(known):
        mine = np.flatnonzero((parents == place).all(1))
        np.testing.assert_allclose(y[row], x[0, mine].sum(0) / (len(mine) + 1), atol=1e-6)
        assert np.all(np.asarray(links.parent)[mine] == row)
    assert not y[count:].any()
    back = np.asarray(sparse.rows(jnp.asarray(y[None]), links.parent))[0]
    np.testing.assert_array_equal(back[COUNT:], 0)


def attended(q, k, v, allowed):
    """Attention of one head by its formula."""
    logits = np.where(allowed, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True) @ v


@pytest.mark.parametrize(("size", "shift"), [(2, 0), (2, 1), (4, 2)])
def test_attention_in_windows(levels, size, shift):
    fine = levels.voxels[0]
    q, k, v = jnp.asarray(RNG.standard_normal((3, 1, ROOM, 2, 4)), jnp.float32)
    found = sparse.windows(fine, SIDE, size, shift)
    y = jax.jit(sparse.attend_windows, static_argnums=4)(q, k, v, found, size**3)
    cube = (np.argwhere(GRID) + shift) // size
    allowed = (cube[:, None] == cube).all(-1)
    for head in range(2):
        parts = (np.asarray(a[0, :COUNT, head]) for a in (q, k, v))
        np.testing.assert_allclose(y[0, :COUNT, head], attended(*parts, allowed), atol=1e-5)


@pytest.mark.parametrize("block", [16, 1024])
def test_attention_to_the_first_rows(block):
    q, k, v = jnp.asarray(RNG.standard_normal((3, 2, ROOM, 1, 4)), jnp.float32)
    y = jax.jit(sparse.attend_first, static_argnums=4)(q, k, v, jnp.int32(COUNT), block)
    allowed = np.arange(ROOM) < COUNT
    wanted = attended(*(np.asarray(a[1, :, 0]) for a in (q, k, v)), allowed)
    np.testing.assert_allclose(y[1, :, 0], wanted, atol=1e-5)
