"""A picture by way of six views: Zero123++ draws them, InstantMesh makes the asset of them.

One model, so that the drawing of the views can be stopped and gone on with like any sampling. The
views go on to people. Letters: s side of a view.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from jax3d import weights
from jax3d.models.base import Model
from jax3d.priors import zero123plus
from jax3d.priors.zero123plus import SixViews, Told
from jax3d.types import Key, Numbers, Params

SCALE = 4.0
"""Of the guidance of the views, by their authors."""


@struct.dataclass
class Latent:
    """A sheet on its way, then its views, and what is made of them."""

    sheet: Float[Numbers, "*A H W c"]
    views: Float[Numbers, "*A 6 s s 3"]
    made: Any


def viewed(drawer: SixViews, reconstructor: Model) -> Model:
    """The model: all steps but the last draw, the last one is the reconstructor's.

    Its guidance, `knobs.model_scale`, is that of the views.

    Raises:
      ValueError: The reconstructor does not read such views in one step.
    """
    params = {"drawer": drawer.params, "reconstructor": reconstructor.params}
    blank = jnp.ones(jax.eval_shape(_decode(drawer), params, _sheet(drawer)).shape)
    _demand_fit(drawer, reconstructor, blank)

    def begin(key: Key, told: Told) -> Latent:
        k_sheet, k_made = jax.random.split(key)
        return Latent(drawer.begin(k_sheet, told), blank, reconstructor.begin(k_made, blank))

    def advance(params: Params, latent: Latent, i: Array, told: Told, knobs) -> Latent:
        def draw(latent: Latent) -> Latent:
            key, scale = jax.random.key(knobs.seed), knobs.model_scale.at(i)
            sheet = drawer.advance(params["drawer"], latent.sheet, i, told, scale, key)
            return latent.replace(sheet=sheet)

        def make(latent: Latent) -> Latent:
            views = _decode(drawer)(params, latent.sheet)
            own = params["reconstructor"]
            made = reconstructor.advance(own, latent.made, jnp.zeros_like(i), views, knobs)
            return latent.replace(views=views, made=made)

        return lax.cond(i < drawer.steps, draw, make, latent)

    return Model(
        field=reconstructor.field,
        representation=reconstructor.representation,
        params=params,
        condition=drawer.condition,
        begin=begin,
        advance=advance,
        steps=drawer.steps + 1,
        decode=lambda params, latent: reconstructor.decode(params["reconstructor"], latent.made),
        name=f"{drawer.name}, then {reconstructor.name}",
        digest=weights.digest({}, [drawer.digest, reconstructor.digest, drawer.steps]),
        show=lambda latent: latent.views,
        scale=SCALE,
    )


def _decode(drawer: SixViews):
    return lambda params, sheet: drawer.decode(params["drawer"], sheet)


def _sheet(drawer: SixViews):
    return jax.eval_shape(lambda: drawer.begin(jax.random.key(0), None))


def _demand_fit(drawer: SixViews, reconstructor: Model, views: Float[Array, "6 s s 3"]) -> None:
    """Raises `ValueError` where the reconstructor reads something else than these views."""

    def make(params):
        z = reconstructor.begin(jax.random.key(0), views)
        return reconstructor.advance(params, z, jnp.int32(0), views, None)

    refusal = f"{reconstructor.name} does not read {zero123plus.ROWS * zero123plus.COLUMNS} views"
    if reconstructor.steps != 1:
        raise ValueError(refusal)
    try:
        jax.eval_shape(make, reconstructor.params)
    except Exception as error:  # whatever a network says of pictures that are none of its own
        raise ValueError(f"{refusal} of {views.shape[1]} pixels") from error
