"""Sampling as a checkpoint folder asks for it: diffusers' `scheduler_config.json`.

The file names a scheduler; here it becomes a noise schedule, a kind of prediction and a sampler
of `diffusion.py`. All samplers here walk variance-preserving z; diffusers' Euler schedulers hold
z / alpha instead.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import diffusion
from jax3d.diffusion import Grid, Prediction
from jax3d.weights import WeightsError, checked, read_config, shown


class Sampler(NamedTuple):
    """How to draw a sample."""

    grid: Grid
    sample: Callable[..., Array]
    """`sample(denoise, z, grid, prediction=...) -> z`, with `key` where `stochastic`"""
    stochastic: bool
    start: float
    """Standard deviation of the z to start from."""


class Schedule(NamedTuple):
    """What a `scheduler/` folder says."""

    alphas_cumprod: Float[Array, " T"]
    prediction: Prediction
    sampler: Callable[[int], Sampler] | None
    """The sampler of that many steps; None where no class is named"""


_CLASSES = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""diffusers' schedulers whose betas make a variance-preserving process of whole timesteps. Others
(EDM, flow matching, consistency models) hold other noise under the same names."""

_KINDS = {
    "num_train_timesteps": int,
    "beta_start": float,
    "beta_end": float,
    "beta_schedule": str,
    "prediction_type": str,
    "rescale_betas_zero_snr": bool | None,
    "clip_sample": bool | None,
    "clip_sample_range": float | None,
    "dynamic_thresholding_ratio": float,
    "euler_at_final": bool | None,
    "final_sigmas_type": str | None,
    "lower_order_final": bool | None,
    "sample_max_value": float,
    "set_alpha_to_one": bool,
    "sigma_max": float | None,
    "sigma_min": float | None,
    "steps_offset": int,
    "thresholding": bool | None,
    "timestep_spacing": str,
    "timestep_type": str | None,
    "use_karras_sigmas": bool | None,
}
"""Settings that are read, by what they may be."""

_MOST_TIMESTEPS = 100_000

_FIXED = {
    "algorithm_type": ("dpmsolver++",),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-float("inf"), None),
    "skip_prk_steps": (True,),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "heun"),
    "use_beta_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
"""Settings of diffusers' schedulers that are read here only at these values."""


def read(folder: Path, bounded: bool) -> Schedule:
    """The schedule, the kind of prediction and the sampler of a `scheduler/` folder.

    Where a schedule ends in nothing but noise, an estimate of eps would not tell the image; abar
    is there what diffusers' Euler schedulers make of it, 2^-24, for the sampler as well.

    Args:
      folder: holds `scheduler_config.json`.
      bounded: whether the critic's samples lie in [-1, 1]; latents are not clipped, whatever the
        file says, as in diffusers' pipelines.

    Raises:
      WeightsError: the file is missing, damaged or asks for what is not supported.
    """
    path = folder / "scheduler_config.json"
    config = read_config(path)
    config = config if bounded else config | {"clip_sample": False, "thresholding": False}
    try:
        _demand_variance_preserving(config)
        abar = jnp.maximum(alphas_cumprod(config), _LEAST_ABAR)
        schedule = Schedule(abar, prediction(config), partial(_critics_sampler, path, config))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    return schedule if config.get("_class_name") else schedule._replace(sampler=None)


_LEAST_ABAR = 2.0**-24


def _critics_sampler(path: Path, config: Mapping[str, Any], steps: int) -> Sampler:
    try:
        found = sampler(config, steps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    alpha = jnp.maximum(found.grid.alpha, _LEAST_ABAR**0.5)
    return found._replace(grid=found.grid._replace(alpha=alpha))


def _demand_variance_preserving(config: Mapping[str, Any]) -> None:
    kind = config.get("_class_name")
    if kind is not None and kind not in _CLASSES:
        raise ValueError(
            f"a {shown(kind)} is none of the variance-preserving schedulers of diffusers: "
            f"{', '.join(name.removesuffix('Scheduler') for name in _CLASSES)}"
        )
    for name, plain in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
        if config.get(name) not in (None, plain):
            raise ValueError(f"{name} = {shown(config[name])} is not supported")


def alphas_cumprod(config: Mapping[str, Any]) -> Float[Array, " T"]:
    """abar of a scheduler's config.

    Raises:
      ValueError: a setting is unknown, of another kind, or makes no descending abar.
    """
    checked(config, _KINDS)
    if config.get("trained_betas") is not None:
        return diffusion.trained(_trained_betas(config["trained_betas"]))
    total = config.get("num_train_timesteps", 1000)
    if not 2 <= total <= _MOST_TIMESTEPS:
        raise ValueError(f"num_train_timesteps = {total}; 2 to {_MOST_TIMESTEPS} are read")
    ends = (config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
    if any((config.get(name) or 1.0) <= 0 for name in ("sigma_min", "sigma_max")):
        raise ValueError("sigma_min and sigma_max are above 0")
    if not 0 < ends[0] <= ends[1] < 1:
        raise ValueError(f"beta_start and beta_end = {ends}; betas rise between 0 and 1")
    match config.get("beta_schedule", "linear"):
        case "linear":
            abar = diffusion.linear(total, *ends)
        case "scaled_linear":
            abar = diffusion.scaled_linear(total, *ends)
        case "squaredcos_cap_v2":
            abar = diffusion.cosine(total)
        case "sigmoid":
            abar = diffusion.sigmoid(total, *ends)
        case "exp":
            abar = diffusion.exponential(total)
        case other:
            raise ValueError(
                f"beta_schedule {shown(other)} is not known; "
                "known are linear, scaled_linear, squaredcos_cap_v2, sigmoid and exp"
            )
    if config.get("rescale_betas_zero_snr", False):
        abar = diffusion.zero_terminal_snr(abar)
    return abar


def _trained_betas(betas: Any) -> list[float]:
    if not isinstance(betas, list) or not 2 <= len(betas) <= _MOST_TIMESTEPS:
        raise ValueError(f"trained_betas: no list of 2 to {_MOST_TIMESTEPS} numbers")
    if strange := [b for b in betas if type(b) is not float or not 0 < b < 1]:
        raise ValueError(f"trained_betas holds {shown(strange[0])}; betas are between 0 and 1")
    return betas


def prediction(config: Mapping[str, Any]) -> Prediction:
    """What the network of a scheduler's config predicts."""
    names = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    name = config.get("prediction_type", "epsilon")
    if name not in names:
        raise ValueError(
            f"prediction_type {shown(name)} is not known; known are {', '.join(names)}"
        )
    return names[name]


def sampler(config: Mapping[str, Any], steps: int) -> Sampler:
    """The sampler that a scheduler's config names.

    Raises:
      ValueError: the scheduler, or a setting of it, is not supported.
    """
    for name, known in _FIXED.items():
        if name in config and config[name] not in known:
            raise ValueError(f"{name} = {shown(config[name])} is not supported, only {known}")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in get_args(diffusion.Spacing):
        raise ValueError(f"timestep_spacing {shown(spacing)} is not known")
    abar = alphas_cumprod(config)
    match config.get("_class_name"):
        case "DDIMScheduler":
            sample = partial(diffusion.ddim, clip=clip(config), keep_eps=True)
            return Sampler(_grid(config, abar, steps), sample, False, 1.0)
        case "DDPMScheduler":
            large = str(config.get("variance_type")).startswith("fixed_large")
            sample = partial(diffusion.ddim, eta=1.0, clip=clip(config), large=large)
            return Sampler(_grid(config, abar, steps), sample, True, 1.0)
        case "PNDMScheduler":
            if steps < 2:
                raise ValueError(f"steps={steps}: PNDM takes 2 or more")
            config = {"set_alpha_to_one": False} | dict(config)
            sample = _plms_in_v(abar) if prediction(config) == "v" else diffusion.plms
            return Sampler(_grid(config, abar, steps), sample, False, 1.0)
        case "EulerDiscreteScheduler":
            grid = _euler_grid(config, abar, steps)
            return Sampler(grid, diffusion.ddim, False, _euler_start(config, grid))
        case "EulerAncestralDiscreteScheduler":
            grid = _euler_grid(config, abar, steps)
            sample = partial(diffusion.ddim, eta=1.0)
            return Sampler(grid, sample, True, _euler_start(config, grid))
        case "HeunDiscreteScheduler":
            grid = _euler_grid(config, abar, steps)
            sample = partial(diffusion.heun, clip=clip(config))
            return Sampler(grid, sample, False, _euler_start(config, grid))
        case "DPMSolverMultistepScheduler":
            grid = _dpm_grid(config, abar, steps)
            return Sampler(grid, _dpm_solver(config, steps), False, 1.0)
        case other:
            raise ValueError(
                f"the sampler {shown(other)} is not known; known are DDIM, DDPM, "
                "PNDM, EulerDiscrete, EulerAncestralDiscrete, HeunDiscrete and DPMSolverMultistep"
            )


def clip(config: Mapping[str, Any]) -> diffusion.Clip:
    """How a scheduler's config bounds estimates of the clean sample."""
    if config.get("thresholding", False):
        ratio = config.get("dynamic_thresholding_ratio", 0.995)
        most = config.get("sample_max_value", 1.0)
        return partial(diffusion.dynamic_threshold, ratio=ratio, most=most)
    usual = config.get("_class_name") != "HeunDiscreteScheduler"  # diffusers' defaults
    return config.get("clip_sample_range", 1.0) if config.get("clip_sample", usual) else None


def _plms_in_v(abar) -> Callable[..., Array]:
    """PLMS whose steps mix v, as diffusers mixes what the network puts out."""

    def sample(denoise, z, grid, *, prediction: Prediction = "eps"):
        def in_v(z, t):
            alpha, sigma = diffusion.noise_level(abar, t, z.ndim)
            _, eps = diffusion.x0_and_eps(denoise(z, t), z, alpha, sigma, prediction)
            return (eps - sigma * z) / alpha

        return diffusion.plms(in_v, z, grid, prediction="v")

    return sample


def _dpm_solver(config, steps: int) -> Callable[..., Array]:
    if config.get("thresholding", False):
        raise ValueError("thresholding is supported in DDIM and DDPM only")
    if config.get("solver_order", 2) == 1:
        return diffusion.ddim
    short = config.get("lower_order_final", True) and steps < 15
    return partial(
        diffusion.dpmpp_2m,
        heun=config.get("solver_type", "midpoint") == "heun",
        careful_end=short or config.get("euler_at_final", False),
    )


def _grid(config, abar, steps) -> Grid:
    return diffusion.grid(
        abar,
        steps,
        spacing=config.get("timestep_spacing", "leading"),
        offset=config.get("steps_offset", 0),
        final_abar=1.0 if config.get("set_alpha_to_one", True) else float(abar[0]),
    )


def _euler_grid(config, abar, steps) -> Grid:
    """Noise ratios interpolated between whole timesteps; under Karras' spacing t follows them."""
    ratios = _ratios(abar)
    spacing = config.get("timestep_spacing", "linspace")
    t = diffusion.timesteps(len(ratios), steps, spacing, config.get("steps_offset", 0))
    t = t.astype(np.float32)
    chosen = np.interp(t, np.arange(len(ratios)), ratios)
    if config.get("use_karras_sigmas", False):
        low = config.get("sigma_min") or chosen[-1]
        chosen = diffusion.karras(low, config.get("sigma_max") or chosen[0], steps)
        t = _time_of(chosen, ratios)
    if config.get("timestep_type", "discrete") == "continuous":
        t = 0.25 * np.log(chosen)
    return diffusion.ratio_grid(chosen, t.astype(np.float32), _last(config, ratios))


def _euler_start(config, grid: Grid) -> float:
    # z / alpha starts from sigma / alpha where the grid starts at the schedule's end, else from
    # noise that reaches the variance of data plus noise.
    at_end = config.get("timestep_spacing", "linspace") in ("linspace", "trailing")
    return float(grid.sigma[0]) if at_end else 1.0


def _dpm_grid(config, abar, steps) -> Grid:
    """Whole timesteps; "linspace" and "leading" leave out the last of steps + 1."""
    ratios = _ratios(abar)
    total, offset = len(ratios), config.get("steps_offset", 0)
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "trailing":
        t = diffusion.timesteps(total, steps, spacing)
    else:
        t = np.round(diffusion.timesteps(total, steps + 1, spacing, offset)[:-1]).astype(int)
    chosen = ratios[t]
    if config.get("use_karras_sigmas", False):
        chosen = diffusion.karras(ratios[0], ratios[-1], steps)
        t = np.round(_time_of(chosen, ratios))
    return diffusion.ratio_grid(chosen, t.astype(np.int32), _last(config, ratios))


def _ratios(abar) -> np.ndarray:
    """Noise ratios; where no data is left, that of the abar that diffusers puts there."""
    return diffusion.noise_ratios(jnp.maximum(abar, 2.0**-24))


def _last(config, ratios: np.ndarray) -> float:
    return float(ratios[0]) if config.get("final_sigmas_type") == "sigma_min" else 0.0


def _time_of(chosen: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The timestep of a noise ratio, interpolated in its logarithm."""
    return np.interp(np.log(chosen), np.log(ratios), np.arange(len(ratios)))
