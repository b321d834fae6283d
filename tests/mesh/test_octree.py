"""Surfaces of fields that are asked near zero alone, beside those that are asked everywhere."""

import numpy as np
import pytest

from jax3d.mesh import EmptyFieldError, octree
from jax3d.mesh.extract import signed_volume
from jax3d.mesh.simplify import is_closed

BOUND = 1.01


def torus(x):
    """Signed distance of a tilted torus, positive inside."""
    x = x @ np.array([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]], np.float32)
    ring = np.hypot(x[:, 0], x[:, 1]) - 0.6
    return 0.25 - np.hypot(ring, x[:, 2])


def counted(field):
    """A field with a list of the sizes of its calls."""
    sizes = []

    def asked(x):
        sizes.append(len(x))
        return field(x)

    return asked, sizes


def test_levels_find_the_same_surface_with_fewer_points():
    whole = octree.everywhere(torus, BOUND, 80, 4096)
    field, sizes = counted(torus)
    some = octree.near_surface(field, BOUND, 80, 1000, band=0.05, coarsest=20)
    assert whole.asked == 81**3
    assert set(sizes) == {1000}
    assert some.asked < whole.asked / 3
    one, other = (octree.surface(each.values, BOUND) for each in (whole, some))
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.faces, other.faces)
    np.testing.assert_array_equal(whole.values > 0, some.values > 0)


def test_a_surface_is_where_the_field_is_zero():
    mesh = octree.surface(octree.everywhere(torus, BOUND, 40, 5000).values, BOUND)
    assert is_closed(mesh)
    np.testing.assert_allclose(torus(mesh.vertices), 0.0, atol=4e-3)
    np.testing.assert_allclose(signed_volume(mesh), 2 * np.pi**2 * 0.6 * 0.25**2, rtol=0.02)


def test_what_leaves_the_cube_is_closed_at_its_border():
    mesh = octree.surface(np.ones((5, 5, 5), np.float32), 1.0)
    assert is_closed(mesh)
    assert signed_volume(mesh) > 8


@pytest.mark.parametrize(
    ("cells", "coarsest", "first"), [(24, 6, 6), (24, 7, 12), (15, 2, 15), (20, 4, 5)]
)
def test_levels_halve_as_long_as_they_can(cells, coarsest, first):
    # Of a field without a surface only the first level is asked.
    empty = octree.near_surface(lambda x: -np.ones(len(x)), 1.0, cells, 4096, 0.5, coarsest)
    assert empty.asked == (first + 1) ** 3
    np.testing.assert_array_equal(empty.values, np.full((cells + 1,) * 3, -1.0))


def test_fields_without_a_surface():
    with pytest.raises(EmptyFieldError, match="nothing is inside; its values lie between -1 and"):
        octree.surface(-np.ones((4, 4, 4), np.float32), 1.0)
    with pytest.raises(ValueError, match="not finite at 125 of 125 points"):
        octree.everywhere(lambda x: np.full(len(x), np.nan), 1.0, 4, 100)
