"""The protocol of guidance: how an opinion about pictures becomes a gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from jax3d.knobs import Knobs
from jax3d.types import Camera, Condition, Key, Look, Params, Render


class Shot(NamedTuple):
    """One step's pictures of one asset, and how they were taken."""

    step: Any
    """int32 []: steps that the asset has taken."""
    camera: Camera
    look: Look
    render: Render
    key: Key | None = None
    """By which the term drew the cameras: who knows them by number draws again."""

    @property
    def rgb(self) -> Float[Array, "v H W 3"]:
        """The pictures over what the representation has learnt to put behind it, or the look's
        background."""
        learned = self.render.background
        return self.render.over(self.look.background if learned is None else learned)


Metrics = dict[str, Float[Array, ""]]


class Guidance(NamedTuple):
    """A scalar whose gradient in the pictures is the update that is asked for."""

    loss: Callable[[Params, Key, Shot, Condition, Knobs, Params], tuple[Array, Metrics]]
    """`loss(shared, key, Shot, Condition, Knobs, own) -> (scalar, metrics)`; `shared` are frozen
    weights, `own` is what `init` made"""
    init: Callable[[Key], Params] | None = None
    """`init(key) -> own`: the weights that the guidance itself trains beside the asset. Its loss
    then holds a part that depends on these alone"""


class Term(NamedTuple):
    """One of the opinions that a step sums: some cameras, a look, and who judges the pictures."""

    cameras: Callable[[Key, Condition], Camera]
    """`cameras(key, Condition) -> Camera[v]`"""
    look: Callable[[Key, Any, Camera, Knobs], Look]
    """`look(key, step, Camera[v], Knobs) -> Look`"""
    guidance: Guidance
    weight: Callable[[Knobs], Any]
    """`weight(Knobs) -> Ramp`: what the opinion counts; what a guidance trains of its own learns at
    its own pace"""


def focus(guidance: Guidance, name: str) -> Guidance:
    """The same guidance where several critics judge at once: weights and conditions by name."""

    def loss(shared, key, shot, cond, knobs, own):
        return guidance.loss(shared[name], key, shot, cond[name], knobs, own)

    return guidance._replace(loss=loss)


@jax.custom_vjp
def scale_gradient(x: Float[Array, "..."], scale: Float[Array, ""]) -> Float[Array, "..."]:
    """`x` itself, through which gradients pass `scale` times as large."""
    del scale
    return x


def _forward(x, scale):
    return x, scale


def _backward(scale, cotangent):
    return cotangent * scale, None


scale_gradient.defvjp(_forward, _backward)
