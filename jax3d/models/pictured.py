"""A picture first: the critic draws what the prompt says, the reconstructor makes it.

Of several pictures that the critic draws of one prompt, the scorer picks the nearest to it. The
picture is kept beside the asset, so that a person can change it and have it made again. Letters: n
candidates, S side of the critic's pictures.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from jax3d import camera as cameras
from jax3d import weights
from jax3d.bounds import Count, NonNegative, Range
from jax3d.data import props
from jax3d.metrics import scorer
from jax3d.models import props_lrm
from jax3d.models.base import Model
from jax3d.models.props_lrm import Asked, Latent, LrmConfig
from jax3d.priors import sampling
from jax3d.priors.base import Critic
from jax3d.types import Camera, Cond, Key, Numbers, Params, Prompt


@dataclasses.dataclass(frozen=True)
class PicturedConfig:
    """A picture by the critic, and what the embedded reconstructor makes of it."""

    candidates: Annotated[int, Range(1, 256)] = 4
    """Pictures drawn, of which the scorer picks one."""
    picture_steps: Count = 20
    """Of the critic's sampler."""
    picture_scale: NonNegative = 3.0
    """Of classifier-free guidance in the picture; `knobs.model_scale` is the reconstructor's."""
    azimuth: Annotated[float, Range(-360, 360)] = 35.0
    """From where the picture is taken, degrees from the front."""
    elevation: Annotated[float, Range(-90, 90)] = 20.0
    """Degrees."""
    reconstructor: LrmConfig = dataclasses.field(default_factory=LrmConfig)

    asks_critic: ClassVar[bool] = True

    def build(self, critic: Critic) -> Model:
        """Opens both; raises `WeightsError` as `props_lrm.load` does."""
        return pictured(critic, self.reconstructor.build(critic), self)


@struct.dataclass
class Told:
    """What a prompt is to the three networks."""

    text: Cond
    null: Cond
    ids: Int[Numbers, "*A L"]
    """Words of the caption, for the scorer."""
    tokens: Float[Numbers, "*A L e"]
    """The same as the reconstructor reads them."""


def pictured(critic: Critic, reconstructor: Model, config: PicturedConfig) -> Model:
    """The model: its first step draws and picks, the others are the reconstructor's."""
    camera = _camera(config)
    draw = sampling.drawer(critic, None, config.picture_scale, config.picture_steps)
    params = {
        "critic": critic.params,
        "reconstructor": reconstructor.params,
        "scorer": scorer.load(),
    }

    def condition(prompt: Prompt) -> Told:
        cond = critic.condition(prompt)
        ids = props.word_ids([prompt.text])[0]
        tokens = props_lrm.words(reconstructor.params, ids)
        return Told(cond.plain, cond.null, ids, tokens)

    def begin(key: Key, told: Told) -> Latent:
        blank = jnp.ones((props_lrm.SIZE, props_lrm.SIZE, 4))
        return reconstructor.begin(key, Asked(blank, told.tokens))

    def picture(params: Params, told: Told, key: Key) -> Float[Array, "s s 4"]:
        text, null = (jax.tree.map(lambda x: x[None], cond) for cond in (told.text, told.null))
        rgb = lax.map(
            lambda key: draw(params["critic"], key, text, null, camera)[0],
            jax.random.split(key, config.candidates),
        )
        near = scorer.similarity(params["scorer"], rgb, told.ids[None])[:, 0]
        return props_lrm.drawn(rgb[jnp.argmax(near)])

    def advance(params: Params, latent: Latent, i, told: Told, knobs) -> Latent:
        def first(latent):
            key = jax.random.fold_in(jax.random.key(knobs.seed), i)
            return latent.replace(picture=picture(params, told, key))

        def later(latent):
            asked = Asked(latent.picture, told.tokens)
            return reconstructor.advance(params["reconstructor"], latent, i - 1, asked, knobs)

        return lax.cond(i == 0, first, later, latent)

    return Model(
        field=reconstructor.field,
        representation=reconstructor.representation,
        params=params,
        condition=condition,
        begin=begin,
        advance=advance,
        steps=1 + reconstructor.steps,
        decode=lambda params, latent: reconstructor.decode(params["reconstructor"], latent),
        name=f"{critic.name}, then {reconstructor.name}",
        digest=weights.digest({"scorer": params["scorer"]})
        + (critic.digest or critic.name)
        + reconstructor.digest,
        show=reconstructor.show,
    )


def _camera(config: PicturedConfig) -> Camera:
    """From where the picture is taken, as the critic's training pictures were: one view."""
    fovy = np.radians(42.0)
    distance = 1.05 * 0.95 / np.sin(fovy / 2)
    azimuth = jnp.full((1,), np.radians(config.azimuth))
    return cameras.orbit(azimuth, np.radians(config.elevation), distance, fovy)
