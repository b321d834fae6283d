"""InstantMesh: its files, its numbers, and its assets in our world.

`instantmesh.json.gz` holds config, seeds and tensor shapes of tiny networks; `instantmesh.npz`
inputs, what the official code makes of them, and the tensors that do not follow from a seed.
"""

import gzip
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from checkpoints import torch_tensor, weight, write_torch
from safetensors.numpy import save_file

from jax3d.camera import orbit
from jax3d.mesh.extract import EmptyFieldError
from jax3d.models import instantmesh
from jax3d.models.open import open_model
from jax3d.nn.dino import DinoConfig
from jax3d.types import Prompt
from jax3d.weights import WeightsError

HERE = Path(__file__).parent
KNOWN = json.loads(gzip.decompress((HERE / "instantmesh.json.gz").read_bytes()))
ENCODER = DinoConfig(
    patch_size=8,
    grid=3,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
)
CONFIG = json.loads(json.dumps(KNOWN["config"]))
CONFIG["model_config"]["params"] |= {"grid_res": 8, "grid_scale": 2.1}
ROOT = "lrm_generator."
VARIANTS = ("nerf", "mesh")


def vectors():
    with np.load(HERE / "instantmesh.npz") as file:
        return dict(file)


def tensors(variant):
    """A tiny model's weights under the official names."""
    given, parts = vectors(), {}
    for name, shape in KNOWN["nerf"]["keys"].items():
        drawn = weight(KNOWN["nerf"]["seed"], name, tuple(shape), np.float32)
        parts[ROOT + name] = given.get(name, drawn)
    if variant == "mesh":
        parts = {k: v for k, v in parts.items() if ".decoder.net." not in k}
        for name, shape in KNOWN["mesh"]["keys"].items():
            drawn = weight(KNOWN["mesh"]["seed"], name, tuple(shape), np.float32)
            parts[f"{ROOT}synthesizer.{name}"] = drawn
    return parts | {"lpips.lin0.model.1.weight": np.zeros((1, 2, 1, 1), np.float32)}


def write(folder, variant, suffix="safetensors", **changes):
    """A checkpoint with its config beside it; `changes` replace entries."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(CONFIG))
    config["model_config"]["params"] |= changes
    (folder / f"instant-{variant}-tiny.yaml").write_text(yaml.safe_dump(config))
    file, flat = folder / f"instant_{variant}_tiny.{suffix}", tensors(variant)
    if suffix == "ckpt":
        content = {k: torch_tensor(str(i), v) for i, (k, v) in enumerate(flat.items())}
        write_torch(file, {"state_dict": content}, {str(i): v for i, v in enumerate(flat.values())})
    else:
        save_file(flat, file)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("instantmesh")
    return {v: write(root / v, v, "ckpt" if v == "nerf" else "safetensors") for v in VARIANTS}


@pytest.fixture(scope="module")
def opened(files):
    return {v: instantmesh.load(files[v], encoder=ENCODER) for v in VARIANTS}


@pytest.fixture(scope="module")
def planes(opened):
    """Of the golden views, by the network of the NeRF variant, which the mesh variant's is too."""
    design, params = opened["nerf"]
    io = vectors()
    run = jax.jit(partial(design.network.apply, capture_intermediates=True))
    images = np.moveaxis(io["in_images"], 2, -1)
    out, layers = run({"params": params["network"]}, images, io["in_cameras"])
    seen = layers["intermediates"]["encoder"]["__call__"][0]
    np.testing.assert_allclose(seen, io["image_feats"], atol=2e-5)
    np.testing.assert_allclose(np.moveaxis(out, -1, 2), io["planes"], atol=5e-5)
    views = instantmesh.Views(images[0], io["in_cameras"][0])
    ours = jax.jit(design.planes)(params["network"], views)
    np.testing.assert_allclose(ours, instantmesh.turned(jnp.asarray(out[0])), atol=1e-5)
    return ours


def test_the_nerf_variant_is_the_official_code(opened, planes):
    design, params = opened["nerf"]
    io, axis = vectors(), np.linspace(-1, 1, 10, dtype=np.float32)[::3]
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    model = instantmesh.model(design, params, "tiny")
    asset = model.decode(params, planes)
    density, color = (
        jax.jit(f) for f in (model.representation.density, model.representation.color)
    )
    np.testing.assert_allclose(density(asset, x), io["grid_sigma"], atol=5e-5)
    np.testing.assert_allclose(color(asset, x), io["grid_rgb"], atol=1e-5)


def test_the_mesh_variants_decoders_are_the_official_code(opened, planes):
    design, params = opened["mesh"]
    io = vectors()
    x = jnp.asarray(instantmesh.flexicubes.lattice(8, 2.1))
    cubes = instantmesh.flexicubes.cubes(8)[::16]

    @jax.jit
    def run(x):
        h = instantmesh.features(design, planes, x)
        corners = h[cubes].reshape(len(cubes), -1)
        weights = 0.1 * instantmesh.head(params["weight"], corners)
        return (
            instantmesh.distance(params, h),
            instantmesh.shift(params, h, 8),
            weights,
            instantmesh.color(params, h[:200]),
        )

    sdf, moved, raw, rgb = run(x)
    np.testing.assert_allclose(sdf, -io["fc_sdf_net"][0, :, 0], atol=2e-5)
    np.testing.assert_allclose(moved, np.tanh(io["fc_deform_raw"][0]) / 32, atol=1e-5)
    np.testing.assert_allclose(raw, io["fc_weight"], atol=1e-5)
    np.testing.assert_allclose(rgb, io["fc_tex_rgb"], atol=1e-5)


def with_surface(params):
    """The mesh variant's weights with both signs among its distances."""
    layers = [dict(layer) for layer in params["sdf"]]
    layers[-1]["b"] = layers[-1]["b"] - 0.15
    return {**params, "sdf": layers}


def test_the_grid_has_the_surface_of_the_decoders(opened, planes):
    design, params = opened["mesh"]
    params = with_surface(params)
    model = instantmesh.model(design, params, "tiny")
    asset = jax.jit(model.decode)(params, planes)
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, asset) == jax.tree.map(jnp.shape, like)
    points = jnp.asarray(instantmesh.flexicubes.lattice(8, 2.1))
    h = instantmesh.features(design, planes, points)
    theirs = np.asarray(instantmesh.distance(params, h))
    ours = np.asarray(asset["sdf"]).reshape(-1)
    ratio = theirs / ours
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    crossed = [np.diff(asset["sdf"], axis=a)[np.diff(asset["sdf"] < 0, axis=a)] for a in range(3)]
    np.testing.assert_allclose(np.abs(np.concatenate(crossed)).mean(), 2.1 / 8, rtol=1e-4)
    rgb = np.clip(instantmesh.color(params, h), 0, 1)
    np.testing.assert_allclose(jax.nn.sigmoid(asset["rgb"]).reshape(-1, 3), rgb, atol=1e-5)


def test_the_authors_mesh(opened, planes):
    design, params = opened["mesh"]
    with pytest.raises(EmptyFieldError, match="no surface"):
        instantmesh.mesh(design, params, planes[:, :, :, ::-1] * 0)
    params = with_surface(params)
    mesh = instantmesh.mesh(design, params, planes)
    assert mesh.vertices.shape == mesh.colors.shape
    h = instantmesh.features(design, planes, jnp.asarray(mesh.vertices))
    cell = 2.1 / 8
    near = np.asarray(jnp.abs(instantmesh.distance(params, h)))
    apart = np.asarray(
        instantmesh.distance(
            params,
            instantmesh.features(
                design, planes, jnp.asarray(instantmesh.flexicubes.lattice(8, 2.1))
            ),
        )
    )
    assert near.mean() < 0.5 * np.abs(apart).mean()
    assert np.abs(mesh.vertices).max() < 1.05 + cell
    np.testing.assert_allclose(mesh.colors, np.clip(instantmesh.color(params, h), 0, 1), atol=1e-5)


# Pictures.


def test_a_sheet_is_six_views_of_zero123plus():
    io, rng = vectors(), np.random.default_rng(0)
    cells = rng.random((6, 8, 8, 4), np.float32)
    picture = np.concatenate([np.concatenate(cells[i : i + 2], 1) for i in (0, 2, 4)])
    views = instantmesh.sheet(picture, 8)
    over = cells[..., :3] * cells[..., 3:] + 1 - cells[..., 3:]
    np.testing.assert_allclose(views.images, over, atol=1e-6)
    np.testing.assert_allclose(views.cameras, io["all6_input_cameras"][0], atol=1e-5)
    large = instantmesh.sheet(picture, 16)
    assert large.images.shape == (6, 16, 16, 3)
    assert large.images.min() >= 0.0
    assert large.images.max() <= 1.0


def test_cameras_are_told_in_our_world():
    io = vectors()
    camera = orbit(
        jnp.radians(jnp.array([30.0, 90.0])),
        jnp.radians(jnp.array([20.0, -10.0])),
        jnp.full(2, 4.0),
        jnp.full(2, jnp.radians(30.0)),
    )
    np.testing.assert_allclose(instantmesh.told(camera), io["in_cameras"][0], atol=1e-5)


def test_other_pictures_are_refused(opened):
    for design, params in opened.values():
        model = instantmesh.model(design, params, "tiny")
        for shape in ((9, 8, 3), (8, 12, 3), (9, 9, 4)):
            with pytest.raises(ValueError, match="a sheet of six square views"):
                model.condition(Prompt("a cup", image=np.zeros(shape, np.float32)))
        with pytest.raises(ValueError, match="the prompt 'a cup' has none"):
            model.condition(Prompt("a cup"))


# Files.


def test_files_are_recognised_and_opened(files, monkeypatch, tmp_path):
    monkeypatch.setattr(instantmesh, "load", partial(instantmesh.load, encoder=ENCODER))
    for variant, title in (("nerf", "NeRF"), ("mesh", "mesh")):
        for path in (files[variant], files[variant].parent):
            assert instantmesh.recognises(path)
            model = open_model(path)
            assert model.name == f"InstantMesh ({title}), from {files[variant]}"
            assert model.steps == 1
            assert len(model.digest) == 64
    for variant in VARIANTS:
        (tmp_path / f"instant_{variant}_large.ckpt").touch()
    with pytest.raises(WeightsError, match=r"several models \(instant_mesh_large\.ckpt, instant"):
        open_model(tmp_path)
    assert not instantmesh.recognises(HERE)


def test_released_sizes_need_no_config(tmp_path):
    file = tmp_path / "instant_mesh_large.safetensors"
    save_file(tensors("mesh"), file)
    # 16 layers of planes 1024 wide are wanted; the tiny network has 2 of 64.
    with pytest.raises(WeightsError, match=r"missing: .*misshapen: .*wanted"):
        instantmesh.load(file)
    other = file.rename(tmp_path / "instant_mesh_huge.safetensors")
    with pytest.raises(WeightsError, match="put the config of its training beside it"):
        instantmesh.load(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_dim": 10**12}, "transformer_dim = 1000000000000"),
        ({"transformer_dim": 32}, "misshapen"),
        ({"transformer_layers": 129}, "transformer_layers = 129"),
        ({"transformer_layers": 3}, "missing"),
        ({"triplane_dim": "8"}, "triplane_dim = '8'"),
        ({"rendering_samples_per_ray": 5000}, "5000 samples"),
        ({"grid_res": 5000}, "--field.resolution is 5001"),
        ({"grid_scale": -1.0}, "--field.bound is -0.5"),
        ({"grid_scale": None}, "grid_scale = None"),
    ],
)
def test_lying_configs(tmp_path, changes, message):
    file = write(tmp_path, "mesh", **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        instantmesh.load(file, encoder=ENCODER)
    assert "\n" not in str(caught.value)


def test_a_config_without_its_section_is_told(tmp_path):
    file = write(tmp_path, "nerf")
    (tmp_path / "instant-nerf-tiny.yaml").write_text("model_config: 3\n")
    with pytest.raises(WeightsError, match=r"model_config\.params lacks rendering_samples"):
        instantmesh.load(file, encoder=ENCODER)


def test_bfloat16_keeps_decoders_and_planes_in_float32(files, opened, planes):
    design, params = instantmesh.load(files["nerf"], jnp.bfloat16, ENCODER)
    tree, io = params["network"], vectors()
    modulation = tree["encoder"]["blocks_0"]["adaLN_modulation_1"]["kernel"]
    assert modulation.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params["decoder"])} == {jnp.dtype(jnp.float32)}
    views = instantmesh.Views(np.moveaxis(io["in_images"][0], 1, -1), io["in_cameras"][0])
    rough = jax.jit(design.planes)(tree, views)
    assert rough.dtype == jnp.float32
    cosine = jnp.vdot(rough, planes) / jnp.linalg.norm(rough) / jnp.linalg.norm(planes)
    assert 0.999 < cosine < 1 - 1e-9
