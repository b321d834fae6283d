"""Parity with official implementations on a folder of golden vectors.

    python benchmarks/parity_golden.py ROOT [--split dev] [--only SYSTEM ...]

ROOT holds a folder for each system, laid out as `ROOT/SYSTEM/SPLIT/...`: networks in the official
checkpoint layout and `.npz` files of inputs (`in_*`), intermediates (`mid_*`) and outputs. Every
array that is no input is compared; the table shows its greatest error beside its tolerance. The
exit code is 1 if an error is over its tolerance or an array has no check.
"""

import argparse
import gzip
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import parity_hunyuan3d
import parity_imagedream
import parity_instantmesh
import parity_lrm
import parity_shap_e
import parity_trellis
import parity_zero123
import parity_zero123plus
from parity_zero123 import nchw, nhwc
from rich.console import Console
from rich.table import Table

from jax3d import diffusion, prompts, weights
from jax3d.guidance import perp_neg, score
from jax3d.nn import clip_image, clip_text, tokenizer, unet, vae
from jax3d.priors import imagedream, ldm, mvdream, schedulers, zero123
from jax3d.render import splat
from jax3d.render.ewa import View
from jax3d.types import Camera, Cond, Gaussians

jax.config.update("jax_default_matmul_precision", "highest")

Arrays = dict[str, np.ndarray]


class Check(NamedTuple):
    """Our value of one array, and how near it must be."""

    ours: np.ndarray
    tolerance: float = 1e-4
    relative: bool = False
    """The tolerance is a fraction of the greatest value."""
    outliers: float | None = None
    """What half a percent of the errors may come to instead."""


Checks = dict[str, Check]


# Stable Diffusion.


def unet_added(io: Arrays, first: Arrays) -> unet.AddedConditions | None:
    """SDXL's added conditions; a file without them was made with the first ones of `unet_io`."""
    source = io if "in_added_text_embeds" in io else first
    if "in_added_text_embeds" not in source:
        return None
    n = len(io["in_sample"])
    return unet.AddedConditions(
        jnp.asarray(source["in_added_text_embeds"][:n]),
        jnp.asarray(source["in_added_time_ids"][:n], jnp.float32),
    )


def check_unet(folder: Path, io: Arrays, first: Arrays) -> Checks:
    """A UNet's output and whatever intermediates the file has."""
    net, params = unet.load(folder / "unet")

    @jax.jit
    def run(params, x, t, context, labels, added):
        return net.apply(
            {"params": params}, x, t, context, labels, added, capture_intermediates=True
        )

    labels = jnp.asarray(io["in_class_labels"]) if "in_class_labels" in io else None
    out, aside = run(
        params,
        nhwc(io["in_sample"]),
        jnp.asarray(io["in_timestep"]),
        jnp.asarray(io["in_encoder_hidden_states"]),
        labels,
        unet_added(io, first),
    )
    inside = aside["intermediates"]
    checks = {"out": Check(nchw(out))}
    width = net.block_out_channels[0]
    embed = partial(
        unet.timestep_embedding, flip_sin_to_cos=net.flip_sin_to_cos, freq_shift=net.freq_shift
    )
    checks["mid_time_proj"] = Check(np.asarray(embed(jnp.asarray(io["in_timestep"]), width)))
    checks["mid_time_embedding"] = Check(np.asarray(inside["time_embedding"]["__call__"][0]))
    checks["mid_conv_in"] = Check(nchw(inside["conv_in"]["__call__"][0]))
    for name, parts in inside.items():
        if match := re.fullmatch(r"(down|up)_blocks_(\d+)", name):
            value = parts["__call__"][0]
            value = value[0] if match[1] == "down" else value
            checks[f"mid_{match[1]}{match[2]}"] = Check(nchw(value))
    if "mid_block" in inside:
        checks["mid_mid"] = Check(nchw(inside["mid_block"]["__call__"][0]))
    first_block = inside["down_blocks_0"]["resnets_0"]
    checks["mid_resnet0_out"] = Check(nchw(first_block["__call__"][0]))
    attending = [n for n in sorted(inside) if "attentions_0" in inside[n] and "down" in n]
    if attending:
        attention = inside[attending[0]]["attentions_0"]
        checks["mid_attn0_out"] = Check(nchw(attention["__call__"][0]))
        block = attention["transformer_blocks_0"]
        for part in ("norm1", "attn1", "attn2", "ff"):
            checks[f"mid_tb0_{part}"] = Check(np.asarray(block[part]["__call__"][0]))
    return checks


def check_vae(folder: Path, io: Arrays) -> Checks:
    """An autoencoder's moments, insides and images."""
    coder, params = vae.load(folder / "vae")

    @jax.jit
    def encode(x):
        return coder.apply({"params": params}, x, method="encode", capture_intermediates=True)

    @jax.jit
    def decode(z):
        return coder.apply({"params": params}, z, method="decode")

    moments, aside = encode(nhwc(io["in_image"]))
    encoder = aside["intermediates"]["encoder"]
    mean, logvar = nchw(moments.mean), nchw(moments.logvar)
    raw = io["moments"] if "moments" in io else np.concatenate([mean, logvar], 1)
    clipped = np.concatenate([mean, logvar], 1)
    # The file's moments are before the clamp of logvar, ours after it.
    inside = np.abs(raw) <= 20
    return {
        "moments": Check(np.where(inside, clipped, raw)),
        "mean": Check(mean),
        "logvar": Check(logvar),
        "std": Check(np.exp(0.5 * logvar)),
        "mid_encoder_out": Check(nchw(encoder["__call__"][0])),
        "mid_encoder_mid": Check(nchw(encoder["mid_block"]["__call__"][0])),
        "mid_encoder_down0": Check(nchw(encoder["down_blocks_0"]["__call__"][0][0])),
        "decoded": Check(nchw(decode(nhwc(io["in_latents"])))),
        "scaling_factor": Check(np.asarray(coder.scaling_factor)),
    }


def check_text(folder: Path, io: Arrays) -> Checks:
    """A text tower's states."""
    tower, params = clip_text.load(folder)
    out = jax.jit(tower.apply)({"params": params}, jnp.asarray(io["in_input_ids"]))
    checks = {
        "last_hidden_state": Check(np.asarray(out.last_hidden_state)),
        "pooler_output": Check(np.asarray(out.pooled)),
        "hidden_minus2": Check(np.asarray(out.hidden_states[-2])),
    }
    checks |= {f"hidden{i}": Check(np.asarray(h)) for i, h in enumerate(out.hidden_states)}
    if out.text_embeds is not None:
        checks["text_embeds"] = Check(np.asarray(out.text_embeds))
    return checks


def predictor(folder: Path) -> Callable:
    """The UNet's raw output, in one compiled batch for all texts."""
    net, params = unet.load(folder / "unet")
    run = jax.jit(lambda x, t, c: net.apply({"params": params}, x, t, c))

    def predict(z_t, t, *texts):
        k = len(texts)
        t = jnp.broadcast_to(t, z_t.shape[:1])
        out = run(jnp.tile(z_t, (k, 1, 1, 1)), jnp.tile(t, k), jnp.concatenate(texts))
        return jnp.split(out, k)

    return predict


def check_sds(folder: Path, io: Arrays) -> Checks:
    """threestudio's score distillation; its files read the raw output as noise."""
    abar = schedulers.read(folder / "scheduler", False).alphas_cumprod
    z, noise = nhwc(io["in_latents"]), nhwc(io["in_noise"])
    t = jnp.asarray(io["in_t"], jnp.int32)
    z_t = diffusion.q_sample(abar, z, t, noise)
    texts = (jnp.asarray(io[f"in_emb_{c}"]) for c in ("cond", "uncond"))
    cond, uncond = predictor(folder)(z_t, t, *texts)
    checks = {
        "noisy": Check(nchw(z_t)),
        "alphas_cumprod": Check(np.asarray(abar), 1e-5),
        "eps_cond": Check(nchw(cond)),
        "eps_uncond": Check(nchw(uncond)),
    }
    scales = {m[1] for name in io if (m := re.match(r"noise_pred_\w+_gs([\d.]+)", name))}
    for scale in sorted(scales):
        standard = diffusion.cfg(uncond, cond, float(scale))
        # threestudio's form is the standard one at a scale greater by one.
        threestudio = diffusion.cfg(uncond, cond, float(scale) + 1)
        checks[f"noise_pred_cfg_gs{scale}"] = Check(nchw(standard), 1e-3, True)
        checks[f"noise_pred_ts_gs{scale}"] = Check(nchw(threestudio), 1e-3, True)
        for weighting in ("sds", "uniform", "fantasia3d"):
            gradient = score.weight(abar, t, weighting) * (threestudio - noise)
            checks[f"grad_gs{scale}_{weighting}"] = Check(nchw(gradient), 1e-3, True)
            value = 0.5 * jnp.sum(gradient**2) / len(z)
            checks[f"loss_{weighting}_gs{scale}"] = Check(np.asarray(value), 2e-3, True)
    return checks


def check_sds_image(folder: Path, io: Arrays) -> Checks:
    """The gradient of an image through the encoder, at threestudio's scale 100."""
    coder, params = vae.load(folder / "vae")
    abar = schedulers.read(folder / "scheduler", False).alphas_cumprod
    eps = nhwc(io["posterior_eps"])
    side = eps.shape[1] * 2 ** (len(coder.block_out_channels) - 1)

    def encode(image):
        rgb = jax.image.resize(image, (len(image), side, side, 3), "linear", antialias=False)
        moments = coder.apply({"params": params}, 2 * rgb - 1, method="encode")
        return coder.scale(moments.sample(eps))

    z, pullback = jax.jit(lambda x: jax.vjp(encode, x))(nhwc(io["in_image"]))
    noise, t = nhwc(io["in_noise"]), jnp.asarray(io["in_t"], jnp.int32)
    z_t = diffusion.q_sample(abar, z, t, noise)
    texts = jnp.split(jnp.asarray(io["in_cond_uncond"]), 2)
    cond, uncond = predictor(folder)(z_t, t, *texts)
    gradient = score.weight(abar, t, "sds") * (diffusion.cfg(uncond, cond, 101.0) - noise)
    gradient /= len(z)
    return {
        "latents": Check(nchw(z)),
        "grad_latents": Check(nchw(gradient), 1e-3, True),
        "loss": Check(np.asarray(0.5 * jnp.sum(gradient**2) * len(z)), 2e-3, True),
        "grad_image": Check(nchw(jax.jit(pullback)(gradient)[0]), 1e-3, True),
    }


def check_ddim(folder: Path, io: Arrays, scale: float) -> Checks:
    """A short guided DDIM trajectory."""
    config = weights.read_config(folder / "scheduler" / "scheduler_config.json")
    abar, prediction, _ = schedulers.read(folder / "scheduler", False)
    grid = diffusion.grid(
        abar,
        len(io["timesteps"]),
        spacing=config["timestep_spacing"],
        offset=config["steps_offset"],
        final_abar=1.0 if config["set_alpha_to_one"] else float(abar[0]),
    )
    predict = predictor(folder)
    z, trajectory = nhwc(io["in_x"]), []
    for i in range(len(grid.t)):
        at = jax.tree.map(lambda x, i=i: x[i], grid)
        uncond, cond = predict(z, at.t, jnp.asarray(io["in_uncond"]), jnp.asarray(io["in_cond"]))
        output = diffusion.cfg(uncond, cond, scale)
        x0, eps = diffusion.x0_and_eps(output, z, at.alpha, at.sigma, prediction)
        z = diffusion.ddim_step(x0, eps, at)
        trajectory.append(nchw(z))
    # Guidance makes latents of some tens.
    trajectory = Check(np.stack(trajectory), 1e-4, True)
    return {"timesteps": Check(np.asarray(grid.t), 0), "traj": trajectory}


def check_stable_diffusion(split: Path, path: Path, io: Arrays) -> Checks:
    """Any file of an SD folder, by its name."""
    name = path.stem
    if match := re.fullmatch(r"ddim\d+_cfg([\d.]+)", name):
        return check_ddim(split, io, float(match[1]))
    if match := re.fullmatch(r"(text_encoder\w*)_io", name):
        return check_text(split / match[1], io)
    match name:
        case "sds":
            return check_sds(split, io)
        case "sds_image_grad":
            return check_sds_image(split, io)
        case "vae_io":
            return check_vae(split, io)
    if name.startswith("unet"):
        main = split / "unet_io.npz"
        return check_unet(split, io, read(main) if main.exists() else {})
    return {}


# MVDream.


def check_mvdream(split: Path, path: Path, io: Arrays) -> Checks:
    """The multi-view UNet and the tables of cameras."""
    return check_cameras(io) if path.stem == "cameras" else check_view_unet(split, io)


def check_cameras(io: Arrays) -> Checks:
    """Poses of orbits; a file's names tell the angles."""
    checks = {}
    for name in io:
        match = re.fullmatch(r"camera_(noblender_)?el(-?[\d.]+)_az(-?[\d.]+)_n(\d+)", name)
        if match is None:
            continue
        elevation, azimuth = np.radians(float(match[2])), np.radians(float(match[3]))
        ours = mvdream.orbit_vectors(int(match[4]), elevation, azimuth)
        if match[1]:  # back to axes with +y up
            turn = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
            ours = (turn @ ours.reshape(-1, 4, 4)).reshape(-1, 16)
        checks[name] = Check(ours, 1e-5)
    return checks


def check_view_unet(split: Path, io: Arrays) -> Checks:
    """The network with joint attention, without it, and without cameras."""
    config = weights.read_config(split / "unet" / "config.json")
    file = weights.find_weights(split / "unet", "diffusion_pytorch_model")
    net = unet.from_config(ldm.unet_config(config)).clone(views=int(io["num_frames"]))
    renamed = ldm.unet_names(weights.load(file), config["num_res_blocks"])
    params = weights.to_flax(renamed, unet.abstract_params(net), file)
    x, t = nhwc(io["in_x"]), jnp.asarray(io["in_timesteps"])
    context, camera = jnp.asarray(io["in_context"]), jnp.asarray(io["in_camera"])

    def run(net, camera):
        return jax.jit(partial(net.apply, capture_intermediates=True))(
            {"params": params}, x, t, context, camera
        )

    out, aside = run(net, camera)
    inside, layers = aside["intermediates"], net.layers_per_block
    checks = {
        "out": Check(nchw(out), 2e-4),
        "out_num_frames1": Check(nchw(run(net.clone(views=1), camera)[0]), 2e-4),
        "out_no_camera": Check(nchw(run(net, None)[0]), 2e-4),
        "mid_time_embed": Check(np.asarray(inside["time_embedding"]["__call__"][0])),
        "mid_camera_embed": Check(np.asarray(inside["class_embedding"]["__call__"][0])),
        "mid_middle": Check(nchw(inside["mid_block"]["__call__"][0]), 2e-4),
        "num_frames": Check(np.asarray(net.views), 0),
    }
    for name in io:
        if match := re.fullmatch(r"mid_(in|outb)(\d+)", name):
            value = ldm_block(inside, match[1], int(match[2]), layers)
            checks[name] = Check(nchw(value), 2e-4)
    return checks


def ldm_block(inside, way: str, block: int, layers: int):
    """The output of a block by its number in the original code."""
    if way == "in" and block == 0:
        return inside["conv_in"]["__call__"][0]
    level, index = divmod(block - (way == "in"), layers + 1)
    parts = inside[f"{'down' if way == 'in' else 'up'}_blocks_{level}"]
    last = index == layers
    names = ["downsamplers_0"] if way == "in" and last else []
    names += ["upsamplers_0"] if way == "outb" and last else []
    names += [f"attentions_{index}", f"resnets_{index}"]
    return next(parts[name]["__call__"][0] for name in names if name in parts)


# Schedulers.


def check_scheduler(split: Path, path: Path, io: Arrays) -> Checks:
    """Every step of a sampler on given network outputs."""
    config = weights.read_config(path.parent / "scheduler" / "scheduler_config.json")
    abar = schedulers.alphas_cumprod(config)
    outputs = nhwc(io["in_model_outputs"])
    pndm = config["_class_name"] == "PNDMScheduler"
    sampler = schedulers.sampler(config, len(outputs) - pndm)
    # diffusers' Euler schedulers hold z / alpha.
    ratio = "Euler" in config["_class_name"]
    hard = bool(config.get("rescale_betas_zero_snr")) or config.get("timestep_type") == "continuous"
    near = partial(Check, tolerance=1e-4 if hard else 1e-5, relative=True)
    t = np.asarray(sampler.grid.t)
    t = np.r_[t[:2], t[1:]] if pndm else t  # its second timestep is visited twice
    ends = np.r_[
        np.asarray(sampler.grid.sigma / sampler.grid.alpha, np.float64),
        float(sampler.grid.next_sigma[-1] / sampler.grid.next_alpha[-1]),
    ]
    betas = 1 - np.asarray(abar, np.float64) / np.r_[1.0, np.asarray(abar, np.float64)[:-1]]
    checks = {
        "timesteps": near(t),
        "init_noise_sigma": near(
            np.asarray(sampler.start / (sampler.grid.alpha[0] if ratio else 1.0))
        ),
        "alphas_cumprod": near(np.asarray(abar)),
        "betas": Check(betas, 1e-4),
        "sigmas": near(ends),
    }
    if "addnoise_t" in io:
        at = jnp.asarray(io["addnoise_t"], jnp.int32)
        clean, noise = nhwc(io["addnoise_x0"]), nhwc(io["addnoise_noise"])
        checks["addnoise_out"] = near(nchw(diffusion.q_sample(abar, clean, at, noise)))
        checks["velocity_out"] = near(nchw(diffusion.velocity(abar, clean, at, noise)))
    kind = schedulers.prediction(config)
    if sampler.stochastic:
        checks |= walk(sampler, kind, outputs, io, 1.0, "in_noises", "prev_samples", ratio, near)
    else:
        checks |= follow(sampler, kind, outputs, io, ratio, near)
    for name in io:
        if match := re.fullmatch(r"eta(\d)(\d+)_prev", name):
            eta = float(f"{match[1]}.{match[2]}")
            noises = name.replace("_prev", "_noises")
            checks[name] = walk(sampler, kind, outputs, io, eta, noises, name, ratio, near)[name]
    return checks


def chosen(sampler) -> dict[str, object]:
    """The settings that a sampler was made with."""
    return getattr(sampler.sample, "keywords", {})


def bounds_of(sampler) -> dict[str, object]:
    """Those of them that bound estimates of the clean sample."""
    return {k: v for k, v in chosen(sampler).items() if k in ("clip", "keep_eps")}


def follow(sampler, kind, outputs, io: Arrays, ratio: bool, near) -> Checks:
    """Runs a deterministic sampler with its network replaced by the given outputs."""
    seen, queue = [], iter(outputs)

    def denoise(z, t):
        seen.append(z)
        return next(queue)

    with jax.disable_jit():
        last = sampler.sample(denoise, nhwc(io["scaled_inputs"][0]), sampler.grid, prediction=kind)
    z, after = jnp.stack(seen), jnp.stack([*seen[1:], last])
    if len(z) > len(sampler.grid.t):
        return {"scaled_inputs": near(nchw(z)), "prev_samples": near(nchw(after))}
    grid = jax.tree.map(lambda x: x[:, None, None, None, None], sampler.grid)
    rows = [jax.tree.map(lambda x, i=i: x[i], sampler.grid) for i in range(len(z))]
    bounds = bounds_of(sampler)
    x0 = jnp.stack(
        [
            diffusion.estimate(output, z, at, kind, **bounds)[0]
            for output, z, at in zip(outputs, z, rows, strict=True)
        ]
    )
    return {
        "scaled_inputs": near(nchw(z)),
        "prev_samples": near(nchw(after / grid.next_alpha if ratio else after)),
        "pred_x0": near(nchw(x0)),
    }


def walk(sampler, kind, outputs, io, eta, noises, name, ratio: bool, near) -> Checks:
    """Runs a sampler step by step on given outputs and noise."""
    bounds, large = bounds_of(sampler), chosen(sampler).get("large", False)
    z, seen, after, clean = nhwc(io["scaled_inputs"][0]), [], [], []
    for i, noise in enumerate(nhwc(io[noises])):
        at = jax.tree.map(lambda x, i=i: x[i], sampler.grid)
        x0, eps = diffusion.estimate(outputs[i], z, at, kind, **bounds)
        seen.append(z)
        z = diffusion.ddim_step(x0, eps, at, eta, noise, large)
        clean.append(x0)
        after.append(z / at.next_alpha if ratio else z)
    return {
        "scaled_inputs": near(nchw(jnp.stack(seen))),
        name: near(nchw(jnp.stack(after))),
        "pred_x0": near(nchw(jnp.stack(clean))),
    }


# Guidance.


def check_guidance(split: Path, path: Path, io: Arrays) -> Checks:
    """View-dependent prompts, perp-neg, VSD, SJC, HiFA and Zero123's camera, by threestudio."""
    camera = Camera(
        jnp.broadcast_to(jnp.eye(4), (len(io["in_azimuth"]), 4, 4)),
        jnp.ones(len(io["in_azimuth"])),
        jnp.radians(io["in_azimuth"]),
        jnp.radians(io["in_elevation"]),
        jnp.asarray(io["in_distance"]),
    )
    words = Cond(jnp.asarray(io["in_text_embeddings_vd_side_front_back_overhead"]))
    views = len(camera.azimuth)
    null = jnp.repeat(jnp.asarray(io["in_uncond"]), views, 0)
    plain = jnp.repeat(jnp.asarray(io["in_text_embeddings"]), views, 0)
    chosen = prompts.hard_weights(camera)
    told = prompts.select(words, chosen).tokens
    positive, negatives, push = perp_neg.wordings(camera)
    asked = prompts.select(words, positive).tokens
    away = prompts.select(words, negatives).tokens
    # Overhead views have no negatives; threestudio fills in the null text at weight zero.
    away = jnp.where((push == 0).all(-1)[:, None, None, None], null[:, None], away)
    flat_away = away.reshape(-1, *away.shape[2:])
    ce, ca, da, d = (float(x) for x in io["zero123_ref"])
    reference = camera.replace(
        azimuth=jnp.radians(ca), elevation=jnp.radians(ce), radius=jnp.asarray(da)
    )
    relative = zero123.relative_pose(camera.replace(radius=jnp.full(views, d)), reference)
    checks = {
        "direction_idx": Check(np.argmax(chosen, -1), 0),
        "text_embeddings_vd": Check(np.concatenate([told, null])),
        "text_embeddings_novd": Check(np.concatenate([plain, null])),
        "perpneg_embeddings": Check(np.concatenate([asked, null, flat_away])),
        "perpneg_weights": Check(np.asarray(push)),
        "zero123_T": Check(np.asarray(relative)),
    }
    sel = io["sel"]
    texts = (told[sel], null[sel], asked[sel], away[sel, 0], away[sel, 1])
    root = path.parents[2]
    return checks | check_scores(root / "sd15" / path.parent.name, root, io, texts, push[sel])


def check_scores(sd15: Path, root: Path, io: Arrays, texts, push) -> Checks:
    """The parts that ask a network: perp-neg, VSD, SJC, HiFA."""
    abar = schedulers.read(sd15 / "scheduler", False).alphas_cumprod
    z, noise = nhwc(io["in_latents"]), nhwc(io["in_noise"])
    t = jnp.asarray(io["in_t"], jnp.int32)
    z_t = diffusion.q_sample(abar, z, t, noise)
    alpha, sigma = diffusion.noise_level(abar, t, z.ndim)
    told, null, asked, *away = texts
    # threestudio gives the n-th negative of a batch of B the latents n mod B, whosever text it is;
    # the vectors hold what follows from that, which for a batch of 1 is right.
    n = jnp.arange(2 * len(z)) % len(z)
    flat = jnp.stack(away, axis=1).reshape(-1, *told.shape[1:])
    predict = predictor(sd15)
    told, null, asked = predict(z_t, t, told, null, asked)
    (away,) = predict(z_t[n], t[n], flat)
    away = away.reshape(len(z), 2, *z.shape[1:])
    eps_hat = perp_neg.combine(null, asked, away, push, 100.0)
    weight = score.weight(abar, t, "sds")
    pretrained = diffusion.cfg(null, told, 7.5)
    ratio = sigma / alpha
    near = partial(Check, tolerance=1e-3, relative=True)
    checks = {
        "perpneg_noise_pred": near(nchw(eps_hat)),
        "perpneg_grad_gs100": near(nchw(weight * (eps_hat - noise))),
        "latents_denoised": near(nchw(diffusion.x0_and_eps(eps_hat, z_t, alpha, sigma, "eps")[0])),
        "perp_example": near(
            nchw(perp_neg.perpendicular(away - null[:, None], (asked - null)[:, None])[:, 0])
        ),
        "vsd_pretrain_cfg7p5": near(nchw(pretrained)),
        "sjc_us": near(np.asarray(ratio).ravel()),
        "sjc_scaled_zs": near(nchw((z + ratio * noise) / jnp.sqrt(1 + ratio**2))),
    }
    estimate = lora_estimate(sd15, root, io, z_t, t)
    if estimate is not None:
        checks["vsd_est_raw"] = near(nchw(estimate))
    for name in io:
        if match := re.fullmatch(r"vsd_grad_(eps|v)_gl([\d.]+)", name):
            raw = nhwc(io["vsd_est_raw"]) if estimate is None else estimate
            with_camera, without = (
                diffusion.x0_and_eps(half, z_t, alpha, sigma, match[1])[1]
                for half in jnp.split(raw, 2)
            )
            learnt = diffusion.cfg(without, with_camera, float(match[2]))
            checks[name] = near(nchw(weight * (pretrained - learnt)))
    return checks


def lora_estimate(sd15: Path, root: Path, io: Arrays, z_t, t):
    """VSD's second network, whose weights follow from a seed that the README tells."""
    readme = root / "guidance" / "README.txt"
    seed = re.search(r"seed (\d+)", readme.read_text()) if readme.exists() else None
    if seed is None:
        return None
    config = weights.read_config(sd15 / "unet" / "config.json")
    config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    net = unet.from_config(config)
    width = 4 * net.block_out_channels[0]
    shapes = {
        name: tensor.shape
        for name, tensor in weights.load(
            weights.find_weights(sd15 / "unet", "diffusion_pytorch_model")
        ).items()
    } | {
        "class_embedding.linear_1.weight": (width, 16),
        "class_embedding.linear_1.bias": (width,),
        "class_embedding.linear_2.weight": (width, width),
        "class_embedding.linear_2.bias": (width,),
    }
    sys.path.insert(0, str(root))
    recipe = __import__("weights_recipe").weight
    flat = {name: recipe(int(seed[1]), name, shape, f16=True) for name, shape in shapes.items()}
    params = weights.to_flax(flat, unet.abstract_params(net), "the recipe")
    text = jnp.asarray(io["in_vsd_text"])
    camera = jnp.asarray(io["in_vsd_camera"])

    def twice(x):
        return jnp.concatenate([x, x])

    labels = jnp.concatenate([camera, jnp.zeros_like(camera)])
    return jax.jit(net.apply)({"params": params}, twice(z_t), twice(t), twice(text), labels)


# Gaussians.


def check_splats(system: Path, split: str) -> dict[Path, tuple[Arrays, Checks]]:
    """Projection, pictures and gradients, by the fast path and by the reference."""
    found = {}
    for path in sorted((system / split).rglob("*.npz")):
        io = read(path)
        meta = json.loads(str(io.pop("meta")))
        for show in (splat.splat, splat.splat_reference):
            found[path / show.__name__] = io, check_scene(show, io, meta)
    return found


def check_scene(show: Callable, io: Arrays, meta: dict) -> Checks:
    """One scene by one renderer."""
    size = (meta["height"], meta["width"])
    config = splat.SplatConfig(
        antialiased=meta["antialiased"], blur=meta["eps2d"], near=meta["near"]
    )
    names = ("means", "quats", "scales", "opacities", "sh")
    scene = Gaussians(*(jnp.asarray(io[f"in_{name}"]) for name in names))
    view = View(jnp.asarray(io["in_viewmats"]), jnp.asarray(io["in_Ks"]))
    near = partial(Check, tolerance=2e-4)

    def total(scene, viewmats):
        out = show(scene, View(viewmats, view.intrinsics), size, config)
        rgb = out.rgb + (1 - out.alpha)[..., None] * io["in_background"]
        pictures = {"rgb": rgb, "alpha": out.alpha, "depth": out.depth}
        return sum(jnp.vdot(x, io[f"in_dL_{k}"]) for k, x in pictures.items()), pictures

    slopes, pictures = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(scene, view.viewmats)
    prints = splat.footprints(scene, view, size, config)
    slopes = zip((*names, "viewmats"), jax.tree.leaves(slopes), strict=True)
    projected = ("means2d", "conics", "depths", "compensations")
    return (
        {name: near(np.asarray(x)) for name, x in pictures.items()}
        | {name: near(np.asarray(getattr(prints, name))) for name in projected}
        | {"sh_rgb": near(np.asarray(prints.rgb)), "radii": Check(np.asarray(prints.radii), 0)}
        | {f"grad_{name}": Check(np.asarray(x), 1e-3, True) for name, x in slopes}
    )


# Tokenizer and manifests.


def check_tokens(system: Path, split: str) -> dict[Path, tuple[Arrays, Checks]]:
    """Token ids of every string."""
    path = system / f"{split}.json"
    if not path.exists():
        return {}
    golden = json.loads(path.read_text())
    ids = tokenizer.load(system / "tokenizer").ids(golden["strings"])
    long = tokenizer.load(system / "tokenizer", 4096).ids(golden["strings"])
    whole = [row[: len(u)] for row, u in zip(long, golden["untruncated"], strict=True)]
    arrays = {
        "input_ids": np.array(golden["input_ids"]),
        "untruncated": np.concatenate(golden["untruncated"]),
    }
    checks = {"input_ids": Check(ids, 0), "untruncated": Check(np.concatenate(whole), 0)}
    if "attention_mask" in golden:
        # The end token closes the text; what comes after it is padding.
        length = np.argmax(ids == ids.max(), axis=-1) + 1
        arrays["attention_mask"] = np.array(golden["attention_mask"])
        checks["attention_mask"] = Check(np.arange(ids.shape[1]) < length[:, None], 0)
    return {path: (arrays, checks)}


MANIFESTS = {
    "sd15_unet": "unet",
    "sd21_unet": "unet",
    "sdxl_unet": "unet",
    "sd_vae": "vae",
    "mvdream_unet": "views",
    "imagedream_unet": "views of a picture",
    "zero123_unet": "unet",
    "clip_vit_h14_vision_proj": "vision",
    "clip_vit_l_text": "text",
    "clip_vit_h_text_sd21": "text",
    "clip_bigG_text_proj": "text",
    "openlrm_small": "openlrm",
    "openlrm_base": "openlrm",
    "openlrm_large": "openlrm",
    "shap_e_prior": "shap_e",
    "shap_e_img2img_prior": "shap_e",
    "shap_e_renderer": "shap_e",
    "clip_vit_l14_vision_proj": "vision",
}


def check_manifests(system: Path) -> dict[Path, tuple[Arrays, Checks]]:
    """Full-size checkpoints: do their names and shapes fit the networks?"""
    found = {}
    for name, kind in MANIFESTS.items():
        path = system / f"{name}.json.gz"
        if not path.exists():
            continue
        manifest = json.loads(gzip.decompress(path.read_bytes()))
        config = manifest["config"]
        shapes = {k: tuple(shape) for k, (shape, _) in manifest["keys"].items()}
        flat = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
        if kind == "shap_e":
            found[path] = misfits_of(path, *parity_shap_e.full(name, config, flat))
        else:
            found[path] = misfits_of(path, *network_of(kind, config, flat))
    path = system / "triposr_keys.json"
    if path.exists():
        shapes = {k: tuple(shape) for k, (shape, _) in json.loads(path.read_text()).items()}
        found[path] = misfits_of(path, *parity_lrm.full_triposr(shapes))
    return found


def misfits_of(path: Path, like, flat: Arrays) -> tuple[Arrays, Checks]:
    """Whether the tensors of a manifest fit a parameter tree; what does not is printed."""
    try:
        weights.demand_fit(flat, like, path)
        misfits = 0
    except weights.WeightsError as error:
        print(error)
        misfits = 1
    return {"misfits": np.array(0)}, {"misfits": Check(np.array(misfits), 0)}


def network_of(kind: str, config: dict, flat: Arrays) -> tuple[object, Arrays]:
    """The parameter tree that a manifest is for, and its tensors under our names."""
    match kind:
        case "vae":
            return vae.abstract_params(vae.from_config(config)), vae.rename(flat)
        case "text":
            projects = any(name.startswith("text_projection") for name in flat)
            config["architectures"] = ["CLIPTextModel" + "WithProjection" * projects]
            return clip_text.abstract_params(clip_text.from_config(config)), clip_text.rename(flat)
        case "openlrm":
            return parity_lrm.full_openlrm(config["cfg"], flat)
        case "vision":
            config["architectures"] = ["CLIPVisionModelWithProjection"]
            return clip_image.abstract_params(clip_image.from_config(config)), flat
        case "views of a picture":
            return imagedream.fitting(flat, config, "the list")[2:]
        case "views":
            flat = ldm.unet_names(flat, config["num_res_blocks"])
            config = ldm.unet_config(config)
    return unet.abstract_params(unet.from_config(config)), flat


# The walk.


def theirs(check: Callable[[Path, Path, Arrays], dict[str, tuple]]):
    """A check of a module of its own, which gives the fields of a `Check` by name."""
    return lambda split, path, io: {k: Check(*v) for k, v in check(split, path, io).items()}


SYSTEMS: dict[str, Callable[[Path, Path, Arrays], Checks]] = {
    "sd15": check_stable_diffusion,
    "sd21": check_stable_diffusion,
    "sdxl": check_stable_diffusion,
    "mvdream": check_mvdream,
    "schedulers": check_scheduler,
    "guidance": check_guidance,
    "openlrm": theirs(parity_lrm.check_openlrm),
    "triposr": theirs(parity_lrm.check_triposr),
    "instantmesh": theirs(parity_instantmesh.check),
    "shap_e": theirs(parity_shap_e.check),
    "imagedream": theirs(parity_imagedream.check),
    "zero123": theirs(parity_zero123.check),
    "zero123plus": theirs(parity_zero123plus.check),
    "hunyuan3d2": theirs(parity_hunyuan3d.check),
    "trellis_ss_flow": theirs(parity_trellis.check_structure),
    "trellis_slat": theirs(parity_trellis.check_latents),
}
INPUTS = re.compile(
    r"in_.*|sds_(noise|t)|lat_z|addnoise_(x0|noise|t)|eta\d+_noises|sel|zero123_ref"
    r"|posterior_eps|num_frames"
    r"|render_(cameras|noise_.*)|crop_anchors|points|query_points|cam_fovy_deg"
    r"|noise_(stratified|pmf|importance|pdf)|fc_sdf_used|q_pos|grid_size|mesh_sdf_bias_added"
    r"|vae_(in_latents|queries)|shift"
    r"|dec_in|W|steps|rescale_t|cfg_(strength|interval)"
)


def read(path: Path) -> Arrays:
    """All arrays of a file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def walk_system(root: Path, name: str, split: str) -> dict[Path, tuple[Arrays, Checks]]:
    """Every file of a system with its arrays and what we make of them."""
    system = root / name
    if name == "clip_tokenizer":
        return check_tokens(system, split)
    if name == "manifests":
        return check_manifests(system)
    if name == "gaussians":
        return check_splats(system, split)
    found = {}
    for path in sorted((system / split).rglob("*.npz")):
        io = read(path)
        found[path] = io, SYSTEMS[name](system / split, path, io)
    return found


def error_of(theirs: np.ndarray, check: Check) -> float:
    """The greatest difference, absolute or as a fraction of the greatest value."""
    ours, theirs = np.asarray(check.ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    errors = np.abs(ours - theirs)
    worst = float(np.max(errors, initial=0.0))
    if check.outliers is not None and worst <= check.outliers:
        worst = float(np.quantile(errors, 0.995))
    worst = float("inf") if np.isnan(worst) else worst
    return (
        worst / max(float(np.max(np.abs(theirs), initial=0.0)), 1e-30) if check.relative else worst
    )


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--only", nargs="+", default=None, metavar="SYSTEM")
    args = parser.parse_args()
    known = [*SYSTEMS, "clip_tokenizer", "manifests", "gaussians"]
    names = args.only or [n for n in known if (args.root / n).is_dir()]
    if unknown := [name for name in names if name not in known]:
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        return 2
    console, failures, total = Console(width=110), 0, 0
    for name in names:
        table = Table("file", "array", "error", "tolerance", "", title=name)
        for path, (arrays, checks) in walk_system(args.root, name, args.split).items():
            label = str(path.relative_to(args.root))
            for array, theirs in arrays.items():
                if INPUTS.fullmatch(array):
                    continue
                total += 1
                if array not in checks:
                    table.add_row(label, array, "", "", "[red]NO CHECK")
                    failures += 1
                    continue
                check = checks[array]
                error = error_of(theirs, check)
                over = not error <= check.tolerance
                failures += over
                unit = " of max" if check.relative else ""
                verdict = "[red]OVER" if over else "ok"
                table.add_row(label, array, f"{error:.1e}", f"{check.tolerance:g}{unit}", verdict)
        console.print(table)
        if not table.rows:
            console.print(f"[red]{name}: nothing found for split {args.split}")
            failures += 1
    console.print(f"{total} arrays, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
