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

from collections.abc import Callable, Sequence
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


def sigmoid(timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Float[Array, " T"]:
    """abar of betas on a logistic curve from -6 to 6 (GeoDiff, as in diffusers' DDPM)."""
    u = np.linspace(-6.0, 6.0, timesteps)
    return _cumprod(start + (end - start) / (1 + np.exp(-u)))


def exponential(timesteps: int = 1000, rate: float = 12.0) -> Float[Array, " T"]:
    """abar that falls evenly in its logarithm, to exp(-rate) (Shap-E, arXiv:2305.02463)."""
    return _cumprod(np.full(timesteps, -np.expm1(-rate / timesteps)))


def trained(betas: Sequence[float]) -> Float[Array, " T"]:
    """abar of given betas."""
    return _cumprod(np.asarray(betas))


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
    alphas_cumprod: Float[Array, " T"], t: Num[Array, "*b"], ndim: int
) -> tuple[Array, Array]:
    """(alpha, sigma) at `t`, each `[*b, 1, ...]` so as to broadcast against `ndim` axes.

    Between whole timesteps sigma / alpha is linear, as diffusers' Euler schedulers have it.
    """
    if jnp.issubdtype(t.dtype, jnp.floating):
        whole = jnp.arange(len(alphas_cumprod))
        ratio = jnp.interp(t, whole, jnp.sqrt((1 - alphas_cumprod) / alphas_cumprod))
        abar = 1 / (1 + ratio**2)
    else:
        abar = alphas_cumprod[t]
    abar = abar.reshape(t.shape + (1,) * (ndim - t.ndim))
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


def rescale(
    guided: Float[Array, "b ..."], cond: Float[Array, "b ..."], mix: float
) -> Float[Array, "b ..."]:
    """Shrink what guidance has blown up to the spread of `cond`, by a share of `mix`.

    Spread is the standard deviation over all axes but the first (Lin et al. 2023, eq. 14-16).
    """
    axes = tuple(range(1, guided.ndim))
    std = [jnp.std(x, axis=axes, keepdims=True) for x in (cond, guided)]
    return guided * (mix * std[0] / std[1] + 1 - mix)


# Samplers.


class Grid(NamedTuple):
    """The noise levels that a sampler visits; leading axis: the N steps."""

    t: Num[Array, " N"]
    """The time given to the network."""
    alpha: Float[Array, " N"]
    sigma: Float[Array, " N"]
    next_alpha: Float[Array, " N"]
    next_sigma: Float[Array, " N"]


Spacing = Literal["leading", "trailing", "linspace"]


def timesteps(total: int, steps: int, spacing: Spacing, offset: int = 0) -> np.ndarray:
    """`steps` of `total` timesteps, noisiest first (Lin et al. 2023, table 2).

    "leading" counts up from `offset` in whole strides, "trailing" down from the last timestep,
    "linspace" takes both ends and is not rounded.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps={steps}: a schedule of {total} timesteps takes 1 to {total} steps")
    if spacing == "leading" and (steps - 1) * (total // steps) + offset >= total:
        raise ValueError(f"steps={steps} from offset {offset} on go beyond {total} timesteps")
    match spacing:
        case "leading":
            return np.arange(steps)[::-1] * (total // steps) + offset
        case "trailing":
            return np.round(total - np.arange(steps) * total / steps).astype(int) - 1
        case "linspace":
            return np.linspace(0, total - 1, steps)[::-1]


def grid(
    alphas_cumprod: Float[Array, " T"],
    steps: int,
    *,
    spacing: Spacing = "trailing",
    offset: int = 0,
    final_abar: float = 1.0,
) -> Grid:
    """Whole timesteps of a schedule, each step leading T // steps of them down.

    `final_abar` stands for the levels before the first timestep.
    """
    abar = np.asarray(alphas_cumprod, np.float64)
    t = np.round(timesteps(len(abar), steps, spacing, offset)).astype(np.int32)
    down = t - len(abar) // steps
    next_abar = np.where(down >= 0, abar[np.maximum(down, 0)], final_abar)
    levels = (np.sqrt(x) for x in (abar[t], 1 - abar[t], next_abar, 1 - next_abar))
    return Grid(jnp.asarray(t), *(jnp.asarray(x, jnp.float32) for x in levels))


def noise_ratios(alphas_cumprod: Float[Array, " T"]) -> np.ndarray:
    """sigma / alpha, the noise level of Karras et al., at each timestep."""
    abar = np.asarray(alphas_cumprod, np.float64)
    return np.sqrt((1 - abar) / abar)


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Noise ratios from `high` to `low` (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def ratio_grid(ratios: np.ndarray, t: np.ndarray, last: float = 0.0) -> Grid:
    """The grid through given noise ratios sigma / alpha and to the last, 0 being no noise."""
    ends = np.append(ratios, last)
    alpha = 1 / np.sqrt(1 + ends**2)
    levels = (alpha[:-1], (alpha * ends)[:-1], alpha[1:], (alpha * ends)[1:])
    return Grid(jnp.asarray(t), *(jnp.asarray(x, jnp.float32) for x in levels))


Clip = float | Callable[[Array], Array] | None
"""Bounds estimates of the clean sample: to [-clip, clip], or by any function."""


def estimate(
    output: Float[Array, "..."],
    z: Float[Array, "..."],
    at: Grid,
    prediction: Prediction,
    clip: Clip = None,
    keep_eps: bool = False,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """x0 and eps at `at`, a row of a grid, for critics of pixels with x0 bounded.

    eps is then that of the bounded x0; `keep_eps` leaves it, as diffusers' DDIM does.
    """
    x0, eps = x0_and_eps(output, z, at.alpha, at.sigma, prediction)
    if clip is None:
        return x0, eps
    x0 = clip(x0) if callable(clip) else jnp.clip(x0, -clip, clip)
    return x0, eps if keep_eps else (z - at.alpha * x0) / at.sigma


def dynamic_threshold(
    x0: Float[Array, "b ..."], ratio: float = 0.995, most: float = 1.0
) -> Float[Array, "b ..."]:
    """x0 in [-1, 1], shrunk by what all but `1 - ratio` of its values keep within.

    That size is at least 1 and at most `most` (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
    """
    size = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), ratio, axis=1)
    size = jnp.clip(size, 1.0, most).reshape(-1, *(1,) * (x0.ndim - 1))
    return jnp.clip(x0, -size, size) / size


def ddim(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "..."],
    grid: Grid,
    *,
    prediction: Prediction = "eps",
    eta: float = 0.0,
    key: Key | None = None,
    clip: Clip = None,
    keep_eps: bool = False,
    large: bool = False,
) -> Float[Array, "..."]:
    """Sample from noise `z`; eta 0 is DDIM (= Euler), eta 1 is DDPM (= ancestral Euler).

    `denoise(z_t, t)` returns the network's `prediction`, `t` being a scalar; `key` is needed
    where eta > 0. `clip` and `keep_eps` are those of `estimate`, `large` that of `ddim_step`.
    """
    if eta > 0 and key is None:
        raise ValueError(f"ddim with eta={eta} draws noise: pass key=jax.random.key(seed)")

    def step(z, inputs):
        at, i = inputs
        x0, eps = estimate(denoise(z, at.t), z, at, prediction, clip, keep_eps)
        noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype) if eta > 0 else None
        return ddim_step(x0, eps, at, eta, noise, large), None

    return lax.scan(step, z, (grid, jnp.arange(len(grid.t))))[0]


def ddim_step(
    x0: Float[Array, "..."],
    eps: Float[Array, "..."],
    at: Grid,
    eta: float = 0.0,
    noise: Float[Array, "..."] | None = None,
    large: bool = False,
) -> Float[Array, "..."]:
    """One step along `at`, a row of a grid (Song et al. 2021, eq. 12 and 16).

    `large` draws the upper bound of the posterior's variance, beta_t, around the same mean
    (Ho et al. 2020, section 3.2).
    """
    if noise is None:
        return at.next_alpha * x0 + at.next_sigma * eps
    drop = jnp.sqrt(jnp.maximum(1 - (at.alpha / at.next_alpha) ** 2, 0.0))
    fresh = eta * at.next_sigma / at.sigma * drop
    kept = jnp.sqrt(jnp.maximum(at.next_sigma**2 - fresh**2, 0.0))
    if large:
        fresh = eta * jnp.where(at.next_sigma > 0, drop, 0.0)
    return at.next_alpha * x0 + kept * eps + fresh * noise


def dpmpp_2m(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "..."],
    grid: Grid,
    *,
    prediction: Prediction = "eps",
    heun: bool = False,
    careful_end: bool = True,
) -> Float[Array, "..."]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2); arguments as `ddim`.

    x0 is extrapolated along the log signal-to-noise ratio from the last two estimates, half a
    step ahead or, with `heun`, as far as the exact integral of the line through them. The first
    step is of first order, and with `careful_end` or where no noise is left, the last.
    """
    log_snr = np.log(np.asarray(grid.alpha, np.float64) / np.asarray(grid.sigma))
    with np.errstate(divide="ignore"):
        last = (np.asarray(x, np.float64)[-1] for x in (grid.next_alpha, grid.next_sigma))
        end = np.log(np.divide(*last))
    gaps = np.diff(np.append(log_snr, end))
    part = 1 / (1 - np.exp(-gaps)) - 1 / gaps if heun else np.full(len(gaps), 0.5)
    ahead = np.zeros(len(gaps))
    ahead[1:] = part[1:] * gaps[1:] / gaps[:-1]
    if careful_end or np.isinf(end):
        ahead[-1] = 0.0
    ahead = jnp.asarray(ahead, z.dtype)

    def step(carry, inputs):
        z, before = carry
        at, ahead = inputs
        x0, _ = x0_and_eps(denoise(z, at.t), z, at.alpha, at.sigma, prediction)
        mean = x0 + ahead * (x0 - before)
        return (ddim_step(mean, (z - at.alpha * mean) / at.sigma, at), x0), None

    return lax.scan(step, (z, jnp.zeros_like(z)), (grid, ahead))[0][0]


def plms(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "..."],
    grid: Grid,
    *,
    prediction: Prediction = "eps",
) -> Float[Array, "..."]:
    """Pseudo linear multistep (Liu et al. 2022, arXiv:2202.09778); arguments as `ddim`.

    Adams-Bashforth of order 4 on the network's output. The first step is taken twice, the second
    time with the mean of the outputs at both of its ends, so N steps call the network N + 1 times;
    N is at least 2.
    """
    steps = len(grid.t)
    mix = np.zeros((steps + 1, 4))
    mix[4:] = np.array([55, -59, 37, -9]) / 24
    for row, weights in enumerate(
        ([1], [1 / 2, 1 / 2], [3 / 2, -1 / 2], [23 / 12, -4 / 3, 5 / 12])
    ):
        mix[row : row + 1, : len(weights)] = weights
    seen_at = np.r_[0, 1, 1:steps]
    leaves_from = np.r_[0, 0, 1:steps]

    def step(carry, inputs):
        z, start, history = carry
        seen_t, at, mix, again = inputs
        outputs = jnp.concatenate([denoise(z, seen_t)[None], history])
        output = jnp.tensordot(mix, outputs, axes=1, precision="highest")
        origin = jnp.where(again, start, z)
        x0, eps = x0_and_eps(output, origin, at.alpha, at.sigma, prediction)
        history = jnp.where(again, history, outputs[:-1])
        return (ddim_step(x0, eps, at), origin, history), None

    path = jax.tree.map(lambda x: x[leaves_from], grid)
    again = jnp.arange(steps + 1) == 1
    start = (z, z, jnp.zeros((3, *z.shape), z.dtype))
    return lax.scan(step, start, (grid.t[seen_at], path, jnp.asarray(mix, z.dtype), again))[0][0]


class HeunState(NamedTuple):
    """Where Heun's method stands between two calls of the network; it goes on from here."""

    z: Float[Array, "..."]
    """What the network is shown next."""
    origin: Float[Array, "..."]
    """z where the step at hand began."""
    eps: Float[Array, "..."]
    """The noise found there."""


def heun_start(z: Float[Array, "..."]) -> HeunState:
    """Before the first call, at noise `z`."""
    return HeunState(z, z, jnp.zeros_like(z))


def heun_level(i: Int[Array, ""] | int, grid: Grid) -> Grid:
    """The row of a grid at which call `i` of its 2N - 1 asks the network."""
    return jax.tree.map(lambda x: x[(i + 1) // 2], grid)


def heun_step(
    state: HeunState, eps: Float[Array, "..."], i: Int[Array, ""] | int, grid: Grid
) -> HeunState:
    """After call `i`, of which `eps` is the noise that the network found in `state.z`.

    Heun's method on the variance-exploding ODE dx/ds = eps of x = z / alpha in s = sigma / alpha
    (Karras et al. 2022, algorithm 1). Calls 2k take a step of Euler along row k; calls 2k + 1 take
    it again from where it began, along the mean of the noise at both of its ends. The last step,
    to no noise, is Euler's.
    """
    at = jax.tree.map(lambda x: x[i // 2], grid)
    again = i % 2 == 1
    eps = jnp.where(again, (state.eps + eps) / 2, eps)
    origin = jnp.where(again, state.origin, state.z)
    down = at.next_sigma / at.next_alpha - at.sigma / at.alpha
    return HeunState(at.next_alpha * (origin / at.alpha + down * eps), origin, eps)


def heun(
    denoise: Callable[[Array, Array], Array],
    z: Float[Array, "..."],
    grid: Grid,
    *,
    prediction: Prediction = "eps",
    clip: Clip = None,
) -> Float[Array, "..."]:
    """Heun's method, 2N - 1 calls of the network for N steps; arguments as `ddim`."""

    def call(state, i):
        at = heun_level(i, grid)
        _, eps = estimate(denoise(state.z, at.t), state.z, at, prediction, clip)
        return heun_step(state, eps, i, grid), None

    return lax.scan(call, heun_start(z), jnp.arange(2 * len(grid.t) - 1))[0].z
