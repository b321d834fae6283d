"""Marching cubes by the table that Shap-E's checkpoint holds."""

import numpy as np
import pytest
import shap_e_folders as folders

from jax3d.mesh import cubes
from jax3d.mesh.extract import signed_volume
from jax3d.types import Mesh


@pytest.fixture(scope="module")
def tables():
    io = folders.vectors()
    cases = io["tensor/mesh_decoder.cases"].astype(np.int32)
    return cases, io["tensor/mesh_decoder.masks"]


def lattice(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float32)


def test_edges_join_neighbouring_corners():
    found = [cubes.corners_of(edge) for edge in range(12)]
    assert len(set(found)) == 12
    for edge, (low, high) in enumerate(found):
        assert high - low == 1 << edge // 4
    assert found[1] == (2, 3)
    assert found[6] == (4, 6)


def test_a_ball_is_closed_round_and_faces_outwards(tables):
    middle, radius = np.array([6.2, 5.9, 7.1]), 4.3
    away = np.linalg.norm(lattice((13, 14, 15)) - middle, axis=-1)
    vertices, faces = cubes.march((radius - away).astype(np.float32), *tables)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=-1)
    assert np.all(np.unique(edges, axis=0, return_counts=True)[1] == 2)
    assert len(vertices) - len(edges) // 2 + len(faces) == 2
    np.testing.assert_allclose(np.linalg.norm(vertices - middle, axis=-1), radius, atol=0.05)
    volume = signed_volume(Mesh(vertices, faces))
    np.testing.assert_allclose(volume, 4 / 3 * np.pi * radius**3, rtol=0.04)


def test_a_plane_is_found_where_it_is(tables):
    slope = np.array([0.31, -0.53, 0.83])
    values = (lattice((5, 6, 4)) @ slope - 0.7123).astype(np.float32)
    vertices, faces = cubes.march(values, *tables)
    np.testing.assert_allclose(vertices @ slope, 0.7123, atol=1e-5)
    # Edges along x come first, then y, then z, each by place.
    axes = [int(np.flatnonzero(v % 1 > 1e-6)[0]) for v in vertices]
    assert axes == sorted(axes)
    for axis in range(3):
        low = np.floor(vertices[np.array(axes) == axis] + 1e-6)
        order = low @ [100, 10, 1]
        assert np.all(np.diff(order) > 0)
    assert set(faces.ravel()) == set(range(len(vertices)))


def test_random_values_leave_no_hole(tables):
    """Every case meets; at the border of the grid nothing is above 0."""
    values = np.full((12, 12, 12), -1.0, np.float32)
    values[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).standard_normal((10, 10, 10))
    _, faces = cubes.march(values, *tables)
    way = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    ahead = {tuple(edge) for edge in way.tolist()}
    assert ahead == {(b, a) for a, b in ahead}


def test_nothing_above_zero_is_nothing(tables):
    for values in (np.zeros((3, 3, 3)), np.ones((3, 3, 3))):
        vertices, faces = cubes.march(values.astype(np.float32), *tables)
        assert vertices.shape == faces.shape == (0, 3)


def test_tables_that_would_tear_the_surface_are_told(tables):
    cases, masks = tables
    assert cubes.mistake(cases, masks) is None
    for entry, message in ((12, "go from 0 to 12"), (-1, "go from -1 to 11")):
        wrong = cases.copy()
        wrong[1, 0, 0] = entry
        assert message in cubes.mistake(wrong, masks)
    wrong = cases.copy()
    # Case 5 has the corners 0 and 2 above 0: edge 11 joins two others.
    wrong[5, 0, 0] = 11
    assert cubes.mistake(wrong, masks) == "case 5 has a vertex on an edge that is not cut"
