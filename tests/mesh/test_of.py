"""Any representation gives a mesh: its own, that of its field, or a plain word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import mesh as meshing
from jax3d.fields.base import Representation
from jax3d.types import Mesh

CONFIG = meshing.MeshConfig(level=250.0, resolution=24, faces=200, texture=64, chunk=1 << 12)
OWN = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]))


def ball(radius, x):
    return 500 * jax.nn.sigmoid(100 * (radius - jnp.linalg.norm(x, axis=-1)))


def shell(radius, x):
    return jnp.broadcast_to(radius, x.shape)


def representation(**change):
    unused = {"init": None, "render": None, "regularise": None}
    return Representation(**{**unused, "bound": 1.0, "density": ball, "color": shell, **change})


def test_a_field_is_meshed_as_build_does_it():
    radius = jnp.asarray(0.5)
    made = meshing.of(representation(), radius, CONFIG)
    expected = meshing.build(
        lambda x: ball(radius, x), lambda x: shell(radius, x), representation().bound, CONFIG
    )
    np.testing.assert_allclose(made.vertices, expected.vertices, atol=1e-5)
    np.testing.assert_array_equal(made.faces, expected.faces)
    np.testing.assert_allclose(made.texture, 0.5, atol=1e-6)


def test_a_field_compiles_once_for_all_its_assets():
    traced = []

    def density(radius, x):
        traced.append(x.shape)
        return ball(radius, x)

    field = representation(density=density)
    volumes = []
    for radius in (0.3, 0.5, 0.6):
        volumes.append(
            meshing.extract.signed_volume(meshing.of(field, jnp.asarray(radius), CONFIG))
        )
    assert len(traced) == 2  # alone, and with the colour
    np.testing.assert_allclose(volumes, 4 / 3 * np.pi * np.array([0.3, 0.5, 0.6]) ** 3, rtol=0.1)


@pytest.mark.parametrize("change", [{}, {"density": None, "color": None}])
def test_a_mesh_of_its_own_comes_first(change):
    own = representation(mesh=lambda params: OWN.replace(vertices=params), **change)
    made = meshing.of(own, 2 * OWN.vertices, CONFIG)
    np.testing.assert_array_equal(made.vertices, 2 * OWN.vertices)
    assert made.texture is None


@pytest.mark.parametrize(
    "change", [{"density": None}, {"color": None}, {"density": None, "color": None}]
)
def test_neither_field_nor_mesh_is_told(change):
    with pytest.raises(ValueError, match="no mesh of its own and no field"):
        meshing.of(representation(**change), None, CONFIG)


def test_an_empty_field_is_told():
    with pytest.raises(meshing.EmptyFieldError, match="no surface at level 250"):
        meshing.of(representation(), jnp.asarray(-1.0), CONFIG)
