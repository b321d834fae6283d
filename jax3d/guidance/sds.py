"""Score distillation sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""

from dataclasses import dataclass, field
from typing import Literal

from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior


@dataclass(frozen=True)
class SDSConfig:
    """Score distillation sampling."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    convention: Literal["standard", "threestudio"] = "standard"
    """What scale s means: null + s (text - null), or text + s (text - null)."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return sds(critic.prior, self)


def sds(prior: Prior, config: SDSConfig | None = None) -> Guidance:
    """The residual w(t) (eps_hat - eps), with eps_hat under classifier-free guidance."""
    config = config or SDSConfig()

    def loss(shared, key, shot, cond, knobs, own):
        del own
        z, at = score.look(prior, shared, key, shot.step, shot.rgb, knobs, config.score)
        scale = knobs.guidance_scale.at(shot.step) + (config.convention == "threestudio")
        eps_hat = score.guided(prior, shared, at, shot.camera, cond, scale, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        return score.distil(z, eps_hat - at.noise, w)

    return Guidance(loss)
