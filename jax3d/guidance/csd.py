"""Classifier score distillation (arXiv:2310.19415, eq. 7)."""

from dataclasses import dataclass, field

from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Prior


@dataclass(frozen=True)
class CSDConfig:
    """Classifier score distillation."""

    score: ScoreConfig = field(default_factory=ScoreConfig)


def csd(prior: Prior, config: CSDConfig | None = None) -> Guidance:
    """The residual s (text - null): what guidance adds to SDS, without its noise."""
    config = config or CSDConfig()

    def loss(prior_params, key, step, render, camera, cond, knobs, own=None):
        del own
        z, at = score.look(prior, prior_params, key, step, render.rgb, knobs, config.score)
        texts = score.view_texts(cond, camera, config.score)
        text, null = score.ask(prior, prior_params, at.z_t, at.t, texts, camera, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        return score.distil(z, knobs.guidance_scale.at(step) * (text - null), w)

    return Guidance(loss)
