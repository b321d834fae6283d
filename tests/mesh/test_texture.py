"""Each chart has the texels that lookups on it read to itself, and they all hold its colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jax3d import mesh as meshing
from jax3d.mesh.bake import texels
from jax3d.render.raster import sample_texture
from jax3d.types import Mesh

CHUNK = 1 << 14
FACES = np.array(
    [
        [0.9, 0.1, 0.1],
        [0.1, 0.8, 0.2],
        [0.15, 0.2, 0.9],
        [0.9, 0.8, 0.1],
        [0.8, 0.2, 0.8],
        [0, 1, 1],
    ],
    np.float32,
)


def furniture(x):
    """A seat, a back and four legs, rounded: thin parts and a few dozen charts."""
    parts = [((0, 0, 0), (0.5, 0.5, 0.08)), ((-0.45, 0, 0.4), (0.07, 0.5, 0.4))]
    parts += [((0.4 * i, 0.4 * j, -0.35), (0.07, 0.07, 0.3)) for i in (-1, 1) for j in (-1, 1)]
    outside = [
        jnp.linalg.norm(jnp.maximum(jnp.abs(x - jnp.array(c)) - jnp.array(h), 0), axis=-1)
        for c, h in parts
    ]
    return 500 * jax.nn.sigmoid(300 * (0.03 - jnp.min(jnp.stack(outside), axis=0)))


@pytest.fixture(scope="module")
def chair():
    grid = meshing.sample_density(jax.jit(furniture), 1.0, 80, CHUNK)
    mesh = meshing.extract_surface(jax.jit(furniture), grid, 250.0, 1.0, CHUNK)
    return meshing.simplify(mesh, 3000)


def chart_of_faces(mesh):
    a, b, c = mesh.faces.T
    edges = (np.ones(2 * len(a), bool), (np.concatenate([a, b]), np.concatenate([b, c])))
    graph = coo_array(edges, shape=(len(mesh.vertices),) * 2)
    return connected_components(graph, directed=False)[1][a]


def surface_points(mesh, count):
    """Faces and weights of points evenly spread over the surface, the chart borders included."""
    rng = np.random.default_rng(0)
    corner = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(*np.moveaxis(corner[:, 1:] - corner[:, :1], 1, 0)), axis=-1)
    face = rng.choice(len(area), count, p=area / area.sum())
    weights = rng.dirichlet(np.ones(3), count)
    on_edge = rng.random(count) < 0.5
    weights[on_edge, 0] = 0
    return face, weights / weights.sum(axis=1, keepdims=True)


def lookup(uv, size):
    """Texels (row, column) and weights of bilinear lookups that wrap, as glTF's default does."""
    x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - (x - x0)) * np.abs(1 - dy - (y - y0))
            yield (y0 + dy) % size, (x0 + dx) % size, weight


def bleed(mesh, texture, level=0):
    """Weight of other charts' colours in lookups on the surface, in a mip level, point by point."""
    chart = chart_of_faces(mesh)
    found = texels(mesh, texture)
    owner = np.full(texture * texture, -1)
    owner[found.pixel] = chart[found.face]
    owner = owner.reshape(texture, texture)
    near = distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    owner = owner[tuple(near)]
    face, weights = surface_points(mesh, 20_000)
    uv = np.einsum("nk,nkc->nc", weights, mesh.uvs[mesh.faces[face]].astype(np.float64))
    side = 2**level
    foreign = np.zeros(len(face))
    for row, column, weight in lookup(uv, texture // side):
        for i in range(side):
            for j in range(side):
                other = owner[row * side + i, column * side + j] != chart[face]
                foreign += other * weight / side**2
    return foreign


@pytest.mark.parametrize(
    ("texture", "share", "most"),
    [(64, 2e-3, 0.1), (100, 2e-3, 0.1), (128, 1e-3, 0.1), (300, 1e-4, 0.1), (512, 0, 1e-3)],
)
def test_lookups_read_no_other_chart(chair, texture, share, most):
    """A corner of a lookup may touch one at sizes that leave no room between the charts."""
    foreign = bleed(meshing.unwrap(chair, texture), texture)
    assert (foreign > 1e-3).mean() <= share
    assert foreign.max() <= most


def test_mip_levels_down_to_256_pixels_keep_charts_apart(chair):
    mesh = meshing.unwrap(chair, 1024)
    for level in (1, 2):
        foreign = bleed(mesh, 1024, level)
        assert (foreign > 0.01).mean() < 5e-3
        assert foreign.mean() < 5e-4


@pytest.mark.parametrize("texture", [64, 100, 128, 512])
def test_every_texel_that_a_lookup_reads_is_baked(chair, texture):
    mesh = meshing.unwrap(chair, texture)
    baked = np.zeros((texture, texture), bool)
    found = texels(mesh, texture)
    assert len(np.unique(found.pixel)) == len(found.pixel)
    np.testing.assert_allclose(found.barycentric.sum(axis=-1), 1, atol=1e-9)
    baked.flat[found.pixel] = True
    face, weights = surface_points(mesh, 20_000)
    uv = np.einsum("nk,nkc->nc", weights, mesh.uvs[mesh.faces[face]].astype(np.float64))
    for row, column, weight in lookup(uv, texture):
        assert baked[row, column][weight > 1e-5].all()


def test_a_texel_beside_a_chart_holds_its_nearest_point():
    """One triangle, thinner than a texel: no centre lies inside it."""
    uvs = np.array([[2.6, 4.1], [9.4, 4.1], [9.4, 4.2]], np.float32) / 16
    mesh = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), uvs=uvs)
    found = texels(mesh, 16)
    column, row = found.pixel % 16, found.pixel // 16
    assert set(row) == {16 - 6, 16 - 5, 16 - 4}
    assert set(range(2, 10)) <= set(column)
    place = np.einsum("nk,nkc->nc", found.barycentric, uvs[mesh.faces[found.face]] * 16)
    center = np.stack([column + 0.5, 16 - row - 0.5], axis=-1)
    away = np.linalg.norm(place - center, axis=-1)
    assert (away < np.sqrt(2)).all()
    fan = np.random.default_rng(0).dirichlet(np.ones(3), 2000) @ (uvs * 16)
    nearest = np.linalg.norm(fan[None] - center[:, None], axis=-1).min(axis=1)
    np.testing.assert_allclose(away, nearest, atol=0.15)


@pytest.mark.parametrize("texture", [64, 128, 512])
def test_a_face_of_a_painted_cube_shows_its_own_colour_alone(texture):
    side = 0.45

    @jax.jit
    def density(x):
        return 500.0 * jax.nn.sigmoid(3000.0 * (side - jnp.abs(x).max(axis=-1)))

    @jax.jit
    def color(x):
        axis = jnp.abs(x).argmax(axis=-1)
        place = jnp.take_along_axis(x, axis[..., None], axis=-1)[..., 0]
        return jnp.asarray(FACES)[2 * axis + (place < 0)]

    config = meshing.MeshConfig(resolution=64, faces=800, texture=texture)
    mesh = meshing.build(density, color, 1.0, config)
    assert mesh.texture.shape == (texture, texture, 3)
    face, weights = surface_points(mesh, 30_000)
    point = np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[face]])
    uv = np.einsum("nk,nkc->nc", weights, mesh.uvs[mesh.faces[face]])
    flat = np.sort(np.abs(point), axis=-1)
    away = flat[:, 1] < side - 6 / texture - 0.1
    shown = sample_texture(mesh.texture, uv)[away]
    np.testing.assert_allclose(shown, np.asarray(color(point[away])), atol=0.02)
    assert (mesh.texture.max(axis=-1) > 0.5).all()


def ball(x):
    return 500.0 / (1 + np.exp(np.clip(100 * (np.linalg.norm(x, axis=-1) - 0.5), -50, 50)))


def grey(x):
    return np.full(x.shape, 0.5)


BAD = [
    ({"faces": 0}, "mesh.faces is 0; no closed surface has fewer than 4"),
    ({"faces": -1}, "mesh.faces is -1"),
    ({"faces": 3}, "mesh.faces is 3"),
    ({"texture": 0}, "mesh.texture is 0"),
    ({"texture": -4}, "mesh.texture is -4"),
    ({"texture": 1}, "mesh.texture is 1"),
    ({"texture": 4}, r"charts, which do not fit a texture of 4 x 4 pixels: raise mesh\.texture or"),
    ({"resolution": 0}, "mesh.resolution is 0; the grid needs 3 points"),
    ({"resolution": -7}, "mesh.resolution is -7"),
    ({"resolution": 2}, "mesh.resolution is 2"),
    ({"resolution": 4, "level": 1e9}, "no surface at level 1e[+]09 1/m"),
    ({"chunk": 0}, "mesh.chunk is 0"),
    ({"chunk": -1}, "mesh.chunk is -1"),
    ({"min_area": 1.5}, "mesh.min_area is 1.5"),
    ({"min_area": -0.1}, "mesh.min_area is -0.1"),
    ({"min_area": np.nan}, "mesh.min_area is nan"),
    ({"level": 0.0}, "no surface at level 0 1/m.*ask for a mesh.level in between"),
    ({"level": -1.0}, "no surface at level -1"),
    ({"level": np.nan}, "no surface at level nan"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda x: str(x)[:30])
def test_a_setting_that_cannot_work_is_named(change, message):
    config = meshing.MeshConfig(**{"resolution": 24, "faces": 300, "texture": 64, **change})
    with pytest.raises(ValueError, match=message):
        meshing.build(ball, grey, 1.0, config)


HARD = [
    {"faces": 4},
    {"faces": 5, "texture": 16},
    {"faces": 12, "texture": 8},
    {"resolution": 6},
    {"resolution": 10, "faces": 20, "texture": 16},
    {"chunk": 7, "resolution": 12},
    {"min_area": 0.0},
    {"min_area": 1.0},
    {"texture": 33},
]


@pytest.mark.parametrize("change", HARD, ids=str)
def test_a_hard_setting_gives_a_closed_and_painted_mesh(change):
    config = meshing.MeshConfig(**{"resolution": 24, "faces": 300, "texture": 64, **change})
    mesh = meshing.build(ball, grey, 1.0, config)
    assert 4 <= len(mesh.faces) <= config.faces
    assert meshing.extract.signed_volume(mesh) > 0.01
    np.testing.assert_allclose(mesh.texture, 0.5, atol=1e-6)
    assert mesh.texture.shape == (config.texture, config.texture, 3)
    assert np.isfinite(mesh.uvs).all()


def test_the_first_refusal_is_told_where_coarser_grids_hold_nothing(monkeypatch):
    def refuse(mesh, faces):
        raise ValueError("no budget keeps it closed")

    def speck(x):
        """Around a point of the finest grid alone."""
        return np.where(np.linalg.norm(x - (11 * 2 / 23 - 1), axis=-1) < 0.03, 500.0, 0.0)

    monkeypatch.setattr(meshing, "simplify", refuse)
    config = meshing.MeshConfig(resolution=24, level=250.0, faces=100, texture=64)
    with pytest.raises(ValueError, match="no budget keeps it closed"):
        meshing.build(speck, grey, 1.0, config)


def test_a_colour_that_is_not_finite_is_told():
    config = meshing.MeshConfig(resolution=24, faces=300, texture=64)
    with pytest.raises(ValueError, match="the colour is not finite at"):
        meshing.build(ball, lambda x: np.where(x > 0.2, np.nan, 0.5), 1.0, config)


def test_a_thin_thing_between_grid_points_is_told_how_to_be_seen():
    needle = lambda x: np.where(np.abs(x[:, :2] - 0.07).max(axis=-1) < 0.01, 500.0, 0)  # noqa: E731
    config = meshing.MeshConfig(resolution=8, faces=300, texture=64)
    with pytest.raises(meshing.EmptyFieldError, match=r"raise mesh\.resolution \(8\)"):
        meshing.build(needle, grey, 1.0, config)


def test_degenerate_faces_cost_no_texels():
    mesh = meshing.simplify(
        meshing.extract_surface(ball, meshing.sample_density(ball, 1.0, 24), 250.0, 1.0), 300
    )
    extra = np.array([[0, 0, 1], [2, 3, 3]])
    mesh = meshing.unwrap(mesh.replace(faces=np.concatenate([mesh.faces, extra])), 64)
    assert np.isfinite(mesh.uvs).all()
    assert bleed(mesh, 64).max() < 0.1
