"""Image-to-image refinement: the critic repaints a render, and the result is its target.

A render is noised to a moderate level and denoised again along the rest of the critic's schedule
(SDEdit, Meng et al., arXiv:2108.01073), under classifier-free guidance and without a gradient. The
loss is the mean squared error to that picture, as DreamGaussian's second stage has it (Tang et al.,
arXiv:2309.16653, section 3.3): a target in pixels, which sharpens where score distillation only
pulls.

Letters: v views, z the critic's pixels or latents.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax3d import diffusion
from jax3d.bounds import Count
from jax3d.guidance import score
from jax3d.guidance.base import Guidance, Shot
from jax3d.guidance.score import Noised, ScoreConfig
from jax3d.knobs import Knobs
from jax3d.priors.base import Critic, Prior
from jax3d.types import Condition, Key, Params


@dataclass(frozen=True)
class SDEditConfig:
    """How pictures are repainted."""

    score: ScoreConfig = field(default_factory=lambda: ScoreConfig(view_words="none"))
    """How the critic is asked; its weighting and its draws of timesteps play no part."""
    steps: Count = 50
    """Of DDIM over the critic's whole schedule; a picture takes the last ones, as many as the knob
    `strength` says."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return sdedit(critic.prior, self)


def sdedit(prior: Prior, config: SDEditConfig | None = None) -> Guidance:
    """The squared error to what the critic makes of each picture.

    Raises:
      ValueError: The critic's schedule has fewer timesteps than `steps`.
    """
    config = config or SDEditConfig()
    grid = diffusion.grid(prior.alphas_cumprod, config.steps, spacing="leading", offset=1)

    def loss(shared, key, shot, cond, knobs, own):
        del own
        shared = lax.stop_gradient(shared)
        target = _repaint(prior, grid, config, shared, key, shot, cond, knobs)
        error = shot.rgb - target
        value = jnp.mean(error**2)
        return value, {"residual_norm": jnp.sqrt(lax.stop_gradient(value))}

    return Guidance(loss)


def first_step(strength, steps: int) -> Array:
    """The step of `steps` with which repainting begins: the share before it is left out."""
    # The small shift undoes float32 rounding below a whole number.
    first = jnp.floor(steps * (1 - jnp.clip(strength, 0.0, 1.0)) + 1e-3)
    return jnp.minimum(first.astype(jnp.int32), steps)


def _repaint(
    prior: Prior,
    grid: diffusion.Grid,
    config: SDEditConfig,
    shared: Params,
    key: Key,
    shot: Shot,
    cond: Condition,
    knobs: Knobs,
) -> Float[Array, "v H W 3"]:
    """The pictures of a shot as the critic would have them, of the same size."""
    encode_key, noise_key = jax.random.split(key)
    rgb = lax.stop_gradient(shot.rgb)  # and with it all that follows
    z = score.encode(prior, shared, encode_key, rgb)
    shape = z.shape[1:] if config.score.shared_noise else z.shape
    noise = jnp.broadcast_to(jax.random.normal(noise_key, shape, z.dtype), z.shape)
    first = first_step(knobs.strength.at(shot.step), config.steps)
    scale = knobs.guidance_scale.at(shot.step)

    def row(i):
        return jax.tree.map(lambda x: x[jnp.minimum(i, config.steps - 1)], grid)

    def step(i, z_t):
        at = row(i)
        noised = Noised(jnp.broadcast_to(at.t, len(z_t)), noise, z_t)
        eps = score.guided(prior, shared, noised, shot.camera, cond, scale, config.score)
        x0, eps = diffusion.estimate(eps, z_t, at, "eps", _bounds(prior, z))
        return diffusion.ddim_step(x0, eps, at).astype(z_t.dtype)

    start = row(first)
    noised = (start.alpha * z + start.sigma * noise).astype(z.dtype)
    z = lax.fori_loop(first, config.steps, step, jnp.where(first < config.steps, noised, z))
    made = jnp.clip(prior.decode(shared, z), 0.0, 1.0)
    return jax.image.resize(made, rgb.shape, "linear")


def _bounds(prior: Prior, z: Array) -> float | None:
    """Latents have no bounds, pixels in [-1, 1] do."""
    return 1.0 if z.shape[1:] == (prior.size, prior.size, 3) else None
