"""What every Representation, Prior and Guidance promises, in one table.

A new member joins by one line in its table.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import write_lrm, write_native
from toys import knobs, optimizer, pages, run_block, sampler, shot, stack

from jax3d.camera import orbit
from jax3d.fields.base import Taken
from jax3d.fields.densify import Classical
from jax3d.fields.gaussians import GaussiansConfig, gaussians
from jax3d.fields.grid import GridConfig, grid
from jax3d.fields.mlp import MlpConfig, mlp
from jax3d.fields.nerstf import NerstfConfig, nerstf
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.guidance.csd import csd
from jax3d.guidance.hifa import hifa
from jax3d.guidance.ism import ism
from jax3d.guidance.nfsd import nfsd
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sdedit import SDEditConfig, sdedit
from jax3d.guidance.sds import SDSConfig, sds
from jax3d.guidance.vsd import SecondCritic, vsd
from jax3d.mesh import cubes
from jax3d.models import (
    hunyuan3d,
    hunyuan3d_config,
    hunyuan3d_shape,
    instantmesh,
    lrm,
    openlrm,
    props_lrm,
    props_native,
    shap_e,
    shap_e_renderer,
    trellis,
    trellis_gaussians,
    trellis_prompts,
    triposr,
)
from jax3d.models.base import Model
from jax3d.nn import prior_transformer, trellis_latents
from jax3d.nn import trellis as trellis_networks
from jax3d.nn.dino import DinoConfig
from jax3d.optimize import asset, engine
from jax3d.optimize.asset import AssetConfig
from jax3d.optimize.checkpoint import Checkpoints
from jax3d.optimize.engine import EngineConfig
from jax3d.optimize.stage import Task, as_stage
from jax3d.priors import schedulers
from jax3d.priors.empirical import EmpiricalData, condition, empirical
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Cond, Condition, Look, Prompt, Ramp

SIZE = 8
TRIPOSR = {
    "cond_image_size": 8,
    "image_tokenizer": {"pretrained_model_name_or_path": "facebook/dino-vitb16"},
    "tokenizer": {"plane_size": 2, "num_channels": 32},
    "backbone": {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1},
    "post_processor": {"out_channels": 2},
    "decoder": {"n_neurons": 4, "n_hidden_layers": 2, "activation": "silu"},
    "renderer": {
        "radius": 0.87,
        "feature_reduction": "concat",
        "density_activation": "exp",
        "density_bias": -1.0,
        "num_samples_per_ray": 4,
    },
}
OPENLRM = {
    "camera_embed_dim": 4,
    "transformer_dim": 8,
    "transformer_layers": 1,
    "transformer_heads": 2,
    "triplane_low_res": 2,
    "triplane_dim": 2,
    "rendering_samples_per_ray": 4,
    "encoder_type": "dinov2",
}
INSTANTMESH = {
    "transformer_dim": 8,
    "transformer_layers": 1,
    "transformer_heads": 2,
    "triplane_low_res": 2,
    "triplane_dim": 2,
    "rendering_samples_per_ray": 4,
    "grid_res": 4,
    "grid_scale": 2.1,
}
CAMERAS = orbit(jnp.array([0.3, 2.0]), jnp.array([0.2, 0.4]), 2.7, 0.7)
IMAGES = jax.random.uniform(jax.random.key(0), (4, SIZE, SIZE, 3))
COND = condition(1, 2)
COND = COND.replace(plain=COND.null, negative=Cond(COND.views.tokens[0]))


def second(prior_params, own, z_t, t, text, camera, told):
    """A second critic of three weights."""
    return own * z_t * told[:, None, None, None]


REPRESENTATIONS = {
    "triplane": triplane(
        TriplaneConfig(resolution=8, channels=2, levels=2, hidden=4, coarse=4, samples=4)
    ),
    "mlp": mlp(MlpConfig(frequencies=2, hidden=4, blocks=1, coarse=4, samples=4)),
    "grid": grid(GridConfig(resolution=6, beta=0.1, samples=6)),
    "nerstf": nerstf(NerstfConfig(hidden=4, layers=2, coarse=4, samples=4)),
    "gaussians": gaussians(
        GaussiansConfig(capacity=12, start=8, degree=1, normals=True, densify=Classical(every=1))
    ),
}
PRIORS = {
    "gaussian": (gaussian(SIZE), GaussianData(IMAGES[0], jnp.float32(0.1))),
    "empirical": (
        empirical(SIZE),
        EmpiricalData(IMAGES, orbit(jnp.arange(4.0), 0.2, 2.7, 0.7), jnp.array([0, 0, 1, 1])),
    ),
}
GUIDANCES = {
    "sds": sds,
    "sds-perp-neg": lambda p: sds(p, SDSConfig(ScoreConfig(view_words="perp-neg"))),
    "sds-recon": lambda p: sds(p, SDSConfig(ScoreConfig(weighting="recon", rescale=0.5))),
    "csd": csd,
    "nfsd": nfsd,
    "ism": ism,
    "hifa": hifa,
    "sdedit": lambda p: sdedit(p, SDEditConfig(steps=5)),
    "vsd": lambda p: vsd(p, SecondCritic(lambda key: jnp.ones(3), second)),
}


def feed_forward(design) -> Model:
    """A model of tiny sizes with random weights."""
    return lrm.model(design, lrm.split(drawn(lrm.abstract_params(design))), "tiny")


def sparse_sampler() -> Model:
    """TRELLIS of tiny sizes with random weights, told the length of a text."""
    structure, latent = trellis_networks.StructureFlowConfig, trellis_latents.LatentFlowConfig
    tiny = {"model_channels": 8, "cond_channels": 4, "num_blocks": 1, "num_heads": 2}
    io = {"in_channels": 2, "out_channels": 2}
    decoder = trellis_networks.StructureDecoderConfig(1, 2, 1, 0, (4, 4))
    last = trellis_latents.DecoderConfig(4, 8, 2, 2, 2, window_size=2)
    splats = trellis_gaussians.Splats(
        2, dict.fromkeys(trellis_gaussians.NUMBERS, 1.0), True, 1.5, 0.01, 0.1, 0.5, "softplus", 0.1
    )
    networks = {
        "sparse_structure_flow_model": (
            trellis_networks.StructureFlow(structure(2, **io, **tiny)),
            trellis_networks.abstract_structure_flow,
        ),
        "sparse_structure_decoder": (
            trellis_networks.StructureDecoder(decoder),
            trellis_networks.abstract_structure_decoder,
        ),
        "slat_flow_model": (
            trellis_latents.LatentFlow(
                latent(4, **io, **tiny, num_io_res_blocks=1, io_block_channels=(4,))
            ),
            trellis_latents.abstract_latent_flow,
        ),
        "slat_decoder_gs": (
            (trellis_latents.GaussianDecoder(last, 28), splats),
            trellis_gaussians.abstract_params,
        ),
    }
    params = {name: drawn(abstract(net)) for name, (net, abstract) in networks.items()}
    params |= {"mean": jnp.zeros(2), "std": jnp.ones(2)}

    def condition(prompt):
        told = jnp.sin(jnp.arange(4.0) + len(prompt.text))[None]
        return Condition(Cond(told), Cond(jnp.zeros_like(told)))

    first, second, third, (fourth, _) = (net for net, _ in networks.values())
    samplers = trellis.sampler(2, 5.0, (0.6, 1.0), 3.0), trellis.sampler(2, 5.0)
    design = trellis.Design(first, second, third, fourth, splats, *samplers, (64, 8))
    return trellis.model(design, params, trellis_prompts.Reader(condition, 4, "lengths"), "tiny")


def drawn(like):
    """Random weights."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), like)


def of_six_views(kind: str) -> Model:
    """InstantMesh of tiny sizes with random weights; a picture stands for all views."""
    config = {"model_config": {"target": kind, "params": INSTANTMESH}}
    design, lattice = instantmesh.design(config, encoder=ENCODER, side=8)
    # Fewer points than are good for renders, at which its networks of full width are asked.
    field = dataclasses.replace(design.field, lattice=8)
    variant = instantmesh.Variant(design._replace(field=field), lattice)
    params = instantmesh.split(drawn(instantmesh.abstract_params(variant)), variant)
    model = instantmesh.model(variant, params, "tiny")

    def condition(prompt):
        return model.condition(prompt._replace(image=np.stack([prompt.image[:8]] * 6)))

    return model._replace(condition=condition)


def native_sampler() -> Model:
    """Shap-E of tiny sizes with random weights, told the length of a text."""
    prior = prior_transformer.from_config(PRIOR)
    renderer = shap_e_renderer.from_config(RENDERER)
    renderer = renderer._replace(field=renderer.field.__class__(4, 2, coarse=4, samples=4))
    params = {
        "prior": drawn(prior_transformer.abstract_params(prior)),
        "renderer": shap_e_renderer.split(
            drawn(shap_e_renderer.abstract_params(renderer)), renderer
        ),
    }
    found = schedulers.sampler(HEUN, 3)
    sampling = shap_e.Sampling(found.grid, found.start, "x0", 1.0)
    nothing = np.zeros((cubes.CASES, cubes.SLOTS, 3), np.int32)
    tables = shap_e_renderer.Tables(nothing, nothing[..., 0] > 0)

    def condition(prompt):
        told = jnp.sin(jnp.arange(4.0) + len(prompt.text))[None]
        return Condition(Cond(told), Cond(jnp.zeros_like(told)))

    design = shap_e.Design(prior, sampling, renderer.field, tables)
    return shap_e.model(design, params, shap_e.Reader(condition, 4, "lengths", 4.0), "tiny")


PRIOR = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_layers": 1,
    "embedding_dim": 4,
    "num_embeddings": 8,
    "time_embed_dim": 8,
    "time_embed_act_fn": "gelu",
    "embedding_proj_dim": 4,
    "clip_embed_dim": 8,
    "norm_in_type": "layer",
}
RENDERER = {
    "d_latent": 4,
    "d_hidden": 4,
    "n_hidden_layers": 2,
    "insert_direction_at": 2,
    "param_names": ["nerstf.mlp.0.weight", "nerstf.mlp.1.weight"],
}
HEUN = {
    "_class_name": "HeunDiscreteScheduler",
    "beta_schedule": "exp",
    "num_train_timesteps": 64,
    "timestep_spacing": "linspace",
    "use_karras_sigmas": True,
}


def flow_sampler() -> Model:
    """Hunyuan3D of tiny sizes with random weights; its grid is rendered by few samples."""
    design = hunyuan3d_config.from_config(HUNYUAN3D, steps=4)
    field = hunyuan3d_shape.field(4, 2, resolution=6)
    field = dataclasses.replace(field, grid=dataclasses.replace(field.grid, samples=6, beta=0.1))
    design = design._replace(field=field)
    params = drawn(hunyuan3d_config.abstract_params(design))
    return hunyuan3d.model(design, params, hunyuan3d.reader(design, params["encoder"]), "tiny")


HUNYUAN3D = {
    "model": {
        "target": "Hunyuan3DDiT",
        "params": {
            "in_channels": 2,
            "context_in_dim": 4,
            "hidden_size": 8,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 0,
        },
    },
    "vae": {
        "target": "ShapeVAE",
        "params": {
            "num_latents": 4,
            "embed_dim": 2,
            "width": 8,
            "heads": 2,
            "num_decoder_layers": 0,
            "num_freqs": 0,
        },
    },
    "conditioner": {
        "target": "SingleImageEncoder",
        "params": {
            "main_image_encoder": {
                "type": "DinoImageEncoder",
                "kwargs": {
                    "image_size": 8,
                    "config": {
                        "hidden_size": 4,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "patch_size": 4,
                        "image_size": 8,
                        "mlp_ratio": 2,
                        "layer_norm_eps": 1e-6,
                    },
                },
            }
        },
    },
    "scheduler": {"target": "FlowMatchEulerDiscreteScheduler"},
    "image_processor": {"target": "ImageProcessorV2", "params": {"size": 8}},
}


ENCODER = DinoConfig(
    patch_size=4,
    grid=2,
    hidden_size=4,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
)
with tempfile.TemporaryDirectory() as _folder:
    NATIVE = props_native.open_model(write_native(Path(_folder) / "native.safetensors"), 3)
    RECONSTRUCTOR = props_lrm.open_model(write_lrm(Path(_folder) / "lrm.safetensors"), 3)
MODELS = {
    "toy": sampler(),
    "native": NATIVE._replace(
        condition=lambda prompt: NATIVE.condition(prompt._replace(image=None))
    ),
    "reconstructor": RECONSTRUCTOR,
    "triposr": feed_forward(triposr.design(TRIPOSR, encoder=ENCODER)),
    "openlrm": feed_forward(openlrm.design(OPENLRM, encoder=ENCODER)),
    "instantnerf": of_six_views("InstantNeRF"),
    "instantmesh": of_six_views("InstantMesh"),
    "shap_e": native_sampler(),
    "hunyuan3d": flow_sampler(),
    "trellis": sparse_sampler(),
}
PICTURES = np.random.default_rng(0).random((3, 9, 8, 4), np.float32)
PROMPTS = [
    Prompt(text, image=picture)
    for text, picture in zip(("a red chair", "a cat", "a blue mug"), PICTURES, strict=True)
]

# Models of one step are alike to the engine, and so are flows on latents; TRELLIS's own tests ask
# of it the same by one program.
slow_models = {"openlrm", "instantnerf", "instantmesh", "reconstructor", "hunyuan3d", "trellis"}
staged = pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=name, marks=[pytest.mark.slow] * (name in slow_models))
        for name, model in MODELS.items()
    ],
)
representations = pytest.mark.parametrize(
    "rep", REPRESENTATIONS.values(), ids=REPRESENTATIONS.keys()
)
# To an optimiser all fields are alike, and all priors: the default run has each with one of the
# others, which compile quickly.
optimised = [
    pytest.param(
        rep,
        *critic,
        id=f"{name}-{other}",
        marks=[pytest.mark.slow]
        * (name in ("grid", "nerstf", "gaussians") or (other != "gaussian" and name != "mlp")),
    )
    for name, rep in REPRESENTATIONS.items()
    for other, critic in PRIORS.items()
]
priors = pytest.mark.parametrize(("prior", "weights"), PRIORS.values(), ids=PRIORS.keys())
guidances = pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES.keys())


def assert_close(a, b, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol)


def assert_finite(tree):
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def assert_vmap_is_a_loop(f, batched, atol=1e-5):
    """`f` over the leading axis of its arguments, at once and one by one; one trace each."""
    at_once = jax.jit(jax.vmap(f))(*batched)
    single = jax.jit(f)
    count = len(jax.tree.leaves(batched)[0])
    each = [single(*jax.tree.map(lambda x, i=i: x[i], batched)) for i in range(count)]
    assert single._cache_size() == 1
    assert_close(at_once, stack(each), atol)
    assert_finite(at_once)
    return at_once


@representations
def test_representation(rep):
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.jit(jax.vmap(rep.init))(keys)
    x = jax.random.uniform(jax.random.key(1), (5, 3), minval=-rep.bound, maxval=rep.bound)

    def show(params, key):
        render = rep.render(params, key, CAMERAS, Look.albedo(), (SIZE, SIZE + 1))
        return render, rep.density(params, x), rep.color(params, x), rep.regularise(params)

    def gradient(params, key):
        def total(params):
            render, density, color, own = show(params, key)
            maps = (render.rgb, render.alpha, render.depth, render.normal, render.orient)
            return sum(jnp.mean(m) for m in (*maps, density, color)) + sum(own.values())

        return show(params, key), jax.grad(total)(params)

    (render, density, color, own), slope = assert_vmap_is_a_loop(gradient, (params, keys))
    pixels = (2, 2, SIZE, SIZE + 1)
    assert render.rgb.shape == render.normal.shape == (*pixels, 3)
    assert render.alpha.shape == render.depth.shape == render.orient.shape == pixels
    assert (density.shape, color.shape) == ((2, 5), (2, 5, 3))
    assert {value.shape for value in own.values()} <= {(2,)}
    assert {f"lambda_{name}" for name in own} <= set(knobs().__dataclass_fields__)
    for unit in (render.rgb, render.alpha, color):
        assert np.min(unit) >= -1e-6
        assert np.max(unit) <= 1 + 1e-5
    assert np.min(density) >= 0
    assert np.max(np.linalg.norm(render.normal, axis=-1)) <= 1 + 1e-5
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(slope))
    memory = jax.vmap(rep.memory)(params)
    taken = Taken(jnp.int32(0), jnp.float32(0.0), rep.rates(0.0))

    def adapt(params, slope, memory, key):
        return rep.adapt(params, slope, memory, slope, taken, key)

    adapted = assert_vmap_is_a_loop(adapt, (params, slope, memory, keys))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, slope, memory))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), adapted) == shapes
    assert set(rep.rates(0.5)) <= set(params)


@priors
def test_prior(prior, weights):
    keys = jax.random.split(jax.random.key(0), 3)
    rgb = jax.random.uniform(keys[0], (3, 2, SIZE, SIZE, 3))
    t = jax.random.randint(keys[1], (3, 2), 0, len(prior.alphas_cumprod))
    text = Cond(jnp.broadcast_to(COND.views.tokens[:2], (3, 2, 1, 6)))

    def judge(key, rgb, t, text):
        z, pull = jax.vjp(lambda rgb: prior.encode(weights, key, rgb), rgb)
        told = prior.denoise(weights, z, t, text, CAMERAS)
        untold = prior.denoise(weights, z, t, text, None)
        return z, pull(told), told, untold, prior.decode(weights, z)

    z, _, told, untold, decoded = assert_vmap_is_a_loop(judge, (keys, rgb, t, text))
    assert told.shape == untold.shape == z.shape
    assert decoded.shape == rgb.shape
    abar = np.asarray(prior.alphas_cumprod)
    assert np.all(np.diff(abar) < 0)
    assert abar[0] <= 1
    assert abar[-1] >= 0


@staged
def test_model(model):
    keys = jax.random.split(jax.random.key(0), 2)
    conds = stack([model.condition(PROMPTS[k]) for k in (0, 2)])
    numbers = stack([knobs(1, model_scale=3.0), knobs(2, model_scale=1.0)])
    numbers = stack([knobs(k, guidance_scale=g, model_scale=g) for k, g in ((1, 3.0), (2, 1.0))])

    def make(key, cond, knobs):
        z = model.begin(key, cond)
        first = model.advance(model.params, z, jnp.int32(0), cond, knobs)
        assert jax.tree.structure(first) == jax.tree.structure(z)
        z = jax.lax.fori_loop(
            1, model.steps, lambda i, z: model.advance(model.params, z, i, cond, knobs), first
        )
        params = model.decode(model.params, z)
        size = (SIZE, SIZE)
        return params, model.representation.render(params, None, CAMERAS, Look.albedo(), size)

    # Labels are sharpened by a power: random weights make the last digits of some cells large.
    params, render = assert_vmap_is_a_loop(make, (keys, conds, numbers), atol=2e-4)
    assert render.rgb.shape == (2, 2, SIZE, SIZE, 3)
    like = jax.eval_shape(model.representation.init, keys[0])
    assert jax.tree.structure(params) == jax.tree.structure(like)


@staged
def test_a_model_is_a_stage_that_can_be_stopped_at_any_step(model, tmp_path):
    conds = [model.condition(prompt) for prompt in PROMPTS]
    stage = as_stage(model)

    def made(indices, stop=lambda: False, **where):
        found = {}

        def keep(outcome):
            found[outcome.track.index] = (outcome.track.status, jax.tree.leaves(outcome.params))

        def task(k):
            return Task(conds[k], knobs(k, model_scale=2.0), (model.steps,))

        config = EngineConfig(block=2, slots=2)
        engine.run([stage], task, indices, keep, config=config, stop=stop, **where)
        return found

    together = made(range(3))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(engine.Interrupted):
        made(range(3), stop=lambda: True, checkpoints=checkpoints)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    resumed = made(range(3), checkpoints=checkpoints)
    checkpoints.close()
    for k in range(3):
        for other in (resumed, made([k])):
            assert together[k][0] == other[k][0] == "done"
            for a, b in zip(together[k][1], other[k][1], strict=True):
                np.testing.assert_array_equal(a, b)


@guidances
def test_guidance(guidance):
    prior, weights = PRIORS["empirical"]
    toy = pages(4, SIZE)
    keys = jax.random.split(jax.random.key(0), 2)
    numbers = stack([knobs(1, guidance_scale=3.0), knobs(2, t_max=Ramp.of(0.9, 0.5, steps=9))])

    made = guidance(prior)
    leaves, tree = jax.tree.flatten(weights)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def judge(key, knobs):
        render = toy.render(toy.init(key), None, CAMERAS, Look.albedo(), (SIZE, SIZE))
        own = None if made.init is None else made.init(key)

        def scalar(rgb, changed):
            both = dict(enumerate(leaves)) | dict(zip(floats, changed, strict=True))
            seen = shot(render.replace(rgb=rgb), CAMERAS, 3)
            return made.loss(tree.unflatten(both.values()), key, seen, COND, knobs, own)

        return jax.grad(scalar, argnums=(0, 1), has_aux=True)(
            render.rgb, [leaves[i] for i in floats]
        )

    (to_image, to_weights), metrics = assert_vmap_is_a_loop(judge, (keys, numbers))
    assert np.any(to_image != 0)
    assert all(np.all(leaf == 0) for leaf in to_weights)
    assert metrics["residual_norm"].shape == (2,)


@pytest.mark.parametrize(("rep", "prior", "weights"), optimised)
def test_a_sweep_of_knobs_is_one_program(rep, prior, weights):
    config = AssetConfig(views=2, camera=asset.CameraConfig())
    init, step = optimizer(rep, sds(prior), config)
    block = run_block(step, 2, SIZE)
    start = jax.jit(jax.vmap(init))
    conds = stack([COND, COND])
    for scale, t_max in [(1.0, 0.98), (30.0, Ramp.of(0.9, 0.5, begin=1, steps=1))]:
        numbers = stack([knobs(s, guidance_scale=scale, t_max=t_max) for s in (1, 2)])
        states, metrics = block(start(numbers), weights, conds, numbers)
        assert_finite((states, metrics))
        assert states.step.tolist() == [2, 2]
    assert block._cache_size() == 1
