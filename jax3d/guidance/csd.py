"""Classifier score distillation (arXiv:2310.19415, eq. 7)."""

from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Prior


def csd(prior: Prior, config: ScoreConfig | None = None) -> Guidance:
    """The residual s (text - null): what guidance adds to SDS, without its noise."""
    config = config or ScoreConfig()

    def loss(prior_params, key, step, render, camera, cond, knobs, own=None):
        del own
        z, at = score.look(prior, prior_params, key, step, render.rgb, knobs, config)
        texts = score.view_texts(cond, camera, config)
        text, null = score.ask(prior, prior_params, at.z_t, at.t, texts, camera, config)
        w = score.weight(prior.alphas_cumprod, at.t, config.weighting)
        return score.distil(z, knobs.guidance_scale.at(step) * (text - null), w)

    return Guidance(loss)
