"""A fit at views that it has not seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jax3d.data.photographs import Photographs, Transparent, shown
from jax3d.fields.base import Representation
from jax3d.metrics.pictures import decibels, squared_error, ssim
from jax3d.types import Look, Params


def measure(
    field: Representation, size: int, transparent: Transparent
) -> Callable[[Params, Photographs | None], dict[str, float]]:
    """`measure(params, held_out) -> metrics`, compiled once, over white, `size` pixels a side.

    `unseen_psnr` and `unseen_ssim` are means over the views (as the literature has them),
    `unseen_views` their number. Without any there are no metrics.
    """

    @jax.jit
    def one(params, photographs, i):
        look = Look.albedo()
        camera = jax.tree.map(lambda x: x[i][None], photographs.camera)
        wanted, known = shown(photographs, i[None], look.background, size, transparent)
        rgb = field.render(params, None, camera, look, (size, size)).over(look.background)
        rgb = jnp.where(known[..., None], rgb, wanted)
        return decibels(squared_error(rgb, wanted, known)), jnp.mean(ssim(rgb, wanted))

    def all_of(params: Params, held_out: Photographs | None) -> dict[str, float]:
        if held_out is None:
            return {}
        views = int(held_out.count)
        found = np.array([one(params, held_out, jnp.int32(i)) for i in range(views)])
        psnr, likeness = found.mean(axis=0).tolist()
        return {"unseen_psnr": psnr, "unseen_ssim": likeness, "unseen_views": views}

    return all_of
