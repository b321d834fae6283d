"""The empirical critic: the exact denoiser of a finite set of images.

Where the data is a set of images x_i with weights p_i, the posterior mean is a softmax over
distances, E[x | z_t] = sum_i w_i x_i with w_i ~ p_i exp(-|z_t - alpha x_i|^2 / (2 sigma^2)).
The question decides which images count: a text chooses prompts and view words, a camera leaves
only the images taken nearest to it. With renders of one object inside, score distillation must
recover that object.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Num

from jax3d.diffusion import cosine, noise_level
from jax3d.priors.base import Prior
from jax3d.prompts import VIEWS, hard_weights
from jax3d.types import Camera, Cond, Condition

SAME_DIRECTION = 1e-5
"""Cameras whose directions' cosine differs by less than this count as equally near."""


@struct.dataclass
class EmpiricalData:
    """N images, each of one prompt and one camera."""

    images: Float[Array, "N H W 3"]
    """[0, 1]"""
    camera: Camera
    prompt: Int[Array, " N"]
    """Which prompt the image belongs to, from 0."""


def condition(prompt: int, prompts: int, *, views: bool = True) -> Condition:
    """Ask for one of `prompts` prompts; with `views`, each wording wants its own views.

    The tokens are weights `[1, prompts + 4]`: of each prompt, then of each view word; all zeros
    in either part stand for "any", as does what no image shows. Mixed wordings hence weigh the
    images of several views.
    """
    which = jnp.broadcast_to(jax.nn.one_hot(prompt, prompts), (len(VIEWS), prompts))
    words = jnp.eye(len(VIEWS)) * views
    tokens = jnp.concatenate([which, words], axis=1)[:, None]
    return Condition(
        plain=Cond(tokens[0].at[:, prompts:].set(0.0)),
        null=Cond(jnp.zeros_like(tokens[0])),
        views=Cond(tokens),
    )


def empirical(size: int, alphas_cumprod: Float[Array, " T"] | None = None) -> Prior:
    """A critic of images `[size, size, 3]` whose weights are an `EmpiricalData`; z = 2 rgb - 1."""
    abar = cosine() if alphas_cumprod is None else alphas_cumprod

    def encode(data: EmpiricalData, key, rgb):
        del data, key
        return 2 * rgb - 1

    def decode(data: EmpiricalData, z):
        del data
        return (z + 1) / 2

    def denoise(
        data: EmpiricalData,
        z_t: Float[Array, "b H W 3"],
        t: Num[Array, " b"],
        text: Cond,
        camera: Camera | None,
    ) -> Float[Array, "b H W 3"]:
        """(z_t - alpha E[x | z_t]) / sigma."""
        alpha, sigma = noise_level(abar, t, z_t.ndim)
        x = encode(data, None, data.images)
        far = jnp.sum((z_t[:, None] - alpha[:, None] * x) ** 2, axis=(2, 3, 4))
        weight = _asked(data, text)
        if camera is not None:
            weight = jnp.where(_nearest(data, camera, weight > 0), weight, 0)
        logits = -far / (2 * jnp.squeeze(sigma, (2, 3)) ** 2)
        posterior = jax.nn.softmax(
            jnp.where(weight > 0, logits + jnp.log(jnp.maximum(weight, 1e-30)), -jnp.inf), axis=1
        )
        mean = jnp.einsum("bn,nhwc->bhwc", posterior, x, precision="highest")
        return (z_t - alpha * mean) / sigma

    return Prior(encode, decode, denoise, jnp.asarray(abar), size)


def _asked(data: EmpiricalData, text: Cond) -> Float[Array, "b N"]:
    """The weight of each image under each text."""
    weights = text.tokens[:, 0]
    prompts, words = jnp.split(weights, [weights.shape[1] - len(VIEWS)], axis=1)
    of_prompt = _any_if_none(prompts[:, data.prompt], 1.0)
    of_view = _any_if_none(words[:, hard_weights(data.camera).argmax(axis=1)], 1.0)
    return _any_if_none(of_prompt * of_view, of_prompt)


def _any_if_none(weight: Float[Array, "b N"], other) -> Float[Array, "b N"]:
    """What is asked for, unless it is nothing or there is no such image."""
    return jnp.where(jnp.any(weight > 0, axis=1, keepdims=True), weight, other)


def _nearest(data: EmpiricalData, camera: Camera, allowed: Array) -> Array:
    """Which of the allowed images were taken from the direction nearest to each camera."""
    cosine = _direction(camera) @ _direction(data.camera).T
    best = jnp.max(jnp.where(allowed, cosine, -2), axis=1, keepdims=True)
    return cosine >= best - SAME_DIRECTION


def _direction(camera: Camera) -> Float[Array, "*v 3"]:
    """Unit vector from the orbit's centre to the camera."""
    level = jnp.cos(camera.elevation)
    return jnp.stack(
        [
            level * jnp.cos(camera.azimuth),
            level * jnp.sin(camera.azimuth),
            jnp.sin(camera.elevation),
        ],
        axis=-1,
    )
