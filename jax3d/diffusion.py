"""Noise schedules, prediction conversions and samplers of diffusion models.

Letters: z_t = alpha z + sigma eps is the noised sample, abar = alpha^2 the cumulative product of
a variance-preserving schedule (alpha^2 + sigma^2 = 1), T its number of timesteps, N the number
of sampling steps, x0 the estimate of the clean sample.

A sampler walks a `Grid` of noise levels from (alpha, sigma) to (alpha', sigma') with
z' = alpha' x0 + sigma' eps. In these letters DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12)
and Euler's method on the variance-exploding ODE of Karras et al. (2022, arXiv:2206.00364) are
the same map, as are DDPM's posterior sampling (Ho et al. 2020, arXiv:2006.11239, eq. 7) and the
ancestral Euler sampler (eta = 1): they differ in the grid alone.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from jax3d.types import Key

Prediction = Literal["eps", "v", "x0"]
"""What a network predicts: the noise, v = alpha eps - sigma x0, or the clean sample."""


# Schedules: abar[T], descending.


def linear(timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Float[Array, " T"]:
    """abar of betas linear in t (Ho et al. 2020, section 4)."""
    return _cumprod(np.linspace(start, end, timesteps))


def scaled_linear(
    timesteps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> Float[Array, " T"]:
    """abar of betas whose square root is linear in t (latent diffusion, Stable Diffusion)."""
    return _cumprod(np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float32) ** 2)


def cosine(
    timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> Float[Array, " T"]:
    """abar of the squared cosine (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    u = np.linspace(0.0, 1.0, timesteps + 1)
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return _cumprod(np.minimum(1 - f[1:] / f[:-1], max_beta))


def zero_terminal_snr(alphas_cumprod: Float[Array, " T"]) -> Float[Array, " T"]:
    """Shift and scale sqrt(abar) so that the last is 0 (Lin et al. 2023, arXiv:2305.08891, alg. 1).

    At the last step eps says nothing of x0: sample such a schedule with v- or x0-prediction.
    """
    root = np.sqrt(np.asarray(alphas_cumprod, np.float64))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return jnp.asarray(root**2, jnp.float32)


def _cumprod(betas: np.ndarray) -> Array:
    # Published schedules hold betas in float32, which shows where abar nears 0.
    alphas = 1 - betas.astype(np.float32)
    return jnp.asarray(np.cumprod(alphas.astype(np.float64)), jnp.float32)


# Noise and predictions.


def noise_level(
    alphas_cumprod: Float[Array, " T"], t: Int[Array, "*b"], ndim: int
) -> tuple[Array, Array]:
    """(alpha, sigma) at `t`, each `[*b, 1, ...]` so as to broadcast against `ndim` axes."""
    abar = alphas_cumprod[t].reshape(t.shape + (1,) * (ndim - t.ndim))
    return jnp.sqrt(abar), jnp.sqrt(1 - abar)


def q_sample(
    alphas_cumprod: Float[Array, " T"],
    z: Float[Array, "*b h w c"],
    t: Int[Array, "*#b"],
    noise: Float[Array, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """z_t = alpha z + sigma noise."""
    alpha, sigma = noise_level(alphas_cumprod, t, z.ndim)
    return alpha * z + sigma * noise


def velocity(
    alphas_cumprod: Float[Array, " T"],
    z: Float[Array, "*b h w c"],
    t: Int[Array, "*#b"],
    noise: Float[Array, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """v = alpha noise - sigma z (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    alpha, sigma = noise_level(alphas_cumprod, t, z.ndim)
    return alpha * noise - sigma * z


def x0_and_eps(
    output: Float[Array, "..."], z_t: Float[Array, "..."], alpha, sigma, prediction: Prediction
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The clean sample and the noise that a network's output stands for.

    `alpha` and `sigma` broadcast against `z_t`. eps-prediction needs alpha > 0, x0-prediction
    sigma > 0.
    """
    match prediction:
        case "eps":
            return (z_t - sigma * output) / alpha, output
        case "v":
            return alpha * z_t - sigma * output, alpha * output + sigma * z_t
        case "x0":
            return output, (z_t - alpha * output) / sigma


def cfg(uncond: Float[Array, "..."], cond: Float[Array, "..."], scale) -> Float[Array, "..."]:
    """Classifier-free guidance in the standard form: scale 0 is uncond, scale 1 is cond.

    Ho & Salimans 2022 (arXiv:2207.12598, eq. 6, whose w is scale - 1).
    """
    return uncond + scale * (cond - uncond)


# Samplers.


class Grid(NamedTuple):
    """The noise levels that a sampler visits; leading axis: the N steps."""

    t: Num[Array, " N"]
    """The time given to the network."""
    alpha: Float[Array, " N"]
    sigma: Float[Array, " N"]
    next_alpha: Float[Array, " N"]
    next_sigma: Float[Array, " N"]


Spacing = Literal["leading", "trailing"]


def grid(
    alphas_cumprod: Float[Array, " T"],
    steps: int,
    *,
    spacing: Spacing = "trailing",
    offset: int = 0,
    final_abar: float = 1.0,
) -> Grid:
    """`steps` integer timesteps of a schedule, evenly spaced, noisiest first.

    "leading" counts up from `offset`, "trailing" down from T - 1 (Lin et al. 2023, table 2). Each
    step leads T // steps timesteps down, the last one to `final_abar`.
    """
    abar = np.asarray(alphas_cumprod, np.float64)
    total = len(abar)
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps}: a schedule of {total} timesteps takes 1 to {total} steps")
    stride = total // steps
    match spacing:
        case "leading":
            t = np.arange(steps)[::-1] * stride + offset
        case "trailing":
            t = np.round(total - np.arange(steps) * total / steps).astype(int) - 1
    down = t - stride
    next_abar = np.where(down >= 0, abar[np.maximum(down, 0)], final_abar)
    next_abar[-1] = final_abar
    return _grid(t.astype(np.int32), abar[t], next_abar)


def _grid(t, abar, next_abar) -> Grid:
    levels = (np.sqrt(x) for x in (abar, 1 - abar, next_abar, 1 - next_abar))
    return Grid(jnp.asarray(t), *(jnp.asarray(x, jnp.float32) for x in levels))


def ddim(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "..."],
    grid: Grid,
    *,
    prediction: Prediction = "eps",
    eta: float = 0.0,
    key: Key | None = None,
    clip: float | None = None,
) -> Float[Array, "..."]:
    """Sample from noise `z`; eta 0 is DDIM (= Euler), eta 1 is DDPM (= ancestral Euler).

    `denoise(z_t, t)` returns the network's `prediction`, `t` being a scalar; `key` is needed
    where eta > 0. `clip` bounds x0 to [-clip, clip] at each step, for critics of pixels.
    """
    if eta > 0 and key is None:
        raise ValueError(f"ddim with eta={eta} draws noise: pass key=jax.random.key(seed)")

    def step(z, inputs):
        at, i = inputs
        x0, eps = x0_and_eps(denoise(z, at.t), z, at.alpha, at.sigma, prediction)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
            eps = (z - at.alpha * x0) / at.sigma
        noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype) if eta > 0 else None
        return ddim_step(x0, eps, at, eta, noise), None

    return lax.scan(step, z, (grid, jnp.arange(len(grid.t))))[0]


def ddim_step(
    x0: Float[Array, "..."],
    eps: Float[Array, "..."],
    at: Grid,
    eta: float = 0.0,
    noise: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """One step along `at`, a row of a grid (Song et al. 2021, eq. 12 and 16)."""
    if noise is None:
        return at.next_alpha * x0 + at.next_sigma * eps
    drop = 1 - (at.alpha / at.next_alpha) ** 2
    fresh = eta * at.next_sigma / at.sigma * jnp.sqrt(jnp.maximum(drop, 0.0))
    kept = jnp.sqrt(jnp.maximum(at.next_sigma**2 - fresh**2, 0.0))
    return at.next_alpha * x0 + kept * eps + fresh * noise
