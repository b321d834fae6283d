"""TRELLIS: its files, its numbers, its two flows as one sampler, and its assets in our world."""

import dataclasses
import json
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import lrm_folders
import numpy as np
import pytest
import trellis_folders as folders
from PIL import Image
from safetensors.numpy import save_file
from toys import knobs, stack

from jax3d import weights
from jax3d.models import trellis, trellis_gaussians, trellis_prompts
from jax3d.models.open import open_model
from jax3d.nn import dino, sparse, trellis_latents
from jax3d.nn import trellis as networks
from jax3d.render import ewa
from jax3d.types import Cond, Condition, Prompt
from jax3d.weights import WeightsError

ROOMS = (300, 64)
SIDE = 8
TURN = np.array(trellis_gaussians.TURN)


def network(folder, part):
    """One of the vectors' networks and its weights."""
    build, abstract = trellis._NETWORKS[{v: k for k, v in folders.PARTS.items()}[part]]
    return trellis.read_network(folders.write_part(folder / part, part), build, abstract)


# Against the official code.


def test_the_flow_of_structures_is_the_official_code(tmp_path):
    io = folders.vectors("structure")
    net, params = network(tmp_path, "ss_flow")
    x = jnp.asarray(np.moveaxis(io["in_x"], 1, -1))
    run = jax.jit(partial(net.apply, capture_intermediates=True))
    out, layers = run({"params": params}, x, io["in_t_times1000"], io["in_cond"])
    layers = layers["intermediates"]
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), io["out"], atol=5e-5)
    first = layers["blocks_0"]["__call__"][0][:, ::8]
    np.testing.assert_allclose(first, io["mid_block0"], atol=5e-5)
    time = layers["t_embedder"]["__call__"][0]
    np.testing.assert_allclose(time, io["mid_t_emb"], atol=5e-5)


def test_the_decoder_of_structures_is_the_official_code(tmp_path):
    io = folders.vectors("structure")
    net, params = network(tmp_path, "ss_dec")
    z = jnp.asarray(np.moveaxis(io["dec_in"], 1, -1))
    out = jax.jit(net.apply)({"params": params}, z)
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), io["dec_logits"], atol=1e-5)


def test_guided_steps_are_the_official_code():
    io = folders.vectors("sampler")
    strength = float(io["cfg_strength"])
    steps = trellis.sampler(
        int(io["steps"]), strength, tuple(map(float, io["cfg_interval"])), float(io["rescale_t"])
    )
    asked = np.repeat(1000 * steps.t, 1 + steps.guided)
    np.testing.assert_allclose(asked, io["model_calls_t"], rtol=1e-6)

    def velocity(x, t, told):
        wave = jnp.cos(t / 300)[:, None, None]
        return jnp.matmul(x, io["W"], precision="highest") + told * wave

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, 0))
    def step(x, i, cond):
        return trellis.euler(velocity, x, i, steps, cond, jnp.float32(1 + strength))

    x, plain, null = (jnp.asarray(io[name])[:, None] for name in ("in_x", "in_cond", "in_neg"))
    cond = Condition(Cond(plain), Cond(null))
    for i, wanted in enumerate(io["pred_x_t"]):
        x = step(x, jnp.int32(i), cond)
        np.testing.assert_allclose(x[:, 0], wanted, atol=1e-5)


@pytest.fixture(scope="module")
def assets():
    """The vectors' two assets, as places and features with room to spare."""
    io, found = folders.vectors("latents"), []
    for i in range(2):
        mine = io["in_coords"][:, 0] == i
        place = io["in_coords"][mine, 1:] @ [SIDE**2, SIDE, 1]
        spare = 100 - len(place)
        place = jnp.asarray(np.pad(place, (0, spare), constant_values=SIDE**3), jnp.int32)
        found.append((place, jnp.asarray(np.pad(io["in_feats"][mine], [(0, spare), (0, 0)]))))
    return stack(found)


def joined(x, there):
    """The rows that are somebody's, of one asset after another."""
    return np.asarray(x)[np.asarray(there)]


def test_the_flow_of_latents_is_the_official_code(tmp_path, assets):
    """Two assets of different voxels by one program."""
    io = folders.vectors("latents")
    net, params = network(tmp_path, "slat_flow")

    @jax.jit
    @jax.vmap
    def run(place, x, t, told):
        levels = sparse.levels(place, SIDE, (64,))
        ask = partial(net.apply, capture_intermediates=True)
        out, layers = ask({"params": params}, x[None], levels, t[None], told[None])
        return out[0], layers["intermediates"], levels.voxels

    out, layers, (fine, coarse) = run(*assets, io["in_t_times1000"], jnp.asarray(io["in_cond"]))
    np.testing.assert_allclose(joined(out, fine.there), io["out_feats"], atol=5e-5)
    coords = joined(coarse.coords, coarse.there)
    np.testing.assert_array_equal(coords, io["mid_inblock1_down_coords"][:, 1:])
    for name, layer in (("mid_inblock1_down", "input_blocks_1"), ("mid_block0", "blocks_0")):
        found = joined(layers[layer]["__call__"][0][:, 0], coarse.there)[::6]
        np.testing.assert_allclose(found, io[name], atol=5e-5, err_msg=name)


def test_gaussians_are_the_official_codes_in_our_world(tmp_path, assets):
    io = folders.vectors("latents")
    (net, splats), params = network(tmp_path, "slat_dec_gs")
    offsets = params["offset_perturbation"]

    @jax.jit
    @jax.vmap
    def run(place, x):
        voxels = sparse.voxels(place, SIDE)
        raw = net.apply({"params": params}, x[None], voxels)[0]
        return trellis_gaussians.parameters(raw, offsets, voxels, splats, SIDE), voxels.there

    made, there = run(*assets)
    for i in range(2):
        one = {k: np.asarray(v[i])[np.repeat(there[i], splats.count)][::5] for k, v in made.items()}
        theirs = {k: io[f"gs{i}_{k}"] for k in ("xyz", "features_dc", "scaling", "rotation")}
        np.testing.assert_allclose(one["means"], (theirs["xyz"] - 0.5) @ TURN.T, atol=1e-6)
        np.testing.assert_allclose(one["sh0"], theirs["features_dc"], atol=5e-5)
        raw = theirs["scaling"] + np.log(np.expm1(0.004))
        scales = np.sqrt(np.log1p(np.exp(raw)) ** 2 + 0.0009**2)
        np.testing.assert_allclose(one["scales"], np.log(scales), atol=5e-5)
        turned = ewa.rotations(jnp.asarray(theirs["rotation"] + np.float32([1, 0, 0, 0])))
        ours = ewa.rotations(jnp.asarray(one["quats"]))
        np.testing.assert_allclose(ours, TURN @ turned, atol=5e-5)
        odds = io[f"gs{i}_opacity"][:, 0] + np.log(0.1 / 0.9)
        np.testing.assert_allclose(one["opacities"], odds, atol=5e-5)
        nobody = np.repeat(~there[i], splats.count)
        assert np.all(np.asarray(made["opacities"][i])[nobody] == -100)


def test_what_looks_along_minus_y_looks_along_x():
    splats = trellis_gaussians.from_config(
        folders.KNOWN["slat_dec_gs"]["config"]["args"]["representation_config"]
    )
    place = jnp.array([(4 * SIDE + 0) * SIDE + 6])
    raw, offsets = jnp.zeros((1, 14 * splats.count)), jnp.zeros((splats.count, 3))

    @jax.jit
    def make(place, raw, offsets):
        voxels = sparse.voxels(place, SIDE)
        return trellis_gaussians.parameters(raw, offsets, voxels, splats, SIDE)

    made = make(place, raw, offsets)
    # Theirs is at (1/16, -7/16, 5/16).
    np.testing.assert_allclose(made["means"][0], [7 / 16, 1 / 16, 5 / 16], atol=1e-6)


# Sampling.


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return folders.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def core(texts):
    return trellis.load(texts, rooms=ROOMS)


@pytest.fixture(scope="module")
def model(core):
    """A model that reads numbers of a text's length."""

    def condition(prompt):
        told = jnp.sin(jnp.arange(1.0, folders.WIDTH + 1) * len(prompt.text))[None]
        return Condition(Cond(told), Cond(jnp.zeros_like(told)))

    return trellis.model(*core, trellis_prompts.Reader(condition, folders.WIDTH, "lengths"), "tiny")


@pytest.fixture(scope="module")
def take(model):
    """A step of three assets, each at a step of its own."""
    return jax.jit(jax.vmap(partial(model.advance, model.params)))


@pytest.fixture(scope="module")
def asked(model):
    """Starts, conditions and knobs of three assets."""
    conds = [model.condition(Prompt(t)) for t in ("a chair", "a cat", "a blue mug")]
    starts = [model.begin(jax.random.key(k), cond) for k, cond in enumerate(conds)]
    numbers = [knobs(k, model_scale=1.0 + k) for k in range(3)]
    return tuple(host(stack(trees)) for trees in (starts, conds, numbers))


def host(tree):
    """The same in NumPy, whose indexing compiles nothing."""
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def paths(model, take, asked):
    """The three assets after each step, together."""
    states, conds, numbers = asked
    found = [states]
    for i in range(model.steps):
        found.append(host(take(found[-1], np.full(3, i), conds, numbers)))
    return found


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_both_flows_are_the_steps_of_one_sampler(model, paths):
    assert model.steps == 6
    side = SIDE**3
    for i, z in enumerate(paths):
        known = np.asarray(z.place) < side
        assert known.any() == (i >= 3)
        np.testing.assert_array_equal(z.lost, 0)
    moved = [np.abs(b.structure - a.structure).max() for a, b in pairwise(paths)]
    assert np.all(np.array(moved[:3]) > 0.01)
    assert not np.any(moved[3:])
    # Assets have different voxels, and so many Gaussians.
    counts = (np.asarray(paths[-1].place) < side).sum(1)
    assert len(set(counts)) > 1
    left = jax.eval_shape(jax.vmap(partial(model.decode, model.params)), paths[-1])
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape[1:], left) == jax.tree.map(jnp.shape, like)


def test_a_batch_is_each_alone_from_any_step(take, asked, paths):
    """The first asset among copies of itself; and all three from different steps on."""
    _, conds, numbers = asked
    only = jax.tree.map(lambda x: np.stack([x[1]] * 3), (paths[0], conds, numbers))
    z = only[0]
    for i in range(6):
        z = host(take(z, np.full(3, i), *only[1:]))
        assert_same(jax.tree.map(lambda x: x[2], z), jax.tree.map(lambda x: x[1], paths[i + 1]))
    for at in ((0, 2, 4), (5, 1, 3)):
        mixed = jax.tree.map(
            lambda *path, at=at: np.stack([path[i][k] for k, i in enumerate(at)]), *paths
        )
        after = host(take(mixed, np.array(at), conds, numbers))
        for k, i in enumerate(at):
            assert_same(*jax.tree.map(lambda x, k=k: x[k], (after, paths[i + 1])))


def test_too_many_voxels_or_none_are_told(core, paths):
    design, params = core
    z = jax.tree.map(lambda x: x[:2], paths[2])
    tight = design._replace(rooms=(ROOMS[0], 8))
    settle = jax.jit(jax.vmap(partial(trellis.settle, tight), (None, 0)))
    found = settle(params, z)
    assert np.all(np.asarray(found.lost) > 0)
    assert np.isnan(found.latent).all()
    decoder = params["sparse_structure_decoder"]
    low = {**decoder, "out_layer_2": {**decoder["out_layer_2"], "bias": jnp.full(1, -1e4)}}
    found = settle({**params, "sparse_structure_decoder": low}, z)
    np.testing.assert_array_equal(found.lost, 0)
    assert np.isnan(found.latent).all()
    assert np.isfinite(paths[3].latent).all()


def test_the_digest_tells_models_apart(core, model):
    design, params = core
    reader = trellis_prompts.Reader(None, folders.WIDTH, "lengths")
    assert len(model.digest) == 64
    assert trellis.model(design, params, reader, "x").digest == model.digest
    other = design._replace(latent_sampler=trellis.sampler(3, 4.0, (0.5, 1.0), 3.0))
    for parts in ((other, params), (design, {**params, "mean": params["std"]})):
        assert trellis.model(*parts, reader, "").digest != model.digest


@pytest.mark.slow
def test_bfloat16_is_near(texts, core, asked):
    """Products in bfloat16, the rest in float32."""
    half, params = trellis.load(texts, jnp.bfloat16, rooms=ROOMS)
    z, cond, number = jax.tree.map(lambda x: x[0], asked)
    full = jax.jit(partial(trellis.advance, core[0]))(core[1], z, jnp.int32(0), cond, number)
    near = jax.jit(partial(trellis.advance, half))(params, z, jnp.int32(0), cond, number)
    assert near.structure.dtype == jnp.float32
    step = np.abs(full.structure - z.structure).max()
    assert 0 < np.abs(full.structure - near.structure).max() < 0.05 * step


# Folders and prompts.


def test_a_folder_of_texts_is_opened_and_asked(texts):
    found = open_model(texts)
    assert found.name == f"TRELLIS of texts, 3 + 3 steps, from {texts}"
    assert found.field.capacity == 4 * trellis.ROOMS[0]
    cond = found.condition(Prompt("a cat"))
    assert cond.plain.tokens.shape == cond.null.tokens.shape == (16, folders.WIDTH)
    pushed = found.condition(Prompt("a cat", "a dog"))
    np.testing.assert_array_equal(pushed.plain.tokens, cond.plain.tokens)
    dog = found.condition(Prompt("a dog")).plain.tokens
    np.testing.assert_allclose(pushed.null.tokens, dog, atol=1e-6)
    for prompt, message in (
        (Prompt(" "), "the prompt is empty"),
        (Prompt("a cat", image=np.zeros((4, 4, 3))), "leave the picture out"),
        (Prompt("a cat on a dog on a cat"), "has 16 tokens; TRELLIS reads 14"),
    ):
        with pytest.raises(ValueError, match=message):
            found.condition(prompt)


def test_a_picture_is_seen_before_the_last_norm(tmp_path):
    prefix = "encoder.model."
    flat = lrm_folders.tensors("openlrm")
    flat = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
    save_file(flat, tmp_path / "dinov2_vitl14_reg4_pretrain.safetensors")
    c = lrm_folders.ENCODERS["openlrm"]
    name = "dinov2_vitl14_reg"
    reader = trellis_prompts.read_pictures(tmp_path, name, jnp.float32, c)
    image = np.random.default_rng(0).random((70, 70, 3), np.float32)
    cond = reader.condition(Prompt("", image=image))
    assert cond.plain.tokens.shape == (1 + 4 + 100, reader.width)
    assert not np.any(cond.null.tokens)
    # The last norm of the encoder is this one with weights.
    np.testing.assert_allclose(np.mean(cond.plain.tokens, -1), 0, atol=1e-5)
    net = dino.Dino(c)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 70, 70, 3)))["params"]
    params = weights.to_flax(dino.from_dinov2(flat), like)
    seen = jax.jit(net.apply)({"params": params}, dino.normalise(jnp.asarray(image))[None])[0]
    normed = cond.plain.tokens * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(normed, seen, atol=1e-3)
    with pytest.raises(ValueError, match="this TRELLIS reads a picture"):
        reader.condition(Prompt("a cat"))
    with pytest.raises(WeightsError, match=r"put dinov2_vits14_pretrain\.pth of DINOv2's"):
        trellis_prompts.read_pictures(tmp_path, "dinov2_vits14", jnp.float32)
    with pytest.raises(WeightsError, match="image_cond_model = 'resnet' is not supported"):
        trellis_prompts.read_pictures(tmp_path, "resnet", jnp.float32)


def test_an_object_is_cut_out_as_the_authors_do():
    """Their own cutting, by Pillow, which rounds to 8 bits between its passes."""
    rows, columns = np.indices((40, 50))
    bytes_ = np.stack([40 + 4 * rows, 30 + 3 * columns, 90 + rows + columns, 0 * rows], axis=-1)
    bytes_ = bytes_.astype(np.uint8)
    bytes_[7:20, 11:40, 3] = 255
    image = Image.fromarray(bytes_)
    # Columns 11 to 39, rows 7 to 19: a square of 33 about (25, 13).
    box = (25 - 16, 13 - 16, 25 + 16, 13 + 16)
    wanted = np.asarray(image.crop(box).resize((24, 24), Image.Resampling.LANCZOS)) / 255
    wanted = wanted[..., :3] * wanted[..., 3:]
    seen = trellis_prompts.picture(np.float32(bytes_ / 255), 24)
    np.testing.assert_allclose(seen, wanted, atol=0.02)
    opaque = np.full((20, 30, 4), 1.0, np.float32)
    whole = trellis_prompts.picture(opaque, 30)
    np.testing.assert_allclose(whole[[2, 27]], 0.0, atol=0.1)
    np.testing.assert_allclose(whole[10:20], 1.0, atol=1e-3)
    with pytest.raises(ValueError, match=r"no pixel of the picture is more opaque than 0\.8"):
        trellis_prompts.picture(np.full((4, 4, 4), 0.5, np.float32), 8)


@pytest.mark.parametrize(
    "name",
    [
        "ss_dec_conv3d_16l8_fp16",
        "slat_dec_gs_swin8_B_64l8gs32_fp16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "ss_flow_img_dit_L_16l8_fp16",
                "ss_flow_txt_dit_XL_16l8_fp16",
                "slat_flow_img_dit_L_64l8p2_fp16",
                "slat_flow_txt_dit_XL_64l8p2_fp16",
            )
        ),
    ],
)
def test_every_key_of_the_released_networks_is_read(name):
    known = folders.KNOWN["full"][name]
    kinds = {"ss_flow": 0, "ss_dec_": 1, "slat_fl": 2, "slat_de": 3}
    build, abstract = list(trellis._NETWORKS.values())[kinds[name[:7]]]
    flat = {k: np.broadcast_to(np.float32(0), s) for k, s in known["keys"].items()}
    weights.demand_fit(trellis_latents.rename(flat), abstract(build(known["config"])))


HUGE = 10**12


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("ss_flow", {"num_blocks": 129}, "so many blocks"),
        ("ss_flow", {"num_blocks": 3}, "missing: blocks_2"),
        ("ss_flow", {"resolution": HUGE}, "resolution = 1000000000000"),
        ("ss_flow", {"num_heads": 0}, "ss_flow.json"),
        ("ss_flow", {"patch_size": 0}, "patches of 0"),
        ("ss_flow", {"patch_size": 3}, "patches of 3 do not fill a grid of 8"),
        ("ss_flow", {"pe_mode": "rope"}, "pe_mode = 'rope' is not supported, only ape"),
        ("ss_flow", {"share_mod": True}, "share_mod = True is not supported"),
        ("ss_flow", {"model_channels": None}, "model_channels = None"),
        ("ss_dec", {"channels": []}, "channels"),
        ("ss_dec", {"norm_type": "group"}, "norm_type = 'group' is not supported"),
        ("slat_flow", {"io_block_channels": []}, "io_block_channels"),
        ("slat_flow", {"patch_size": 4}, "patches of 4 are not made by 1 io_block_channels"),
        ("slat_flow", {"use_skip_connection": False}, "use_skip_connection = False"),
        ("slat_flow", {"num_io_res_blocks": 0}, "num_io_res_blocks"),
        ("slat_dec_gs", {"window_size": 9}, "windows of 9 in a grid of 8"),
        ("slat_dec_gs", {"window_size": 0}, "windows of 0"),
        ("slat_dec_gs", {"attn_mode": "full"}, "attn_mode = 'full' is not supported, only swin"),
        ("slat_dec_gs", {"representation_config": None}, "representation_config is no JSON object"),
        ("slat_dec_gs", {"representation_config": {"lr": {}}}, "representation_config lacks"),
    ],
)
def test_lying_settings(tmp_path, part, changes, message):
    build, abstract = trellis._NETWORKS[{v: k for k, v in folders.PARTS.items()}[part]]
    stem = folders.write_part(tmp_path / part, part)
    settings = json.loads((tmp_path / f"{part}.json").read_text())
    settings["args"] |= changes
    (tmp_path / f"{part}.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=message) as caught:
        trellis.read_network(stem, build, abstract)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slat_sampler": {"name": "DDIM"}}, "a sampler is a 'DDIM'"),
        ({"slat_sampler": None}, "a sampler is a None"),
        (
            {"slat_normalization": {"mean": [0.0], "std": [1.0]}},
            r"\(8, 8, 8, 1\) channels of latents",
        ),
        ({"slat_normalization": {"mean": [0.0], "std": [1.0, 1.0]}}, "no mean and std of as many"),
        ({"models": {}}, r"models\.sparse_structure_flow_model = None"),
        ({"models": {"sparse_structure_flow_model": "../x"}}, r"= '\.\./x'"),
        ({"models": {"sparse_structure_flow_model": "ckpts/none"}}, r"none\.json is missing"),
    ],
)
def test_lying_pipelines(texts, tmp_path, changes, message):
    (tmp_path / "ckpts").symlink_to(texts / "ckpts")
    (tmp_path / "pipeline.json").write_text(json.dumps(folders.pipeline(**changes)))
    assert trellis.recognises(tmp_path)
    with pytest.raises(WeightsError, match=message):
        trellis.load(tmp_path)


def test_parts_of_different_models_are_told(texts, core, tmp_path):
    folders.write_core(tmp_path, width=24)
    with pytest.raises(WeightsError, match=r"put the text_encoder/ and tokenizer/ of a Stable"):
        trellis.open(tmp_path)
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(texts / part)
    with pytest.raises(WeightsError, match=r"width \[24\], its encoder makes 32"):
        trellis.open(tmp_path)
    design, _ = core
    with pytest.raises(WeightsError, match=r"\(2, 3\) levels and rooms"):
        trellis.checked(design._replace(rooms=(9, 9, 9)), 8, "x")
    wide = networks.StructureFlow(dataclasses.replace(design.structure_flow.config, resolution=8))
    with pytest.raises(WeightsError, match=r"\(16, 8, 8\) voxels along an axis"):
        trellis.checked(design._replace(structure_flow=wide), 8, "x")
