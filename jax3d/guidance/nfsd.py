"""Noise-free score distillation (arXiv:2310.17590)."""

from dataclasses import dataclass, field

import jax.numpy as jnp

from jax3d.bounds import Share
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior


@dataclass(frozen=True)
class NFSDConfig:
    """Noise-free score distillation."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    small_t: Share = 0.2
    """Fraction of the schedule below which the null estimate is free of noise by itself."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return nfsd(critic.prior, self)


def nfsd(prior: Prior, config: NFSDConfig | None = None) -> Guidance:
    """The residual d + s (text - null) (eq. 9), d being the way into the domain of images.

    d is null at small t and null - negative elsewhere (eq. 8): the negative text's estimate
    carries the noise, but not the domain. It needs `Condition.negative`, such as "unrealistic,
    blurry, low quality, out of focus".
    """
    config = config or NFSDConfig()
    score.refuse_rescale(config.score, "nfsd")

    def loss(shared, key, shot, cond, knobs, own):
        del own
        if cond.negative is None:
            raise ValueError("nfsd compares with a negative text: set Condition.negative")
        z, at = score.look(prior, shared, key, shot.step, shot.rgb, knobs, config.score)
        texts = score.view_texts(cond, shot.camera, config.score)
        negative = score.repeat(cond.negative, len(z))
        text, null, negative = score.ask(
            prior, shared, at.z_t, at.t, (*texts, negative), shot.camera, config.score
        )
        small = at.t < config.small_t * len(prior.alphas_cumprod)
        domain = null - jnp.where(small[:, None, None, None], 0.0, negative)
        residual = domain + knobs.guidance_scale.at(shot.step) * (text - null)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        return score.distil(z, residual, w)

    return Guidance(loss)
