"""Does the exported mesh look like the field that it came from?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax3d.image import Host
from jax3d.render.raster import render_mesh
from jax3d.types import Camera, Look, Mesh


class Likeness(NamedTuple):
    """How a mesh's pictures differ from the field's."""

    psnr: float
    """dB over all pixels of all views: -10 log10 of the mean squared error."""
    psnr_per_view: Float[np.ndarray, " v"]
    rgb: Float[np.ndarray, "v H W 3"]
    """The mesh as the cameras see it, to be looked at beside the field's pictures."""


def compare(mesh: Mesh, rgb: Float[Host, "v H W 3"], camera: Camera, look: Look) -> Likeness:
    """Hold a mesh, best one read back from its file, against pictures `rgb` of the field.

    `camera` and `look` are those that the pictures were rendered with.
    """
    shown = np.asarray(render_mesh(mesh, camera, look, rgb.shape[1:3]).over(look.background))
    error = np.mean((shown - np.asarray(rgb)) ** 2, axis=(1, 2, 3))
    return Likeness(float(_decibels(error.mean())), _decibels(error), shown)


def _decibels(mean_squared_error):
    return -10.0 * np.log10(np.maximum(mean_squared_error, 1e-10))
