"""Interval score matching (LucidDreamer, arXiv:2311.11284).

Instead of random noise, z is carried to time t along the critic's own deterministic path, and
the estimate at t is compared with the one at s = t - interval on the same path.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d.bounds import Count, Share
from jax3d.diffusion import cfg
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior


@dataclass(frozen=True)
class ISMConfig:
    """Interval score matching."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    interval: Share = 0.05
    """t - s, as a fraction of the schedule."""
    inversion_steps: Count = 3
    """Calls of the critic on the way from z to s."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return ism(critic.prior, self)


def ism(prior: Prior, config: ISMConfig | None = None) -> Guidance:
    """The residual eps_hat(x_t) - eps(x_s), the second without text (eq. 17)."""
    config = config or ISMConfig()
    score.refuse_rescale(config.score, "ism")
    total = len(prior.alphas_cumprod)

    def loss(shared, key, shot, cond, knobs, own):
        del own
        z, at = score.look(prior, shared, key, shot.step, shot.rgb, knobs, config.score)
        text, null = score.view_texts(cond, shot.camera, config.score)

        def ask(x, t, *texts):
            return score.ask(prior, shared, x, t, texts, shot.camera, config.score)

        s = jnp.maximum(at.t - round(config.interval * total), 0)
        path = jnp.linspace(0, s, config.inversion_steps + 1).astype(jnp.int32)
        x_s = invert(
            lambda x, t: ask(x, t, null)[0], lax.stop_gradient(z), prior.alphas_cumprod, path
        )
        (eps_s,) = ask(x_s, s, null)
        x_t = transfer(x_s, eps_s, prior.alphas_cumprod[s], prior.alphas_cumprod[at.t])
        guided, bare = ask(x_t, at.t, text, null)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        residual = cfg(bare, guided, knobs.guidance_scale.at(shot.step)) - eps_s
        return score.distil(z, residual, w)

    return Guidance(loss)


def invert(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "v h w c"],
    alphas_cumprod: Float[Array, " T"],
    path: Int[Array, "k v"],
) -> Float[Array, "v h w c"]:
    """DDIM inversion: carry z along rising timesteps (Song et al. 2021, section 4.3)."""

    def step(x, ends):
        here, there = ends
        eps = denoise(x, here)
        return transfer(x, eps, alphas_cumprod[here], alphas_cumprod[there]), None

    return lax.scan(step, z, (path[:-1], path[1:]))[0]


def transfer(
    x: Float[Array, "v h w c"],
    eps: Float[Array, "v h w c"],
    here: Float[Array, " v"],
    there: Float[Array, " v"],
) -> Float[Array, "v h w c"]:
    """Move x from one abar to another along eps."""
    here, there = (a[:, None, None, None] for a in (here, there))
    x0 = (x - jnp.sqrt(1 - here) * eps) / jnp.sqrt(here)
    return jnp.sqrt(there) * x0 + jnp.sqrt(1 - there) * eps
