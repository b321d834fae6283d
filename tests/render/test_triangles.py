"""The traced rasteriser against the host's, and its texture against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera as cameras
from jax3d.fields.textured_mesh import TexturedMeshConfig, from_mesh, textured_mesh, to_mesh
from jax3d.render import raster, triangles
from jax3d.types import Look, Mesh

SIZE = 16
CONFIG = TexturedMeshConfig(faces=40, texture=16)
REP = textured_mesh(CONFIG)
ALBEDO = np.random.default_rng(0).uniform(0.1, 0.9, (16, 16, 3)).astype(np.float32)
QUAD = Mesh(
    vertices=np.array([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]], np.float32),
    faces=np.array([[0, 1, 2], [0, 2, 3]]),
    uvs=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
    texture=ALBEDO,
)


def boxes() -> Mesh:
    """Two boxes, one before the other, each face with the whole texture."""
    made = []
    for center, half in (((0.3, 0.0, 0.0), 0.25), ((-0.3, 0.2, 0.1), 0.4)):
        for axis in range(3):
            for sign in (-1, 1):
                u, w = (np.eye(3)[(axis + k) % 3] for k in (1, 2))
                out = sign * np.eye(3)[axis]
                corners = [out - sign * u - w, out + sign * u - w, out + sign * u + w]
                corners += [out - sign * u + w]
                made.append(np.array(center) + half * np.array(corners))
    faces = np.array([[0, 1, 2], [0, 2, 3]]) + 4 * np.arange(len(made))[:, None, None]
    return Mesh(
        vertices=np.concatenate(made).astype(np.float32),
        faces=faces.reshape(-1, 3),
        uvs=np.tile(QUAD.uvs, (len(made), 1)),
        texture=ALBEDO,
    )


@jax.jit
def show(params, cameras, look):
    return REP.render(params, None, cameras, look, (SIZE, SIZE))


@partial(jax.jit, static_argnums=1)
def overflow(params, room):
    return triangles.visible(VIEWS, params["corners"], (SIZE, SIZE), room).overflow


def held(mesh):
    return jax.tree.map(jnp.asarray, from_mesh(mesh, CONFIG))


VIEWS = cameras.orbit(jnp.array([0.1, 4.0]), 0.4, 2.5, 0.8)


def test_pictures_are_those_of_the_host():
    mesh = boxes()
    look = Look.albedo().replace(ambient=jnp.float32(0.3))
    ours = show(held(mesh), VIEWS, look)
    theirs = raster.render_mesh(mesh, VIEWS, look, (SIZE, SIZE))
    assert np.all(ours.overflow == 0)
    for name in ("rgb", "alpha", "normal", "depth"):
        a, b = (np.asarray(getattr(x, name)) for x in (ours, theirs))
        # Samples on the edge of two faces may see either.
        assert np.mean(np.abs(a - b) > 2e-3) < 0.02, name
    assert 0.1 < ours.alpha.mean() < 0.9


def test_a_quad_seen_from_the_front_is_its_picture():
    # At this distance a texel is a pixel.
    front = cameras.orbit(jnp.zeros(2), 0.0, 1.0, 2 * np.arctan(0.5))
    shown = show(held(QUAD), front, Look.albedo())
    np.testing.assert_allclose(shown.alpha, 1.0)
    fine = jax.image.resize(ALBEDO, (32, 32, 3), "linear")
    pooled = fine.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shown.rgb[0], pooled, atol=1e-4)


def test_lookups_are_those_of_the_host():
    uv = np.random.default_rng(1).uniform(-0.1, 1.1, (50, 2)).astype(np.float32)
    uv = np.concatenate([uv, [[0, 0], [1, 1], [0.5, 1]]]).astype(np.float32)
    theirs = raster.sample_texture(ALBEDO, uv)
    ours = triangles.look_up(jnp.asarray(ALBEDO), jnp.asarray(uv))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_are_finite_differences():
    params = held(boxes())
    towards = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE, 3))

    def value(params):
        return jnp.vdot(show(params, VIEWS, Look.albedo()).rgb, towards)

    slope = jax.jit(jax.grad(value))(params)
    assert all(not np.any(slope[name]) for name in ("corners", "normals", "uvs"))
    for seed in (1, 2):
        way = jax.random.normal(jax.random.key(seed), params["texture"].shape)
        ahead, back = (
            value(params | {"texture": params["texture"] + h * way}) for h in (1e-2, -1e-2)
        )
        np.testing.assert_allclose(
            (ahead - back) / 2e-2, jnp.vdot(slope["texture"], way), rtol=1e-2
        )


def test_vmap_over_assets_is_a_loop():
    assets = [held(boxes()), held(QUAD)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *assets)
    at_once = jax.jit(jax.vmap(lambda p: show(p, VIEWS, Look.albedo())))(both)
    for i, params in enumerate(assets):
        alone = show(params, VIEWS, Look.albedo())
        for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


def test_what_has_no_room_is_counted():
    params = held(boxes())
    enough = overflow(params, 1) + 1
    most = int(enough.max())
    np.testing.assert_array_equal(overflow(params, most - 7), np.maximum(enough - most + 7, 0))


def test_faces_that_are_none_are_not_seen():
    params = held(QUAD)
    corners = params["corners"].at[0].add(jnp.array([10.0, 0.0, 0.0])).at[1, 0].set(jnp.inf)
    shown = show(params | {"corners": corners}, VIEWS, Look.albedo())
    assert np.all(shown.alpha == 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(shown))


def test_a_mesh_comes_back_as_it_was():
    mesh = boxes()
    back = to_mesh(from_mesh(mesh, CONFIG))
    assert len(back.vertices) <= len(mesh.vertices)
    np.testing.assert_array_equal(back.vertices[back.faces], mesh.vertices[mesh.faces])
    np.testing.assert_array_equal(back.uvs[back.faces], mesh.uvs[mesh.faces])
    np.testing.assert_allclose(back.texture, mesh.texture, atol=1e-6)
    for config, says in (
        (TexturedMeshConfig(faces=8, texture=16), "24 faces; there are 8 places"),
        (TexturedMeshConfig(texture=32), "no texture of 32 x 32"),
    ):
        with pytest.raises(ValueError, match=says):
            from_mesh(mesh, config)


def test_a_fresh_one_is_an_octahedron():
    fresh = to_mesh(REP.init(jax.random.key(0)))
    assert (len(fresh.faces), len(np.unique(fresh.vertices, axis=0))) == (8, 6)
    middles = fresh.vertices[fresh.faces].mean(axis=1)
    a, b, c = np.moveaxis(fresh.vertices[fresh.faces], 1, 0)
    assert np.all(np.sum(np.cross(b - a, c - a) * middles, axis=-1) > 0)
    areas = np.linalg.det(np.diff(fresh.uvs[fresh.faces], axis=1)) / 2
    np.testing.assert_allclose(areas, 1 / 8, atol=1e-6)
