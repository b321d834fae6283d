"""Lists of hits: nobody is missing, nobody is where he cannot be seen."""

import jax
import jax.numpy as jnp
import numpy as np

from jax3d.render import tiles

SIZE = (20, 29)


def footprints(n):
    """Ellipses at random, nearest first: the table, and the half sides of their boxes."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-5, 34, (n, 2))
    turn, spread = rng.uniform(0, np.pi, n), np.exp(rng.normal(0, 1, (n, 2)))
    axes = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], -1).reshape(n, 2, 2)
    cov = np.einsum("nki,nk,nkj->nij", axes, spread**2, axes)
    conic = np.linalg.inv(cov)
    opacity = rng.uniform(0.002, 1, n)
    reach = np.sqrt(2 * np.log(np.maximum(255 * opacity, 1)))
    extents = reach[:, None] * np.sqrt(np.stack([cov[:, 0, 0], cov[:, 1, 1]], -1))
    conics = np.stack([conic[:, 0, 0], conic[:, 0, 1], conic[:, 1, 1]], -1)
    table = np.concatenate([means, conics, opacity[:, None]], -1)
    return jnp.asarray(table, jnp.float32), jnp.asarray(extents, jnp.float32)


def greatest_opacities(table, beyond):
    """At the pixel centres of every tile, `[n t]`; also `beyond` the picture's border."""
    row, column = np.mgrid[: SIZE[0] + 4, : SIZE[1] + 3] + 0.5
    x, y, a, b, c, opacity = np.asarray(table, np.float64).T[..., None, None]
    dx, dy = x - column, y - row
    alpha = opacity * np.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
    alpha = np.where(beyond | ((row < SIZE[0]) & (column < SIZE[1])), alpha, 0.0)
    return alpha.reshape(len(table), 3, 8, 4, 8).max((2, 4)).reshape(len(table), -1)


def test_a_tile_has_all_that_reach_it_and_nearly_none_else():
    table, extents = footprints(80)
    shown = jnp.arange(80) != 3
    find = jax.jit(tiles.lists_of, static_argnums=(3, 4))
    lists, overflow = find(table[None], extents[None], shown[None], SIZE, 960)
    assert overflow == 0
    assert np.all(np.diff(lists.length) <= 0)
    assert sorted(lists.tile) == list(range(12))
    seen, near = (greatest_opacities(table, beyond) for beyond in (False, True))
    seen = seen * shown[:, None]
    for tile, begin, length in zip(lists.tile, lists.begin, lists.length, strict=True):
        there = lists.rows[begin : begin + length]
        assert np.all(np.diff(there) > 0)
        assert set(np.flatnonzero(seen[:, tile] >= 1 / 255)) <= set(there.tolist())
        # The ellipse's nearest point may lie between centres, where it is narrow far from them.
        assert np.mean(near[there, tile] < 0.9 / 255) < 0.1


def test_lists_are_sorted_alike_by_one_key_and_by_two():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 11, 200).astype(np.int32)
    rank = np.sort(rng.integers(0, 50, 200)).astype(np.int32)
    sort = jax.jit(tiles._by_tile, static_argnums=(2, 3))
    ranks, begin = sort(jnp.asarray(tile), jnp.asarray(rank), 10, 50)
    same, where = sort(jnp.asarray(tile), jnp.asarray(rank), 10, 2**28)
    np.testing.assert_array_equal(begin, where)
    np.testing.assert_array_equal(ranks[: begin[-1]], same[: begin[-1]])
    for t in range(10):
        np.testing.assert_array_equal(ranks[begin[t] : begin[t + 1]], np.sort(rank[tile == t]))


def test_more_hits_than_int32_has_are_many():
    n = 2**17
    table = jnp.broadcast_to(jnp.array([512.0, 512, 1e-6, 0, 1e-6, 1]), (1, n, 6))
    extents, size = jnp.full((1, n, 2), 3000.0), (1100, 1100)
    find = jax.jit(lambda: tiles.lists_of(table, extents, jnp.ones((1, n), bool), size, 50_000)[1])
    assert find()[0] == 2**30 - 1 - 50_000
