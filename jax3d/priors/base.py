"""The protocol of a 2D critic: pure functions, with its weights as an argument."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jax3d.priors.schedulers import Sampler
from jax3d.types import Condition, Prompt


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
    """`denoise(params, z_t[b, h, w, c], t[b], Cond[b], Camera[b] | None) -> eps`; t are whole, save
    where the critic's own `sampler` says otherwise"""
    alphas_cumprod: Float[Array, " T"]
    """abar_t of the variance-preserving process, descending from 1 to 0"""
    size: int
    """Side of the images that `encode` takes, pixels"""
    views: int = 1
    """Views that `denoise` looks at together: consecutive ones in its batch"""
    reads_camera: bool = True
    """Whether `denoise` looks at the camera"""


class Critic(NamedTuple):
    """A prior with its weights and its own way of reading prompts."""

    prior: Prior
    params: Any
    condition: Callable[[Prompt], Condition]
    """What guidance needs to know of a prompt; raises `ValueError` for one that it cannot read"""
    name: str
    """What it is and where it came from, for people"""
    digest: str
    """Of its weights, their types and its schedule: two critics with one digest judge alike"""
    sampler: Callable[[int], Sampler] | None = None
    """The sampler of that many steps that its makers chose, if they did"""
