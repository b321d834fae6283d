"""Shap-E's golden vectors, for `parity_golden.py`.

What its networks say of points is asked of the asset that ours leave, in our frame, and turned
back. Its pictures follow by our renderer's two passes, with the file's draws and with the limits of
rays as the original has them, which adds 1e-6 to each component of a direction: at the highest
frequency, 2^14 a metre, that is seen. Mesh colours are asked at the file's vertices for the same
reason. Each check is a value of ours, a tolerance, whether that is relative, and how far the
greatest half percent of errors may go instead, if further.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from jax3d import camera as cameras
from jax3d import diffusion, weights
from jax3d.fields import nerstf
from jax3d.image import srgb_to_linear
from jax3d.knobs import KnobValues
from jax3d.models import shap_e, shap_e_renderer
from jax3d.nn import clip_image, clip_text, prior_transformer
from jax3d.priors import schedulers
from jax3d.render import shading
from jax3d.types import Cond, Condition, Look

Arrays = dict[str, np.ndarray]
Checks = dict[str, tuple]

PRIOR, POINTS = 2e-4, 5e-3
PICTURES = (5e-3, False, 2e-2)
TURN = np.array(shap_e_renderer.TURN)
STEPS, SCALE = 5, 4.0
"""Of the trajectory."""


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Text, networks, sampler, points, pictures and mesh."""
    del path
    design, params = shap_e.load(split, steps=STEPS)
    checks = check_networks(split, io) | check_sampler(split, io, design, params)
    latents = jnp.asarray(io["traj"][-1, 0])
    made = jax.jit(shap_e_renderer.matrices)(params["renderer"]["made"], latents)
    for k, matrix in enumerate(made):
        checks[f"proj_nerstf.mlp.{k}.weight"] = (np.asarray(matrix.T)[None], 1e-4)
    asset = jax.jit(shap_e_renderer.decode)(params["renderer"], latents)
    checks |= check_points(asset, io) | check_pictures(asset, io)
    return checks | check_mesh(asset, design.tables, io)


def check_networks(split: Path, io: Arrays) -> Checks:
    """The text tower, its embedding as the prior is told it, and both priors."""
    tower, params = clip_text.load(split / "text_encoder")
    found = jax.jit(tower.apply)({"params": params}, jnp.asarray(io["in_input_ids"])).text_embeds
    unit = found / jnp.linalg.norm(found, axis=-1, keepdims=True)
    told = np.concatenate([np.zeros_like(found), unit * found.shape[1] ** 0.5])
    out, layers = prior_of(split / "prior", io["in_x"], io["in_t"], told[:, None])
    pictured, _ = prior_of(
        split / "prior_img2img", io["in_x"], io["in_img2img_t"], io["in_img2img_tokens"]
    )
    return {
        "text_embeds": (np.asarray(found), 1e-4),
        "proj_embedding_cfg": (told, 1e-4),
        "mid_time_embedding": (shown(layers, "time_embedding"), PRIOR),
        "mid_norm_in": (shown(layers, "norm_in"), PRIOR),
        "mid_block0": (shown(layers, "transformer_blocks_0"), PRIOR),
        "prior_out": (out, PRIOR),
        "prior_img2img_out": (pictured, PRIOR),
    }


def prior_of(folder: Path, x, t, told):
    """A prior's output and its layers'."""
    net, params = prior_transformer.load(folder)
    run = jax.jit(partial(net.apply, capture_intermediates=True))
    t = jnp.full(len(x), float(t))
    out, aside = run({"params": params}, jnp.asarray(x), t, jnp.asarray(told))
    return np.asarray(out), aside["intermediates"]


def shown(layers, name: str) -> np.ndarray:
    """The output of a layer."""
    return np.asarray(layers[name]["__call__"][0])


def check_sampler(split: Path, io: Arrays, design, params) -> Checks:
    """The levels of the sampler, and every step of the model with guidance."""
    config = weights.read_config(split / "scheduler" / "scheduler_config.json")
    checks = {"alphas_cumprod": (np.asarray(schedulers.alphas_cumprod(config)), 1e-5, True)}
    for steps in (5, 25):
        grid = schedulers.sampler(config, steps).grid
        t = np.asarray(grid.t)
        ratios = np.append(np.asarray(grid.sigma / grid.alpha), 0.0)
        checks[f"sched{steps}_timesteps"] = (np.r_[t[:1], np.repeat(t[1:], 2)], 1e-5, True)
        ratios = np.r_[ratios[:1], np.repeat(ratios[1:-1], 2), ratios[-1:]]
        checks[f"sched{steps}_sigmas"] = (ratios, 1e-5, True)
    model = shap_e.model(design, params, shap_e.Reader(None, 0, ""), "")
    null, plain = (Cond(jnp.asarray(x)[None]) for x in io["proj_embedding_cfg"])
    knobs = KnobValues(model_scale=(SCALE,)).traced(0, model.steps)
    advance = jax.jit(model.advance)
    grid, path = design.sampling.grid, []
    # Theirs is z / alpha.
    z = diffusion.heun_start(jnp.asarray(io["in_latents0"][0]) * grid.alpha[0])
    for i in range(model.steps):
        z = advance(params, z, jnp.int32(i), Condition(plain, null), knobs)
        path.append(np.asarray(z.z / grid.next_alpha[i // 2])[None])
    return checks | {"traj": (np.stack(path), 1e-4, True)}


def check_points(asset, io: Arrays) -> Checks:
    """The heads of the network, and what it reads of a point."""
    x = io["q_pos"][0]
    raw = jax.jit(nerstf.outputs)(asset, jnp.asarray(x @ TURN.T, jnp.float32))[None]
    read = nerstf.encode(jnp.asarray(x[: io["q_posenc"].shape[1]]))[None]
    density, rgb = jax.nn.relu, jax.nn.sigmoid
    coarse, fine = nerstf.COARSE_DENSITY, nerstf.DENSITY
    return {
        "q_posenc": (np.asarray(read), 1e-3),
        "q_coarse_density": (density(raw[..., coarse, None]), POINTS),
        "q_fine_density": (density(raw[..., fine, None]), POINTS),
        "q_coarse_rgb": (rgb(raw[..., nerstf.COARSE_RGB]), POINTS),
        "q_fine_rgb": (rgb(raw[..., nerstf.RGB]), POINTS),
        "q_sdf": (np.tanh(raw[..., nerstf.SDF, None]), POINTS),
        "q_stf_rgb": (rgb(raw[..., nerstf.TEXTURE]), POINTS),
    }


def check_pictures(asset, io: Arrays) -> Checks:
    """The first of the authors' cameras as cameras of ours, and what they see."""
    views, size = io["images"].shape[:2]
    # Their outermost pixels' centres stand at the edges of the field of view, 0.7 rad.
    fovy = 2 * np.arctan(np.tan(0.35) * size / (size - 1))
    camera = cameras.orbit(-np.linspace(0, 2 * np.pi, 20)[:views], np.arctan(0.5), 4.0, fovy)
    rays = jax.tree.map(lambda a: a.reshape(-1, 3), cameras.rays(camera, (size, size)))
    # In float32 like theirs: at 2^14 a metre it is seen.
    theirs = np.stack([rays.origins, rays.directions], axis=1) @ TURN.astype(np.float32)
    near, far = limits(theirs[:, 0], theirs[:, 1])
    draws = nerstf.Draws(
        *(
            jnp.asarray(io[f"noise_{name}"].reshape(-1, io[f"noise_{name}"].shape[1 - lead]))
            for name, lead in (("stratified", -1), ("pmf", 0), ("importance", -1))
        )
    )
    draws = jax.tree.map(lambda a: a[: len(near)], draws)
    look = shading.per_ray(Look.albedo(), rays)
    seen = jax.jit(nerstf.march)(asset, rays, near, far, look, draws)
    over_white = seen["rgb"] + 1 - seen["alpha"][:, None]
    some = io["rays"].shape[1]
    return {
        "rays": (theirs[None, :some], 1e-5),
        "images": (np.asarray(over_white).reshape(io["images"].shape), *PICTURES),
    }


def limits(o, d):
    """Where rays enter and leave the cube; equal where they miss it."""
    safe = np.where(d < 0, d - np.float32(1e-6), d + np.float32(1e-6))
    first, second = (-1 - o) / safe, (1 - o) / safe
    near = np.maximum(np.minimum(first, second).max(-1), 0)
    far = np.maximum(first, second).min(-1)
    hit = near + 1e-3 < far
    return tuple(jnp.asarray(np.where(hit, x, 0), jnp.float32) for x in (near, far))


def check_mesh(asset, tables, io: Arrays) -> Checks:
    """Faces as they are; of the vertices, how far ours are, and their colours in linear light."""
    mesh = shap_e_renderer.mesh(asset, tables, int(io["grid_size"]))
    theirs = io["mesh_verts"]
    nearest = cKDTree(mesh.vertices @ TURN).query(theirs)[1]
    vertices = (mesh.vertices @ TURN)[nearest]
    colors = jax.jit(nerstf.texture)(asset, jnp.asarray(theirs @ TURN.T, jnp.float32))
    linear = srgb_to_linear(colors)
    checks = {f"mesh_{c}": (linear[:, k], POINTS) for k, c in enumerate("RGB")}
    return checks | {"mesh_verts": (vertices, 1e-2), "mesh_faces": (mesh.faces, 0)}


# CLIP's encoder of pictures, by Zero-1-to-3's vectors.


def check_image_encoder(split: Path, io: Arrays) -> Checks:
    """Its hidden states and its embedding."""
    tower, params = clip_image.load(split / "image_encoder")
    pixels = jnp.asarray(np.moveaxis(io["in_clip_pixels"], 1, -1))
    out = jax.jit(tower.apply)({"params": params}, pixels)
    return {
        "clip_image_embeds": (np.asarray(out.image_embeds), 1e-4),
        "clip_last_hidden": (np.asarray(out.last_hidden_state), 1e-4),
        "clip_hidden_minus2": (np.asarray(out.hidden_states[-2]), 1e-4),
    }


# Full-size checkpoints.


def full(name: str, config: dict | None, flat: Arrays) -> tuple[object, Arrays]:
    """The parameters that a manifest is of, and its tensors under our names."""
    if name == "shap_e_renderer":
        renderer = shap_e_renderer.from_config(RENDERER)
        return shap_e_renderer.abstract_params(renderer), shap_e_renderer.rename(flat)
    prior = prior_transformer.from_config(config)
    return prior_transformer.abstract_params(prior), prior_transformer.rename(flat)


RENDERER = {
    "d_latent": 1024,
    "d_hidden": 256,
    "n_hidden_layers": 6,
    "insert_direction_at": 4,
    "param_names": [f"nerstf.mlp.{k}.weight" for k in range(4)],
}
"""The released renderer's settings, which its list of names does not have."""
