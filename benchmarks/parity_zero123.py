"""The checks of `parity_golden.py` for Zero-1-to-3, a critic of a given picture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from parity_shap_e import Arrays, Checks, check_image_encoder

from jax3d import camera as cameras
from jax3d import diffusion, weights
from jax3d.nn import clip_image, vae
from jax3d.priors import zero123
from jax3d.types import Camera, Cond

LOOP = 1e-3
"""Of the four steps, whose values reach 4; the rest is within 2e-4."""


def nhwc(x) -> jnp.ndarray:
    """Channels last."""
    return jnp.moveaxis(jnp.asarray(x), -3, -1)


def nchw(x) -> np.ndarray:
    """Channels first."""
    return np.moveaxis(np.asarray(x), -1, -3)


def moved(io: Arrays, elevation: float = 0.0) -> tuple[Camera, Camera]:
    """The views that the vectors ask for, and the picture's, `elevation` degrees up."""
    lift, turn = np.radians(io["in_elevation_deg"]), np.radians(io["in_azimuth_deg"])
    height = np.radians(elevation)
    # The pipeline counts polar angles, from above.
    camera = cameras.orbit(turn, height - lift, 2.0 + io["in_distance"], 0.8)
    return camera, cameras.orbit(np.zeros(2), np.full(2, height), 2.0, 0.8)


def check(split: Path, path: Path, io: Arrays) -> Checks:
    """Every array of the vectors."""
    del path
    critic = zero123.open(split)
    params, both = critic.params, [slice(0, 2), slice(2, 4)]
    camera, reference = moved(io)
    tower, tower_params = clip_image.load(split / "image_encoder")
    coder, coder_params = vae.load(split / "vae")
    eye = zero123.Eye(tower, tower_params, coder, coder_params, 32)
    pixels = nhwc(io["in_clip_pixels"]) * jnp.array(clip_image.STD) + jnp.array(clip_image.MEAN)
    tokens, latents = jax.jit(lambda p, c: zero123.embedded(eye, p, c))(
        pixels, nhwc(io["in_image"])
    )
    told = Cond(
        jnp.concatenate([jnp.zeros_like(tokens), tokens]),
        image=jnp.concatenate([jnp.zeros_like(latents), latents]),
        source=jax.tree.map(lambda x: jnp.concatenate([x, x]), reference),
    )
    cameras_twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), camera)

    @jax.jit
    def eps_of(z, t):
        twice, times = jnp.concatenate([z, z]), jnp.broadcast_to(t, (4,))
        return critic.prior.denoise(params, twice, times, told, cameras_twice)

    found = check_image_encoder(split, io)
    found["image_latents_unscaled"] = (nchw(latents), 2e-4)
    found["camera_vec"] = (np.asarray(zero123.relative_pose(camera, reference)), 1e-6)
    stable = zero123.absolute_pose(*moved(io, -5.0))
    found["stable_camera_vec_defel5"] = (np.asarray(stable), 1e-6)
    projection = params["unet"]["projection"]["proj"]
    for name, pose in (("cond", found["camera_vec"][0]), ("stable_cond", np.asarray(stable))):
        joined = jnp.concatenate([tokens[:, 0], pose], -1)
        token = np.asarray(joined @ projection["kernel"] + projection["bias"])[:, None]
        found[f"{name}_tokens"] = (token, 2e-4)
    token = found.pop("cond_tokens")[0]
    found["cond_tokens_cfg"] = (np.concatenate([np.zeros_like(token), token]), 2e-4)
    z = nhwc(io["in_latents"])
    joined = jnp.concatenate([jnp.concatenate([z, z]), told.image], -1)
    found["unet_in"] = (nchw(joined), 2e-4)
    eps = eps_of(z, jnp.asarray(io["in_t"]))
    found["eps"] = (nchw(eps), 2e-4)
    found |= _stepped(split, critic, io, eps, eps_of, coder, coder_params)
    noised = diffusion.q_sample(
        critic.prior.alphas_cumprod, z, jnp.asarray(io["sds_t"]), nhwc(io["sds_noise"])
    )
    found["sds_noisy"] = (nchw(noised), 2e-4)
    eps = jax.jit(critic.prior.denoise)(
        params, jnp.concatenate([noised] * 2), jnp.tile(io["sds_t"], 2), told, cameras_twice
    )
    null, cond = (eps[each] for each in both)
    abar = critic.prior.alphas_cumprod[io["sds_t"]][:, None, None, None]
    residual = (1 - abar) * (diffusion.cfg(null, cond, 5.0) - nhwc(io["sds_noise"]))
    found["sds_grad_gs5"] = (nchw(residual), 2e-4)
    return found


def _stepped(split: Path, critic, io: Arrays, eps, eps_of, coder, coder_params) -> Checks:
    """One step of DDIM, a short loop, and what it decodes to."""
    abar = critic.prior.alphas_cumprod
    config = weights.read_config(split / "scheduler" / "scheduler_config.json")

    def grid(steps):
        spacing, offset = config["timestep_spacing"], config["steps_offset"]
        return diffusion.grid(
            abar, steps, spacing=spacing, offset=offset, final_abar=float(abar[0])
        )

    def step(z, eps, at):
        x0, eps = diffusion.x0_and_eps(
            diffusion.cfg(*jnp.split(eps, 2), 3.0), z, at.alpha, at.sigma, "eps"
        )
        return diffusion.ddim_step(x0, eps, at)

    z = nhwc(io["in_latents"])
    at = jax.tree.map(lambda x: x[3], grid(10))
    found = {"cfg3_prev_of_10steps_idx3": (nchw(step(z, eps, at)), LOOP)}
    trajectory, short = [], grid(4)
    for i in range(4):
        at = jax.tree.map(lambda x, i=i: x[i], short)
        z = step(z, eps_of(z, at.t), at)
        trajectory.append(nchw(z))
    found["traj4"] = (np.stack(trajectory), 4 * LOOP)
    decoded = coder.apply({"params": coder_params}, coder.unscale(z), method="decode")
    found["decoded"] = (nchw(decoded), LOOP)
    return found
