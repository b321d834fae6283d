"""SDS with a second residual in the pixels of the estimated image (HiFA, arXiv:2305.18766)."""

from dataclasses import dataclass, field

from jax import lax

from jax3d.diffusion import noise_level
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Prior


@dataclass(frozen=True)
class HiFAConfig:
    """SDS in z and in pixels."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    lambda_image: float = 0.01
    """Weight of the residual in pixels."""


def hifa(prior: Prior, config: HiFAConfig | None = None) -> Guidance:
    """The residual of SDS, and w(t) alpha / sigma (rgb - decode(x0)) on the rendered pixels."""
    config = config or HiFAConfig()

    def loss(prior_params, key, step, render, camera, cond, knobs, own=None):
        del own
        rgb = score.resize(render.rgb, prior.size)
        z, at = score.look(prior, prior_params, key, step, rgb, knobs, config.score)
        scale = knobs.guidance_scale.at(step)
        eps_hat = score.guided(prior, prior_params, at, camera, cond, scale, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        in_z, metrics = score.distil(z, eps_hat - at.noise, w)
        alpha, sigma = noise_level(prior.alphas_cumprod, at.t, z.ndim)
        x0 = (at.z_t - sigma * eps_hat) / alpha
        seen = lax.stop_gradient(prior.decode(prior_params, x0))
        in_rgb, pixel_metrics = score.distil(rgb, rgb - seen, w * alpha / sigma)
        metrics["image_residual_norm"] = pixel_metrics["residual_norm"]
        return in_z + config.lambda_image * in_rgb, metrics

    return Guidance(loss)
