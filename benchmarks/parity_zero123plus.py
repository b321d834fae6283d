"""The checks of `parity_golden.py` for Zero123++, which draws six views of a picture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from parity_shap_e import Arrays, Checks
from parity_zero123 import nchw, nhwc

from jax3d import weights
from jax3d.nn import clip_image, clip_text, unet
from jax3d.priors import schedulers, zero123plus


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Every array of the vectors."""
    del path
    return _tokens(split, io) | _schedule(split, io) | _denoised(split, io) | _scales(io)


def _tokens(split: Path, io: Arrays) -> Checks:
    tower, params = clip_text.load(split / "text_encoder")
    text = tower.apply({"params": params}, jnp.asarray(io["in_input_ids"])).last_hidden_state
    eye, eye_params = clip_image.load(split / "vision_encoder")
    seen = eye.apply({"params": eye_params}, nhwc(io["in_clip_pixels"])).image_embeds[:, None]
    ramp = weights.read_config(split / "model_index.json")["ramping_coefficients"]
    told = text + jnp.asarray(ramp, jnp.float32)[:, None] * seen
    return {
        "text_hidden": (np.asarray(text), 2e-4),
        "global_embed": (np.asarray(seen), 2e-4),
        "ramp": (np.asarray(ramp, np.float32), 1e-7),
        "encoder_hidden_states": (np.asarray(told), 2e-4),
        "prompt_cfg": (np.concatenate([text, told]), 2e-4),
    }


def _schedule(split: Path, io: Arrays) -> Checks:
    config = weights.read_config(split / "scheduler" / "scheduler_config.json")
    # The vectors' own schedule is the config's; scripts, and we, take trailing timesteps.
    grid = schedulers.sampler(config, len(io["timesteps"])).grid
    ratios = np.append(grid.sigma / grid.alpha, 0.0)
    at = int(np.argmin(np.abs(np.asarray(grid.t) - float(io["t"]))))
    alpha, sigma = grid.alpha[at], grid.sigma[at]
    pictures = jnp.concatenate([nhwc(io["in_neg_lat"]), nhwc(io["in_cond_lat"])])
    noised = alpha * pictures + sigma * nhwc(io["in_noise"])
    return {
        "sigmas": (ratios, 1e-4),
        "timesteps": (np.asarray(grid.t), 1e-3),
        "t": (np.asarray(grid.t[at]), 1e-3),
        # Samples are held divided by alpha; what the network sees is ours.
        "noisy_cond_scaled": (nchw(noised), 2e-4),
        "noisy_cond": (nchw(noised / alpha), 2e-4),
        "unet_in_scaled": (nchw(jnp.tile(nhwc(io["in_x"]) * alpha, (2, 1, 1, 1))), 2e-4),
    }


def _denoised(split: Path, io: Arrays) -> Checks:
    net, params = unet.load(split / "unet")
    t, z = jnp.asarray(io["t"]), nhwc(io["unet_in_scaled"])
    seen, tokens = nhwc(io["noisy_cond_scaled"]), jnp.asarray(io["prompt_cfg"])

    @jax.jit
    def run(z, tokens, seen):
        return zero123plus.denoise(net, params, z, t, tokens, seen)

    plain = jax.jit(net.apply)({"params": params}, z, jnp.full(len(z), t), tokens)
    out = run(z, tokens, seen)
    alone = run(z[:1], tokens[1:], seen[1:])
    return {
        "out": (nchw(out), 2e-4),
        "out_plain_unet": (nchw(plain), 2e-4),
        "out_is_cfg_guidance": (nchw(jnp.concatenate([plain[:1], alone])), 2e-4),
        "out_nocfg": (nchw(alone), 2e-4),
    }


def _scales(io: Arrays) -> Checks:
    names = {"scale_latents": zero123plus.scaled_latents, "scale_image": zero123plus.scaled_image}
    names |= {
        "unscale_latents": zero123plus.unscaled_latents,
        "unscale_image": zero123plus.unscaled_image,
    }
    return {name: (f(io["lat_z"]), 1e-6) for name, f in names.items()}
