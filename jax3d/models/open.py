"""Opening a model that makes assets by itself: looks at what is there, hands it to its module."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from jax3d import hub
from jax3d.bounds import Text
from jax3d.models import (
    hunyuan3d,
    instantmesh,
    openlrm,
    props_lrm,
    props_native,
    shap_e,
    trellis,
    triposr,
)
from jax3d.models.base import Model
from jax3d.models.viewed import viewed
from jax3d.priors import zero123plus
from jax3d.priors.base import Critic

_SYSTEMS = (instantmesh, props_lrm, props_native, triposr, openlrm, shap_e, hunyuan3d, trellis)
"""Each has `recognises(path)` and `open(path, dtype)`; the first to recognise a path opens it."""

_KNOWN = (
    'known are "embedded"; a .safetensors file with its .json beside, as `jax3d train native` '
    "and `jax3d train lrm` write it; a folder of TripoSR (config.yaml, model.ckpt); one of OpenLRM "
    "(config.json, model.safetensors); one of Shap-E in diffusers' layout (prior/, "
    "shap_e_renderer/); one of Hunyuan3D 2 (hunyuan3d-dit-*: config.yaml, "
    "model.fp16.safetensors); one of TRELLIS (pipeline.json, ckpts/); and a checkpoint of "
    "InstantMesh (instant_nerf_*.ckpt, instant_mesh_*.ckpt)"
)

_FETCHED = ("*.json", "*.yaml", "*.txt", "*.safetensors", "*.ckpt", "*.bin")


@dataclass(frozen=True)
class DiskConfig:
    """A model from disk in a recipe, whose `field` is that of the model."""

    path: Text
    """As `open_model` takes it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of its weights and arithmetic."""
    views: Text = ""
    """A folder of Zero123++, for a model that reads the six views which that draws of a picture."""

    asks_critic: ClassVar[bool] = False

    def build(self, critic: Critic | None) -> Model:
        """Opens it, once; raises `ValueError` as `open_model` does."""
        del critic
        return _opened(self)


@lru_cache(1)
def _opened(config: DiskConfig) -> Model:
    # A command looks at the model's field before the recipe is opened, and weights may be large.
    if not config.views:
        return open_model(config.path, config.dtype)
    folder = hub.find(config.views, _FETCHED, "the views are drawn by Zero123++")
    if not zero123plus.recognises(folder):
        raise ValueError(f"{config.views}: no folder of Zero123++, which draws the views")
    drawer = zero123plus.open(folder, jnp.dtype(config.dtype))
    return viewed(drawer, open_model(config.path, config.dtype))


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
