"""Text-to-image critics of pixels: the first stage of DeepFloyd IF (64x64), and networks like it.

Such a critic reads T5 embeddings. No T5 tower is here; embeddings come from a file that holds
them by text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jax3d import weights
from jax3d.diffusion import Prediction, noise_level, x0_and_eps
from jax3d.nn import unet as unets
from jax3d.nn.unet import UNet2DConditionModel
from jax3d.priors import schedulers
from jax3d.priors.base import Critic, Prior
from jax3d.priors.stable_diffusion import condition_of, digest, unet_class
from jax3d.types import Camera, Cond, Condition, Prompt

EMBEDDINGS = "prompt_embeds.safetensors"


def pixel_prior(
    unet: UNet2DConditionModel,
    alphas_cumprod: Float[Array, " T"],
    prediction: Prediction,
) -> Prior:
    """A critic of images in [-1, 1]; its weights are `{"unet": ...}`.

    Output channels beyond the image's (the learnt variance) are left out, cameras ignored.
    """

    def encode(params, key, rgb: Float[Array, "v H W 3"]) -> Float[Array, "v H W 3"]:
        del params, key
        return 2 * rgb - 1

    def decode(params, z: Float[Array, "v H W 3"]) -> Float[Array, "v H W 3"]:
        del params
        return jnp.clip(0.5 * z + 0.5, 0.0, 1.0)

    def denoise(
        params,
        z_t: Float[Array, "b H W 3"],
        t: Num[Array, " b"],
        text: Cond,
        camera: Camera | None,
    ) -> Float[Array, "b H W 3"]:
        del camera
        output = unet.apply({"params": params["unet"]}, z_t, t, text.tokens)
        alpha, sigma = noise_level(alphas_cumprod, t, z_t.ndim)
        return x0_and_eps(output[..., : z_t.shape[-1]], z_t, alpha, sigma, prediction)[1]

    return Prior(encode, decode, denoise, alphas_cumprod, unet.sample_size, reads_camera=False)


def embeddings_from_file(path: str | Path) -> Callable[[Prompt], Condition]:
    """`condition(Prompt) -> Condition` from a file of ready embeddings.

    Args:
      path: safetensors whose names are texts and whose arrays are `[l, d]`, all of one shape.
        Needed are the prompt, the prompt worded for each view and the negative text, which by
        default is empty; as no name may be empty, it is called `<empty>`.

    Raises:
      WeightsError: missing or damaged file.
    """
    known = weights.load_safetensors(path)

    def embed_texts(texts: list[str]) -> Cond:
        names = [text or "<empty>" for text in texts]
        if lost := [name for name in names if name not in known]:
            raise ValueError(f"{path} lacks T5 embeddings of: {'; '.join(map(repr, lost))}")
        return Cond(jnp.asarray(np.stack([known[n] for n in names]), jnp.float32))

    return condition_of(embed_texts)


def recognises(folder: Path) -> bool:
    """Whether it is a folder in diffusers' layout with a UNet and no autoencoder."""
    return not (folder / "vae").is_dir() and unet_class(folder) == "UNet2DConditionModel"


def open(folder: Path, dtype: Any = jnp.float32) -> Critic:
    """The pixel-space critic of a folder; `dtype` is of weights and arithmetic.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    net, net_params = unets.load(folder / "unet", dtype)
    if net.in_channels != 3 or net.out_channels not in (3, 6):
        raise weights.WeightsError(
            f"{folder}: the UNet takes {net.in_channels} channels and gives {net.out_channels}; "
            "pixel-space critics take 3 and give 3, or 6 with a variance (upscalers are told a "
            "picture beside the text and are not supported)"
        )
    schedule = schedulers.read(folder / "scheduler", bounded=True)
    params = {"unet": net_params}
    return Critic(
        pixel_prior(net, schedule.alphas_cumprod, schedule.prediction),
        params,
        embeddings_from_file(folder / EMBEDDINGS),
        f"pixel-space critic, {net.sample_size} px, {schedule.prediction}-prediction, "
        f"from {folder}",
        digest(params, (), schedule, net),
        schedule.sampler,
    )
