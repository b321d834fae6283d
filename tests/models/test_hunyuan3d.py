"""Hunyuan3D 2: its files, its numbers, its sampler, and its assets in our world."""

from functools import partial

import hunyuan3d_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, stack

from jax3d import record, weights
from jax3d.camera import orbit
from jax3d.mesh import EmptyFieldError, octree
from jax3d.mesh.extract import signed_volume
from jax3d.mesh.simplify import is_closed
from jax3d.models import hunyuan3d, hunyuan3d_config
from jax3d.models import hunyuan3d_shape as shape
from jax3d.models.open import open_model
from jax3d.nn import dino, vecset
from jax3d.recipe import Recipe
from jax3d.types import Cond, Condition, Look, Prompt
from jax3d.weights import WeightsError

IO = folders.vectors()
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("tiny") / "hunyuan3d-dit-v2-0")


@pytest.fixture(scope="module")
def core(folder):
    """Design and weights, with a grid that is soon decoded."""
    design, params = hunyuan3d.load(folder, steps=STEPS)
    return design._replace(field=shape.field(10, 8, resolution=12)), params


@pytest.fixture(scope="module")
def model(core):
    """A model that reads numbers of a text's length."""

    def condition(prompt):
        told = jnp.sin(jnp.arange(3 * 20.0) + len(prompt.text)).reshape(3, 20)
        return Condition(Cond(told), Cond(jnp.zeros_like(told)))

    return hunyuan3d.model(*core, condition, "tiny")


# Against the official code.


def test_the_guided_transformer_is_the_official_code_twice(core):
    design, params = core
    told = Condition(*(Cond(jnp.asarray(x)) for x in IO["in_ctx"]))
    z, t = jnp.asarray(IO["in_x"][0]), jnp.float32(IO["in_t"][0])
    ask = jax.jit(partial(hunyuan3d.velocity, design.dit, params["dit"]))
    null, plain, far = (ask(z, t, told, jnp.float32(scale)) for scale in (0, 1, 5))
    np.testing.assert_allclose(plain, IO["out"][0], atol=3e-5)
    np.testing.assert_allclose(far, null + 5 * (plain - null), atol=1e-4)
    alone = Condition(told.plain, told.plain)
    np.testing.assert_allclose(ask(z, t, alone, jnp.float32(5)), plain, atol=1e-5)


def test_a_distilled_transformer_is_told_its_guidance_as_the_official_code(tmp_path):
    design, params = hunyuan3d.load(folders.write(tmp_path / "turbo", turbo=True))
    assert len(design.levels) - 1 == 5
    ask = jax.jit(partial(hunyuan3d.velocity, design.dit, params["dit"]))
    nothing = Cond(jnp.full((7, 20), jnp.nan))
    for i, scale in enumerate((5.0, 2.5)):
        told = Condition(Cond(jnp.asarray(IO["in_ctx"][i])), nothing)
        z, t = jnp.asarray(IO["in_x"][i]), jnp.float32(IO["in_t"][i])
        np.testing.assert_allclose(
            ask(z, t, told, jnp.float32(scale)), IO["told_out"][i], atol=1e-4
        )


@pytest.mark.parametrize("name", ["vae", "narrow_vae"])
def test_the_decoder_is_the_official_code(name):
    section = {"target": "ShapeVAE", "params": folders.KNOWN[name]["config"]}
    vae = hunyuan3d_config.vae_of(section)
    flat = hunyuan3d.decoding(folders.tensors(name))
    params = {"params": weights.to_flax(flat, vecset.abstract_params(vae))}
    points = jnp.asarray(IO["vae_queries"])

    @jax.jit
    def run(z):
        mixed = vae.apply(params, z, method="mix")
        return mixed, vae.apply(params, mixed, points, method="ask")

    mixed, values = run(jnp.asarray(IO["vae_in_latents"]))
    want = IO["vae_logits" if name == "vae" else "narrow_logits"]
    np.testing.assert_allclose(values, want[..., 0], atol=2e-5)
    if name == "vae":
        np.testing.assert_allclose(mixed, IO["vae_transformer_out"], atol=2e-5)
        read = vecset.encode(points[:, :5], 8, False)
        np.testing.assert_allclose(read, IO["vae_fourier"], atol=1e-6)


@pytest.mark.parametrize("name", ["dino", "plain_dino"])
def test_the_encoder_is_the_official_code(name):
    parts = {k: folders.KNOWN[k]["config"] for k in ("dit", "vae")}
    config = folders.config(**parts, dino=folders.KNOWN[name]["config"])
    net = hunyuan3d_config.from_config(config).encoder
    pixels = jnp.asarray(np.moveaxis(IO["in_pixels"], 1, -1))
    like = jax.eval_shape(net.init, jax.random.key(0), pixels)["params"]
    params = weights.to_flax(dino.from_transformers(folders.tensors(name)), like)
    out = jax.jit(net.apply)({"params": params}, pixels)
    np.testing.assert_allclose(out, IO[f"{name}_tokens"], atol=2e-5)


def test_sampling_is_the_official_code_but_for_a_step_that_stands_still():
    levels = hunyuan3d_config.levels("FlowMatchEulerDiscreteScheduler", {}, STEPS)
    np.testing.assert_allclose(np.append(levels, 1.0), IO["sampler_sigmas"], atol=1e-6)
    x, times = jnp.asarray(IO["sampler_in_x"]), jnp.asarray(levels, jnp.float32)
    for i, want in enumerate(IO["sampler_traj"][:-1]):
        x = hunyuan3d.moved(x, jnp.asarray(IO["sampler_in_model_outputs"][i]), jnp.int32(i), times)
        np.testing.assert_allclose(x, want, atol=1e-6)
    np.testing.assert_array_equal(IO["sampler_traj"][-1], IO["sampler_traj"][-2])


def test_times_of_other_samplers():
    turbo = "ConsistencyFlowMatchEulerDiscreteScheduler"
    few = hunyuan3d_config.levels(turbo, {"pcm_timesteps": 100}, 8)
    # Phases begin at 0, 119, 249, ... of 999.
    begins = [0, 119, 249, 369, 499, 619, 749, 869, 999]
    np.testing.assert_allclose(few, np.array(begins) / 999, atol=1e-9)
    shifted = hunyuan3d_config.levels("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 5)
    np.testing.assert_allclose(shifted, [0, 0.5, 0.75, 0.9, 1])
    np.testing.assert_array_equal(
        hunyuan3d_config.levels("FlowMatchEulerDiscreteScheduler", {}, 1), [0, 1]
    )
    with pytest.raises(WeightsError, match="9 steps of 8 phases of 1000"):
        hunyuan3d_config.levels(turbo, {"pcm_timesteps": 8}, 9)
    with pytest.raises(WeightsError, match="'DDIMScheduler' is not known"):
        hunyuan3d_config.levels("DDIMScheduler", {}, 5)
    with pytest.raises(WeightsError, match="a shift of 1, or one that moves"):
        hunyuan3d_config.levels(
            "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, 5
        )
    with pytest.raises(ValueError, match="steps is 0"):
        hunyuan3d_config.levels(turbo, {}, 0)


@pytest.mark.parametrize(
    "name", ["fast_dit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit", "mini_dit"))]
)
def test_every_key_of_the_full_size_models_is_read(name):
    full = folders.KNOWN["full"]
    parts = {"model": name, "vae": "vae", "conditioner": "dino"}
    config = folders.config(*(full[part]["config"] for part in parts.values()))
    design = hunyuan3d_config.from_config(config)
    flat = {}
    for prefix, part in parts.items():
        inner = f"{prefix}." + folders.ENCODER * (part == "dino")
        flat |= {
            inner + k: np.broadcast_to(np.float32(0), s) for k, s in full[part]["keys"].items()
        }
    like = hunyuan3d_config.abstract_params(design)
    weights.demand_fit(hunyuan3d.names(flat), like)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(like["dit"]))
    assert round(count / 1e6) == {"dit": 1113, "fast_dit": 1115, "mini_dit": 559}[name]
    assert (len(design.levels), design.picture.side, design.picture.framed) == (50, 518, 512)
    assert design.field.build().init is not None


def test_every_key_of_the_turbo_decoder_is_read():
    known = folders.KNOWN["full"]["narrow_vae"]
    vae = hunyuan3d_config.vae_of({"target": "ShapeVAE", "params": known["config"]})
    flat = {k: np.broadcast_to(np.float32(0), s) for k, s in known["keys"].items()}
    weights.demand_fit(hunyuan3d.decoding(flat), vecset.abstract_params(vae))


# Sampling.


def test_eight_at_once_are_each_alone_stopped_or_not(model):
    conds = stack([model.condition(Prompt("a" * k)) for k in range(8)])
    numbers = stack([knobs(k, model_scale=1.0 + k) for k in range(8)])

    def sample(z, cond, number, first, last):
        def take(i, z):
            return model.advance(model.params, z, i, cond, number)

        return jax.lax.fori_loop(first, last, take, z)

    one = jax.jit(sample)
    eight = jax.jit(jax.vmap(sample, (0, 0, 0, None, None)))
    z = jax.vmap(lambda n, cond: model.begin(jax.random.key(n.seed), cond))(numbers, conds)
    together = eight(z, conds, numbers, 0, model.steps)
    for k in range(8):
        own = jax.tree.map(lambda x, k=k: x[k], (z, conds, numbers))
        alone = one(*own, 0, model.steps)
        np.testing.assert_allclose(together[k], alone, rtol=1e-4, atol=1e-4)
        half = np.asarray(one(*own, 0, k // 2))  # a checkpoint's
        on = one(jnp.asarray(half), *own[1:], k // 2, model.steps)
        np.testing.assert_array_equal(on, alone)
    assert np.abs(together[0] - together[1]).max() > 0.1
    # A sweep over guidance is one program.
    assert one._cache_size() == 1


# Assets.


def arrow(x):
    """Ten times the distance in their world of an L: a thick stick to the front, one upward."""
    x = shape.theirs(x)
    stick = jnp.stack([jnp.abs(x[..., 0]), jnp.abs(x[..., 1]), jnp.abs(x[..., 2] - 0.4) - 0.4], -1)
    mast = jnp.stack([jnp.abs(x[..., 0]), jnp.abs(x[..., 1] - 0.3) - 0.3, jnp.abs(x[..., 2])], -1)
    far = [jnp.linalg.norm(jnp.maximum(part, 0.0), axis=-1) for part in (stick, mast)]
    return 10 * (0.15 - jnp.minimum(*far))


def test_our_world_is_theirs_turned():
    front, left, up = np.eye(3, dtype=np.float32) * shape.METRES
    np.testing.assert_allclose(shape.theirs(jnp.asarray(front)), [0, 0, 1])
    np.testing.assert_allclose(shape.theirs(jnp.asarray(up)), [0, 1, 0])
    # And no mirror.
    np.testing.assert_allclose(shape.theirs(jnp.asarray(left)), np.cross([0, 1, 0], [0, 0, 1]))


@pytest.fixture(scope="module")
def seen():
    """An asset of the arrow, and its mesh."""
    config = shape.field(4, 2, resolution=48)
    asset = jax.jit(lambda z: shape.decode(arrow, z, config))(jnp.zeros((4, 2)))
    return config, asset, shape.mesh(jax.jit(arrow), cells=64, faces=900)


def test_fronts_look_to_x_and_heads_to_z(seen):
    _, asset, mesh = seen
    low, high = mesh.vertices.min(0) / shape.METRES, mesh.vertices.max(0) / shape.METRES
    np.testing.assert_allclose(low, [-0.15, -0.15, -0.15], atol=0.02)
    np.testing.assert_allclose(high, [0.95, 0.15, 0.75], atol=0.02)
    assert is_closed(mesh)
    assert signed_volume(mesh) > 0
    assert len(mesh.faces) <= 900
    inside = np.argwhere(np.asarray(asset["sdf"]) < 0) * (2 * shape.BOUND / 47) - shape.BOUND
    np.testing.assert_allclose(inside.max(0), high * shape.METRES, atol=0.04)


def test_the_grid_holds_metres_around_the_surface(seen):
    config, asset, _ = seen
    axis = np.linspace(-shape.BOUND, shape.BOUND, 48)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    truth = -np.asarray(arrow(jnp.asarray(points))) / 10 * shape.METRES
    # Beside the fold between stick and mast, where the distance has no slope.
    near = (np.abs(truth) < 0.05) & (points[..., 0] > 0.3)
    np.testing.assert_allclose(np.asarray(asset["sdf"])[near], truth[near], atol=0.006)
    assert np.all((np.asarray(asset["sdf"]) < 0) == (truth < 0))
    assert np.abs(asset["sdf"]).max() <= 0.0801
    left = jax.eval_shape(lambda: asset)
    assert left == jax.eval_shape(config.build().init, jax.random.key(0))


def test_it_is_seen_grey_and_shaded_as_its_mesh_is(seen):
    config, asset, mesh = seen
    camera = orbit(jnp.array([0.0]), jnp.array([0.2]), 2.7, 0.7)
    shown = jax.jit(partial(config.build().render, size=(24, 24)))(
        asset, None, camera, Look.albedo()
    )
    covered = np.asarray(shown.alpha[0]) > 0.99
    assert 20 < covered.sum() < 200
    rgb = np.asarray(shown.rgb[0])[covered]
    np.testing.assert_allclose(rgb, rgb[:, :1].repeat(3, 1), atol=1e-5)
    assert rgb.max() - rgb.min() > 0.1
    assert mesh.colors.shape == mesh.vertices.shape
    colors = np.asarray(config.build().color(asset, jnp.asarray(mesh.vertices)))
    assert np.abs(colors - mesh.colors).mean() < 0.05


def test_a_mesh_asked_near_its_surface_is_that_asked_everywhere():
    ask = jax.jit(arrow)
    whole = octree.everywhere(ask, shape.BOUND, 128, shape.CHUNK)
    some = octree.near_surface(ask, shape.BOUND, 128, shape.CHUNK, shape.BAND)
    one, other = (octree.surface(x.values, shape.BOUND) for x in (whole, some))
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.faces, other.faces)
    assert some.asked < whole.asked / 3


def test_an_asset_is_meshed_from_its_latents(core, model):
    design, params = core
    latents = 3 * jax.random.normal(jax.random.key(0), (10, 8))
    mesh = model.representation.mesh({"latents": np.float16(latents)}, cells=16, faces=None)
    tell = shape.told_by(design.vae, params["vae"], jnp.float32(jnp.float16(latents)))
    want = shape.mesh(jax.jit(tell), cells=16, faces=None)
    assert len(mesh.faces) > 100
    np.testing.assert_array_equal(mesh.faces, want.faces)
    np.testing.assert_allclose(mesh.vertices, want.vertices, atol=1e-4)
    with pytest.raises(EmptyFieldError, match="its values lie between -2 and -2"):
        shape.mesh(lambda x: np.full(len(x), -2.0), cells=8)


# Pictures.

HOW = hunyuan3d_config.Picture(framed=32, border=0.15, side=28)


def test_what_is_not_transparent_is_laid_on_white_with_a_border():
    image = np.zeros((190, 240, 4), np.float32)
    image[15:185, 5:175] = (1.0, 0.0, 0.0, 1.0)
    found = hunyuan3d.prepare(image, HOW._replace(framed=200, side=200))
    red = (found[..., 0] > 0.9) & (found[..., 1] < 0.5)
    rows, columns = (np.flatnonzero(red.any(axis)) for axis in (1, 0))
    for span in (rows, columns):
        assert (span[-1] - span[0] + 1) / 200 == pytest.approx(0.85, abs=0.02)
        assert (span[-1] + span[0] + 1) / 2 == pytest.approx(100, abs=1.5)
    np.testing.assert_allclose(found[:10], 1.0, atol=1e-6)
    assert hunyuan3d.prepare(image, HOW).shape == (28, 28, 3)
    # The same before a plain ground.
    opaque = image[..., :3] + (1 - image[..., 3:]) * np.float32(0.2)
    again = hunyuan3d.prepare(opaque, HOW._replace(framed=200, side=200))
    assert np.abs(again - found).mean() < 0.01


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("a cat"), "Hunyuan3D reads a picture"),
        (Prompt("", image=np.zeros((4, 4, 4))), "all of it is transparent"),
        (Prompt("", image=np.random.default_rng(0).random((9, 9, 3))), "ground is not plain"),
    ],
)
def test_pictures_that_cannot_be_read(core, prompt, message):
    design, params = core
    with pytest.raises(ValueError, match=message):
        hunyuan3d.reader(design, params["encoder"])(prompt)


# Folders.


def test_a_folder_is_opened_and_asked(folder):
    found = open_model(folder)
    assert found.name == f"Hunyuan3D 2, 49 steps, from {folder}"
    image = np.zeros((20, 20, 4), np.float32)
    image[5:15, 5:15] = 1.0
    cond = found.condition(Prompt("", image=image))
    assert cond.plain.tokens.shape == cond.null.tokens.shape == (5, 20)
    assert not np.any(cond.null.tokens)
    seen = dino.normalise(jnp.asarray(hunyuan3d.prepare(image, HOW)))
    design, params = hunyuan3d.load(folder)
    tokens = jax.jit(design.encoder.apply)({"params": params["encoder"]}, seen[None])
    np.testing.assert_allclose(cond.plain.tokens, tokens[0], atol=1e-5)
    # What holds one such folder is that model.
    assert open_model(folder.parent).digest == found.digest
    recipe = Recipe().made_by(str(folder))
    assert recipe.open(None).digest == found.digest
    assert record.decode(Recipe, record.encode(recipe)) == recipe
    z = jax.eval_shape(found.begin, jax.random.key(0), cond)
    left = jax.eval_shape(found.decode, found.params, z)
    assert left == jax.eval_shape(found.representation.init, jax.random.key(0))


def test_a_pickle_is_the_same_model(folder, tmp_path, core):
    pickled = folders.write(tmp_path / "pickled", pickled=True)
    _, params = hunyuan3d.load(pickled)
    assert weights.digest(params) == weights.digest(core[1])


def test_another_decoder_takes_the_place_of_the_models(folder, tmp_path):
    other = folders.write_vae(tmp_path / "hunyuan3d-vae-v2-0-turbo")
    design, params = hunyuan3d.load(folder, vae=other)
    assert design.vae.config.geo_decoder_downsample_ratio == 2
    own = hunyuan3d.decoding(folders.tensors("narrow_vae"))
    like = vecset.abstract_params(design.vae)
    assert weights.digest(params["vae"]) == weights.digest(weights.to_flax(own, like))
    assert set(params) == {"dit", "encoder", "vae"}
    described = folders.tiny()
    described["vae"]["params"]["num_latents"] = 12
    longer = folders.write(tmp_path / "longer", described)
    with pytest.raises(WeightsError, match=r"decodes \(10, 8\) latents .* not \(12, 8\)"):
        hunyuan3d.load(longer, vae=other)


def test_several_models_in_one_folder(folder, tmp_path):
    for name in ("hunyuan3d-dit-v2-0", "hunyuan3d-dit-v2-0-fast"):
        (tmp_path / name).symlink_to(folder)
    with pytest.raises(WeightsError, match=r"several models.* one of hunyuan3d-dit-v2-0, hun"):
        open_model(tmp_path)


HUGE = 10**12


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("model", {"depth": 257}, "257 layers"),
        ("model", {"depth": 3}, "missing: dit/double_blocks_1"),
        ("model", {"hidden_size": HUGE}, "hidden_size = 1000000000000"),
        ("model", {"hidden_size": 50}, "a width of 50 that 4 heads do not divide"),
        ("model", {"num_heads": 0}, "--model.num-heads is 0"),
        ("model", {"context_in_dim": 24}, "told tokens of 24; .* makes 20"),
        ("model", {"time_factor": 1.0}, "time_factor = 1.0, not 1000"),
        ("model", {"guidance_embed": True}, "missing: dit/guidance_in"),
        ("vae", {"embed_dim": 4}, "latents of 8 numbers .* reads 4"),
        ("vae", {"geo_decoder_downsample_ratio": 3}, "4 heads, and 3 for points, do not divide"),
        ("vae", {"num_latents": 1 << 20}, "1048576 latents through 2 layers"),
        ("vae", {"heads": 0}, "--vae.heads is 0"),
        ("vae", {"width": None}, "width = None"),
        ("scheduler", {"shift": -1.0}, "a shift of -1"),
        ("image_processor", {"size": 1 << 20}, "a picture of 1048576 pixels"),
        ("image_processor", {"border_ratio": 1.0}, "with a border of 1.0"),
        ("conditioner", {"main_image_encoder": {"type": "DinoImageEncoderMV"}}, "ImageEncoderMV"),
    ],
)
def test_lying_configs(tmp_path, part, changes, message):
    described = folders.tiny()
    described[part]["params"] |= changes
    with pytest.raises(WeightsError, match=message) as caught:
        hunyuan3d.load(folders.write(tmp_path, described))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vae", None, "vae is no mapping with a target"),
        ("model", {"target": "x.HunYuanDiTPlain"}, "'HunYuanDiTPlain', not a Hunyuan3DDiT"),
        ("vae", {"target": "x.ShapeVAE"}, "vae lacks num_latents, embed_dim"),
        ("scheduler", {"target": "x.Hunyuan3DDiTScheduler"}, "'Hunyuan3DDiTScheduler' is not"),
    ],
)
def test_configs_of_other_things(tmp_path, part, value, message):
    with pytest.raises(WeightsError, match=message):
        hunyuan3d.load(folders.write(tmp_path, folders.tiny() | {part: value}))


@pytest.mark.slow
def test_bfloat16_keeps_points_latents_and_assets_in_float32(folder, core):
    design, params = hunyuan3d.load(folder, jnp.bfloat16, steps=STEPS)
    assert params["dit"]["latent_in"]["kernel"].dtype == jnp.bfloat16
    assert params["vae"]["transformer"]["resblocks_0"]["attn"]["c_qkv"]["kernel"].dtype == (
        jnp.bfloat16
    )
    assert {x.dtype for x in jax.tree.leaves(params["vae"]["geo_decoder"])} == {jnp.dtype("f4")}
    args = [jnp.asarray(IO[f"in_{k}"]) for k in ("x", "t", "ctx")]
    rough = jax.jit(design.dit.apply)({"params": params["dit"]}, *args)
    assert rough.dtype == jnp.float32
    exact = IO["out"]
    cosine = jnp.vdot(rough, exact) / jnp.linalg.norm(rough) / jnp.linalg.norm(exact)
    assert 0.999 < cosine < 1 - 1e-9
