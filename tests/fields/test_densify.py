"""How Gaussians come and go: by hand, and against what must not change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scenes

from jax3d.fields import densify
from jax3d.fields.base import Taken
from jax3d.fields.densify import Classical, Mcmc
from jax3d.fields.gaussians import GaussiansConfig, from_gaussians, gaussians, scene
from jax3d.render import ewa
from jax3d.types import Gaussians


def taken(step, progress=0.5, rate=0.0):
    """A step that is followed."""
    return Taken(jnp.int32(step), jnp.float32(progress), {"means": jnp.float32(rate)})


def row(opacities, widths, config):
    """Parameters of round Gaussians on a line, and as many dead as the capacity asks for."""
    n = len(opacities)
    means = np.stack([np.arange(n), np.zeros(n), np.zeros(n)], axis=-1)
    quats = np.broadcast_to([1.0, 0, 0, 0], (n, 4))
    scales = np.repeat(np.array(widths)[:, None], 3, axis=1)
    many = Gaussians(means, quats, scales, np.array(opacities), np.zeros((n, 1, 3)))
    return from_gaussians(many, config, jax.random.key(0))


def adapted(config, params, gradient, step=9, progress=0.5, **memory):
    """One adaptation, from moments of 1 everywhere."""
    rep = gaussians(config)
    state = optax.scale_by_adam().init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    state = state._replace(mu=ones, nu=ones)
    adapt = jax.jit(rep.adapt)
    return adapt(
        params,
        state,
        rep.memory(params) | memory,
        gradient,
        taken(step, progress),
        jax.random.key(1),
    )


CLASSICAL = GaussiansConfig(
    capacity=8, start=2, densify=Classical(every=10, slope=1.0, border=0.1, huge=0.4, reset=30)
)
#          clone  split  stays  faint  huge
ROW = row([0.5, 0.5, 0.5, 0.005, 0.5], [0.05, 0.2, 0.05, 0.05, 0.5], CLASSICAL)


def steep(*slopes):
    """The gradient that two views make of slopes in the picture."""
    screen = jnp.zeros((8, 2)).at[: len(slopes)].set(jnp.array([[2 * s, 2] for s in slopes]))
    return jax.tree.map(jnp.zeros_like, ROW) | {"screen": screen}


def test_the_classical_rule_by_hand():
    after, state, memory = adapted(CLASSICAL, ROW, steep(1.5, 2.0, 0.9, 5.0, 0.0))
    # The faint one makes room at 3, where the steepest's child goes; the huge one is pruned.
    assert memory["alive"].tolist() == [True, True, True, True, False, True, False, False]
    np.testing.assert_array_equal(memory["alive"], densify.there(after))
    known = scene(after)
    np.testing.assert_allclose(
        known.scales[:, 0][jnp.array([0, 1, 2, 3, 5])], [0.05, 0.125, 0.05, 0.125, 0.05], rtol=1e-5
    )
    # The clone is where its parent is; both halves of the split moved, within its width.
    np.testing.assert_allclose(known.means[5], known.means[0])
    for half in (1, 3):
        away = np.linalg.norm(known.means[half] - ROW["means"][1])
        assert 0 < away < 4 * 0.2
    assert np.any(known.means[1] != known.means[3])
    # Who is new, or has been split, has no moments; others keep theirs.
    for moments in (state.mu, state.nu):
        np.testing.assert_array_equal(moments["opacities"], [1, 0, 1, 0, 0, 0, 0, 0])
    assert not np.any(memory["slope"])
    assert not np.any(memory["seen"])


def test_the_classical_rule_waits_and_adds_up():
    after, _, memory = adapted(CLASSICAL, ROW, steep(1.5, 2.0), step=7)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(ROW), strict=True):
        np.testing.assert_array_equal(a, b)
    again = adapted(CLASSICAL, ROW, steep(0.5), step=8, **memory)[2]
    assert again["slope"][:2].tolist() == [4.0, 4.0]
    assert again["seen"][:2].tolist() == [4.0, 2.0]
    early = GaussiansConfig(
        capacity=8, start=2, densify=Classical(every=10, slope=1.0, span=(0.6, 1.0))
    )
    assert np.sum(adapted(early, ROW, steep(1.5), progress=0.5)[2]["alive"]) == 5


def test_the_steepest_grow_first_where_room_is_short():
    tight = GaussiansConfig(capacity=6, start=2, densify=Classical(every=10, slope=1.0))
    params = row([0.5] * 5, [0.02] * 5, tight)
    gradient = jax.tree.map(jnp.zeros_like, params)
    gradient["screen"] = (
        gradient["screen"].at[:5].set(jnp.array([[2.0, 1], [3, 1], [9, 1], [4, 1], [0, 1]]))
    )
    after, _, memory = adapted(tight, params, gradient)
    assert np.all(memory["alive"])
    np.testing.assert_allclose(after["means"][5], params["means"][2])


def test_opacities_are_reset():
    after, state, _ = adapted(CLASSICAL, ROW, steep(0.0), step=29)
    np.testing.assert_allclose(jax.nn.sigmoid(after["opacities"][:3]), 0.02, rtol=1e-5)
    assert not np.any(state.mu["opacities"])
    assert np.all(state.mu["quats"][:3] == 1)


def test_what_the_tap_tells_is_the_gradient_of_each_view():
    slopes = jnp.array([[[3.0, 0], [0, 1]], [[0, 4], [5, 5]]])
    shown = jnp.array([[True, True], [True, False]])

    def loss(tap):
        return jnp.vdot(densify.measured(jnp.zeros((2, 2, 2)), shown, tap, (20, 30)), slopes)

    told = jax.grad(loss)(jnp.zeros((2, 2)))
    np.testing.assert_allclose(told, [[2 * (45 + 40), 2], [2 * 10, 1]])
    passed = jax.grad(
        lambda x: jnp.vdot(densify.measured(x, shown, jnp.zeros((2, 2)), (20, 30)), slopes)
    )
    np.testing.assert_array_equal(passed(jnp.zeros((2, 2, 2))), slopes)


@pytest.mark.parametrize(
    ("opacity", "count", "shared", "factor"),
    [
        (0.5, 1, 0.5, 1.0),
        (0.5, 2, 0.292893, 0.952152),
        (0.5, 3, 0.206299, 0.936882),
        (0.5, 10, 0.066967, 0.916068),
        (0.9, 2, 0.683772, 0.867938),
        (0.9, 10, 0.205672, 0.775039),
        (0.1, 3, 0.034511, 0.989814),
    ],
)
def test_shared_opacities_are_the_authors(opacity, count, shared, factor):
    found = jax.jit(densify.shared_by)(jnp.array([opacity]), jnp.array([count]))
    np.testing.assert_allclose(jnp.stack(found)[:, 0], [shared, factor], atol=2e-6)


def test_relocation_keeps_the_picture():
    """Where one Gaussian becomes several in its place, an isolated line of sight sees the same."""
    config = GaussiansConfig(
        capacity=6, start=2, densify=Mcmc(every=10, span=(0.0, 1.0), growth=0.0)
    )
    params = row([0.9, 0.001, 0.002], [0.3, 0.1, 0.1], config)
    after, state, memory = adapted(config, params, params)
    assert memory["alive"].tolist() == [True] * 3 + [False] * 3
    np.testing.assert_allclose(after["means"][:3], 0.0, atol=1e-6)
    known = scene(after)
    opacities = known.opacities[:3]
    np.testing.assert_allclose(1 - np.prod(1 - opacities), 0.9, rtol=1e-5)
    line = np.linspace(-2, 2, 2001)

    def seen(opacities, widths):
        each = [o * np.exp(-0.5 * (line / s) ** 2) for o, s in zip(opacities, widths, strict=True)]
        return np.trapezoid(1 - np.prod(1 - np.array(each), axis=0), line)

    np.testing.assert_allclose(seen(opacities, known.scales[:3, 0]), seen([0.9], [0.3]), rtol=1e-4)
    assert not np.any(state.mu["means"][:3])
    assert np.all(state.mu["means"][3:] == 1)


def test_more_come_as_far_as_there_are_places():
    config = GaussiansConfig(
        capacity=8, start=2, densify=Mcmc(every=10, span=(0.0, 1.0), growth=0.5)
    )
    params = row([0.5, 0.9, 0.5, 0.5], [0.1] * 4, config)
    assert np.sum(adapted(config, params, params)[2]["alive"]) == 6
    full = row([0.5] * 8, [0.1] * 8, config)
    after, _, memory = adapted(config, full, full)
    assert np.all(memory["alive"])
    np.testing.assert_array_equal(after["opacities"], full["opacities"])
    gone = row([0.001] * 3, [0.1] * 3, config)
    np.testing.assert_array_equal(adapted(config, gone, gone)[0]["means"], gone["means"])


def test_sources_are_drawn_in_proportion_to_opacity():
    config = Mcmc(growth=1e6)
    params = row([0.2, 0.0, 0.6], [0.1] * 3, GaussiansConfig(capacity=3000, start=2))
    memory = densify.start(params, config)
    relocate = jax.jit(partial(densify._relocate, config))
    after, _, _ = relocate(params, (), memory, jax.random.key(0))
    share = np.mean(np.asarray(after["means"][3:, 0]) == 2)
    assert share == pytest.approx(0.75, abs=0.03)


def test_the_faint_walk_as_wide_as_sigma():
    config = GaussiansConfig(capacity=4000, start=2, densify=Mcmc(noise=2.0))
    faint = scenes.gaussians(0, 1).replace(opacities=jnp.array([0.005]))
    many = jax.tree.map(lambda x: np.repeat(np.asarray(x), 4000, 0), faint)
    params = from_gaussians(many, config, jax.random.key(0))
    walks = jax.jit(densify._walk)
    walk = walks(params, densify.there(params), jax.random.key(1))
    axes = np.asarray(ewa.rotations(faint.quats))[0]
    sigma = axes @ np.diag(np.asarray(faint.scales[0]) ** 2) @ axes.T
    np.testing.assert_allclose(
        np.cov(walk.T), 0.25 * sigma @ sigma, atol=0.05 * 0.25 * np.max(sigma @ sigma)
    )
    solid = params | {"opacities": jnp.full(4000, 2.0)}
    assert np.abs(walks(solid, densify.there(params), jax.random.key(1))).max() < 1e-6
    assert not np.any(walks(params, jnp.zeros(4000, bool), jax.random.key(1)))


def test_moments_are_found_wherever_an_optimizer_keeps_them():
    params = {"a": jnp.ones(3), "b": jnp.ones((3, 2))}
    chain = optax.chain(optax.scale_by_adam(), optax.trace(0.9))
    state = densify._without(chain.init(params), params, jnp.array([True, False, True]))
    assert jax.tree.structure(state) == jax.tree.structure(chain.init(params))
    ones = jax.tree.map(jnp.ones_like, chain.init(params))
    kept = densify._without(ones, params, jnp.array([True, False, True]))
    assert kept[0].count == 1
    assert kept[0].mu["a"].tolist() == [0, 1, 0]
    assert kept[1].trace["b"].tolist() == [[0, 0], [1, 1], [0, 0]]
