"""An asset is the same alone, in any place, with any neighbours, on any number of devices.

The promise, over 200 steps of Adam:
- its random bits are identical, and what is drawn from them is but for the last digit;
- assets that a device takes one by one (`over="map"`) are the same to the last bit in any company;
- as a batch ("vmap"), where sums are rounded by the size of the batch, colours of its pictures, in
  [0, 1], stay within 1e-3 on average; here also within 0.05 at the worst pixel. Parameters that
  always have a gradient stay within 1e-2, half of them within 1e-5; others can be further apart,
  as Adam makes whole steps of the rounding of a gradient that is zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, no_condition, optimizer, pages, stack

from jax3d.camera import orbit
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.guidance.base import Guidance
from jax3d.guidance.sds import sds
from jax3d.optimize import parallel
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.parallel import Slot
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Look

SIZE = 16
STEPS = 200
SEED = 3
"""Of the asset that is looked at; its neighbours have others."""
PRIOR = gaussian(SIZE)
DATA = GaussianData(
    mean=jax.random.uniform(jax.random.key(9), (SIZE, SIZE, 3)), std=jnp.float32(0.05)
)
FIELD = TriplaneConfig(resolution=16, channels=4, levels=2, hidden=8, coarse=8, samples=8)
AROUND = orbit(jnp.arange(4) * jnp.pi / 2, 0.3, 2.6, 0.75)


def telling(guidance):
    """The same guidance, whose metrics tell what was drawn."""

    def loss(shared, key, shot, cond, knobs, own):
        value, metrics = guidance.loss(shared, key, shot, cond, knobs, own)
        drawn = {
            "bits": jax.random.uniform(key, (8,)),
            "noise": jax.random.normal(key, (8,)),
            "eye": shot.camera.c2w[..., :3, 3],
        }
        return value, metrics | drawn

    return Guidance(loss)


class Made:
    """What becomes of the asset among others."""

    def __init__(self, field, seeds, devices, over, backend="shard_map"):
        config = AssetConfig(views=2, stages=(StageConfig(STEPS, SIZE),))
        init, step = optimizer(field, telling(sds(PRIOR)), config)
        numbers = stack([knobs(seed, lr=1.0 + 0.1 * seed) for seed in seeds])
        count = len(seeds)
        slots = Slot(
            jax.jit(jax.vmap(init))(numbers),
            stack([no_condition()] * count),
            numbers,
            jnp.zeros((count,), jnp.int32),
            jnp.full((count,), STEPS, jnp.int32),
            jnp.ones(count, bool),
        )
        mesh = parallel.assets_mesh(jax.devices()[:devices])
        block = parallel.block(
            lambda state, shared, cond, knobs: step(state, shared, cond, knobs, SIZE), STEPS
        )
        done, metrics = parallel.pmap_assets(block, mesh, over=over, backend=backend)(slots, DATA)
        place, state = seeds.index(SEED), done.state
        self.leaves = [np.asarray(leaf[place]) for leaf in jax.tree.leaves(state)]
        self.metrics = {name: np.asarray(x[place]) for name, x in metrics.items()}
        self.params = jax.tree.map(lambda x: np.asarray(x[place]), state.params)

        def show(params):
            return field.render(params, None, AROUND, Look.albedo(), (SIZE, SIZE)).over(1.0)

        self.pictures = np.asarray(jax.jit(show)(self.params))


MANY = [7, 6, 5, 4, SEED, 2, 1, 0]
FEW = ([(MANY, 2, "map")], [(MANY, 1, "vmap"), (MANY, 8, "vmap", "pmap")])
MORE = (
    [([11, 9, 10, SEED], 4, "map"), *FEW[0]],
    [([SEED], 1, "vmap"), ([9, SEED, 10, 11], 2, "vmap"), *FEW[1]],
)


@pytest.mark.parametrize(
    ("field", "all_seen", "layouts"),
    [
        pytest.param(pages(4, SIZE), True, FEW, id="pages"),
        pytest.param(pages(4, SIZE), True, MORE, id="pages-more", marks=pytest.mark.slow),
        pytest.param(triplane(FIELD), False, MORE, id="triplane", marks=pytest.mark.slow),
    ],
)
def test_an_asset_is_the_same_wherever_it_is_made(field, all_seen, layouts):
    alone = Made(field, [SEED], 1, "map")
    assert np.isfinite(alone.metrics["residual_norm"]).all()
    one_by_one, as_a_batch = layouts
    for layout in one_by_one:
        other = Made(field, *layout)
        for a, b in zip(alone.leaves, other.leaves, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=str(layout))
    for layout in as_a_batch:
        other = Made(field, *layout)
        told, where = other.metrics, str(layout)
        np.testing.assert_array_equal(told["bits"], alone.metrics["bits"], err_msg=where)
        for name in ("noise", "eye"):
            np.testing.assert_allclose(told[name], alone.metrics[name], rtol=1e-5, atol=1e-6)
        apart = np.abs(other.pictures - alone.pictures)
        assert apart.mean() < 1e-3, where
        assert apart.max() < 0.05, where
        for a, b in zip(*map(jax.tree.leaves, (alone.params, other.params)), strict=True):
            if all_seen:
                np.testing.assert_allclose(a, b, atol=1e-2, err_msg=where)
                assert np.median(np.abs(a - b)) < 1e-5, where
