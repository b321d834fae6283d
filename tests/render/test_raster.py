"""The rasteriser against hand-filled triangles, closed forms of a sphere, and the cameras' rays."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera as cameras
from jax3d.render import raster
from jax3d.types import Look, Mesh

QUAD = np.array([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]], np.float32)
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])
QUAD_UVS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def _front(radius=2.0, fovy=0.6):
    return cameras.orbit(jnp.zeros(1), 0.0, radius, fovy)


def _sphere(radius=0.5, steps=48):
    polar, around = np.mgrid[0 : np.pi : (steps + 1) * 1j, 0 : 2 * np.pi : (2 * steps + 1) * 1j]
    ring = np.sin(polar)
    vertices = np.stack([ring * np.cos(around), ring * np.sin(around), np.cos(polar)], axis=-1)
    vertices = np.round(vertices, 6) + 0.0  # both ends of a ring are one place, and no -0
    i = np.arange(steps)[:, None] * (2 * steps + 1) + np.arange(2 * steps)
    a, b, c, d = i, i + 2 * steps + 1, i + 2 * steps + 2, i + 1
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return Mesh(radius * vertices.reshape(-1, 3).astype(np.float32), faces)


def test_fill_covers_the_pixels_whose_centres_are_inside():
    corners = np.array([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]])
    found = raster.fill(corners, (5, 6))
    covered = np.zeros((5, 6), int)
    np.add.at(covered.reshape(-1), found.pixel, 1)
    y, x = np.mgrid[:5, :6] + 0.5
    np.testing.assert_array_equal(covered, x + y <= 4)
    np.testing.assert_allclose(found.barycentric.sum(axis=-1), 1.0)
    point = np.einsum("nk,nkc->nc", found.barycentric, corners[found.face])
    np.testing.assert_allclose(point, np.stack([found.pixel % 6, found.pixel // 6], -1) + 0.5)


def test_fill_is_blind_to_winding_and_clips():
    corners = np.array([[[-3.0, -2.0], [9.0, 1.0], [2.0, 8.0]]])
    one, two = (raster.fill(c, (4, 5)) for c in (corners, corners[:, ::-1]))
    np.testing.assert_array_equal(one.pixel, two.pixel)
    assert len(one.pixel) == 20


def test_fill_leaves_out_empty_and_infinite_triangles():
    flat = [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]
    broken = [[0.0, np.nan], [2.0, 0.0], [4.0, 4.0]]
    assert len(raster.fill(np.array([flat, broken]), (5, 5)).face) == 0
    assert len(raster.fill(np.zeros((0, 3, 2)), (5, 5)).face) == 0


def test_triangles_that_share_an_edge_leave_no_gap():
    rng = np.random.default_rng(0)
    square = np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 16.0], [0.0, 16.0]])
    for inner in rng.uniform(1, 15, (20, 2)):
        fan = np.stack([np.stack([inner, square[i], square[(i + 1) % 4]]) for i in range(4)])
        assert len(np.unique(raster.fill(fan, (16, 16)).pixel)) == 256


def test_sphere_has_its_silhouette_depth_normal_and_shading():
    look = Look(jnp.array([0.0, 0.0, 1.0]), jnp.array(0.2), jnp.array(0.0), jnp.array([1.0, 0, 0]))
    camera = cameras.orbit(jnp.array([0.0, 2.0]), jnp.array([0.0, 0.4]), 2.0, 0.7)
    size = (64, 48)
    out = raster.render_mesh(_sphere(), camera, look, size, supersample=3)
    assert out.rgb.shape == (2, 64, 48, 3)
    seen = np.asarray(out.alpha)
    radius = 0.5 / np.sqrt(2.0**2 - 0.5**2) / np.tan(0.35) * 32
    np.testing.assert_allclose(seen.sum(axis=(1, 2)), np.pi * radius**2, rtol=0.005)

    rays = cameras.rays(camera, size)
    o, d = np.asarray(rays.origins), np.asarray(rays.directions)
    b = (o * d).sum(-1)
    disc = b**2 - (o**2).sum(-1) + 0.25
    deep = disc > 0.02
    depth = -b - np.sqrt(np.where(deep, disc, 0))
    np.testing.assert_allclose(np.asarray(out.depth)[deep], depth[deep], atol=4e-3)
    normal = (o + depth[..., None] * d) / 0.5
    np.testing.assert_allclose(np.asarray(out.normal)[deep], normal[deep], atol=2e-2)
    shade = 0.2 + 0.8 * np.maximum(normal[..., :1], 0) * np.ones(3)
    np.testing.assert_allclose(np.asarray(out.rgb)[deep], shade[deep], atol=2e-2)
    np.testing.assert_allclose(
        np.asarray(out.over(look.background))[seen == 0],
        np.array([0, 0, 1.0])[None].repeat((seen == 0).sum(), 0),
    )


def test_the_nearer_face_wins_whatever_the_order():
    nearer = np.array([0.3, 0, 0])
    vertices = np.concatenate([QUAD, QUAD + nearer, QUAD - nearer]).astype(np.float32)
    colors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    faces = np.concatenate([QUAD_FACES, QUAD_FACES + 4, QUAD_FACES + 8])
    for order in (slice(None), slice(None, None, -1)):
        mesh = Mesh(vertices, faces[order], colors=colors)
        out = raster.render_mesh(mesh, _front(), Look.albedo(), (8, 8))
        np.testing.assert_allclose(out.rgb[0, 4, 4], [0, 1, 0], atol=1e-6)


def test_texture_is_upright_and_correct_in_perspective():
    """The quad lies nearly edge-on; its colour at a pixel is where the pixel's ray meets it."""
    texture = np.stack(
        [*np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64)), np.zeros((64, 64))], -1
    )
    mesh = Mesh(QUAD, QUAD_FACES, uvs=QUAD_UVS, texture=texture.astype(np.float32))
    camera = cameras.orbit(jnp.array([1.0]), 0.3, 1.6, 0.6)
    out = raster.render_mesh(mesh, camera, Look.albedo(), (48, 48), supersample=1)
    rays = cameras.rays(camera, (48, 48))
    o, d = np.asarray(rays.origins[0]), np.asarray(rays.directions[0])
    hit = o - d * (o[..., :1] / d[..., :1])
    inside = np.abs(hit[..., 1:]).max(-1) < 0.48
    assert inside.sum() > 200
    expected = np.stack([hit[..., 1] + 0.5, 0.5 - hit[..., 2], 0 * hit[..., 0]], -1)
    np.testing.assert_allclose(np.asarray(out.rgb[0])[inside], expected[inside], atol=0.01)


def test_faces_behind_the_camera_are_left_out():
    mesh = Mesh(QUAD + np.array([3.0, 0, 0], np.float32), QUAD_FACES)
    assert raster.render_mesh(mesh, _front(), Look.albedo(), (8, 8)).alpha.max() == 0


def test_sample_texture_at_and_between_texel_centres():
    texture = np.arange(6, dtype=float).reshape(2, 3, 1)
    uv = np.array([[0.5 / 3, 0.75], [2.5 / 3, 0.25], [1 / 3, 0.75], [0.5, 0.5], [-1.0, 2.0]])
    np.testing.assert_allclose(raster.sample_texture(texture, uv)[:, 0], [0, 5, 0.5, 2.5, 0])


def test_vertex_normals_are_shared_over_a_seam():
    sphere = _sphere()
    normals = raster.vertex_normals(sphere.vertices, sphere.faces)
    np.testing.assert_allclose(normals, sphere.vertices / 0.5, atol=0.012)
    split = sphere.vertices[sphere.faces.reshape(-1)]
    again = raster.vertex_normals(split, np.arange(len(split)).reshape(-1, 3))
    np.testing.assert_allclose(again, normals[sphere.faces.reshape(-1)], atol=1e-5)


@pytest.mark.parametrize("textureless", [0.0, 1.0])
def test_a_mesh_without_colours_is_white(textureless):
    look = Look(jnp.zeros(3), jnp.ones(()), jnp.array(textureless), jnp.array([0.0, 0, 1]))
    out = raster.render_mesh(Mesh(QUAD, QUAD_FACES), _front(), look, (8, 8))
    np.testing.assert_allclose(out.rgb[0, 4, 4], 1.0)


def test_projection_is_the_cameras():
    camera = cameras.orbit(jnp.array([0.3, 2.0]), jnp.array([0.2, -0.4]), 2.0, 0.7)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    pixels, depth = raster.project(camera, x, (40, 30))
    expected, expected_depth = cameras.project(camera, jnp.asarray(x), (40, 30))
    front = np.asarray(expected_depth) > 0.1
    np.testing.assert_allclose(depth, expected_depth, atol=1e-5)
    np.testing.assert_allclose(pixels[front], np.asarray(expected)[front], rtol=1e-4, atol=1e-2)
