"""Meshes of fields with closed forms: a sphere, and a cube whose faces have six colours."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from jax3d import camera as cameras
from jax3d import mesh as meshing
from jax3d.mesh.extract import compact, evaluate, signed_volume
from jax3d.mesh.simplify import is_closed
from jax3d.render.raster import fill
from jax3d.types import Look, Mesh

CHUNK = 1 << 15
RADIUS, SIDE = 0.5, 0.45
PALETTE = np.array(
    [
        [0.9, 0.1, 0.1],
        [0.1, 0.8, 0.2],
        [0.15, 0.2, 0.9],
        [0.9, 0.8, 0.1],
        [0.8, 0.2, 0.8],
        [0.2, 0.8, 0.8],
    ],
    np.float32,
)


def sphere(x, center=(0.1, 0.0, -0.05), radius=RADIUS, sharpness=100.0):
    return 500.0 / (
        1
        + np.exp(
            np.clip(sharpness * (np.linalg.norm(x - np.array(center), axis=-1) - radius), -50, 50)
        )
    )


@jax.jit
def cube(x):
    return 500.0 * jax.nn.sigmoid(3000.0 * (SIDE - jnp.abs(x).max(axis=-1)))


@jax.jit
def cube_color(x):
    axis = jnp.abs(x).argmax(axis=-1)
    positive = jnp.take_along_axis(x, axis[..., None], axis=-1)[..., 0] > 0
    return jnp.asarray(PALETTE)[2 * axis + (~positive)]


def extract(density, resolution=48, level=250.0, bound=1.0):
    grid = meshing.sample_density(density, bound, resolution, CHUNK)
    return meshing.extract_surface(density, grid, level, bound, CHUNK)


@pytest.fixture(scope="module")
def cube_mesh():
    config = meshing.MeshConfig(resolution=128, faces=1500, texture=256, chunk=CHUNK)
    return meshing.build(cube, cube_color, 1.0, config)


def test_evaluate_is_the_field_whatever_the_chunk():
    x = np.random.default_rng(0).normal(size=(3, 7, 3)).astype(np.float32)
    shapes = []

    def field(x):
        shapes.append(x.shape)
        return x * 2

    np.testing.assert_allclose(evaluate(field, x, 4), 2 * x)
    assert set(shapes) == {(4, 3)}
    assert evaluate(field, x[:0], 4).shape == (0, 7, 3)


def test_sphere_has_its_radius_area_volume_and_winding():
    mesh = extract(sphere)
    assert is_closed(mesh)
    radius = np.linalg.norm(mesh.vertices - np.array([0.1, 0.0, -0.05]), axis=-1)
    np.testing.assert_allclose(radius, RADIUS, atol=2 / 47 / 32)
    oracle = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert oracle.is_watertight
    np.testing.assert_allclose(oracle.area, 4 * np.pi * RADIUS**2, rtol=0.01)
    np.testing.assert_allclose(signed_volume(mesh), 4 / 3 * np.pi * RADIUS**3, rtol=0.01)
    outward = (oracle.face_normals * (oracle.triangles_center - [0.1, 0, -0.05])).sum(axis=-1)
    assert (outward > 0).all()


def test_bisection_finds_the_surface_of_a_steep_field():
    """Linear interpolation of 0 and 500 would leave the vertices in the middle of the cells."""
    steep = lambda x: sphere(x, sharpness=1e4)  # noqa: E731
    radius = np.linalg.norm(extract(steep).vertices - np.array([0.1, 0.0, -0.05]), axis=-1)
    np.testing.assert_allclose(radius, RADIUS, atol=2 / 47 / 32)


def test_a_field_that_fills_the_cube_is_closed_inside_it():
    mesh = extract(lambda x: np.full(len(x), 500.0), resolution=16, bound=0.7)
    assert is_closed(mesh)
    assert np.abs(mesh.vertices).max() <= 0.7
    np.testing.assert_allclose(signed_volume(mesh), 1.4**3, rtol=0.25)


def test_floaters_and_hollows_are_dropped_and_large_parts_kept():
    def density(x):
        hollow = sphere(x, (-0.3, 0, 0), 0.4) - sphere(x, (-0.3, 0, 0), 0.2)
        return hollow + sphere(x, (0.6, 0, 0), 0.2) + sphere(x, (0.6, 0.6, 0.6), 0.06)

    mesh = extract(density, resolution=64)
    assert len(trimesh.Trimesh(mesh.vertices, mesh.faces).split()) == 4
    kept = meshing.drop_floaters(mesh, min_area=0.05)
    parts = trimesh.Trimesh(kept.vertices, kept.faces).split()
    np.testing.assert_allclose(sorted(p.scale / np.sqrt(12) for p in parts), [0.2, 0.4], rtol=0.03)
    assert len(np.unique(kept.faces)) == len(kept.vertices)


def test_level_follows_the_outline_of_crisp_and_soft_fields():
    """alpha = 1/2 where the chord of a ray through a ball of constant density is ln 2 long."""
    grid = meshing.sample_density(sphere, 1.0, 64, CHUNK)
    assert 1.0 < meshing.silhouette_level(grid, 1.0) <= 250.0
    # A Gaussian blob: a ray at distance b has optical depth peak * w * sqrt(2 pi) exp(-b^2 / 2w^2)
    # and the greatest density peak * exp(-b^2 / 2w^2), so the level is ln 2 / (w sqrt(2 pi)).
    width, peak = 0.2, 300.0
    blob = lambda x: peak * np.exp(-(x**2).sum(axis=-1) / (2 * width**2))  # noqa: E731
    level = meshing.silhouette_level(meshing.sample_density(blob, 1.0, 64, CHUNK), 1.0)
    np.testing.assert_allclose(level, np.log(2) / (width * np.sqrt(2 * np.pi)), rtol=0.15)


def test_empty_fields_say_what_they_hold():
    faint = lambda x: 0.01 * np.ones(len(x))  # noqa: E731
    config = meshing.MeshConfig(resolution=16, chunk=CHUNK)
    with pytest.raises(meshing.EmptyFieldError, match=r"between 0 and 0\.01 1/m.*train longer"):
        meshing.build(faint, faint, 1.0, config)
    with pytest.raises(meshing.EmptyFieldError, match=r"no surface at level 900 1/m.*in between"):
        extract(sphere, resolution=16, level=900.0)


def test_a_diverged_field_is_refused():
    broken = lambda x: np.where(x[:, 0] > 0, np.nan, 1.0)  # noqa: E731
    with pytest.raises(ValueError, match="not finite at 1372 of 2744"):
        meshing.sample_density(broken, 1.0, 16, CHUNK)


@pytest.mark.parametrize("budget", [2000, 500, 100])
def test_simplification_keeps_the_budget_and_the_shape(budget):
    mesh = meshing.simplify(extract(sphere), budget)
    assert 0.9 * budget < len(mesh.faces) <= budget
    assert is_closed(mesh)
    assert meshing.simplify(mesh, budget) is mesh
    radius = np.linalg.norm(mesh.vertices - np.array([0.1, 0, -0.05]), axis=-1)
    np.testing.assert_allclose(radius, RADIUS, rtol=0.06)


def test_threads_simplify_their_own_meshes():
    spheres = [extract(sphere, resolution=n) for n in (24, 32, 40, 48)] * 8
    alone = [meshing.simplify(mesh, 300) for mesh in spheres[:4]]
    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda mesh: meshing.simplify(mesh, 300), spheres))
    finally:
        sys.setswitchinterval(patience)
    for mesh, same in zip(together, alone * 8, strict=True):
        np.testing.assert_array_equal(mesh.vertices, same.vertices)
        np.testing.assert_array_equal(mesh.faces, same.faces)


def test_a_frayed_surface_is_seen_on_coarser_grids(monkeypatch):
    asked = []

    def refuse_twice(mesh, faces):
        asked.append((len(mesh.faces), faces))
        if len(asked) < 3:
            raise ValueError("no budget keeps it closed")
        return simplify(mesh, faces)

    simplify = meshing.simplify
    monkeypatch.setattr(meshing, "simplify", refuse_twice)
    config = meshing.MeshConfig(resolution=96, faces=200, texture=32, chunk=CHUNK)
    mesh = meshing.build(sphere, lambda x: np.full(x.shape, 0.5), 1.0, config)
    assert [budget for _, budget in asked] == [200, 200, 200]
    full, half, quarter = [found for found, _ in asked]
    assert half < 0.4 * full
    assert quarter < 0.4 * half
    assert len(mesh.faces) <= 200


def test_a_surface_that_is_never_closed_is_told(monkeypatch):
    def refuse(mesh, faces):
        raise ValueError("no budget keeps it closed")

    monkeypatch.setattr(meshing, "simplify", refuse)
    config = meshing.MeshConfig(resolution=32, faces=200, texture=32, chunk=CHUNK)
    with pytest.raises(ValueError, match="no budget keeps it closed"):
        meshing.build(sphere, lambda x: np.full(x.shape, 0.5), 1.0, config)


def test_is_closed_sees_holes_flips_and_fins():
    mesh = extract(sphere, resolution=12)
    assert is_closed(mesh)
    assert not is_closed(mesh.replace(faces=mesh.faces[1:]))
    flipped = mesh.faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not is_closed(mesh.replace(faces=flipped))
    assert not is_closed(mesh.replace(faces=np.concatenate([mesh.faces, mesh.faces[:1]])))


def test_compact_keeps_corners_and_colours():
    vertices = np.arange(15, dtype=np.float32).reshape(5, 3)
    mesh = Mesh(vertices, np.array([[4, 1, 3]]), colors=vertices / 15)
    small = compact(mesh)
    np.testing.assert_array_equal(small.vertices[small.faces], vertices[mesh.faces])
    np.testing.assert_array_equal(small.colors, small.vertices / 15)


def test_unwrap_keeps_the_surface_and_charts_do_not_overlap(cube_mesh):
    corners = cube_mesh.uvs[cube_mesh.faces].astype(np.float64)
    assert cube_mesh.uvs.min() >= 0
    assert cube_mesh.uvs.max() <= 1
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    covered = len(np.unique(fill(corners * 512, (512, 512)).pixel)) / 512**2
    np.testing.assert_allclose(covered, area, rtol=0.05)
    np.testing.assert_allclose(signed_volume(cube_mesh), (2 * SIDE) ** 3, rtol=0.02)


def analytic_cube(camera, size):
    """Each pixel is the mean of four rays."""
    rays = cameras.rays(camera, (2 * size, 2 * size))
    o, d = np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64)
    near, far = np.sort(np.stack([(-SIDE - o) / d, (SIDE - o) / d]), axis=0)
    t = near.max(axis=-1)
    hit = t < far.min(axis=-1)
    color = np.asarray(cube_color(jnp.asarray(o + t[..., None] * d, jnp.float32)))
    rgb = np.where(hit[..., None], color, 1.0)
    return rgb.reshape(-1, size, 2, size, 2, 3).mean(axis=(2, 4))


def test_exported_cube_looks_like_the_analytic_one(cube_mesh, tmp_path):
    meshing.write_glb(tmp_path / "cube.glb", cube_mesh)
    loaded = meshing.load_glb(tmp_path / "cube.glb")
    np.testing.assert_allclose(loaded.vertices, cube_mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, cube_mesh.faces)
    np.testing.assert_allclose(loaded.uvs, cube_mesh.uvs, atol=1e-6)
    np.testing.assert_allclose(loaded.texture, cube_mesh.texture, atol=0.51 / 255)
    turn = jnp.arange(8) * jnp.pi / 4 + 0.2
    camera = cameras.orbit(turn, 0.4 * jnp.sin(turn), 2.5, 0.7)
    expected = analytic_cube(camera, 96)
    likeness = meshing.compare(loaded, expected, camera, Look.albedo())
    assert likeness.psnr > 30.0
    assert likeness.psnr_per_view.min() > 25.0
    turned = meshing.compare(loaded, expected[::-1], camera, Look.albedo())
    assert turned.psnr < 20.0


def test_compare_of_equal_and_shifted_pictures():
    mesh = Mesh(np.eye(3, dtype=np.float32) * 0.1, np.array([[0, 1, 2]]))
    camera = cameras.orbit(jnp.zeros(2), 0.3, 2.0, 0.6)
    shown = meshing.compare(mesh, np.zeros((2, 16, 16, 3)), camera, Look.albedo()).rgb
    assert meshing.compare(mesh, shown, camera, Look.albedo()).psnr == pytest.approx(100.0)
    shifted = meshing.compare(mesh, shown - 0.1, camera, Look.albedo())
    assert shifted.psnr == pytest.approx(20.0, abs=1e-3)


def test_bake_takes_the_colour_that_a_ray_would_show():
    """The field is red at the mesh's surface, but clear there: what is seen is the blue body."""
    mesh = meshing.unwrap(meshing.simplify(extract(sphere, resolution=32), 300), 64)
    center = np.array([0.1, 0.0, -0.05])
    depth, skin = 0.15, 0.05

    def inside(x):
        return RADIUS - np.linalg.norm(x - center, axis=-1)

    def density(x):
        return np.where(inside(x) > skin, 1000.0, 0.0)

    def color(x):
        return np.where(inside(x)[:, None] > 0.7 * skin, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])

    def shade(x):
        return np.concatenate([density(x)[:, None], color(x)], axis=-1)

    baked = meshing.bake(mesh, shade, 64, depth, CHUNK)
    np.testing.assert_allclose(
        baked.texture, np.broadcast_to([0.0, 0, 1.0], (64, 64, 3)), atol=1e-5
    )
    empty = meshing.bake(mesh, lambda x: shade(x) * [0, 1, 1, 1], 64, depth, CHUNK)
    assert (empty.texture[..., 0] == 1).mean() > 0.9


def test_dilation_leaves_no_texel_without_a_colour(cube_mesh):
    distance = np.abs(cube_mesh.texture[:, :, None] - PALETTE).max(axis=-1).min(axis=-1)
    assert (distance < 0.05).mean() > 0.98


def test_files_have_y_up_and_the_front_towards_z(tmp_path):
    vertices = np.array([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]], np.float32)  # front, left, up
    mesh = Mesh(vertices, np.array([[0, 1, 2]]), colors=np.eye(3, dtype=np.float32))
    expected = np.array([[0, 0, 3.0], [2, 0, 0], [0, 1, 0]])
    for suffix, write in (
        ("glb", meshing.write_glb),
        ("obj", meshing.write_obj),
        ("ply", meshing.write_ply),
    ):
        write(tmp_path / f"a.{suffix}", mesh)
        part = trimesh.load_mesh(tmp_path / f"a.{suffix}", process=False)
        np.testing.assert_allclose(part.vertices, expected, atol=1e-6)
        np.testing.assert_array_equal(part.faces, [[0, 1, 2]])
        if suffix != "glb":
            np.testing.assert_array_equal(part.visual.vertex_colors[:, :3], 255 * np.eye(3))
    loaded = meshing.load_glb(tmp_path / "a.glb")
    np.testing.assert_allclose(loaded.vertices, vertices)
    np.testing.assert_allclose(loaded.colors, np.eye(3), atol=1e-6)


def test_vertex_colours_are_linear_in_gltf(tmp_path):
    mesh = Mesh(
        np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), colors=np.full((3, 3), 0.5, np.float32)
    )
    meshing.write_glb(tmp_path / "a.glb", mesh)
    (part,) = trimesh.load_scene(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_allclose(part.visual.vertex_attributes["color"], 0.21404, atol=1e-5)
    np.testing.assert_allclose(meshing.load_glb(tmp_path / "a.glb").colors, 0.5, atol=1e-6)


def test_textured_obj_and_ply_carry_the_colours(cube_mesh, tmp_path):
    meshing.write_obj(tmp_path / "cube.obj", cube_mesh)
    meshing.write_ply(tmp_path / "cube.ply", cube_mesh)
    assert {p.name for p in tmp_path.iterdir()} == {"cube.obj", "cube.mtl", "cube.png", "cube.ply"}
    assert "map_Kd cube.png" in (tmp_path / "cube.mtl").read_text()
    part = trimesh.load_mesh(tmp_path / "cube.obj", process=False)
    assert part.visual.material.image.size == (256, 256)
    colored = trimesh.load_mesh(tmp_path / "cube.ply", process=False)
    front = colored.vertices[:, 2] > SIDE - 0.01
    front &= np.abs(colored.vertices[:, :2]).max(axis=-1) < SIDE - 0.05
    if front.any():
        np.testing.assert_allclose(
            colored.visual.vertex_colors[front, :3] / 255,
            PALETTE[[0]].repeat(front.sum(), 0),
            atol=0.02,
        )


def test_the_same_field_gives_the_same_bytes(tmp_path):
    config = meshing.MeshConfig(resolution=32, faces=300, texture=64, chunk=CHUNK)
    for name in ("a.glb", "b.glb"):
        meshing.write_glb(tmp_path / name, meshing.build(cube, cube_color, 1.0, config))
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_a_broken_glb_is_named(tmp_path):
    (tmp_path / "bad.glb").write_bytes(b"not a mesh at all, not at all")
    with pytest.raises(ValueError, match=r"bad\.glb is not a GLB file"):
        meshing.load_glb(tmp_path / "bad.glb")
    with pytest.raises(FileNotFoundError):
        meshing.load_glb(tmp_path / "missing.glb")


VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report.issues)));
"""


def test_khronos_validator_finds_nothing(cube_mesh, tmp_path):
    """Needs node and the npm package: `npm install gltf-validator` here, or GLTF_VALIDATOR_PATH."""
    modules = os.environ.get("GLTF_VALIDATOR_PATH", str(Path(__file__).parents[2] / "node_modules"))
    if shutil.which("node") is None or not Path(modules, "gltf-validator").is_dir():
        pytest.skip("node or its package gltf-validator is not installed")
    colored = Mesh(
        np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), colors=np.eye(3, dtype=np.float32)
    )
    for mesh in (cube_mesh, colored, colored.replace(colors=None)):
        meshing.write_glb(tmp_path / "a.glb", mesh)
        command = ["node", "-e", VALIDATE, str(tmp_path / "a.glb")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "NODE_PATH": modules},
        )
        assert '"numErrors":0,"numWarnings":0' in done.stdout, done.stdout
