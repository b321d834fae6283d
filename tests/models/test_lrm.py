"""TripoSR and OpenLRM: their files, their numbers, and their assets in our world."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import lrm_folders
import numpy as np
import pytest
import yaml
from lrm_folders import ENCODERS, KNOWN

from jax3d import weights
from jax3d.camera import orbit
from jax3d.fields.triplane import triplane
from jax3d.image import squared
from jax3d.models import lrm, openlrm, props_native, triposr
from jax3d.models.open import open_model
from jax3d.optimize.stage import as_stage
from jax3d.types import Look, Prompt
from jax3d.weights import WeightsError

SYSTEMS = {
    "triposr": (triposr, lrm_folders.write_triposr),
    "openlrm": (openlrm, lrm_folders.write_openlrm),
}
QUARTER = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
"""From OpenLRM's world to ours."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("lrm")
    return {name: write(root / name) for name, (_, write) in SYSTEMS.items()}


@pytest.fixture(scope="module")
def opened(folders):
    return {
        name: system.load(folders[name], encoder=ENCODERS[name])
        for name, (system, _) in SYSTEMS.items()
    }


def run(network, params, *inputs):
    apply = jax.jit(partial(network.apply, capture_intermediates=True))
    out, aside = apply({"params": params["network"]}, *map(jnp.asarray, inputs))
    return np.asarray(out), aside["intermediates"]


def asset_of(design, params, planes):
    """Density and colour of the asset that a model leaves."""
    model = lrm.model(design, params, "tiny")
    asset = model.decode(params, planes)
    field = model.representation
    return partial(jax.jit(field.density), asset), partial(jax.jit(field.color), asset)


def test_triposr_is_the_official_code(opened):
    design, params = opened["triposr"]
    io = lrm_folders.vectors("triposr")
    picture = design.picture(io["in_image_hwc"][0])
    np.testing.assert_allclose(picture, io["preprocessed_image_hwc"][0], atol=1e-6)
    out, layers = run(design.network, params, picture[None])
    tokens = layers["encoder"]["__call__"][0].swapaxes(1, 2)
    np.testing.assert_allclose(tokens, io["mid_image_tokens_BNvCNt"][0], atol=2e-5)
    np.testing.assert_allclose(np.moveaxis(out, -1, 2), io["scene_codes"], atol=5e-5)
    density, color = asset_of(design, params, out[0].swapaxes(1, 2))
    # Points beyond the cube are among them; densities are by the metre.
    x = jnp.asarray(io["query_points"])
    theirs = io["query_density_act"][:, 0] / (2 * 0.87)
    np.testing.assert_allclose(density(x), theirs, rtol=1e-4)
    np.testing.assert_allclose(color(x), io["query_color"], atol=1e-5)


def test_openlrm_is_the_official_code(opened):
    design, params = opened["openlrm"]
    io = lrm_folders.vectors("openlrm")
    images = np.moveaxis(io["in_image"], 1, -1)
    out, layers = run(design.network, params, images, io["in_source_camera"])
    seen = np.delete(layers["encoder"]["__call__"][0], np.s_[1:5], axis=1)
    np.testing.assert_allclose(seen, io["image_feats"], atol=2e-5)
    np.testing.assert_allclose(np.moveaxis(out, -1, 2), io["planes"], atol=5e-5)
    density, color = asset_of(design, params, openlrm.turned(jnp.asarray(out[0])))
    x = jnp.asarray(io["points"][0] @ QUARTER.T)
    np.testing.assert_allclose(density(x), io["points_sigma"][0, :, 0], atol=5e-5)
    np.testing.assert_allclose(color(x), io["points_rgb"][0], atol=1e-5)


def test_openlrm_is_told_the_camera_that_it_learnt():
    np.testing.assert_array_equal(
        openlrm.CAMERA, lrm_folders.vectors("openlrm")["in_source_camera"][0]
    )
    # Its camera, in our world: at the front, on +x, upright.
    pose = np.reshape(openlrm.CAMERA[:12], (3, 4))
    ours = np.asarray(orbit(0.0, 0.0, 2.0, 1.0).c2w)
    np.testing.assert_allclose(QUARTER @ pose, ours[:3], atol=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_model_of_one_step_leaves_what_its_network_says(opened, name):
    design, params = opened[name]
    system, _ = SYSTEMS[name]
    model = lrm.model(design, params, "tiny")
    image = model.condition(Prompt("a cube", image=np.full((9, 9, 3), 0.25)))
    assert image.shape == (design.side, design.side, 3)
    stage = as_stage(model)
    assert stage.steps == 1
    z = model.begin(jax.random.key(0), image)
    planes = jax.jit(lambda p, z: model.advance(p, z, 0, image, None))(params, z)
    assert planes.shape == z.shape
    np.testing.assert_allclose(
        planes, jax.jit(partial(system.planes, design.network))(params["network"], image), atol=1e-5
    )
    left = model.decode(params, planes)
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, left) == jax.tree.map(jnp.shape, like)
    assert len(model.digest) == 64
    other = {**params, "decoder": jax.tree.map(lambda a: 2 * a, params["decoder"])}
    assert lrm.model(design, other, "tiny").digest != model.digest


def test_triposrs_depth_is_ours_along_an_axis(opened):
    """It counts a ray's way through the cube as 1; a middle ray crosses the cube squarely."""
    design, params = opened["triposr"]
    samples, radius = design.field.samples, design.field.bound
    planes = np.random.default_rng(0).standard_normal((3, 12, 12, 12)).astype(np.float32)
    field = triplane(design.field)
    asset = lrm.model(design, params, "tiny").decode(params, jnp.asarray(planes))
    asset["mlp"][-1]["b"] = asset["mlp"][-1]["b"].at[0].add(-1.0)
    density = partial(jax.jit(field.density), asset)
    camera = orbit(jnp.zeros(1), 0.0, 4.0, 0.1)
    shown = jax.jit(lambda p: field.render(p, None, camera, Look.albedo(), (1, 1)).alpha)(asset)
    way = ((np.arange(samples) + 0.5) / samples * 2 - 1) * radius
    points = np.stack([way, 0 * way, 0 * way], -1).astype(np.float32)
    theirs = 1 - np.exp(-np.sum(np.asarray(density(points)) * 2 * radius) / samples)
    assert 0.1 < theirs < 0.9
    np.testing.assert_allclose(shown, theirs, rtol=1e-3)


# Files.


@pytest.mark.parametrize("name", ["small", "base", "large"])
def test_every_key_of_the_released_openlrms_is_read(name):
    letter = "s" if name == "small" else "b"
    config = KNOWN[name] | {"encoder_model_name": f"dinov2_vit{letter}14_reg"}
    design = openlrm.design(config)
    flat = {k: np.broadcast_to(np.float32(0), s) for k, s in KNOWN["full"][name].items()}
    like = lrm.abstract_params(design)
    weights.demand_fit(openlrm.names(flat), like)
    assert design.side == {"small": 224, "base": 336, "large": 448}[name]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(like))
    assert round(count / 1e6, 1) == {"small": 111.4, "base": 260.2, "large": 452.1}[name]


def test_every_key_of_the_released_triposr_is_read():
    config = json.loads(json.dumps(KNOWN["triposr"]["config"]))
    config["cond_image_size"] = 512
    config["tokenizer"] = {"plane_size": 32, "num_channels": 1024}
    config["backbone"] |= {"num_attention_heads": 16, "attention_head_dim": 64, "num_layers": 16}
    config["post_processor"]["out_channels"] = 40
    config["decoder"] |= {"n_neurons": 64, "n_hidden_layers": 9}
    flat = {k: np.broadcast_to(np.float32(0), s) for k, s in KNOWN["full"]["triposr"].items()}
    weights.demand_fit(triposr.names(flat), lrm.abstract_params(triposr.design(config)))


def test_joint_projections_are_three():
    joint = np.arange(24.0).reshape(6, 4)
    name = "transformer.layers.3.cross_attn"
    found = openlrm.names({f"{name}.in_proj_weight": joint})
    for i, k in enumerate("qkv"):
        part = found[f"layers.3.cross_attn.to_{k}.weight"]
        np.testing.assert_array_equal(part, joint[2 * i : 2 * i + 2])
    with pytest.raises(WeightsError, match="not queries, keys and values"):
        openlrm.names({f"{name}.in_proj_weight": joint[:5]})


def test_openlrm_with_the_first_dino_reads_normalised_colours(opened):
    config = KNOWN["openlrm"]["config"] | {"encoder_type": "dino"}
    design = openlrm.design(config, encoder=ENCODERS["triposr"])
    assert design.network.normalised
    image = np.random.default_rng(1).random((1, 32, 32, 3), np.float32)
    (other, first), (_, rest) = opened["triposr"], opened["openlrm"]
    both = {"network": {**rest["network"], "encoder": first["network"]["encoder"]}}
    _, layers = run(design.network, both, image, np.zeros((1, 16)))
    _, known = run(other.network, first, image)
    ours, theirs = (x["encoder"]["__call__"][0] for x in (layers, known))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # The released config names the encoder; its tensors have transformers' names.
    named = openlrm.design(config | {"encoder_model_name": "facebook/dino-vitb16"})
    assert named.network.encoder.layer_norm_eps == 1e-12
    flat = {f"encoder.model.{k}": np.zeros(1) for k in ("embeddings.cls_token", "layernorm.bias")}
    assert set(openlrm.names(flat)) == {"encoder.embeddings.cls_token", "encoder.norm.bias"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_bfloat16_keeps_planes_and_assets_in_float32(folders, opened, name):
    system, _ = SYSTEMS[name]
    design, params = system.load(folders[name], jnp.bfloat16, ENCODERS[name])
    tree = params["network"]
    assert tree["encoder"]["blocks_0"]["fc1"]["kernel"].dtype == jnp.bfloat16
    assert tree["encoder"]["norm"]["scale"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params["decoder"])} == {jnp.dtype(jnp.float32)}
    image = np.random.default_rng(0).random((design.side, design.side, 3), np.float32)
    rough = jax.jit(design.planes)(tree, image)
    exact = jax.jit(opened[name][0].planes)(opened[name][1]["network"], image)
    assert rough.dtype == jnp.float32
    cosine = jnp.vdot(rough, exact) / jnp.linalg.norm(rough) / jnp.linalg.norm(exact)
    assert 0.999 < cosine < 1 - 1e-9


@pytest.mark.parametrize("name", SYSTEMS)
def test_folders_are_recognised_and_opened(folders, monkeypatch, name):
    system, _ = SYSTEMS[name]
    monkeypatch.setattr(system, "load", partial(system.load, encoder=ENCODERS[name]))
    title, side = {"triposr": ("TripoSR", 32), "openlrm": ("OpenLRM", 70)}[name]
    model = open_model(str(folders[name]))
    assert model.name == f"{title}, {side} px, from {folders[name]}"
    assert model.steps == 1


def test_the_embedded_generator_is_opened_by_name_and_by_file():
    model = open_model("embedded")
    assert model.name == props_native.NAME
    assert open_model(props_native.WEIGHTS, jnp.bfloat16).digest == model.digest


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no model that is known; known are \"embedded\""):
        open_model(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        open_model(tmp_path / "absent")


HUGE = 10**12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond_image_size": HUGE}, "cond_image_size = 1000000000000"),
        ({"cond_image_size": 1 << 20}, "1048576 pixels in patches of 4"),
        ({"cond_image_size": 30}, "30 pixels in patches of 4"),
        ({"tokenizer.plane_size": 7}, r"misshapen: tokenizer|embeddings \(3, 64, 6, 6\)"),
        ({"tokenizer.plane_size": 1 << 20}, "--field.resolution is 2097154"),
        ({"backbone.num_layers": 5000}, "5000 layers"),
        ({"backbone.num_layers": 3}, "missing: backbone/transformer_blocks_2"),
        ({"decoder.activation": "tanh"}, "decoder.activation = 'tanh' is not supported"),
        ({"renderer.feature_reduction": "mean"}, "feature_reduction = 'mean'"),
        ({"renderer.density_activation": "relu"}, "density_activation = 'relu'"),
        ({"renderer.radius": -1.0}, "half side -1"),
        ({"renderer.num_samples_per_ray": 1 << 20}, "1048576 samples"),
        ({"renderer": None}, r"lacks renderer\.density_activation"),
        ({"image_tokenizer.pretrained_model_name_or_path": "x/y"}, "only facebook/dino-vitb16"),
    ],
)
def test_lying_configs_of_triposr(tmp_path, changes, message):
    folder = lrm_folders.write_triposr(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        triposr.load(folder, encoder=ENCODERS["triposr"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_dim": HUGE}, "transformer_dim = 1000000000000"),
        ({"transformer_dim": 32}, "misshapen"),
        ({"transformer_heads": 0}, "config.json: ZeroDivisionError"),
        ({"transformer_layers": 129}, "transformer_layers = 129"),
        ({"triplane_low_res": 0}, "config.json"),
        ({"rendering_samples_per_ray": 5000}, "5000 samples"),
        ({"triplane_dim": "8"}, "triplane_dim = '8'"),
        ({"encoder_type": None}, "encoder_type = None"),
    ],
)
def test_lying_configs_of_openlrm(tmp_path, changes, message):
    folder = lrm_folders.write_openlrm(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        openlrm.load(folder, encoder=ENCODERS["openlrm"])
    assert "\n" not in str(caught.value)


def test_encoders_go_by_their_names():
    config = KNOWN["openlrm"]["config"]
    design = openlrm.design(config | {"encoder_model_name": "dinov2_vitb14"})
    encoder = design.network.encoder
    assert (encoder.hidden_size, encoder.registers, encoder.antialias) == (768, 0, False)
    for kind, name in (("dinov2", "dinov2_vitg14"), ("clip", "x"), ("dino", "dinov2_vits14")):
        with pytest.raises(WeightsError, match=f"encoder_type = '{kind}'"):
            openlrm.design(config | {"encoder_type": kind, "encoder_model_name": name})


def test_a_yaml_with_aliases_or_without_an_end_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    for text, message in (
        ("a: &x [1]\nb: *x", "has aliases"),
        ("a: [", "not YAML"),
        ("- 1", "holds a list, not a YAML mapping"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("[" * 10_000, "not YAML"),
        ("#" * (1 << 17), "131072 bytes"),
    ):
        path.write_text(text)
        with pytest.raises(WeightsError, match=message):
            weights.read_config(path)
    path.write_text(yaml.safe_dump({"a": {"b": [1, 0.5, "c"]}}))
    assert weights.read_config(path) == {"a": {"b": [1, 0.5, "c"]}}
    with pytest.raises(WeightsError, match="is missing"):
        weights.read_config(tmp_path / "other.yaml")


# Pictures.


def test_what_is_not_transparent_is_laid_on_the_middle():
    image = np.zeros((20, 30, 4), np.float32)
    image[4:9, 3:13] = (1.0, 0.0, 0.0, 0.5)
    square = squared(image, 0.8, 0.5)
    assert square.shape == (12, 12, 3)
    np.testing.assert_allclose(square[3:8, 1:11], np.broadcast_to([0.75, 0.25, 0.25], (5, 10, 3)))
    square[3:8, 1:11] = 0.5
    np.testing.assert_array_equal(square, 0.5)


def test_a_picture_without_transparency_is_kept_whole():
    image = np.random.default_rng(0).random((4, 6, 3), np.float32)
    opaque = np.concatenate([image, np.ones((4, 6, 1), np.float32)], -1)
    for given in (image, opaque):
        square = squared(given, 0.8, 1.0)
        np.testing.assert_array_equal(square[1:5], image)
        np.testing.assert_array_equal(square[[0, 5]], 1.0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "the prompt 'a cup' has none"),
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.full((2, 2, 3), 255, np.uint8), "between 255 and 255"),
        (np.full((2, 2, 3), np.nan), "between nan and nan"),
        (np.zeros((4, 4, 4)), "transparent everywhere"),
    ],
)
def test_pictures_that_cannot_be_read(opened, image, message):
    for design, params in opened.values():
        with pytest.raises(ValueError, match=message):
            lrm.model(design, params, "tiny").condition(Prompt("a cup", image=image))


def test_large_pictures_are_averaged_before_openlrm_reads_them():
    fine = np.indices((1030, 1030)).sum(0) % 2
    image = np.repeat(fine[..., None], 3, -1).astype(np.float32)
    seen = openlrm.picture(image, 28)
    assert seen.shape == (28, 28, 3)
    # A chequerboard finer than the pixels is grey; read at points it would be black and white.
    np.testing.assert_allclose(seen, 0.5, atol=0.1)
    corners = openlrm.picture(image[:28, :28], 28)
    np.testing.assert_allclose(corners, image[:28, :28], atol=1e-6)
