"""FlexiCubes: its authors' numbers, its cases, its gradients.

`flexicubes.npz` holds what their code makes of a bumpy ball of 8^3 cubes that is positive inside,
with plain weights and with a network's on moved points.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial import cKDTree

from jax3d.mesh import flexicubes
from jax3d.mesh.extract import EmptyFieldError, signed_volume
from jax3d.types import Mesh


def ball(cells, side=2.0, radius=0.7):
    points = flexicubes.lattice(cells, side)
    return points, np.linalg.norm(points, axis=-1).astype(np.float32) - np.float32(radius)


def cube_of(sdf):
    side = round(len(sdf) ** (1 / 3))
    return sdf.reshape(side, side, side)


def plain(cells):
    return flexicubes.activated(jnp.zeros((cells**3, 21)))


def meshed(points, sdf):
    found = flexicubes.topology(cube_of(sdf))
    weights = plain(len(cube_of(sdf)) - 1)
    placed = flexicubes.vertices(found, points, sdf, weights)
    return Mesh(np.asarray(placed), flexicubes.faces(found, np.asarray(weights.gamma)))


def directed(faces):
    """How often each directed edge occurs, and its reverse."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    count = len(edges) and faces.max() + 1
    kinds, times = np.unique(edges[:, 0] * count + edges[:, 1], return_counts=True)
    back = np.sort(kinds % count * count + kinds // count)
    return kinds, times, back


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "flexicubes.npz") as file:
        return dict(file)


def test_it_is_the_authors_code_with_plain_weights(golden):
    points = flexicubes.lattice(8, 2.1)
    mesh = meshed(points, golden["sdf"].reshape(-1))
    np.testing.assert_allclose(mesh.vertices, golden["plain_vertices"], atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, golden["plain_faces"])


def test_it_is_the_authors_code_with_a_networks_weights(golden):
    found = flexicubes.topology(golden["sdf"])
    points, sdf = golden["points"], golden["sdf"].reshape(-1)
    weights = flexicubes.activated(golden["weights"])
    placed = flexicubes.vertices(found, points, sdf, weights)
    np.testing.assert_allclose(placed, golden["vertices"], atol=1e-6)
    faces = flexicubes.faces(found, np.asarray(weights.gamma))
    np.testing.assert_array_equal(faces, golden["faces"])
    away = flexicubes.deviation(found, points, sdf, placed)
    np.testing.assert_allclose(away, golden["deviation"], atol=1e-6)


def test_a_ball_is_round_to_a_tenth_of_a_cell():
    mesh = meshed(*ball(32))
    cell, radius = 2.0 / 32, 0.7
    rng = np.random.default_rng(0)
    corners = mesh.vertices[mesh.faces]
    on_mesh = np.einsum("fsk,fs->fk", corners, rng.dirichlet(np.ones(3), len(corners)))
    there = np.abs(np.linalg.norm(on_mesh, axis=-1) - radius).mean()
    on_ball = rng.standard_normal((2000, 3))
    on_ball *= radius / np.linalg.norm(on_ball, axis=-1, keepdims=True)
    dense = np.concatenate(
        [
            np.einsum("fsk,fs->fk", corners, rng.dirichlet(np.ones(3), len(corners)))
            for _ in range(100)
        ]
    )
    back = cKDTree(dense).query(on_ball)[0].mean()
    assert there + back < 0.1 * cell
    assert np.abs(signed_volume(mesh) / (4 / 3 * np.pi * radius**3) - 1) < 0.01
    # Closed, of genus 0.
    kinds, times, reverse = directed(mesh.faces)
    np.testing.assert_array_equal(kinds, reverse)
    assert times.max() == 1
    assert len(mesh.vertices) - len(mesh.faces) / 2 == 2


def test_surfaces_of_random_signs_are_closed_and_face_outwards():
    """All cases of a cube, its neighbours' included."""
    rng = np.random.default_rng(0)
    sdf = rng.uniform(0.2, 1.0, (17,) * 3) * rng.choice([-1.0, 1.0], (17,) * 3)
    sdf = np.pad(sdf, 1, constant_values=1.0).astype(np.float32)
    found = flexicubes.topology(sdf)
    case = (sdf.reshape(-1)[flexicubes.cubes(18)] < 0) << np.arange(8)
    assert set(case.sum(-1)) == set(range(256))
    weights = plain(18)
    faces = flexicubes.faces(found, np.asarray(weights.gamma))
    kinds, times, _ = directed(faces)
    count = faces.max() + 1
    back = dict(zip((kinds % count * count + kinds // count).tolist(), times, strict=True))
    assert all(back[kind] == n for kind, n in zip(kinds.tolist(), times, strict=True))
    # Each crossed edge has one quad, and its normal goes from the inside out.
    crossed = sum(int(np.sum(np.diff(sdf < 0, axis=axis))) for axis in range(3))
    assert len(found.quads) == crossed
    points = flexicubes.lattice(18, 18.0)
    placed = np.asarray(flexicubes.vertices(found, points, sdf.reshape(-1), weights))
    inside = np.sum(sdf < 0)  # lattice cells of volume 1
    volume = signed_volume(Mesh(placed, faces))
    assert 0.5 < volume / inside < 1.2


def test_the_tables_are_as_counted():
    patch, count, doubt = flexicubes._tables()
    assert (count.max(), count[0], count[255]) == (4, 0, 0)
    # 24 of three corners outside and 12 of two.
    assert np.sum(doubt >= 0) == 36
    inside = [int(case).bit_count() for case in np.flatnonzero(doubt >= 0)]
    assert (inside.count(5), inside.count(6)) == (24, 12)
    # Corners 1 and 2 lie across a face: each by itself, and together where they are outside.
    assert [np.flatnonzero(patch[6] == i).tolist() for i in (0, 1)] == [[0, 1, 9], [4, 7, 8]]
    assert count[249] == 1
    assert doubt[249] == 4


def test_two_cubes_in_doubt_about_their_face_are_inverted():
    """Outside are two diagonal corners of the face between two cubes."""
    pair = np.array([215, 235]).reshape(2, 1, 1)
    count = flexicubes._tables()[1]
    assert count[pair].sum() == 2
    together = flexicubes._inverted(pair)
    np.testing.assert_array_equal(together, 255 - pair)
    assert count[together].sum() == 4
    alone = np.array([215, 255]).reshape(2, 1, 1)
    np.testing.assert_array_equal(flexicubes._inverted(alone), alone)
    # Along another axis the face between them is not in doubt.
    beside = pair.reshape(1, 2, 1)
    np.testing.assert_array_equal(flexicubes._inverted(beside), beside)


def test_gradients(golden):
    with jax.enable_x64(True):
        points, sdf = (np.asarray(a, np.float64) for a in ball(4))
        found = flexicubes.topology(cube_of(sdf))
        raw = np.random.default_rng(0).normal(size=(64, 21))

        @jax.jit
        def of(points, sdf, raw):
            weights = flexicubes.activated(raw)
            placed = flexicubes.vertices(found, points, sdf, weights)
            return placed, flexicubes.deviation(found, points, sdf, placed)

        check_grads(of, (points, sdf, raw), order=1, modes=("rev",))
        slope = jax.grad(lambda *a: sum(jnp.sum(x**2) for x in of(*a)), argnums=(0, 1, 2))
        for part in slope(points, sdf, raw):
            assert np.isfinite(part).all()
            assert np.any(part != 0)


def test_vmap_is_a_loop():
    points, sdf = ball(4)
    found = flexicubes.topology(cube_of(sdf))
    raw = np.random.default_rng(0).normal(size=(3, 64, 21)).astype(np.float32)

    def of(raw):
        return flexicubes.vertices(found, points, sdf, flexicubes.activated(raw))

    at_once = jax.jit(jax.vmap(of))(raw)
    single = jax.jit(of)
    np.testing.assert_allclose(at_once, [single(r) for r in raw], atol=1e-6)


def test_weights_stay_within_their_scale():
    raw = jnp.array([[-50.0] * 21, [0.0] * 21, [50.0] * 21])
    for value, (low, middle, high) in zip(
        flexicubes.activated(raw, 0.4), [(0.6, 1.0, 1.4)] * 2 + [(0.3, 0.5, 0.7)], strict=True
    ):
        rows = np.asarray(value).reshape(3, -1)
        np.testing.assert_allclose(rows, np.array([[low], [middle], [high]]) + 0 * rows, rtol=1e-6)


@pytest.mark.parametrize(
    ("sdf", "error", "message"),
    [
        (np.ones((3, 3, 3)), EmptyFieldError, "between 1 and 1"),
        (np.ones((3, 3, 2)), ValueError, r"shape \(3, 3, 2\)"),
        (np.ones((1, 1, 1)), ValueError, r"shape \(1, 1, 1\)"),
        (np.full((2, 2, 2), np.nan), ValueError, "NaN"),
    ],
)
def test_lattices_without_a_surface(sdf, error, message):
    with pytest.raises(error, match=message):
        flexicubes.topology(sdf)
