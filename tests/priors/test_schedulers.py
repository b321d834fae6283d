"""Against tables of diffusers 0.30.3 and, for more settings, 0.42.1: two pixels of each step."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import diffusion
from jax3d.priors import schedulers

TABLES = json.loads(Path(__file__).with_name("schedulers.json").read_text())
DETERMINISTIC = [name for name, table in TABLES.items() if "in_noises" not in table]
STOCHASTIC = [name for name, table in TABLES.items() if "in_noises" in table]


def load(name):
    table = TABLES[name]
    config = table["config"]
    outputs = jnp.array(table["in_model_outputs"])
    steps = len(outputs) - (config["_class_name"] == "PNDMScheduler")
    sampler = schedulers.sampler(config, steps)
    # diffusers' Euler schedulers hold z / alpha.
    ratio = "Euler" in config["_class_name"]
    return table, config, outputs, sampler, ratio


def assert_close(actual, expected, config):
    # Where the schedule ends in mere noise, diffusers' float32 tables are less exact.
    rtol = 1e-4 if config.get("rescale_betas_zero_snr") else 1e-5
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", TABLES)
def test_grid(name):
    table, config, outputs, sampler, ratio = load(name)
    abar = schedulers.alphas_cumprod(config)
    total = len(abar)
    abar = abar[jnp.array([0, total // 4, total // 2, total - 2, total - 1])]
    np.testing.assert_allclose(abar, table["abar"], rtol=1e-4, atol=1e-7)
    t = np.asarray(sampler.grid.t)
    t = t if len(t) == len(outputs) else np.r_[t[:2], t[1:]]
    np.testing.assert_allclose(t, table["timesteps"], rtol=1e-5, atol=1e-5)
    start = sampler.start / (sampler.grid.alpha[0] if ratio else 1)
    np.testing.assert_allclose(start, table["init_noise_sigma"], rtol=1e-5)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_step_of_the_samplers(name):
    table, config, outputs, sampler, ratio = load(name)
    seen, queue = [], iter(outputs)

    def denoise(z, t):
        seen.append(z)
        return next(queue)

    with jax.disable_jit():
        last = sampler.sample(
            denoise,
            jnp.array(table["scaled_inputs"][0]),
            sampler.grid,
            prediction=schedulers.prediction(config),
        )
    assert_close(jnp.stack(seen), table["scaled_inputs"], config)
    after = [*seen[1:], last]
    if ratio:
        after = [z / alpha for z, alpha in zip(after, sampler.grid.next_alpha, strict=True)]
    assert_close(jnp.stack(after), table["prev_samples"], config)


@pytest.mark.parametrize(("name", "noises", "expected", "eta"), [
    *((name, "in_noises", "prev_samples", 1.0) for name in STOCHASTIC),
    ("ddim_sd15", "eta07_noises", "eta07_prev", 0.7),
])  # fmt: skip
def test_every_step_with_given_noise(name, noises, expected, eta):
    table, config, outputs, sampler, ratio = load(name)
    chosen = getattr(sampler.sample, "keywords", {})
    bounds = {k: v for k, v in chosen.items() if k in ("clip", "keep_eps")}
    z = jnp.array(table["scaled_inputs"][0])
    for i, (output, noise) in enumerate(zip(outputs, jnp.array(table[noises]), strict=True)):
        at = jax.tree.map(lambda x, i=i: x[i], sampler.grid)
        x0, eps = diffusion.estimate(output, z, at, schedulers.prediction(config), **bounds)
        z = diffusion.ddim_step(x0, eps, at, eta, noise, chosen.get("large", False))
        assert_close(z / at.next_alpha if ratio else z, table[expected][i], config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta_schedule", "laplace"), ("prediction_type", "flow"), ("_class_name", "UniPC")],
)
def test_unknown_names_are_told(field, value):
    config = TABLES["ddim_sd15"]["config"] | {field: value}
    with pytest.raises(ValueError, match=f"'{value}' is not known"):
        schedulers.sampler(config, 4), schedulers.prediction(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("algorithm_type", "sde-dpmsolver++"), ("solver_order", 3), ("thresholding", True)],
)
def test_settings_that_would_be_passed_over_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}.* supported"):
        schedulers.sampler(TABLES["dpmpp2m"]["config"] | {field: value}, 4)


def test_dpmpp_and_plms_converge_faster_than_ddim():
    # The flow of N(mean, std^2) data; see the test of DDIM.
    config = TABLES["dpmpp2m"]["config"]
    abar = schedulers.alphas_cumprod(config)
    mean, std, z = 0.3, 0.5, jnp.array([-1.5, 0.2, 1.0])

    def denoise(z, t):
        a = abar[t]
        return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)

    def error(sample, grid):
        # Without the last step, which is of first order in all of them.
        path = jax.tree.map(lambda x: x[:-1], grid)
        stds = [
            jnp.sqrt(alpha**2 * std**2 + sigma**2)
            for alpha, sigma in ((path.alpha, path.sigma), (path.next_alpha, path.next_sigma))
        ]
        kept = (z - path.alpha[0] * mean) / stds[0][0]
        exact = path.next_alpha[-1] * mean + stds[1][-1] * kept
        return float(jnp.max(jnp.abs(sample(denoise, z, path) - exact)))

    even = schedulers.sampler(config, 25).grid
    assert error(diffusion.dpmpp_2m, even) < error(diffusion.ddim, even) / 3
    even = diffusion.grid(abar, 25, spacing="leading", offset=1)
    assert error(diffusion.plms, even) < error(diffusion.ddim, even) / 3


def test_a_folder_tells_schedule_and_sampler(tmp_path):
    path = tmp_path / "scheduler_config.json"
    for table in TABLES.values():
        config = table["config"]
        path.write_text(json.dumps(config))
        if config.get("timestep_type") == "continuous":
            continue
        schedule = schedulers.read(tmp_path, bounded=True)
        assert schedule.prediction == schedulers.prediction(config)
        assert float(schedule.alphas_cumprod.min()) >= 2.0**-24
        own, plain = schedule.sampler(4), schedulers.sampler(config, 4)
        np.testing.assert_array_equal(own.grid.t, plain.grid.t)
        assert float(own.grid.alpha.min()) >= 2.0**-12
    path.write_text("{}")
    assert schedulers.read(tmp_path, bounded=True).sampler is None


def test_latents_are_not_clipped(tmp_path):
    config = TABLES["ddim_sd15"]["config"] | {"clip_sample": True, "thresholding": True}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    assert schedulers.read(tmp_path, bounded=False).sampler(4).sample.keywords["clip"] is None
    assert schedulers.read(tmp_path, bounded=True).sampler(4).sample.keywords["clip"] is not None


@pytest.mark.parametrize(("changes", "steps", "match"), [
    ({"_class_name": "UniPCMultistepScheduler"}, 4, "'UniPCMultistepScheduler' is not known"),
    ({"timestep_spacing": "geometric"}, 4, "timestep_spacing 'geometric'"),
    ({"_class_name": "PNDMScheduler"}, 1, "PNDM takes 2 or more"),
    ({"steps_offset": 1}, 1000, "go beyond 1000 timesteps"),
    ({}, 0, "takes 1 to 1000 steps"),
    ({}, 1001, "takes 1 to 1000 steps"),
])  # fmt: skip
def test_samplers_that_cannot_be(tmp_path, changes, steps, match):
    config = TABLES["ddim_sd15"]["config"] | changes
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    schedule = schedulers.read(tmp_path, bounded=False)
    with pytest.raises(ValueError, match=rf"scheduler_config\.json: .*{match}"):
        schedule.sampler(steps)
