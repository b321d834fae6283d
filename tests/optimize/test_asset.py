import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, no_condition, optimizer, pages, run_block, stack

from jax3d.camera import CameraConfig, orbit
from jax3d.guidance.base import Guidance, focus
from jax3d.guidance.sds import sds
from jax3d.guidance.vsd import SecondCritic, vsd
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.priors.empirical import EmpiricalData, condition, empirical
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Camera, Look, Ramp

SIZE = 8
PAGES = pages(4, SIZE)
PRIOR = gaussian(SIZE)
CONFIG = AssetConfig(views=2, stages=(StageConfig(5, SIZE),), p_grey=0.5)
DATA = GaussianData(
    mean=jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3)), std=jnp.float32(0.05)
)
INIT, STEP = optimizer(PAGES, sds(PRIOR), CONFIG)


START = jax.jit(jax.vmap(INIT))
BLOCK = run_block(STEP, 4, SIZE)


def run(each, block=BLOCK, start=START, prior_params=DATA, cond=None):
    """A block of steps of several assets from their start."""
    stacked = stack(each)
    conds = stack([no_condition() if cond is None else cond] * len(each))
    return block(start(stacked), prior_params, conds, stacked)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_optimum_under_gaussian_data_is_its_mean():
    white = AssetConfig(views=4, p_grey=0.0, camera=CameraConfig(elevation=(0.0, 20.0)))
    init, step = optimizer(PAGES, sds(PRIOR), white)
    knob = knobs(1, lr=Ramp.of(3.0, 0.02, begin=100, steps=250), guidance_scale=1.0)
    states, metrics = run([knob], run_block(step, 400, SIZE), jax.jit(jax.vmap(init)))
    page = jax.tree.map(lambda x: x[0], states.params)
    shown = page["rgb"] * page["alpha"][..., None] + (1 - page["alpha"])[..., None]
    np.testing.assert_allclose(shown, np.broadcast_to(DATA.mean, shown.shape), atol=0.02)
    assert metrics["residual_norm"].shape == (400, 1)


def test_one_step_of_adam_by_hand():
    # The first step of Adam moves each parameter by its rate against its gradient's sign.
    config = AssetConfig(views=1, rate=0.01, rates=(("alpha", 0.5),))
    slope = {"rgb": 2.0, "alpha": -3.0}

    def loss(shared, key, shot, cond, knobs, own):
        seen = shot.render
        return slope["rgb"] * seen.normal.sum() + slope["alpha"] * seen.depth.sum(), {}

    init, step = optimizer(PAGES, Guidance(loss), config)
    knob = knobs(0, lr=0.1)
    before = jax.jit(init)(knob)
    after, metrics = jax.jit(step, static_argnums=4)(before, DATA, no_condition(), knob, SIZE)
    moved = jax.tree.map(lambda a, b: a - b, after.params, before.params)
    seen = np.any(np.asarray(moved["rgb"]) != 0, axis=(1, 2, 3))
    assert seen.sum() == 1
    np.testing.assert_allclose(moved["rgb"][seen], -0.001, rtol=1e-3)
    np.testing.assert_allclose(moved["alpha"][seen], 0.05, rtol=1e-3)
    norm = np.sqrt(SIZE**2 * (3 * slope["rgb"] ** 2 + slope["alpha"] ** 2))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert after.step == 1


def test_what_a_guidance_trains_beside_the_asset_moves_at_its_own_rate():
    second = SecondCritic(
        lambda key: jnp.full(3, 0.2), lambda p, own, z_t, t, text, camera, told: own * z_t
    )
    config = AssetConfig(views=2, rate=0.01, rates=(("guidance", 0.001),))
    init, step = optimizer(PAGES, vsd(PRIOR, second), config)
    knob = knobs(0)
    before = jax.jit(init)(knob)
    after, metrics = jax.jit(step, static_argnums=4)(before, DATA, no_condition(), knob, SIZE)
    np.testing.assert_allclose(np.abs(after.guidance[0] - before.guidance[0]), 0.001, rtol=1e-3)
    moved = np.abs(after.params["rgb"] - before.params["rgb"])
    np.testing.assert_allclose(moved[moved > 0], 0.01, rtol=1e-2)
    assert metrics["second_loss"] > 0


def test_the_weight_of_an_opinion_leaves_what_it_learns_alone():
    second = SecondCritic(
        lambda key: jnp.full(3, 0.2), lambda p, own, z_t, t, text, camera, told: own * z_t
    )
    init, step = optimizer(PAGES, vsd(PRIOR, second), AssetConfig(views=2))

    def moments(weight):
        knob = knobs(0, lambda_sds=weight)
        state = jax.jit(init)(knob)
        after, metrics = jax.jit(step, static_argnums=4)(state, DATA, no_condition(), knob, SIZE)
        return after.opt_state[1].mu, metrics["grad_norm"]

    (own, norm), (same, doubled), (still, none) = moments(1.0), moments(2.0), moments(0.0)
    np.testing.assert_array_equal(own[0], same[0])
    np.testing.assert_array_equal(own[0], still[0])
    np.testing.assert_allclose(doubled, 2 * norm, rtol=1e-5)
    assert none == 0


def test_a_step_sums_its_terms_two_critics_at_once():
    config = AssetConfig(views=2, p_grey=0.0, camera=CameraConfig(elevation=(0.0, 20.0)))
    means = {"dark": jnp.full((SIZE, SIZE, 3), 0.2), "light": jnp.full((SIZE, SIZE, 3), 0.6)}
    shared = {name: GaussianData(mean, jnp.float32(0.05)) for name, mean in means.items()}
    terms = [asset.random_views(focus(sds(PRIOR), name), config) for name in means]
    init, step = asset.make(PAGES, terms, config)
    knob = knobs(1, lr=Ramp.of(3.0, 0.02, begin=100, steps=250), guidance_scale=1.0)
    cond = dict.fromkeys(means, no_condition())
    block = run_block(step, 400, SIZE)
    states, metrics = run([knob], block, jax.jit(jax.vmap(init)), shared, cond)
    assert {"residual_norm", "residual_norm_1"} <= set(metrics)
    page = jax.tree.map(lambda x: x[0], states.params)
    shown = page["rgb"] * page["alpha"][..., None] + (1 - page["alpha"])[..., None]
    np.testing.assert_allclose(shown, 0.4, atol=0.03)


def test_an_unknown_group_of_rates_is_named():
    init, _ = optimizer(PAGES, sds(PRIOR), AssetConfig(rates=(("planes", 0.1),)))
    with pytest.raises(ValueError, match=r"no group \['planes'\].*'alpha', 'guidance', 'rgb'"):
        init(knobs())


def test_views_must_fit_a_critic_of_several_views():
    with pytest.raises(ValueError, match="take a multiple of 4"):
        asset.distil(PAGES, PRIOR._replace(views=4), sds(PRIOR), DATA, CONFIG)


def test_the_same_seed_is_bitwise_the_same_asset():
    first, _ = run([knobs(3)])
    second, _ = run([knobs(3)], run_block(STEP, 4, SIZE))
    other, _ = run([knobs(4)])
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(first.params["rgb"] != other.params["rgb"])


def test_an_asset_does_not_feel_its_neighbours():
    wanted = knobs(3, guidance_scale=5.0)
    others = [knobs(8, lr=0.3), knobs(9, t_max=0.5)]
    alone, _ = run([wanted])
    for place in range(3):
        together, _ = run([*others[:place], wanted, *others[place:]])
        for a, b in zip(leaves(alone), leaves(together), strict=True):
            np.testing.assert_allclose(a[0], b[place], rtol=1e-5, atol=1e-6)


def test_assets_one_by_one_are_the_assets_of_a_batch():
    many = [knobs(3, guidance_scale=5.0), knobs(8, lr=0.3), knobs(9, t_max=0.5)]
    together, metrics = run(many)
    singly, same_metrics = run(many, run_block(STEP, 4, SIZE, over="map"))
    for a, b in zip(leaves((together, metrics)), leaves((singly, same_metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_block_is_its_steps():
    whole, metrics = run([knobs(3)])
    three = stack([knobs(3)])
    block = run_block(STEP, 2, SIZE)
    conds = stack([no_condition()])
    halfway, _ = block(START(three), DATA, conds, three)
    resumed, last = block(halfway, DATA, conds, three)
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(metrics["grad_norm"][2:], last["grad_norm"])


def test_an_asset_at_hand_is_a_valid_start():
    params = jax.tree.map(jnp.zeros_like, PAGES.init(jax.random.key(0)))
    state = INIT(knobs(), params)
    assert state.params is params
    assert state.step == 0


def test_sample_look_keeps_its_promises():
    config = AssetConfig(p_grey=0.5, p_textureless=0.5)
    cameras = orbit(jnp.zeros(2000), 0.3, 2.0, 0.7)
    knob = knobs(background=(0.1, 0.2, 0.3), p_shaded=Ramp.of(0.0, 0.75, begin=99))
    draw = jax.jit(lambda step: asset.sample_look(jax.random.key(0), config, step, cameras, knob))
    early, late = draw(99), draw(100)
    constant = np.all(np.isclose(early.background, [0.1, 0.2, 0.3]), axis=-1)
    grey = np.ptp(early.background, axis=-1) == 0
    assert np.all(constant ^ grey)
    assert abs(grey.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(early.ambient, 1)
    np.testing.assert_array_equal(early.textureless, 0)
    assert abs(np.mean(late.ambient == 0.1) - 0.75) < 0.05
    assert abs(np.mean(late.textureless) - 0.375) < 0.05
    assert np.all(late.ambient[late.textureless == 1] < 1)
    np.testing.assert_allclose(np.linalg.norm(late.light, axis=-1), 1, rtol=1e-5)


def test_sds_recovers_the_pictures_of_the_empirical_critic():
    key = jax.random.key(4)
    images = jax.random.uniform(key, (8, SIZE, SIZE, 3))
    azimuth = jnp.tile(jnp.arange(4) * jnp.pi / 2, 2)
    data = EmpiricalData(images, orbit(azimuth, 0.0, 3.0, 0.7), jnp.repeat(jnp.arange(2), 4))
    prior = empirical(SIZE)
    level = CameraConfig(elevation=(0.0, 20.0))
    config = AssetConfig(views=4, camera=level, p_grey=0.0)
    init, step = optimizer(PAGES, sds(prior), config)
    knob = knobs(0, lr=Ramp.of(2.0, 0.02, begin=100, steps=150), guidance_scale=1.0)
    block = run_block(step, 250, SIZE)
    states, _ = run([knob], block, jax.jit(jax.vmap(init)), data, condition(1, 2))
    cameras = Camera(*(x[4:] for x in jax.tree.leaves(data.camera)))
    params = jax.tree.map(lambda x: x[0], states.params)
    shown = PAGES.render(params, None, cameras, Look.albedo(), (SIZE, SIZE)).over(1.0)
    psnr = -10 * np.log10(np.mean((np.asarray(shown) - images[4:]) ** 2))
    assert psnr > 35
