"""Textures from pictures, and scenes of any size brought to where these are taken."""

import jax
import numpy as np
import pytest
from scenes import far_ball

from jax3d import camera as cameras
from jax3d import mesh as meshing
from jax3d.fields.gaussians import GaussiansConfig, from_gaussians
from jax3d.mesh.splats.placed import placed
from jax3d.render.raster import render_mesh, sample_texture
from jax3d.types import Look, Mesh

SIZE = 96


def box():
    """A box and a lid that floats above it, finely cut, of the colours of their places."""
    parts = [((0, 0, -0.2), (0.4, 0.3, 0.25)), ((0, 0, 0.35), (0.4, 0.3, 0.05))]
    vertices, faces = [], []
    for centre, half in parts:
        for axis in range(3):
            for sign in (-1, 1):
                grid = np.linspace(-1, 1, 9)
                a, b = np.meshgrid(grid, grid, indexing="ij")
                x = np.zeros((81, 3))
                x[:, axis], x[:, (axis + 1) % 3], x[:, (axis + 2) % 3] = sign, a.ravel(), b.ravel()
                i = np.arange(64) // 8 * 9 + np.arange(64) % 8
                square = np.stack([i, i + 9, i + 10, i + 1], -1)[:, ::sign]
                square = square + sum(map(len, vertices))
                faces += [square[:, [0, 1, 2]], square[:, [0, 2, 3]]]
                vertices.append(np.array(centre) + np.array(half) * x)
    vertices = np.concatenate(vertices).astype(np.float32)
    return Mesh(vertices, np.concatenate(faces), colors=0.5 + 0.9 * vertices)


def spiral(count):
    height = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.arange(count) * 2.4
    return cameras.orbit(azimuth, np.arcsin(height), 2.7, np.radians(42.0))


def views_of(mesh, camera):
    shown = render_mesh(mesh, camera, Look.albedo(), (SIZE, SIZE))
    return meshing.Views(np.asarray(shown.rgb), np.asarray(shown.alpha), camera, 0)


@pytest.fixture(scope="module")
def painted():
    mesh = box()
    flat = meshing.unwrap(Mesh(mesh.vertices, mesh.faces), 128)
    return meshing.paint(flat, views_of(mesh, spiral(24)), 128)


def test_each_place_has_the_colour_that_was_seen_there(painted):
    centre = np.full((len(painted.faces), 3), 1 / 3)
    place = np.einsum("nk,nkc->nc", centre, painted.vertices[painted.faces])
    uv = np.einsum("nk,nkc->nc", centre, painted.uvs[painted.faces])
    error = np.abs(sample_texture(painted.texture, uv) - (0.5 + 0.9 * place)).max(-1)
    # What no view sees is guessed: inside the slit between box and lid.
    slit = (np.abs(place[:, 2] - 0.175) < 0.13) & (np.abs(place[:, :2]).max(-1) < 0.29)
    assert np.quantile(error[~slit], 0.98) < 0.06
    assert error[slit].max() < 0.5


def test_a_texture_has_no_black(painted):
    assert painted.texture.shape == (128, 128, 3)
    assert painted.texture.min() > 0.05


def test_unseen_views_look_as_the_truth_does(painted):
    camera = cameras.around(4, 25.0)
    wanted = np.asarray(render_mesh(box(), camera, Look.albedo(), (SIZE, SIZE)).over(np.ones(3)))
    assert meshing.compare(painted, wanted, camera, Look.albedo()).psnr > 35


def test_what_no_view_sees_at_all_is_told():
    mesh = box()
    flat = meshing.unwrap(Mesh(mesh.vertices + np.float32([9, 0, 0]), mesh.faces), 128)
    with pytest.raises(ValueError, match="no view sees"):
        meshing.paint(flat, views_of(mesh, spiral(4)), 128)


def test_a_scene_is_placed_without_its_strays():
    known = far_ball()
    known.means[0], known.opacities[1] = 1e5, 0.001
    there = placed(known, 0.004)
    assert there.strays == 1
    assert len(there.gaussians.means) == len(known.means) - 2
    away = np.linalg.norm(there.gaussians.means, axis=-1)
    assert 0.6 < away.max() < 0.9
    mesh = Mesh(there.gaussians.means, np.array([[0, 1, 2]]))
    np.testing.assert_allclose(there.back(mesh).vertices, known.means[2:], rtol=1e-5)
    np.testing.assert_allclose(there.there(there.back(mesh)).vertices, mesh.vertices, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"opacities": 0.0}, "transparent"), ({"means": 5.0, "scales": 0.0}, "points at one place")],
)
def test_a_scene_of_nothing_is_told(change, told):
    known = far_ball(5)
    with pytest.raises(ValueError, match=told):
        placed(known.replace(**{k: np.full_like(getattr(known, k), v) for k, v in change.items()}))


def test_a_picture_tells_what_had_no_room():
    known = placed(far_ball(40)).gaussians
    config = GaussiansConfig(capacity=40, start=40, densify=None)
    params = from_gaussians(known, config, jax.random.key(0))
    views = meshing.photograph(config.build(), params, spiral(2), 16)
    assert views.overflow == 0
    assert views.alpha.max() > 0.5
    assert views.rgb.shape == (2, 16, 16, 3)
