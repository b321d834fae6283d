"""Splatting: gsplat's pictures and gradients, and the fast path against the plain one.

Programs take seconds to compile: most tests share three, in double precision, of one scene's size.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenes

from jax3d.render import splat as splats
from jax3d.render.ewa import SH0, View
from jax3d.render.splat import Plan, SplatConfig, splat, splat_reference
from jax3d.types import Gaussians

SIZE, COUNT = (13, 18), 120
PLANS = {"cpu": Plan(tiles=4, block=4), "accelerator": Plan(tiles=4096, block=4, unroll=True)}
ALL = [*PLANS, "reference"]
each = pytest.mark.parametrize("path", ALL)


def picture(out):
    """All that is shown, `[v H W 8]`."""
    return jnp.concatenate([out.rgb, out.alpha[..., None], out.depth[..., None], out.normal], -1)


def shown_and_slopes(show, config, scene, view, weights):
    """The pictures, and gradients in the scene and the cameras of their sum by `weights`."""

    def total(scene, view):
        out = show(scene, view, SIZE, config)
        return jnp.vdot(picture(out), weights), out

    slopes, out = jax.grad(total, argnums=(0, 1), has_aux=True)(scene, view)
    return out, slopes


@lru_cache
def program(path):
    show = splat_reference if path == "reference" else splat
    return jax.jit(partial(shown_and_slopes, show, SplatConfig(plan=PLANS.get(path))))


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def scene(key=1, degree=3, opacity=-1.0, **how):
    return scenes.double(scenes.gaussians(key, COUNT, degree, opacity=opacity, **how))


VIEW = scenes.view(SIZE)
WEIGHTS = np.cos(np.arange(2 * 13 * 18 * 8)).reshape(2, *SIZE, 8)


def assert_near(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("path", PLANS)
@pytest.mark.parametrize("opacity", [-3.0, 6.0], ids=["fog", "solid"])
def test_the_fast_path_is_the_reference_in_double_precision(path, opacity):
    view = scenes.double(VIEW)
    wanted = program("reference")(scene(opacity=opacity), view, WEIGHTS)
    found = program(path)(scene(opacity=opacity), view, WEIGHTS)
    assert_near(found, wanted, atol=1e-9)
    # Pixels stop in the solid and not in the fog.
    assert (np.min(1 - wanted[0].alpha) < 1.1e-4) == (opacity > 0)


@pytest.mark.parametrize("path", ["cpu", "reference"])
def test_gradients_match_finite_differences(path):
    leaves, tree = jax.tree.flatten((scene(), scenes.double(VIEW)))
    slopes = jax.tree.leaves(program(path)(*tree.unflatten(leaves), WEIGHTS)[1])
    for i, slope in enumerate(slopes):
        way = 1e-7 * np.random.default_rng(i).normal(size=slope.shape)
        ahead, behind = (
            np.vdot(picture(program(path)(*tree.unflatten(moved), WEIGHTS)[0]), WEIGHTS)
            for moved in ([*leaves[:i], leaves[i] + s * way, *leaves[i + 1 :]] for s in (1, -1))
        )
        np.testing.assert_allclose(2 * np.vdot(slope, way), ahead - behind, rtol=1e-4)


AHEAD = np.array([[32.0, 0, 9], [0, 32, 6.5], [0, 0, 1]])


def middle(path, opacities, colors, depths=(1.0, 2.0, 3.0, 4.0)):
    """A pixel of wide grey Gaussians one behind the other, and the gradient of its red."""
    means, sh = np.zeros((COUNT, 3)), np.zeros((COUNT, 16, 3))
    means[:4, 2] = depths
    sh[:4, 0] = (np.array(colors)[:, None] - 0.5) / SH0
    quats = np.broadcast_to([1.0, 0, 0, 0], (COUNT, 4))
    opacities = np.pad(opacities, (0, COUNT - 4))
    many = Gaussians(means, quats, np.full((COUNT, 3), 5.0), opacities, sh)
    view = View(np.stack([np.eye(4)] * 2), np.stack([AHEAD] * 2))
    red = np.zeros_like(WEIGHTS)
    red[0, 6, 9, 0] = 1
    out, slopes = program(path)(scenes.double(many), scenes.double(view), red)
    return picture(out)[0, 6, 9], slopes[0]


@each
def test_layers_blend_front_to_back(path):
    colors = [0.1, 0.8, 0.4, 0.9]
    shown, _ = middle(path, [0.5, 0.25, 0.9, 0.0], colors, [3.0, 1.0, 2.0, 4.0])
    weights = np.array([0.25, 0.75 * 0.9, 0.75 * 0.1 * 0.5])
    np.testing.assert_allclose(shown[:3], np.full(3, weights @ [0.8, 0.4, 0.1]), rtol=1e-4)
    np.testing.assert_allclose(shown[3], weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(shown[4], weights @ [1, 2, 3], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(shown[5:]), weights.sum(), rtol=1e-4)


@each
def test_bounds_of_opacity_and_of_light(path):
    seen = partial(middle, path, colors=[0.0, 0.7, 1.0, 1.0])
    # Opacity is at most 0.99, at least 1/255; where it is bound, colours alone have a gradient.
    shown, slope = seen([0.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(shown[3], 0.99, rtol=1e-6)
    assert not np.any(slope.opacities)
    assert not np.any(slope.scales)
    np.testing.assert_allclose(slope.sh[1, 0, 0], 0.99 * SH0, rtol=1e-5)
    assert seen([0.0, 0.0, 0.0039, 0.0])[0][3] == 0
    # The third would leave 0.05 * 0.05 * 0.03 = 7.5e-5 of the light: it is not shown, nor is what
    # lies behind it.
    shown, slope = seen([0.95, 0.95, 0.97, 0.1])
    np.testing.assert_allclose(shown[3], 1 - 0.05**2, atol=1e-5)
    np.testing.assert_allclose(shown[0], 0.05 * 0.95 * 0.7, atol=1e-5)
    assert np.all(slope.sh[2:] == 0)


def test_any_order_of_gaussians_is_the_same_picture():
    order = np.random.default_rng(0).permutation(COUNT)
    view = scenes.double(VIEW)
    out, (slopes, _) = program("cpu")(scene(), view, WEIGHTS)
    mixed, (mixed_slopes, _) = program("cpu")(
        jax.tree.map(lambda x: x[order], scene()), view, WEIGHTS
    )
    assert_near((mixed, mixed_slopes), (out, jax.tree.map(lambda x: x[order], slopes)), atol=1e-9)


@each
def test_nothing_to_show(path):
    away = scene().replace(means=scene().means + np.array([0.0, 0, 500]))
    for empty in (away, scene().replace(opacities=jnp.zeros(COUNT))):
        assert not any(
            map(np.any, jax.tree.leaves(program(path)(empty, scenes.double(VIEW), WEIGHTS)))
        )


def pairs(scene, view):
    """How many tiles of 8 x 8 pixels have a centre within each Gaussian's box, `[v n]`."""
    prints = jax.jit(splats.footprints, static_argnums=(2, 3))(scene, view, SIZE, SplatConfig())
    tiles = 1
    for axis, side in ((0, SIZE[1]), (1, SIZE[0])):
        low, high = (prints.means2d[..., axis] + s * prints.extents[..., axis] for s in (-1, 1))
        centres = np.arange(side) + 0.5
        within = (centres >= low[..., None]) & (centres <= high[..., None])
        tiles *= sum(within[..., k : k + 8].any(-1) for k in range(0, side, 8))
    return np.where(prints.shown, tiles, 0), prints.depths


def test_pairs_beyond_the_room_are_counted_and_are_the_farthest():
    room, full, view = 150, scene(4, opacity=-2.0, size=0.1), scenes.double(VIEW)
    config = SplatConfig(hits=room, plan=PLANS["cpu"])
    left = jax.jit(lambda scene: splat(scene, view, SIZE, config))(full)
    count, depths = pairs(full, view)
    np.testing.assert_array_equal(left.overflow, count.sum(-1) - room)
    for v in range(2):
        # The pairs that have room, nearest first: the last Gaussian may keep a part of its tiles.
        order = np.argsort(depths[v])
        rank = np.argsort(order)
        kept = int(np.searchsorted(np.cumsum(count[v][order]), room, side="right"))
        assert 1 < kept < COUNT - 1
        whole, more = (
            program("cpu")(
                full.replace(opacities=np.where(rank < k, full.opacities, 0.0)), view, WEIGHTS
            )[0].alpha[v]
            for k in (kept, kept + 1)
        )
        assert np.all(left.alpha[v] >= whole - 1e-9)
        assert np.all(left.alpha[v] <= more + 1e-9)


def test_the_room_follows_from_the_scene():
    assert splats._room(SplatConfig(), 100, (16, 16)) == 400
    assert splats._room(SplatConfig(), 10_000, (512, 512)) == 176_384
    assert splats._room(SplatConfig(hits=7), 100, (16, 16)) == 7


def test_pictures_and_gradients_are_gsplats():
    with jax.enable_x64(False):
        known = scenes.golden()
        io = known.arrays

        def total(scene, viewmats):
            view = View(viewmats, known.view.intrinsics)
            out = splat(scene, view, known.size, known.config)
            rgb = out.rgb + (1 - out.alpha)[..., None] * io["in_background"]
            pairs = ((rgb, "rgb"), (out.alpha, "alpha"), (out.depth, "depth"))
            return sum(jnp.vdot(x, io[f"in_dL_{name}"]) for x, name in pairs), (rgb, out)

        slopes, (rgb, out) = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
            known.gaussians, known.view.viewmats
        )
        assert out.overflow.tolist() == [0, 0]
        for ours, name in ((rgb, "rgb"), (out.alpha, "alpha"), (out.depth, "depth")):
            np.testing.assert_allclose(ours, io[name], atol=1e-5)
        names = ("means", "quats", "scales", "opacities", "sh", "viewmats")
        for ours, name in zip(jax.tree.leaves(slopes), names, strict=True):
            theirs = io[f"grad_{name}"]
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_memory_follows_the_lists_and_not_pixels_times_gaussians():
    with jax.enable_x64(False):
        leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: scenes.gaussians(0, 4000)))

        def total(leaves):
            return jnp.sum(splat(tree.unflatten(leaves), scenes.view((128, 128)), (128, 128)).rgb)

        program = jax.jit(jax.grad(total)).lower(leaves).compile()
        # All Gaussians at all pixels of both views would be 2 * 128^2 * 4000 floats, 524 MB.
        assert program.memory_analysis().temp_size_in_bytes < 30e6
