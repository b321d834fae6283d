"""The protocol of a 2D critic: pure functions, with its weights as an argument."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float


class Prior(NamedTuple):
    """A frozen diffusion model as score distillation sees it.

    z are the model's own pixels or latents, channels last. `denoise` always returns the noise
    estimate eps, whatever the network predicts.
    """

    encode: Callable[..., Any]
    """`encode(params, key, rgb[v, H, W, 3] in [0, 1]) -> z[v, h, w, c]`, differentiable"""
    decode: Callable[..., Any]
    """`decode(params, z) -> rgb`"""
    denoise: Callable[..., Any]
    """`denoise(params, z_t[b, h, w, c], t[b] int, TextCond[b], Camera[b] | None) -> eps`"""
    alphas_cumprod: Float[Array, " T"]
    """abar_t of the variance-preserving process, descending from 1 to 0"""
    size: int
    """Side of the images that `encode` takes, pixels"""
    views: int = 1
    """Views that `denoise` looks at together: consecutive ones in its batch"""
    reads_camera: bool = True
    """Whether `denoise` looks at the camera"""


class Critic(NamedTuple):
    """A prior with its weights and its own way of reading text."""

    prior: Prior
    params: Any
    encode_text: Callable[..., Any]
    """`encode_text(prompt, negative) -> Condition`; raises `ValueError` for a text that it cannot
    read"""
    name: str
    """What it is and where it came from, for people"""
