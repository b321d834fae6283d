"""Opening a model that makes assets by itself: looks at what is there, hands it to its module."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jax3d import hub
from jax3d.models import openlrm, props_native, shap_e, triposr
from jax3d.models.base import Model

_SYSTEMS = (props_native, triposr, openlrm, shap_e)
"""Each has `recognises(path)` and `open(path, dtype)`; the first to recognise a path opens it."""

_KNOWN = (
    'known are "embedded"; a .safetensors file with its .json beside, as `jax3d train native` '
    "writes it; a folder of TripoSR (config.yaml, model.ckpt); one of OpenLRM (config.json, "
    "model.safetensors); and one of Shap-E in diffusers' layout (prior/, shap_e_renderer/)"
)

_FETCHED = ("*.json", "*.yaml", "*.txt", "*.safetensors", "*.ckpt", "*.bin")


def open_model(path: str | Path = "embedded", dtype: Any = jnp.float32) -> Model:
    """The model at `path`; `Model.name` says what was found.

    Args:
      path: "embedded", a file, a folder, or `owner/name` on the Hugging Face hub.
      dtype: of a large model's weights and arithmetic, such as `jnp.bfloat16`; norms, softmax and
        the assets are float32 always, and so is the embedded model.

    Raises:
      ValueError: nothing is there, nothing known is there, or a file of it is missing, damaged
        or does not fit.
    """
    if path == "embedded":
        return props_native.open()
    found = hub.find(str(path), _FETCHED, _KNOWN)
    for system in _SYSTEMS:
        if system.recognises(found):
            return system.open(found, jnp.dtype(dtype))
    raise ValueError(f"{path}: no model that is known; {_KNOWN}")
