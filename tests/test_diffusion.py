import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import diffusion

SCHEDULES = [diffusion.linear, diffusion.scaled_linear, diffusion.cosine]
"""Of published tables; `exponential` is a closed form."""


def gaussian_eps(abar, mean, std):
    """E[noise | z_t] where the data is N(mean, std^2)."""

    def denoise(z, t):
        a = abar[t]
        return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_one_towards_zero(schedule):
    abar = np.asarray(schedule())
    assert abar.shape == (1000,)
    assert abar.dtype == np.float32
    assert np.all(np.diff(abar) < 0)
    assert 0.999 < abar[0] < 1
    assert 0 < abar[-1] < 0.005


def test_schedules_against_published_tables():
    # First and last entries of the schedules of DDPM, Stable Diffusion 1.5 and improved DDPM.
    ends = np.array([np.asarray(s())[[0, 1, -2, -1]] for s in SCHEDULES])
    np.testing.assert_allclose(
        ends,
        [
            [9.9989998e-01, 9.9978006e-01, 4.1181942e-05, 4.0358304e-05],
            [9.9915000e-01, 9.9829600e-01, 4.7167000e-03, 4.6601000e-03],
            [9.9995869e-01, 9.9991256e-01, 2.4287663e-06, 2.4287350e-09],
        ],
        rtol=1e-5,
    )


def test_the_exponential_schedule_is_even_in_its_logarithm():
    abar = np.asarray(diffusion.exponential(1024), np.float64)
    np.testing.assert_allclose(np.log(abar), -12 * np.arange(1, 1025) / 1024, rtol=2e-5)


def test_zero_terminal_snr_moves_the_end_alone():
    abar = diffusion.scaled_linear()
    shifted = np.asarray(diffusion.zero_terminal_snr(abar))
    assert shifted[-1] == 0
    np.testing.assert_allclose(shifted[0], abar[0], rtol=1e-6)
    root = np.sqrt(np.asarray(abar, np.float64))
    slope = np.diff(np.sqrt(shifted)) / np.diff(root)
    np.testing.assert_allclose(slope, slope.mean(), rtol=1e-2)


def test_predictions_convert_into_each_other():
    abar = diffusion.cosine(100)
    keys = jax.random.split(jax.random.key(0), 2)
    x0, eps = (jax.random.normal(k, (3, 4, 5, 2)) for k in keys)
    t = jnp.array([2, 50, 97])
    z_t = diffusion.q_sample(abar, x0, t, eps)
    v = diffusion.velocity(abar, x0, t, eps)
    alpha, sigma = diffusion.noise_level(abar, t, 4)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    for prediction, output in {"eps": eps, "v": v, "x0": x0}.items():
        clean, noise = diffusion.x0_and_eps(output, z_t, alpha, sigma, prediction)
        np.testing.assert_allclose(clean, x0, atol=1e-4)
        np.testing.assert_allclose(noise, eps, atol=1e-4)


def test_q_sample_takes_one_t_for_all():
    abar = diffusion.linear(10)
    z = jnp.ones((2, 3, 3, 1))
    one = diffusion.q_sample(abar, z, jnp.array(4), 2 * z)
    np.testing.assert_array_equal(one, diffusion.q_sample(abar, z, jnp.array([4, 4]), 2 * z))
    np.testing.assert_allclose(one, np.sqrt(abar[4]) + 2 * np.sqrt(1 - abar[4]), rtol=1e-6)


def test_cfg_scale_one_is_the_condition():
    uncond, cond = jnp.zeros(3), jnp.arange(3.0)
    np.testing.assert_array_equal(diffusion.cfg(uncond, cond, 0.0), uncond)
    np.testing.assert_array_equal(diffusion.cfg(uncond, cond, 1.0), cond)
    np.testing.assert_array_equal(diffusion.cfg(uncond, cond, 7.5), 7.5 * cond)


def test_grids_visit_the_published_timesteps():
    abar = diffusion.scaled_linear()
    leading = diffusion.grid(abar, 12, spacing="leading", offset=1)
    assert leading.t.tolist() == [914, 831, 748, 665, 582, 499, 416, 333, 250, 167, 84, 1]
    trailing = diffusion.grid(abar, 12, spacing="trailing")
    assert trailing.t.tolist() == [999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82]
    np.testing.assert_allclose(leading.next_alpha[:-1], leading.alpha[1:])
    assert leading.next_alpha[-1] == 1
    assert leading.next_sigma[-1] == 0


@pytest.mark.parametrize("steps", [0, 1001])
def test_grid_refuses_impossible_step_counts(steps):
    with pytest.raises(ValueError, match=f"steps={steps}.*1 to 1000"):
        diffusion.grid(diffusion.linear(), steps)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_ddim_finds_the_only_sample(eta, steps):
    abar = diffusion.cosine()
    mean = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
    z = jax.random.normal(jax.random.key(1), mean.shape)
    grid = diffusion.grid(abar, steps, spacing="leading", offset=1)
    x = diffusion.ddim(gaussian_eps(abar, mean, 0.0), z, grid, eta=eta, key=jax.random.key(2))
    np.testing.assert_allclose(x, mean, atol=1e-4)


def test_ddim_converges_to_the_flow_of_gaussian_data_with_order_one():
    # Along the flow of N(mean, std^2), (z_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is kept.
    abar = diffusion.scaled_linear()
    mean, std, z = 0.3, 0.5, jnp.array([-1.5, 0.2, 1.0])
    denoise = gaussian_eps(abar, mean, std)

    def error(steps):
        grid = diffusion.grid(abar, steps)
        at = grid.alpha[0] ** 2 * std**2 + grid.sigma[0] ** 2
        exact = mean + std * (z - grid.alpha[0] * mean) / jnp.sqrt(at)
        return float(jnp.max(jnp.abs(diffusion.ddim(denoise, z, grid) - exact)))

    coarse, fine = error(40), error(200)
    assert fine < 0.02
    assert 3.0 < coarse / fine < 8.0


def test_heun_converges_to_the_flow_of_gaussian_data_with_order_two():
    # See above; along all but the last noise levels, where the flow is steep.
    abar = diffusion.scaled_linear()
    mean, std, z = 0.3, 0.5, jnp.array([-1.5, 0.2, 1.0])
    denoise = gaussian_eps(abar, mean, std)

    def error(steps):
        path = jax.tree.map(lambda x: x[: steps * 3 // 4], diffusion.grid(abar, steps))
        ends = (path.alpha[0], path.sigma[0]), (path.next_alpha[-1], path.next_sigma[-1])
        stds = [jnp.sqrt(alpha**2 * std**2 + sigma**2) for alpha, sigma in ends]
        exact = ends[1][0] * mean + stds[1] * (z - ends[0][0] * mean) / stds[0]
        return float(jnp.max(jnp.abs(diffusion.heun(denoise, z, path) - exact)))

    coarse, fine = error(40), error(200)
    assert fine < 2e-4
    assert 15.0 < coarse / fine < 40.0


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_heun_finds_the_only_sample(steps):
    abar = diffusion.scaled_linear()
    mean = jnp.linspace(-1, 1, 12)
    z = jax.random.normal(jax.random.key(1), mean.shape)
    asked = []

    def denoise(z, t):
        asked.append(int(t))
        return gaussian_eps(abar, mean, 0.0)(z, t)

    grid = diffusion.grid(abar, steps)
    with jax.disable_jit():
        x = diffusion.heun(denoise, z, grid)
    np.testing.assert_allclose(x, mean, atol=1e-5)
    t = np.asarray(grid.t).tolist()
    assert asked == t[:1] + [each for each in t[1:] for _ in range(2)]


def test_ancestral_sampling_draws_the_distribution():
    abar = diffusion.cosine()
    mean, std = -0.4, 0.7
    keys = jax.random.split(jax.random.key(0), 2)
    x = diffusion.ddim(
        gaussian_eps(abar, mean, std),
        jax.random.normal(keys[0], (20_000,)),
        diffusion.grid(abar, 500),
        eta=1.0,
        key=keys[1],
    )
    np.testing.assert_allclose([x.mean(), x.std()], [mean, std], atol=0.02)


def test_ddim_samples_a_zero_terminal_snr_schedule_by_v():
    abar = diffusion.zero_terminal_snr(diffusion.scaled_linear())
    x0 = jnp.linspace(-1, 1, 5)

    def denoise(z, t):
        alpha, sigma = jnp.sqrt(abar[t]), jnp.sqrt(1 - abar[t])
        return (alpha * z - x0) / sigma

    z = jax.random.normal(jax.random.key(0), x0.shape)
    x = diffusion.ddim(denoise, z, diffusion.grid(abar, 10), prediction="v")
    np.testing.assert_allclose(x, x0, atol=1e-5)


def test_clip_bounds_the_clean_sample():
    abar = diffusion.cosine()
    x = diffusion.ddim(
        gaussian_eps(abar, 3.0, 0.1), jnp.zeros(4), diffusion.grid(abar, 8), clip=1.0
    )
    np.testing.assert_allclose(x, 1, atol=1e-6)


def test_ddim_asks_for_a_key():
    abar = diffusion.cosine()
    with pytest.raises(ValueError, match="pass key="):
        diffusion.ddim(gaussian_eps(abar, 0.0, 1.0), jnp.zeros(1), diffusion.grid(abar, 3), eta=0.5)
