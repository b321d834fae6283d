"""Opening a critic, whatever its kind: looks at what is there and hands it to the right module."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jax3d import hub
from jax3d.priors import (
    deepfloyd,
    embedded,
    imagedream,
    mvdream,
    stable_diffusion,
    zero123,
    zero123plus,
)
from jax3d.priors.base import Critic

_SYSTEMS = (embedded, zero123, imagedream, stable_diffusion, mvdream, deepfloyd)
"""Each has `recognises(path)` and `open(path, dtype)`; the first to recognise a path opens it."""

_KNOWN = (
    'known are "embedded"; a .safetensors file with its .json beside, as `jax3d train prior` '
    "writes it; folders in diffusers' layout of Stable Diffusion 1, 2 and XL (unet/, vae/, "
    "text_encoder/, tokenizer/, scheduler/), of MVDream (the same, its unet/ a "
    "MultiViewUNetModel), of ImageDream (MVDream's with image_encoder/), of Zero123 "
    "(image_encoder/, clip_camera_projection/) and of pixel-space critics (no vae/); and "
    "MVDream's original checkpoint (.pt, .ckpt or .safetensors), by itself or alone in a folder"
)

FETCHED = ("*.json", "*.txt", "*.safetensors", "*.pt")
"""What the hub is asked for."""


def open_critic(path: str | Path = "embedded", dtype: Any = jnp.float32) -> Critic:
    """The critic at `path`; `Critic.name` says what was found.

    Args:
      path: "embedded", a file, a folder, or `owner/name` on the Hugging Face hub.
      dtype: of a large critic's weights and arithmetic, such as `jnp.bfloat16`; norms, softmax and
        the autoencoder are float32 always, and so is the embedded critic.

    Raises:
      ValueError: nothing is there, nothing known is there, or a file of it is missing, damaged
        or does not fit.
    """
    if path == "embedded":
        return embedded.open()
    found = hub.find(str(path), FETCHED, _KNOWN)
    if zero123plus.recognises(found):
        raise ValueError(f"{path}: Zero123++ draws views and judges none; `jax3d views` asks it")
    for system in _SYSTEMS:
        if system.recognises(found):
            return system.open(found, jnp.dtype(dtype))
    kind = None if found.is_file() else stable_diffusion.unet_class(found)
    described = f"its unet/config.json describes a {kind}" if kind else "no critic that is known"
    raise ValueError(f"{path}: {described}; {_KNOWN}")
