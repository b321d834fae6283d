"""Classifier score distillation (arXiv:2310.19415, eq. 7)."""

from dataclasses import dataclass, field

from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior


@dataclass(frozen=True)
class CSDConfig:
    """Classifier score distillation."""

    score: ScoreConfig = field(default_factory=ScoreConfig)

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return csd(critic.prior, self)


def csd(prior: Prior, config: CSDConfig | None = None) -> Guidance:
    """The residual s (text - null): what guidance adds to SDS, without its noise."""
    config = config or CSDConfig()
    score.refuse_rescale(config.score, "csd")

    def loss(shared, key, shot, cond, knobs, own):
        del own
        z, at = score.look(prior, shared, key, shot.step, shot.rgb, knobs, config.score)
        texts = score.view_texts(cond, shot.camera, config.score)
        text, null = score.ask(prior, shared, at.z_t, at.t, texts, shot.camera, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        return score.distil(z, knobs.guidance_scale.at(shot.step) * (text - null), w)

    return Guidance(loss)
