"""The protocol of guidance: how a critic's opinion becomes a gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Guidance(NamedTuple):
    """A scalar whose gradient in the rendered image is the update that the critic asks for."""

    loss: Callable[..., Any]
    """`loss(prior_params, key, step, Render, Camera, Condition, Knobs, own=None) ->
    (scalar, metrics)`; `metrics` is a dict of scalars, among them `residual_norm`"""
    init: Callable[..., Any] | None = None
    """`init(key) -> own`, the weights that the guidance itself trains beside the asset, if any"""
