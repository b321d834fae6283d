"""InstantMesh: its files, its numbers, its views, and its assets in our world."""

from functools import partial
from itertools import pairwise

import instantmesh_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instantmesh_files import ENCODER
from PIL import Image

from jax3d import weights
from jax3d.camera import orbit
from jax3d.fields import triplane
from jax3d.image import read_picture
from jax3d.math import laplace_density
from jax3d.mesh import EmptyFieldError, flexicubes
from jax3d.models import instantmesh, instantmesh_surface, lrm
from jax3d.models.open import open_model
from jax3d.types import Prompt
from jax3d.weights import WeightsError

KINDS = ("nerf", "mesh")
load = partial(instantmesh.load, encoder=ENCODER, side=32)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("instantmesh")
    return {
        "nerf": files.write(root / "nerf", "nerf"),
        "mesh": files.write(root / "mesh", "mesh", ".safetensors"),
    }


@pytest.fixture(scope="module")
def opened(paths):
    return {kind: load(path) for kind, path in paths.items()}


@pytest.fixture(scope="module")
def io():
    return files.vectors()


@pytest.fixture(scope="module")
def surface(opened, io):
    """The mesh variant's asset of the file's planes, as the network leaves it."""
    variant, params = opened["mesh"]
    planes = instantmesh.turned(jnp.moveaxis(jnp.asarray(io["planes"][0]), 1, -1))
    return lrm.model(variant.design, params, "").decode(params, planes)


def test_the_network_is_the_official_code(opened, io):
    (design, _), params = opened["nerf"]
    images = jnp.asarray(np.moveaxis(io["in_images"], 2, -1))
    run = jax.jit(partial(design.network.apply, capture_intermediates=True))
    out, aside = run({"params": params["network"]}, images, io["in_cameras"])
    seen = aside["intermediates"]["encoder"]["__call__"][0]
    np.testing.assert_allclose(seen, io["image_feats"], atol=2e-5)
    np.testing.assert_allclose(np.moveaxis(out, -1, 2), io["planes"], atol=5e-5)
    # Its field, in our world without a turn.
    model = instantmesh.model(opened["nerf"][0], params, "tiny")
    asset = model.decode(params, instantmesh.turned(out[0]))
    axis = np.linspace(-1, 1, 10, dtype=np.float32)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    density, color = jax.jit(
        lambda p, x: (model.representation.density(p, x), model.representation.color(p, x))
    )(asset, x)
    np.testing.assert_allclose(density, io["grid_sigma"], atol=1e-4)
    np.testing.assert_allclose(color, io["grid_rgb"], atol=1e-5)


def test_the_networks_of_points_are_the_official_code(opened, surface, io):
    (design, lattice), params = opened["mesh"]
    x, near = flexicubes.lattice(*lattice), partial(np.testing.assert_allclose, atol=1e-5)
    near(instantmesh_surface.distance(surface, x, field=design.field), io["fc_sdf_net"])
    moved = instantmesh_surface.deformation(surface, params["deformation"], x, field=design.field)
    near(moved, np.tanh(io["fc_deform_raw"]))
    low = x[flexicubes.cubes(lattice.cells)[:, 0]]
    raw = instantmesh_surface.raw_weights(
        surface, params["weight"], low, field=design.field, cell=lattice.side / lattice.cells
    )
    near(raw[::4], io["fc_weight"])
    near(instantmesh_surface.color(surface, x[:200], field=design.field), io["fc_tex_rgb200"])


def test_the_cameras_are_zero123s_in_our_world(io):
    np.testing.assert_allclose(instantmesh.cameras(), io["all6_input_cameras"][0], atol=1e-6)
    ours = orbit(np.radians(150.0), np.radians(20.0), 4.0, 1.0).c2w
    np.testing.assert_allclose(
        io["all6_input_cameras"][0, 2, :12].reshape(3, 4), ours[:3], atol=1e-5
    )


def test_planes_that_tell_places_tell_them_in_our_world(opened):
    """Each texel of its planes holds its own two coordinates, told apart by their signs."""
    r, field = 8, opened["nerf"][0].design.field
    at = (np.arange(r) + 0.5) / r * 2 - 1
    row, column = np.meshgrid(at, at, indexing="ij")
    # Columns run along x, x and z, rows along y, z and y.
    its = np.zeros((3, r, r, field.channels), np.float32)
    its[..., 0], its[..., 1] = column, row
    padded = jnp.pad(instantmesh.turned(jnp.asarray(its)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (9, 3)).astype(np.float32)
    read = triplane.features({"planes": [padded]}, jnp.asarray(x), field).reshape(9, 3, -1)
    told = x[:, [[0, 1], [0, 2], [2, 1]]]
    np.testing.assert_allclose(read[..., :2], told, atol=1e-6)


# Surfaces.


def test_a_mesh_is_that_of_the_dense_lattice(opened, surface, io):
    (design, lattice), params = opened["mesh"]
    heads = {k: params[k] for k in ("deformation", "weight")}
    with pytest.raises(EmptyFieldError, match="no surface"):
        instantmesh_surface.mesh(surface, heads, design.field, lattice)
    # Its random distances are of one sign.
    level = np.median(io["fc_sdf_net"])
    *layers, last = surface["mlp"]
    asset = {**surface, "mlp": [*layers, {**last, "b": last["b"].at[0].add(-level)}]}
    made = instantmesh_surface.mesh(asset, heads, design.field, lattice)
    n, x = lattice.cells, flexicubes.lattice(*lattice)
    read = partial(instantmesh_surface.distance, field=design.field)
    sdf = np.asarray(read(asset, x))
    found = flexicubes.topology(sdf.reshape((n + 1,) * 3))
    low = x[flexicubes.cubes(n)[:, 0]]
    raw = instantmesh_surface.raw_weights(
        asset, heads["weight"], low, field=design.field, cell=lattice.side / n
    )
    moved = x + np.tanh(io["fc_deform_raw"]) / (4 * n)
    chosen = flexicubes.activated(raw)
    np.testing.assert_allclose(
        made.vertices, flexicubes.vertices(found, moved, sdf, chosen), atol=1e-5
    )
    faces = flexicubes.faces(found, np.asarray(chosen.gamma))
    np.testing.assert_array_equal(made.faces, faces[:, ::-1])
    # A unit of its own: the asset that a model leaves is scaled, its mesh is the same.
    left = jax.jit(partial(instantmesh_surface.in_metres, field=design.field))(asset)
    scale = float(left["mlp"][-1]["b"][0] / asset["mlp"][-1]["b"][0])
    np.testing.assert_allclose(read(left, x), scale * sdf, rtol=1e-4, atol=1e-5)
    again = instantmesh_surface.mesh(left, heads, design.field, lattice)
    np.testing.assert_allclose(again.vertices, made.vertices, atol=1e-5)
    np.testing.assert_allclose(again.colors, made.colors, atol=1e-5)


WAY = np.array([1.0, 2.0, -3.0])


def half_space(field, unit):
    """An asset that fills x + 2 y - 3 z < 1/5, with distances sqrt(14) `unit` a metre."""
    at = np.linspace(-field.span, field.span, field.resolution)
    planes = np.zeros((3, field.resolution, field.resolution, field.channels), np.float32)
    planes[0, ..., 0] = WAY[0] * at[:, None] + WAY[1] * at
    planes[1, ..., 0] = WAY[2] * at
    widths = (3 * field.channels, *(field.hidden,) * field.layers, 4)
    layers = [{"w": np.zeros(ab, np.float32), "b": np.zeros(ab[1:])} for ab in pairwise(widths)]
    for layer in layers:
        layer["w"][0, 0] = 1
    layers[0]["w"][field.channels, 0] = 1
    # Above zero all the way, for the activations.
    layers[0]["b"][0] = 9
    layers[-1]["w"][0, 0], layers[-1]["b"][0] = -unit, 9.2 * unit
    return jax.tree.map(jnp.float32, {"planes": [planes], "mlp": layers})


def test_surfaces_stand_in_our_world_and_metres(opened):
    variant, params = opened["mesh"]
    field, heads = variant.design.field, {k: params[k] for k in ("deformation", "weight")}
    bring = jax.jit(partial(instantmesh_surface.in_metres, field=field))
    density = jax.jit(field.build().density)
    x = np.float32([[0.1, 0.1, 0.0], [0.4, 0.3, 0.2], [0.2, 0.3, 0.2]])
    told = jnp.asarray((0.2 - x @ WAY) / 14**0.5)
    for unit in (0.1, 40.0):
        asset = bring(half_space(field, unit))
        shown = instantmesh_surface.distance(asset, x, field=field)
        np.testing.assert_allclose(shown, told, atol=2e-4)
        sigma = laplace_density(-told, field.beta)
        np.testing.assert_allclose(density(asset, x), sigma, rtol=0.05, atol=1e-3)
    lattice = instantmesh_surface.Lattice(12, 2.1)
    mesh = instantmesh_surface.mesh(asset, heads, field, lattice)
    # Points of the lattice move by up to a quarter of 1 / 12.
    assert np.abs(mesh.vertices @ WAY - 0.2).max() < np.abs(WAY).sum() / 48
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normal = np.cross(b - a, c - a).sum(0)
    np.testing.assert_allclose(normal / np.linalg.norm(normal), WAY / 14**0.5, atol=0.05)


# Views.


def test_a_model_reads_six_views_or_their_sheet(opened, tmp_path):
    variant, params = opened["nerf"]
    model = instantmesh.model(variant, params, "tiny")
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (6, 4, 4, 3)).repeat(80, 1).repeat(80, 2) / 255
    sheet = np.concatenate([np.concatenate([views[2 * i], views[2 * i + 1]], 1) for i in range(3)])
    cond = model.condition(Prompt("a cup", image=views))
    assert cond.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(model.condition(Prompt("", image=sheet)), cond)
    # As the commands read it.
    Image.fromarray(np.uint8(np.round(sheet * 255))).save(tmp_path / "sheet.png")
    shown = read_picture(tmp_path / "sheet.png")
    np.testing.assert_allclose(model.condition(Prompt("", image=shown)), cond, atol=1e-6)
    # Flat squares stay as they are but for their borders; transparency is over white.
    np.testing.assert_allclose(cond[:, 4::8, 4::8], views[:, 40::80, 40::80], atol=2e-2)
    clear = np.concatenate([views, np.full((6, 320, 320, 1), 0.5)], -1)
    np.testing.assert_allclose(
        model.condition(Prompt("", image=clear)), 0.5 + 0.5 * np.asarray(cond), atol=2e-2
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "the prompt 'a cup' has no picture"),
        (np.zeros((320, 320, 3)), r"tiny reads six views .* as Zero123\+\+ draws them.*320, 320"),
        (np.zeros((640, 960, 3)), r"a sheet of|their sheet of 640 x 960 pixels"),
        (np.zeros((5, 8, 8, 3)), r"shape \(5, 8, 8, 3\)"),
        (np.zeros((6, 8, 9, 3)), r"shape \(6, 8, 9, 3\)"),
        (np.zeros((6, 8, 8, 2)), r"shape \(6, 8, 8, 2\)"),
        (np.zeros((960, 640)), r"shape \(960, 640\)"),
        (np.zeros((6, 0, 0, 3)), r"shape \(6, 0, 0, 3\)"),
        (np.full((6, 8, 8, 3), 255), "between 255 and 255"),
    ],
)
def test_other_pictures_are_refused(opened, image, message):
    model = instantmesh.model(*opened["mesh"], "tiny")
    with pytest.raises(ValueError, match=message) as caught:
        model.condition(Prompt("a cup", image=image))
    assert "\n" not in str(caught.value)


# Files.


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_the_official_ones(kind):
    flat = {k: v.shape for k, v in files.tensors(kind).items() if "lpips" not in k}
    like = instantmesh.abstract_params(instantmesh.design(files.config(kind), encoder=ENCODER))
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(like))
    assert sum(np.prod(shape, dtype=int) for shape in flat.values()) == count


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("nerf", "base"),
        ("mesh", "large"),
        pytest.param("nerf", "large", marks=pytest.mark.slow),
        pytest.param("mesh", "base", marks=pytest.mark.slow),
    ],
)
def test_every_key_of_the_released_models_is_read(kind, size):
    config = instantmesh.released(kind, size)
    variant = instantmesh.design(config)
    shapes = files.shapes(kind, variant.design.network.encoder, config["model_config"]["params"])
    flat = {f"lrm_generator.{k}": np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    weights.demand_fit(instantmesh.names(flat), instantmesh.abstract_params(variant))
    assert variant.design.field.channels == {"base": 40, "large": 80}[size]
    assert variant.lattice == {"nerf": None, "mesh": (128, 2.1)}[kind]


def test_files_are_recognised_and_opened(paths, monkeypatch):
    monkeypatch.setattr(instantmesh, "load", load)
    models = {kind: open_model(str(path)) for kind, path in paths.items()}
    assert models["mesh"].name == (
        f"InstantMesh to a surface, six views of 32 px, from {paths['mesh']}"
    )
    assert models["nerf"].representation.mesh is None
    # A folder with no other is that file.
    folder = open_model(str(paths["nerf"].parent))
    assert folder.digest == models["nerf"].digest != models["mesh"].digest


def test_bfloat16_keeps_norms_decoders_and_planes_in_float32(paths):
    variant, params = load(paths["nerf"], jnp.bfloat16)
    block = params["network"]["encoder"]["blocks_0"]
    assert block["adaLN_modulation_1"]["kernel"].dtype == jnp.bfloat16
    assert block["norm1"]["scale"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params["decoder"])} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((6, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(variant.design.planes, params["network"], images).dtype == jnp.float32


def test_a_checkpoint_has_to_be_one_and_have_its_config(paths, tmp_path):
    for name in ("instant_nerf_base.ckpt", "instant_mesh_base.ckpt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=r"instant_mesh_base.ckpt, instant_nerf_base.ckpt: give"):
        open_model(str(tmp_path))
    # The released ones need no config, but are no zip here.
    with pytest.raises(WeightsError, match="not a zip pickle"):
        open_model(str(tmp_path / "instant_mesh_base.ckpt"))
    other = tmp_path / "instant_mesh_mine.safetensors"
    other.write_bytes(paths["mesh"].read_bytes())
    with pytest.raises(WeightsError, match=r"its config, instant-mesh-mine.yaml, is not beside"):
        open_model(str(other))
    with pytest.raises(WeightsError, match="holds no instant_"):
        instantmesh.load(tmp_path / "absent")
    # A radiance field's config beside a surface's tensors.
    config = paths["nerf"].with_name("instant-nerf-tiny.yaml").read_text()
    other.with_suffix(".yaml").write_text(config)
    with pytest.raises(WeightsError, match=r"missing: decoder_0/kernel.*surplus: .*sdf\.0"):
        load(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_dim": 10**12}, "transformer_dim = 1000000000000"),
        ({"transformer_dim": 32}, "misshapen"),
        ({"transformer_heads": 0}, "ZeroDivisionError"),
        ({"transformer_layers": 129}, "transformer_layers = 129"),
        ({"triplane_dim": "8"}, "triplane_dim = '8'"),
        ({"triplane_high_res": 16}, "triplane_high_res = 16 is not supported here, only 8"),
        ({"encoder_feat_dim": 768}, "encoder_feat_dim = 768 is not supported here, only 48"),
        ({"encoder_model_name": "x/y"}, "only facebook/dino-vitb16"),
        ({"rendering_samples_per_ray": 5000}, "5000 samples"),
        ({"grid_res": 1}, "a lattice of 1 cells"),
        ({"grid_res": 100_000}, "a lattice of 100000 cells"),
        ({"grid_scale": -1.0}, "over -1 m"),
        ({"grid_res": None}, "grid_res = None"),
    ],
)
def test_lying_configs(tmp_path, changes, message):
    path = files.write(tmp_path, "mesh", ".safetensors", **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_configs_of_other_models_are_refused():
    for config, message in (
        ({}, "lacks model_config"),
        ({"model_config": {"params": {}}}, "target = None"),
        ({"model_config": {"target": "x.OpenLRM", "params": {}}}, "only InstantNeRF and"),
        ({"model_config": {"target": "InstantMesh", "params": {}}}, "lacks grid_res, grid_scale"),
    ):
        with pytest.raises(WeightsError, match=message):
            instantmesh.design(config)
