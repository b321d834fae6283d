"""A given picture as guidance: what its own camera sees is to look like it.

The known-view loss of Zero-1-to-3's and DreamGaussian's assets from pictures (arXiv:2309.16653,
section 3.1): mean squared errors of colour and coverage. Both are compared over nothing, so no
background hides a difference.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jax3d.bounds import NonNegative, Range
from jax3d.guidance.base import Guidance, Shot, Term
from jax3d.types import Camera, Condition, Key, Look


@dataclass(frozen=True)
class KnownViewConfig:
    """What the given picture's own view counts; `knobs.lambda_known` scales both."""

    rgb: NonNegative = 10_000.0
    """Of the mean squared error of colour, beside a critic whose residual is summed."""
    mask: NonNegative = 1_000.0
    """Of that of coverage."""
    elevation: Annotated[float, Range(-90, 90)] = 0.0
    """From where the picture was taken, degrees above the horizon."""

    def build(self) -> Term:
        """The term of a step: the picture's camera, and the error of what it sees."""
        return Term(
            cameras=_camera,
            look=lambda key, step, camera, knobs: Look.albedo(),
            guidance=known_view(self),
            weight=lambda knobs: knobs.lambda_known,
        )


def known_view(config: KnownViewConfig | None = None) -> Guidance:
    """The loss of one view, that of `Condition.given`."""
    config = config or KnownViewConfig()

    def loss(shared, key, shot: Shot, cond: Condition, knobs, own):
        del shared, key, knobs, own
        height, width = shot.render.alpha.shape[1:]
        covered = cond.given[..., 3:]
        # Colours are averaged as light is: those of uncovered pixels do not bleed in.
        over_nothing = jnp.concatenate([cond.given[..., :3] * covered, covered], axis=-1)
        wanted = jax.image.resize(over_nothing, (height, width, 4), "linear")
        rgb = jnp.mean((shot.render.rgb[0] - wanted[..., :3]) ** 2)
        mask = jnp.mean((shot.render.alpha[0] - wanted[..., 3]) ** 2)
        return config.rgb * rgb + config.mask * mask, {"known_rgb": rgb, "known_mask": mask}

    return Guidance(loss)


def _camera(key: Key, cond: Condition) -> Camera:
    del key
    return jax.tree.map(lambda x: jnp.asarray(x)[None], cond.plain.source)
