"""SDS with a second residual in the pixels of the estimated image (HiFA, arXiv:2305.18766)."""

from dataclasses import dataclass, field

from jax import lax

from jax3d.bounds import NonNegative
from jax3d.diffusion import noise_level
from jax3d.guidance import score
from jax3d.guidance.base import Guidance
from jax3d.guidance.score import ScoreConfig
from jax3d.priors.base import Critic, Prior


@dataclass(frozen=True)
class HiFAConfig:
    """SDS in z and in pixels."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    lambda_image: NonNegative = 0.01
    """Weight of the residual in pixels."""

    def build(self, critic: Critic) -> Guidance:
        """The guidance by a critic."""
        return hifa(critic.prior, self)


def hifa(prior: Prior, config: HiFAConfig | None = None) -> Guidance:
    """The residual of SDS, and w(t) alpha / sigma (rgb - decode(x0)) on the rendered pixels."""
    config = config or HiFAConfig()

    def loss(shared, key, shot, cond, knobs, own):
        del own
        rgb = score.resize(shot.rgb, prior.size)
        z, at = score.look(prior, shared, key, shot.step, rgb, knobs, config.score)
        scale = knobs.guidance_scale.at(shot.step)
        eps_hat = score.guided(prior, shared, at, shot.camera, cond, scale, config.score)
        w = score.weight(prior.alphas_cumprod, at.t, config.score.weighting)
        in_z, metrics = score.distil(z, eps_hat - at.noise, w)
        alpha, sigma = noise_level(prior.alphas_cumprod, at.t, z.ndim)
        x0 = (at.z_t - sigma * eps_hat) / alpha
        seen = lax.stop_gradient(prior.decode(shared, x0))
        in_rgb, pixel_metrics = score.distil(rgb, rgb - seen, w * alpha / sigma)
        metrics["image_residual_norm"] = pixel_metrics["residual_norm"]
        return in_z + config.lambda_image * in_rgb, metrics

    return Guidance(loss)
