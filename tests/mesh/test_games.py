"""What a game asks of a mesh: levels of detail, a hull for collisions, a height in metres."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from jax3d import mesh as meshing
from jax3d.fields.base import Representation
from jax3d.image import write_png
from jax3d.mesh.simplify import is_closed
from jax3d.render.raster import sample_texture
from jax3d.types import Mesh

CONFIG = meshing.MeshConfig(
    level=250.0, resolution=48, faces=2000, texture=256, lods=3, chunk=1 << 12
)


def solid(params, x):
    """Between a ball and a cube, off its centre."""
    del params
    x = x - jnp.array([0.2, -0.1, 0.15])
    reach = 0.6 * jnp.abs(x).max(-1) + 0.4 * jnp.linalg.norm(x, axis=-1)
    return 500 * jax.nn.sigmoid(100 * (0.5 - reach))


def paint(params, x):
    return jnp.clip(0.8 * x + 0.5, 0.0, 1.0)


FIELD = Representation(
    init=None, render=None, regularise=None, bound=1.0, density=solid, color=paint
)


@pytest.fixture(scope="module")
def levels():
    return meshing.levels(FIELD, jnp.zeros(()), CONFIG)


def test_each_level_is_closed_and_has_half_the_faces(levels):
    faces = [len(mesh.faces) for mesh in levels]
    np.testing.assert_allclose(faces, [2000, 1000, 500, 250], atol=4)
    volumes = [meshing.extract.signed_volume(_welded(mesh)) for mesh in levels]
    np.testing.assert_allclose(volumes, volumes[0], rtol=0.03)
    assert all(is_closed(_welded(mesh)) for mesh in levels)


def _welded(mesh):
    _, first, place = np.unique(mesh.vertices, axis=0, return_index=True, return_inverse=True)
    return Mesh(mesh.vertices[first], place.reshape(-1)[mesh.faces])


def test_all_levels_show_the_fields_colours_on_one_texture(levels):
    for mesh in levels:
        assert mesh.texture is levels[0].texture
        seen = sample_texture(mesh.texture, mesh.uvs)
        np.testing.assert_allclose(seen, paint(None, mesh.vertices), atol=0.04)


def test_without_levels_a_mesh_has_the_texture_to_itself(levels):
    alone = meshing.of(FIELD, jnp.zeros(()), CONFIG)
    np.testing.assert_array_equal(np.unique(alone.vertices), np.unique(levels[0].vertices))
    assert _share(alone) > _share(levels[0])


def _share(mesh):
    corners = mesh.uvs[mesh.faces]
    return np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])).sum() / 2


def test_levels_end_where_a_mesh_cannot_be_made_coarser():
    few = dataclasses.replace(CONFIG, faces=12, lods=8)
    found = [len(mesh.faces) for mesh in meshing.levels(FIELD, jnp.zeros(()), few)]
    assert found[0] == 12
    assert len(found) < 9
    assert min(found) >= 4


def test_levels_are_made_of_fields():
    own = FIELD._replace(mesh=lambda params: Mesh(np.eye(3), np.array([[0, 1, 2]])))
    with pytest.raises(ValueError, match=r"mesh\.lods"):
        meshing.levels(own, None, CONFIG)


def test_a_file_may_refer_to_a_texture_beside_it(levels, tmp_path):
    path = tmp_path / "mesh_lod1.glb"
    write_png(tmp_path / "mesh.png", levels[1].texture)
    meshing.write_glb(path, levels[1], texture="mesh.png")
    assert b"PNG" not in path.read_bytes()
    (part,) = trimesh.load_scene(path).geometry.values()
    seen = np.asarray(part.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_allclose(seen / 255, levels[1].texture, atol=0.003)


@pytest.mark.parametrize("faces", [4, 16, 64, 100_000])
def test_a_hull_is_convex_and_holds_the_mesh(levels, faces):
    hull = meshing.convex_hull(levels[0], faces)
    assert 4 <= len(hull.faces) <= faces
    assert is_closed(hull)
    a, b, c = np.moveaxis(hull.vertices[hull.faces].astype(np.float64), 1, 0)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    for points in (levels[0].vertices, hull.vertices):
        outside = (points[:, None] - a) * normal
        assert outside.sum(-1).max() < 1e-5
    if faces == 100_000:
        volume = meshing.extract.signed_volume(_welded(levels[0]))
        assert meshing.extract.signed_volume(hull) < 1.05 * volume


def test_a_flat_mesh_has_no_hull():
    flat = Mesh(np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]), np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="flat"):
        meshing.convex_hull(flat, 8)


def test_a_height_is_that_of_the_file_which_stands_on_its_base(levels, tmp_path):
    place = meshing.placement(levels[0], 1.2)
    meshing.write_glb(tmp_path / "mesh.glb", place.apply(levels[0]))
    low, high = trimesh.load_scene(tmp_path / "mesh.glb").bounds
    # glTF's +y is up.
    np.testing.assert_allclose([low[1], high[1]], [0, 1.2], atol=1e-5)
    np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-5)
    again = place.undo(meshing.load_glb(tmp_path / "mesh.glb"))
    np.testing.assert_allclose(again.vertices, levels[0].vertices, atol=1e-5)


def test_without_a_height_a_mesh_stays_where_it_is(levels):
    same = meshing.placement(levels[0], None).apply(levels[0])
    np.testing.assert_array_equal(same.vertices, levels[0].vertices)
