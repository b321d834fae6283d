"""Score distillation sampling (DreamFusion, arXiv:2209.14988, eq. 3)."""

from dataclasses import dataclass, field
from typing import Literal

import jax
from jax import lax

from jax3d.diffusion import cfg
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Prior


@dataclass(frozen=True)
class SDSConfig:
    """Score distillation sampling."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    convention: Literal["standard", "threestudio"] = "standard"
    """What scale s means: null + s (text - null), or text + s (text - null)."""


def sds(prior: Prior, config: SDSConfig = SDSConfig()) -> Guidance:
    """The residual w(t) (eps_hat - eps), with eps_hat under classifier-free guidance."""

    def loss(prior_params, key, step, render, camera, cond, knobs, own=None):
        del own
        prior_params = lax.stop_gradient(prior_params)
        encode_key, draw_key = jax.random.split(key)
        z = score.encode(prior, prior_params, encode_key, render.rgb)
        at = score.draw(prior, draw_key, step, z, knobs, config.score)
        scale = knobs.guidance_scale.at(step) + (config.convention == "threestudio")
        texts = score.view_texts(cond, camera, config.score)
        text, null = score.ask(prior, prior_params, at.z_t, at.t, texts, camera, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        return score.distil(z, cfg(null, text, scale) - at.noise, w)

    return Guidance(loss)
