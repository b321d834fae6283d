import jax
import jax.numpy as jnp
import numpy as np

from jax3d import diffusion
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Cond

NO_TEXT = Cond(jnp.zeros((3, 1, 1)))


def test_denoise_is_the_gradient_of_the_log_density():
    prior = gaussian(4)
    data = GaussianData(mean=jax.random.uniform(jax.random.key(0), (4, 4, 3)), std=jnp.float32(0.3))
    z = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))
    t = jnp.array([10, 500, 990])
    alpha, sigma = diffusion.noise_level(prior.alphas_cumprod, t, 4)

    def log_density(z):
        return -jnp.sum((z - alpha * data.mean) ** 2 / (alpha**2 * data.std**2 + sigma**2)) / 2

    eps = prior.denoise(data, z, t, NO_TEXT, None)
    np.testing.assert_allclose(eps, -sigma * jax.grad(log_density)(z), rtol=1e-5, atol=1e-6)


def test_sampling_draws_the_data():
    prior = gaussian(2)
    mean = jnp.linspace(0, 1, 12).reshape(2, 2, 3)
    data = GaussianData(mean=mean, std=jnp.float32(0.2))
    z = jax.random.normal(jax.random.key(0), (2000, 2, 2, 3))
    text = Cond(jnp.zeros((2000, 1, 1)))

    def denoise(z, t):
        return prior.denoise(data, z, jnp.broadcast_to(t, z.shape[:1]), text, None)

    x = diffusion.ddim(denoise, z, diffusion.grid(prior.alphas_cumprod, 100))
    rgb = prior.decode(data, x)
    np.testing.assert_allclose(rgb.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(rgb.std(0), 0.2, atol=0.02)
