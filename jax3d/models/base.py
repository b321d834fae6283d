"""The protocol of a model that makes an asset by itself, in one pass or by sampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from jax3d.fields.base import Representation
from jax3d.knobs import Knobs
from jax3d.types import Key, Params, Prompt

Latent = Any
"""A pytree of arrays: what a sampler carries from step to step."""


class Model(NamedTuple):
    """A feed-forward model or a native 3D sampler; `optimize.stage.as_stage` puts it into a recipe.

    Functions of one asset, pure but for `condition`; batch them with `vmap`.
    """

    field: Any
    """A config of `fields/` whose `build()` is `representation`."""
    representation: Representation
    """Of what `decode` makes."""
    params: Params
    """Frozen weights."""
    condition: Callable[[Prompt], Any]
    """`condition(prompt) -> cond`, a pytree of arrays, on the host; raises `ValueError` for a
    prompt that it cannot read"""
    begin: Callable[[Key, Any], Latent]
    """`begin(key, cond) -> z`, where sampling starts"""
    advance: Callable[[Params, Latent, Any, Any, Knobs], Latent]
    """`advance(params, z, i, cond, Knobs) -> z`: step i, int32 from 0; the whole model, for a model
    of one pass"""
    steps: int
    """Steps from `begin` to `decode`."""
    decode: Callable[[Params, Latent], Params]
    """`decode(params, z) -> parameters` of the representation"""
    name: str
    """What it is and where it came from, for people"""
    digest: str
    """Of its weights and their types: two models with one digest make the same assets"""
    show: Callable[[Latent], Array] | None = None
    """`show(z) -> [n, H, W, 3]`, the pictures that it works from, sRGB in [0, 1]; None where there
    are none"""
    scale: float = 1.0
    """Of guidance (`knobs.model_scale`), as its authors take it"""
