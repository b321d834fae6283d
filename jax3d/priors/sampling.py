"""Pictures from a critic alone, by the samplers of `diffusion.py`: what it knows before any 3D.

Letters: v views, S side of the critic's pictures.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import diffusion, prompts
from jax3d.priors.base import Critic, Prior
from jax3d.priors.schedulers import Sampler
from jax3d.types import Camera, Cond, Key, Params, Prompt

Mode = Literal["camera", "words", "text"]
"""How a critic is asked: by the exact camera, by view words, or by the text alone."""

Method = Literal["ddim", "ddpm", "euler"]
"""How noise becomes a picture, in place of the critic's own way."""

Sample = Callable[..., Float[Array, "v S S 3"]]
"""`sample(key, prompt, Camera[v]) -> rgb` in [0, 1]."""

Draw = Callable[[Params, Key, Cond, Cond, Camera], Float[Array, "v S S 3"]]
"""`draw(params, key, text[v], null[v], Camera[v]) -> rgb` in [0, 1]."""


def sampler(
    critic: Critic,
    mode: Mode | None = None,
    guidance_scale: float = 3.0,
    steps: int = 40,
    method: Method | None = None,
) -> Sample:
    """A function that draws pictures; it compiles once for each number of views.

    Views of one call that are asked by their cameras or words start from one noise image, so that
    what differs is the view alone, unless the critic looks at several together, which were trained
    on noise of their own.

    Args:
      critic: whose pictures.
      mode: how it is asked; None is by the camera where the critic is told it, else by the text.
      guidance_scale: of classifier-free guidance in the standard form.
      steps: calls of the critic (and one more in PLMS).
      method: "ddim", "ddpm" or "euler"; None is the sampler that the critic's makers chose, or
        "ddim" where they chose none.

    Raises:
      ValueError: the critic is not told cameras, `steps` does not fit its schedule, or its makers'
        sampler is not supported; from the returned function: it cannot read the prompt, or views
        are not in the critic's groups.
    """
    prior, draw = critic.prior, jax.jit(drawer(critic, mode, guidance_scale, steps, method))
    mode = mode or _natural(prior)

    def sample(key: Key, prompt: Prompt, camera: Camera) -> Float[Array, "v S S 3"]:
        views = len(camera.fovy)
        if views % prior.views:
            raise ValueError(
                f"views={views}: this critic looks at {prior.views} together; take a multiple"
            )
        cond = critic.condition(prompt)

        def repeat(text):
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (views, *x.shape)), text)

        if mode == "words":
            text = prompts.select(cond.views, prompts.hard_weights(camera))
        else:
            text = repeat(cond.plain)
        return draw(critic.params, key, text, repeat(cond.null), camera)

    return sample


def drawer(
    critic: Critic,
    mode: Mode | None = None,
    guidance_scale: float = 3.0,
    steps: int = 40,
    method: Method | None = None,
) -> Draw:
    """The pure function that `sampler` compiles; arguments and errors are those of `sampler`."""
    prior = critic.prior
    mode = mode or _natural(prior)
    if mode == "camera" and not prior.reads_camera:
        raise ValueError("this critic is not told cameras: ask it by words or by the text")
    chosen = _own(critic, steps) if method is None else _method(critic, steps, method)
    one_noise = mode != "text" and prior.views == 1

    def draw(params, key: Key, text: Cond, null: Cond, camera: Camera):
        noise = _noise(prior, params, key, len(camera.fovy), one_noise)
        told = camera if mode == "camera" else None
        denoise = _guided(prior, params, text, null, told, guidance_scale)
        fresh = {"key": jax.random.fold_in(key, 1)} if chosen.stochastic else {}
        z = chosen.sample(denoise, chosen.start * noise, chosen.grid, **fresh)
        return jnp.clip(prior.decode(params, z), 0.0, 1.0)

    return draw


def _natural(prior: Prior) -> Mode:
    return "camera" if prior.reads_camera else "text"


def _noise(prior: Prior, params: Params, key: Key, views: int, one: bool):
    """Where the sampler starts: a noise image for each view, or one for all."""
    rgb = jax.ShapeDtypeStruct((views, prior.size, prior.size, 3), jnp.float32)
    shape = jax.eval_shape(prior.encode, params, key, rgb).shape
    start = (1, *shape[1:]) if one else shape
    return jnp.broadcast_to(jax.random.normal(key, start), shape)


def _guided(prior: Prior, params: Params, text: Cond, null: Cond, camera: Camera | None, scale):
    """`denoise(z, t) -> eps` under classifier-free guidance, both halves in one batch."""

    def twice(x):
        return jnp.concatenate([x, x])

    both = jax.tree.map(lambda *x: jnp.concatenate(x), text, null)
    told = jax.tree.map(twice, camera)

    def denoise(z, t):
        eps = prior.denoise(params, twice(z), jnp.full((2 * len(z),), t), both, told)
        cond, uncond = jnp.split(eps, 2)
        return diffusion.cfg(uncond, cond, scale)

    return denoise


def _own(critic: Critic, steps: int) -> Sampler:
    if critic.sampler is None:
        return _method(critic, steps, "ddim")
    try:
        return critic.sampler(steps)
    except ValueError as error:
        raise ValueError(f"{error}; or name a method: ddim, ddpm or euler") from error


def _method(critic: Critic, steps: int, method: Method) -> Sampler:
    prior = critic.prior
    abar = prior.alphas_cumprod
    # Latents have no bounds, pixels in [-1, 1] do.
    sample = partial(diffusion.ddim, clip=1.0 if _is_of_pixels(critic) else None)
    match method:
        case "ddim":
            return Sampler(diffusion.grid(abar, steps), sample, False, 1.0)
        case "ddpm":
            return Sampler(diffusion.grid(abar, steps), partial(sample, eta=1.0), True, 1.0)
        case "euler":
            # Critics are asked at whole timesteps.
            t = np.round(diffusion.timesteps(len(abar), steps, "linspace")).astype(np.int32)
            grid = diffusion.ratio_grid(diffusion.noise_ratios(abar)[t], t)
            return Sampler(grid, sample, False, 1.0)


def _is_of_pixels(critic: Critic) -> bool:
    side, views = critic.prior.size, critic.prior.views
    rgb = jax.ShapeDtypeStruct((views, side, side, 3), jnp.float32)
    z = jax.eval_shape(critic.prior.encode, critic.params, jax.random.key(0), rgb)
    return z.shape == rgb.shape
