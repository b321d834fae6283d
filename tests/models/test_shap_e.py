"""Shap-E: its files, its numbers, its sampler, and its assets in our world."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shap_e_folders as folders
from toys import knobs, stack

from jax3d import camera as cameras
from jax3d import diffusion, weights
from jax3d.fields import nerstf
from jax3d.image import srgb_to_linear
from jax3d.mesh import MeshConfig, of
from jax3d.mesh.extract import signed_volume
from jax3d.models import shap_e, shap_e_renderer
from jax3d.models.open import open_model
from jax3d.nn import clip_image, clip_text, prior_transformer
from jax3d.render import shading
from jax3d.types import Cond, Condition, Look, Prompt
from jax3d.weights import WeightsError

IO = folders.vectors()
TURN = np.array(shap_e_renderer.TURN, np.float32)
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write_core(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def core(folder):
    """Design and weights, in as many steps as the vectors took."""
    return shap_e.load(folder, steps=STEPS)


@pytest.fixture(scope="module")
def model(core):
    """A model that reads numbers of a text's length."""

    def condition(prompt):
        told = jnp.sin(jnp.arange(16.0) + len(prompt.text))[None]
        return Condition(Cond(told), Cond(jnp.zeros_like(told)))

    return shap_e.model(*core, shap_e.Reader(condition, 16, "lengths", 4.0), "tiny")


@pytest.fixture(scope="module")
def asset(core):
    """Of the vectors' last latents, in our frame."""
    _, params = core
    decode = jax.jit(shap_e_renderer.decode)
    return decode(params["renderer"], jnp.asarray(IO["traj"][-1, 0]))


# Against the official code.


@pytest.mark.parametrize("name", ["prior", "prior_img2img"])
def test_priors_are_the_official_code(tmp_path, name):
    net, params = prior_transformer.load(folders.write_part(tmp_path, name))
    plain = name == "prior"
    told = IO["proj_embedding_cfg"][:, None] if plain else IO["in_img2img_tokens"]
    t = jnp.full(2, float(IO["in_t" if plain else "in_img2img_t"]))
    out = jax.jit(net.apply)({"params": params}, jnp.asarray(IO["in_x"]), t, jnp.asarray(told))
    np.testing.assert_allclose(out[:, ::4], IO[f"{name}_out"], atol=2e-5)


def test_the_text_tower_is_the_official_code(tmp_path):
    tower, params = clip_text.load(folders.write_part(tmp_path, "text_encoder"))
    out = jax.jit(tower.apply)({"params": params}, jnp.asarray(IO["in_input_ids"]))
    np.testing.assert_allclose(out.text_embeds, IO["text_embeds"], atol=1e-5)


def test_guided_sampling_is_the_official_code(core, model):
    design, params = core
    grid = design.sampling.grid
    levels = np.repeat(np.asarray(grid.sigma / grid.alpha), 2)[1:]
    np.testing.assert_allclose(levels, IO["sched5_sigmas"][:-1], rtol=1e-5)
    np.testing.assert_allclose(np.repeat(grid.t, 2)[1:], IO["sched5_timesteps"], atol=1e-3)
    null, plain = (Cond(jnp.asarray(x)[None]) for x in IO["proj_embedding_cfg"])
    advance = jax.jit(model.advance)
    assert model.steps == 2 * STEPS - 1
    # Theirs is z / alpha, and so is its noise, of which one draw is given.
    z, path = diffusion.heun_start(jnp.asarray(IO["in_latents0"][0]) * grid.alpha[0]), []
    for i in range(model.steps):
        z = advance(params, z, jnp.int32(i), Condition(plain, null), knobs(0, model_scale=4.0))
        path.append(np.asarray(z.z / grid.next_alpha[i // 2])[None])
    for i, want in zip((0, 1, 7, 8), IO["traj"], strict=True):
        np.testing.assert_allclose(path[i], want, atol=1e-4 * np.abs(want).max())


def test_latents_become_the_official_matrices(core):
    _, params = core
    made = jax.jit(shap_e_renderer.matrices)(
        params["renderer"]["made"], jnp.asarray(IO["traj"][-1, 0])
    )
    for k, matrix in enumerate(made):
        np.testing.assert_allclose(matrix.T, IO[f"proj_nerstf.mlp.{k}.weight"], atol=1e-5)


def test_every_head_of_the_asset_in_our_frame(asset):
    x = jnp.asarray(IO["q_pos"][0] @ TURN.T)
    raw = jax.jit(nerstf.outputs)(asset, x)[None]
    coarse, fine = nerstf.COARSE_DENSITY, nerstf.DENSITY
    for name, ours in {
        "coarse_density": jax.nn.relu(raw[..., coarse, None]),
        "fine_density": jax.nn.relu(raw[..., fine, None]),
        "coarse_rgb": jax.nn.sigmoid(raw[..., nerstf.COARSE_RGB]),
        "fine_rgb": jax.nn.sigmoid(raw[..., nerstf.RGB]),
        "sdf": jnp.tanh(raw[..., nerstf.SDF, None]),
        "stf_rgb": jax.nn.sigmoid(raw[..., nerstf.TEXTURE]),
    }.items():
        np.testing.assert_allclose(ours, IO[f"q_{name}"], atol=5e-3, err_msg=name)
    field = nerstf.nerstf(nerstf.NerstfConfig(hidden=12))
    np.testing.assert_allclose(field.density(asset, x), IO["q_fine_density"][0, :, 0], atol=5e-3)
    np.testing.assert_allclose(field.color(asset, x), IO["q_fine_rgb"][0], atol=5e-3)
    np.testing.assert_allclose(
        nerstf.encode(jnp.asarray(IO["q_pos"][0, :5])), IO["q_posenc"][0], atol=2e-6
    )


def test_renders_with_the_official_draws(asset):
    """The authors' cameras are ours of falling azimuth, the first at the front."""
    size = IO["images"].shape[1]
    fovy = 2 * np.arctan(np.tan(0.35) * size / (size - 1))
    azimuth = -np.linspace(0, 2 * np.pi, 20)[:2]
    rays = cameras.rays(cameras.orbit(azimuth, np.arctan(0.5), 4.0, fovy), (size, size))
    rays = jax.tree.map(lambda a: a.reshape(-1, 3), rays)
    o, d = (np.asarray(a) @ TURN for a in (rays.origins, rays.directions))
    np.testing.assert_allclose(np.stack([o, d], 1), IO["rays"][0], atol=1e-5)
    # They add 1e-6 to directions before they divide; at 2^14 a metre that is seen.
    safe = np.where(d < 0, d - np.float32(1e-6), d + np.float32(1e-6))
    ends = np.stack([(-1 - o) / safe, (1 - o) / safe])
    near, far = np.maximum(ends.min(0).max(-1), 0), ends.max(0).min(-1)
    near, far = (jnp.asarray(np.where(near + 1e-3 < far, x, 0)) for x in (near, far))
    draws = nerstf.Draws(
        *(jnp.asarray(IO[f"noise_{name}"]) for name in ("stratified", "pmf", "importance"))
    )
    look = shading.per_ray(Look.albedo(), rays)
    seen = jax.jit(nerstf.march)(asset, rays, near, far, look, draws)
    shown = seen["rgb"] + 1 - seen["alpha"][:, None]
    error = np.abs(shown.reshape(IO["images"].shape) - IO["images"])
    assert np.quantile(error, 0.99) < 5e-3
    assert error.mean() < 5e-4


def test_the_mesh_has_the_official_faces_and_colours(core, asset):
    mesh = shap_e_renderer.mesh(asset, core[0].tables, int(IO["grid_size"]))
    np.testing.assert_array_equal(mesh.faces, IO["mesh_faces"])
    np.testing.assert_allclose(mesh.vertices @ TURN, IO["mesh_verts"], atol=2e-3)
    assert signed_volume(mesh) > 0
    assert mesh.colors.shape == mesh.vertices.shape
    # Theirs are linear; colours change within a thousandth of a metre, so they are asked there.
    colors = jax.jit(nerstf.texture)(asset, jnp.asarray(IO["mesh_verts"][::8] @ TURN.T))
    np.testing.assert_allclose(srgb_to_linear(colors), IO["mesh_rgb"], atol=5e-3)
    own = jax.jit(nerstf.texture)(asset, jnp.asarray(mesh.vertices[:50]))
    np.testing.assert_allclose(mesh.colors[:50], own, atol=1e-3)


def test_a_model_meshes_its_assets_itself(core, model, asset):
    coarser = partial(model.representation.mesh, resolution=14)
    made = of(model.representation._replace(mesh=coarser), asset, MeshConfig())
    assert len(made.faces) == len(IO["mesh_faces"])
    # Nothing is inside of a network that says so.
    outside = jax.tree.map(jnp.zeros_like, asset)
    outside["mlp"][-1]["b"] = outside["mlp"][-1]["b"].at[nerstf.SDF].set(-1.0)
    with pytest.raises(ValueError, match=r"no surface: its signed distances lie between -0\.762"):
        shap_e_renderer.mesh(outside, core[0].tables, 8)


# Sampling.


def sample(model, cond, knobs, stop=None, first=0, z=None):
    z = model.begin(jax.random.key(knobs.seed), cond) if z is None else z
    take = partial(model.advance, model.params)
    last = model.steps if stop is None else stop
    return jax.lax.fori_loop(first, last, lambda i, z: take(z, i, cond, knobs), z)


def test_a_batch_of_prompts_is_each_alone(model):
    conds = stack([model.condition(Prompt(t)) for t in ("a chair", "a cat", "a blue mug")])
    numbers = stack([knobs(k, model_scale=1.0 + k) for k in range(3)])
    run = partial(sample, model)
    together = jax.jit(jax.vmap(run))(conds, numbers)
    one = jax.jit(run)
    for k in range(3):
        cond, number = jax.tree.map(lambda x, k=k: x[k], (conds, numbers))
        np.testing.assert_allclose(together.z[k], one(cond, number).z, rtol=1e-4, atol=1e-4)
    # A sweep over guidance is one program.
    assert one._cache_size() == 1
    assert np.abs(together.z[0] - together.z[1]).max() > 0.1


def test_sampling_goes_on_from_any_call_of_the_network(model):
    cond, number = model.condition(Prompt("a teal boat")), knobs(4, model_scale=3.0)
    take = jax.jit(partial(model.advance, model.params))
    states = [model.begin(jax.random.key(number.seed), cond)]
    for i in range(model.steps):
        states.append(take(states[-1], jnp.int32(i), cond, number))
    for stop in range(1, model.steps):
        z = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), states[stop])  # a checkpoint's
        for i in range(stop, model.steps):
            z = take(z, jnp.int32(i), cond, number)
        np.testing.assert_array_equal(z.z, states[-1].z)
    # What a step takes with it is needed: its first half alone does not tell where it ends.
    lost = states[1]._replace(eps=jnp.zeros_like(states[1].eps))
    assert np.abs(take(lost, jnp.int32(1), cond, number).z - states[2].z).max() > 1e-3


def test_noise_starts_as_wide_as_the_sampler_says(core, model):
    cond = model.condition(Prompt("a cat"))
    z = model.begin(jax.random.key(0), cond)
    assert z.z.shape == (48, 32)
    np.testing.assert_allclose(z.z.std(), core[0].sampling.start, rtol=0.05)
    assert np.abs(model.begin(jax.random.key(1), cond).z - z.z).max() > 1


def test_decoding_gives_what_the_field_asks(folder, core, model):
    z = model.begin(jax.random.key(0), model.condition(Prompt("a cat")))
    left = jax.eval_shape(model.decode, model.params, z)
    like = jax.eval_shape(model.representation.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, left) == jax.tree.map(jnp.shape, like)
    assert len(model.digest) == 64
    design, params = core
    shorter = design._replace(sampling=shap_e.read_sampling(folder / "scheduler", 4))
    for other in ((shorter, params), (design, {**params, "prior": {"x": jnp.zeros(1)}})):
        assert (
            shap_e.model(*other, shap_e.Reader(None, 16, "lengths", 4.0), "").digest != model.digest
        )
    assert shap_e.model(*core, shap_e.Reader(None, 16, "x", 4.0), "").digest != model.digest


# Folders and prompts.


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return folders.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folders.write_pictures(tmp_path_factory.mktemp("pictures"))


def test_a_folder_of_texts_is_opened_and_asked(texts):
    found = open_model(texts)
    assert found.name == f"Shap-E of texts, 64 steps, from {texts}"
    assert found.steps == 127
    assert shap_e.open(texts, steps=2).steps == 3
    cond = found.condition(Prompt("a cat"))
    assert cond.plain.tokens.shape == cond.null.tokens.shape == (1, 16)
    # Of unit variance.
    np.testing.assert_allclose(np.mean(cond.plain.tokens**2), 1.0, rtol=1e-5)
    assert not np.any(cond.null.tokens)
    pushed = found.condition(Prompt("a cat", "a dog"))
    np.testing.assert_array_equal(pushed.plain.tokens, cond.plain.tokens)
    dog = found.condition(Prompt("a dog")).plain.tokens
    np.testing.assert_allclose(pushed.null.tokens, dog, atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(" "), "the prompt is empty"),
        (Prompt("a cat", image=np.zeros((4, 4, 3))), "leave the picture out"),
        (Prompt("a cat on a dog"), "'a cat on a dog' has 10 tokens; Shap-E reads 7"),
        (Prompt("a cat", "a dog on a cat"), "'a dog on a cat' has 10 tokens"),
    ],
)
def test_texts_that_cannot_be_read(texts, prompt, message):
    with pytest.raises(ValueError, match=message):
        shap_e.read_texts(texts, jnp.float32).condition(prompt)


def test_a_folder_of_pictures_is_opened_and_asked(pictures):
    found = open_model(str(pictures), jnp.float32)
    assert found.name == f"Shap-E of pictures, 64 steps, from {pictures}"
    image = np.random.default_rng(0).random((30, 28, 3), np.float32)
    cond = found.condition(Prompt("", image=image))
    assert cond.plain.tokens.shape == cond.null.tokens.shape == (16, 32)
    assert not np.any(cond.null.tokens)
    tower, params = clip_image.load(pictures / "image_encoder")
    seen = clip_image.normalise(jnp.asarray(image[None, 1:29]))
    out = jax.jit(tower.apply)({"params": params}, seen)
    np.testing.assert_allclose(cond.plain.tokens, out.last_hidden_state[0, 1:], atol=1e-4)
    with pytest.raises(ValueError, match="this Shap-E reads a picture"):
        found.condition(Prompt("a cat"))
    z = found.begin(jax.random.key(0), cond)
    after = jax.jit(found.advance)(found.params, z, jnp.int32(0), cond, knobs(0, model_scale=3.0))
    assert np.all(np.isfinite(after.z))


def test_what_is_not_transparent_is_laid_on_white():
    image = np.zeros((20, 30, 4), np.float32)
    image[4:12, 3:11] = (1.0, 0.0, 0.0, 1.0)
    seen = shap_e.picture(image, 10)
    np.testing.assert_allclose(seen[1:9, 1:9], np.broadcast_to([1.0, 0.0, 0.0], (8, 8, 3)))
    np.testing.assert_allclose(seen[[0, 9]], 1.0)
    # A whole picture is not framed.
    np.testing.assert_allclose(shap_e.picture(np.dstack([image[..., :3], np.ones((20, 30))]), 20),
                               image[:, 5:25, :3])  # fmt: skip


@pytest.mark.parametrize("name", ["shap_e_prior", "shap_e_img2img_prior"])
def test_every_key_of_the_released_priors_is_read(name):
    known = folders.KNOWN["full"][name]
    net = prior_transformer.from_config(known["config"])
    like = prior_transformer.abstract_params(net)
    weights.demand_fit(prior_transformer.rename(_flat(known)), like)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(like))
    assert round(count / 1e6, 1) == {"shap_e_prior": 315.7, "shap_e_img2img_prior": 316.0}[name]


def test_every_key_of_the_released_renderer_and_image_encoder_is_read():
    config = folders.KNOWN["shap_e_renderer"]["config"] | {"d_hidden": 256, "d_latent": 1024}
    renderer = shap_e_renderer.from_config(config)
    assert renderer.latents == (1024, 1024)
    flat = shap_e_renderer.rename(_flat(folders.KNOWN["full"]["shap_e_renderer"]))
    weights.demand_fit(flat, shap_e_renderer.abstract_params(renderer))
    known = folders.KNOWN["full"]["clip_vit_l14_vision_proj"]
    config = known["config"] | {"architectures": ["CLIPVisionModelWithProjection"]}
    like = clip_image.abstract_params(clip_image.from_config(config))
    weights.demand_fit(_flat(known), like)
    # Shap-E's has no projection.
    without = {k: v for k, v in _flat(known).items() if k != "visual_projection.weight"}
    config = known["config"] | {"architectures": ["CLIPVisionModel"]}
    weights.demand_fit(without, clip_image.abstract_params(clip_image.from_config(config)))


def _flat(known):
    return {k: np.broadcast_to(np.float32(0), s) for k, s in known["keys"].items()}


HUGE = 10**12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 129}, "129 layers"),
        ({"num_layers": 3}, "missing: transformer_blocks_2"),
        ({"num_embeddings": HUGE}, "num_embeddings = 1000000000000"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"clip_embed_dim": 8}, "8 numbers of latents of 32"),
        ({"norm_in_type": None}, "norm_in_type = None is not supported"),
        ({"added_emb_type": "prd"}, "added_emb_type = 'prd' is not supported"),
        ({"time_embed_act_fn": "tanh"}, "time_embed_act_fn = 'tanh'"),
        ({"_class_name": "UNet"}, "of a 'UNet', not of a PriorTransformer"),
        ({"embedding_dim": 16}, "misshapen"),
    ],
)
def test_lying_configs_of_the_prior(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as caught:
        prior_transformer.load(folders.write_part(tmp_path, "prior", changes))
    assert "\n" not in str(caught.value)


def test_a_config_of_the_prior_that_lacks_something(tmp_path):
    folder = folders.write_part(tmp_path, "prior")
    config = json.loads((folder / "config.json").read_text())
    del config["num_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="lacks num_layers"):
        prior_transformer.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_hidden": 1 << 20}, "misshapen"),
        ({"d_hidden": HUGE}, "d_hidden = 1000000000000"),
        ({"d_latent": 8}, "misshapen"),
        ({"n_hidden_layers": 129}, "--field.layers is 129"),
        ({"n_hidden_layers": 7}, "missing: layers_7"),
        ({"n_output": 3}, "n_output = 3 is not supported"),
        ({"act_fn": "relu"}, "act_fn = 'relu' is not supported"),
        ({"insert_direction_at": 3}, "directions join in at 3 of 6 layers"),
        ({"insert_direction_at": None}, "insert_direction_at = None"),
        ({"param_names": ["nerstf.mlp.1.weight"]}, "nerstf.mlp.1.weight"),
        ({"param_names": []}, "are made from latents"),
    ],
)
def test_lying_configs_of_the_renderer(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message) as caught:
        shap_e_renderer.load(folders.write_part(tmp_path, "shap_e_renderer", changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "'DDIMScheduler'; Shap-E is sampled by Heun's method"),
        ({"thresholding": True}, "thresholding is not supported"),
        ({"beta_schedule": "laplace"}, "'laplace' is not known"),
    ],
)
def test_lying_schedulers(tmp_path, changes, message):
    config = json.dumps(folders.KNOWN["scheduler"] | changes)
    (tmp_path / "scheduler_config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        shap_e.read_sampling(tmp_path, 4)


def test_parts_of_different_models_are_told(texts, pictures, tmp_path):
    mixed = folders.write_core(tmp_path / "a")
    (mixed / "image_encoder").symlink_to(pictures / "image_encoder")
    with pytest.raises(WeightsError, match="tokens of width 16, its encoder makes 32"):
        shap_e.open(mixed)
    other = folders.write_core(tmp_path / "b")
    name = "positional_embedding"
    folders.write_part(other / "prior", "prior", {"num_embeddings": 24}, **{name: [1, 24, 32]})
    with pytest.raises(WeightsError, match="makes 24 latents of 32 numbers, the renderer reads 48"):
        shap_e.load(other)
    plain, missing = folders.write_core(tmp_path / "c"), {"text_projection.weight": None}
    config = {"architectures": ["CLIPTextModel"]}
    folders.write_part(plain / "text_encoder", "text_encoder", config, **missing)
    with pytest.raises(WeightsError, match="a tower without a projection"):
        shap_e.open(plain)


def test_bfloat16_keeps_latents_and_assets_in_float32(folder, core):
    design, params = shap_e.load(folder, jnp.bfloat16, steps=STEPS)
    tree = params["prior"]
    assert tree["proj_in"]["kernel"].dtype == jnp.bfloat16
    assert tree["norm_in"]["scale"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(params["renderer"])} == {jnp.dtype(jnp.float32)}
    told = jnp.asarray(IO["proj_embedding_cfg"][:, None])
    args = (jnp.asarray(IO["in_x"]), jnp.full(2, 511.0), told)
    rough = jax.jit(design.prior.apply)({"params": tree}, *args)
    exact = jax.jit(core[0].prior.apply)({"params": core[1]["prior"]}, *args)
    assert rough.dtype == jnp.float32
    cosine = jnp.vdot(rough, exact) / jnp.linalg.norm(rough) / jnp.linalg.norm(exact)
    assert 0.999 < cosine < 1 - 1e-9
