"""The block of guarded steps and its map over devices."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toys import knobs, no_condition, optimizer, pages, stack

from jax3d.guidance.base import Guidance
from jax3d.guidance.sds import sds
from jax3d.optimize import flops, parallel
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.parallel import Slot
from jax3d.priors.gaussian import GaussianData, gaussian

SIZE = 8
PRIOR = gaussian(SIZE)
DATA = GaussianData(
    mean=jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3)), std=jnp.float32(0.05)
)
CONFIG = AssetConfig(views=2, stages=(StageConfig(5, SIZE),))


def sized(made):
    """The step of an optimisation, at this size."""
    return lambda state, shared, cond, knobs: made.step(state, shared, cond, knobs, SIZE)


MADE = optimizer(pages(4, SIZE), sds(PRIOR), CONFIG)
INIT, STEP = MADE.init, sized(MADE)
START = jax.jit(jax.vmap(INIT))


def slots(seeds, until=6, start=START):
    numbers = stack([knobs(seed) for seed in seeds])
    count = len(seeds)
    conds = stack([no_condition()] * count)
    ends = jnp.broadcast_to(jnp.asarray(until, jnp.int32), (count,))
    steps = jnp.zeros(count, jnp.int32)
    return Slot(start(numbers), conds, numbers, steps, ends, jnp.ones(count, bool))


def mapped(devices=4, over="vmap", backend="shard_map", step=STEP, k=8):
    mesh = parallel.assets_mesh(jax.devices()[:devices])
    return parallel.pmap_assets(parallel.block(step, k), mesh, over=over, backend=backend)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone():
    """Eight assets on one device, as one batch."""
    return mapped(devices=1)(slots(range(8)), DATA)[0]


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize(("over", "backend"), [("vmap", "pmap"), ("map", "shard_map")])
def test_devices_backends_and_ways_give_the_same_assets(alone, devices, over, backend):
    assert_close(mapped(devices, over, backend)(slots(range(8)), DATA)[0], alone)


def test_a_count_that_the_devices_do_not_divide_is_padded(alone):
    done, metrics = mapped(4)(slots(range(6)), DATA)
    assert metrics["residual_norm"].shape == (6, 8)
    assert_close(done, jax.tree.map(lambda x: x[:6], alone))


def test_a_slot_rests_at_its_end(alone):
    done, metrics = mapped(1)(slots(range(8), until=jnp.array([6, 0, 3, 6, 6, 6, 6, 6])), DATA)
    np.testing.assert_array_equal(done.state.step, [6, 0, 3, 6, 6, 6, 6, 6])
    taken = np.isfinite(metrics["residual_norm"]).sum(1)
    np.testing.assert_array_equal(taken, [6, 0, 3, 6, 6, 6, 6, 6])
    before = START(slots(range(8)).knobs)
    assert_close(jax.tree.map(lambda x: x[1], done.state), jax.tree.map(lambda x: x[1], before))


@pytest.mark.parametrize("over", ["vmap", "map"])
def test_a_nan_freezes_its_asset_and_touches_no_other(over):
    honest = sds(PRIOR)

    def poisoned(shared, key, shot, cond, knobs, own):
        value, metrics = honest.loss(shared, key, shot, cond, knobs, own)
        bad = (knobs.seed == 3) & (shot.step == 2)
        return jnp.where(bad, jnp.nan, 1.0) * value, metrics

    sick = sized(optimizer(pages(4, SIZE), Guidance(poisoned), CONFIG))
    with_nan, _ = mapped(2, over, step=sick)(slots(range(8)), DATA)
    np.testing.assert_array_equal(with_nan.healthy, np.arange(8) != 3)
    np.testing.assert_array_equal(with_nan.state.step, np.where(np.arange(8) == 3, 2, 6))
    # Asset 3 stands where two honest steps take it; the others as if it had never been ill.
    whole, _ = mapped(2, over, step=sick)(slots([0, 1, 2, 9, 4, 5, 6, 7]), DATA)
    short, _ = mapped(2, over, step=sick)(slots(range(8), until=2), DATA)
    for sick_leaf, whole_leaf, short_leaf in zip(
        leaves(with_nan.state), leaves(whole.state), leaves(short.state), strict=True
    ):
        others = np.arange(8) != 3
        np.testing.assert_array_equal(sick_leaf[others], whole_leaf[others])
        np.testing.assert_array_equal(sick_leaf[3], short_leaf[3])


@pytest.fixture
def unchecked():
    """Lowering fills structures with what is no array."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_the_compiled_step_talks_to_no_other_device():
    block = mapped(4)
    text = block.lower(slots(range(8)), DATA).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    assert "num_partitions=4" in text


def test_one_compilation_serves_all_knobs():
    block = mapped(2)
    for seeds in (range(4), range(7, 11)):
        some = slots(seeds)
        knobs = some.knobs.replace(guidance_scale=jax.tree.map(lambda x: x + 3.0, some.knobs.lr))
        block(some.replace(knobs=knobs), DATA)
    assert block._cache_size() == 1


def test_flops_of_products_convolutions_and_loops():
    x, w = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops.count(lambda x, w: x @ w, x, w) == 2 * 3 * 5 * 7
    image, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 2, 4))

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
        )  # fmt: skip

    kernel = jnp.zeros((3, 3, 2, 12))
    assert flops.count(conv, image, kernel) == 2 * (2 * 4 * 4 * 12) * (3 * 3 * 2)

    def loop(x, w):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w @ w.T), None))
        return jax.lax.cond(x.sum() > 0, lambda: jax.lax.scan(body, x, length=4)[0], lambda: x)

    assert flops.count(jax.jit(loop), x, w) == 4 * 2 * 2 * 3 * 5 * 7
