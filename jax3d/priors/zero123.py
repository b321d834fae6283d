"""Zero123's cameras: a new view as it stands to the picture at hand.

Zero-1-to-3 (https://arxiv.org/abs/2303.11328), section 3.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.types import Camera


def relative_pose(camera: Camera, reference: Camera) -> Float[Array, "*v 4"]:
    """What the network is told of a camera.

    Args:
      camera: the views asked for.
      reference: the view of the picture, broadcast against them.

    Returns:
      The difference of polar angles (reference's elevation minus the view's, radians), sine and
      cosine of the difference of azimuths, and the difference of distances.
    """
    turn = camera.azimuth - reference.azimuth
    lift = reference.elevation - camera.elevation
    away = camera.radius - reference.radius
    return jnp.stack([lift, jnp.sin(turn), jnp.cos(turn), away], axis=-1)
