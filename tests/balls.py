"""The cheapest assets there are: a critic of whom everything is a red ball, and its recipe."""

import jax.numpy as jnp
import numpy as np

from jax3d.fields.triplane import TriplaneConfig
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.priors.base import Critic
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.recipe import Pictures, Recipe
from jax3d.types import Cond, Condition


def red_ball(size: int = 16) -> Critic:
    """A critic of whom every picture of every prompt is a red disc."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = (x**2 + y**2 < (size / 4) ** 2)[..., None]
    mean = jnp.asarray(np.where(disc, [0.8, 0.1, 0.1], 1.0), jnp.float32)
    data = GaussianData(mean, jnp.float32(0.05))
    tokens = jnp.zeros((4, 1, 1))
    condition = Condition(Cond(tokens[0]), Cond(tokens[0]), Cond(tokens))
    return Critic(gaussian(size), data, lambda prompt: condition, "a red ball", "")


def ball_recipe(steps: int = 4) -> Recipe:
    """A recipe for it whose assets take a second."""
    return Recipe(
        field=TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8),
        optimize=AssetConfig(views=1, stages=(StageConfig(steps, 16),)),
        guidance=SDSConfig(score=ScoreConfig(view_words="none", use_camera=False)),
        mesh=MeshConfig(resolution=16, faces=100, texture=16, chunk=4096),
        pictures=Pictures(size=16, frames=0),
    )
