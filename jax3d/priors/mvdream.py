"""Multi-view critics: four views of one object in one denoising, each told its camera.

MVDream (https://arxiv.org/abs/2308.16512): Stable Diffusion 2.1 whose self-attention spans the
views and whose time embedding is joined by an embedding of the camera's pose.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d.nn.unet import UNet2DConditionModel
from jax3d.priors.stable_diffusion import Network

VIEWS = 4


def view_network(unet: UNet2DConditionModel) -> Network:
    """A UNet with joint attention over `unet.views` consecutive images and their cameras."""

    def network(params, z_t, t, text, camera):
        poses = None if camera is None else camera_vectors(camera.c2w)
        return unet.apply({"params": params}, z_t, t, text.tokens, poses)

    return network


def camera_vectors(c2w: Float[Array, "*v 4 4"]) -> Float[Array, "*v 16"]:
    """Poses as the network learnt them: row by row, with the position at distance 1.

    MVDream's world is ours (+z up, OpenGL cameras), and its demonstrations put an object's front
    at +x as we do.
    """
    position = c2w[..., :3, 3]
    distance = jnp.linalg.norm(position, axis=-1, keepdims=True)
    unit = c2w.at[..., :3, 3].set(position / jnp.maximum(distance, 1e-8))
    return unit.reshape(*c2w.shape[:-2], 16)


def orbit_vectors(
    n: int, elevation: float, azimuth_start: float = 0.0, span: float = 2 * np.pi
) -> Float[np.ndarray, "n 16"]:
    """`camera_vectors` of n cameras around the object, as MVDream's own tables count them.

    Its azimuth 0 is at world -y, a quarter turn before ours. Angles in radians.
    """
    azimuth = azimuth_start + np.arange(n) * span / n
    ce, se = np.full(n, np.cos(elevation)), np.full(n, np.sin(elevation))
    ca, sa = np.cos(azimuth), np.sin(azimuth)
    zero, one = np.zeros(n), np.ones(n)
    right = [ca, sa, zero]
    up = [-se * sa, se * ca, ce]
    back = [ce * sa, -ce * ca, se]
    columns = [[*right, zero], [*up, zero], [*back, zero], [*back, one]]
    c2w = np.array(columns).transpose(2, 1, 0)
    return c2w.reshape(n, 16).astype(np.float32)
