"""The closed-form critic: images drawn from N(mean, std^2 I).

Its noise estimate is exact, so what goes wrong under it is the optimiser's fault. Every text and
every camera get the same answer.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Num

from jax3d.diffusion import cosine, noise_level
from jax3d.priors.base import Prior
from jax3d.types import Camera, Cond


@struct.dataclass
class GaussianData:
    """The distribution of images, in the units of the pixels."""

    mean: Float[Array, "H W 3"]
    std: Float[Array, ""]


def gaussian(size: int, alphas_cumprod: Float[Array, " T"] | None = None) -> Prior:
    """A critic of images `[size, size, 3]` whose weights are a `GaussianData`; z is rgb itself."""
    abar = cosine() if alphas_cumprod is None else alphas_cumprod

    def encode(data: GaussianData, key, rgb):
        del data, key
        return rgb

    def decode(data: GaussianData, z):
        del data
        return z

    def denoise(
        data: GaussianData,
        z_t: Float[Array, "b H W 3"],
        t: Num[Array, " b"],
        text: Cond,
        camera: Camera | None,
    ) -> Float[Array, "b H W 3"]:
        """E[eps | z_t] = sigma (z_t - alpha mean) / (alpha^2 std^2 + sigma^2)."""
        del text, camera
        alpha, sigma = noise_level(abar, t, z_t.ndim)
        return sigma * (z_t - alpha * data.mean) / ((alpha * data.std) ** 2 + sigma**2)

    return Prior(encode, decode, denoise, jnp.asarray(abar), size, reads_camera=False)
