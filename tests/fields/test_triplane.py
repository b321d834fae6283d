from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax3d import bounds, camera, math
from jax3d.fields.triplane import TriplaneConfig, density_lattice, triplane
from jax3d.render import sparse
from jax3d.types import Look

SMALL = TriplaneConfig(resolution=8, channels=4, levels=2, hidden=8, coarse=0, samples=8, lattice=4)
LIT = Look(jnp.ones(3), jnp.array(0.2), jnp.array(0.3), jnp.array([0.6, 0.0, 0.8]))
CAMERAS = camera.orbit(jnp.array([0.3, 2.0]), jnp.array([0.2, 0.4]), 2.7, 0.7)


DECODED = {
    "activation": "silu",
    "density_activation": "exp",
    "density_bias": -0.5,
    "rgb_padding": 0.01,
    "shape": "box",
    "span": 1.3,
    "blob_density": 0.0,
    "layers": 3,
}
"""As networks of pictures have it."""


def variant(**changes):
    return triplane(TriplaneConfig(**{**SMALL.__dict__, **changes}))


def render(rep, size=(6, 5)):
    return jax.jit(lambda p, key, look: rep.render(p, key, CAMERAS, look, size))


def rough(rep, seed=0):
    """Parameters far from the blob."""
    params = rep.init(jax.random.key(seed))
    noise = lambda a: a + 0.2 * jax.random.normal(jax.random.key(7), a.shape)  # noqa: E731
    return jax.tree.map(noise, params)


def test_starts_as_a_blob():
    rep = variant()
    x = jnp.array([[0.0, 0, 0], [0, 0.25, 0], [0, 0, 0.9]])
    sigma = jax.jit(rep.density)(rep.init(jax.random.key(0)), x)
    np.testing.assert_allclose(sigma, np.logaddexp(0, [10.0, 5.0, -8.0]), rtol=0.1, atol=0.1)


def test_density_and_color_are_those_of_the_render():
    rep = variant(coarse=0, samples=64)
    params = rough(rep)
    out = render(rep, (1, 1))(params, None, Look.albedo((0.0, 0.0, 0.0)))
    rays = camera.rays(CAMERAS, (1, 1))
    t = 2.7 - 1 + (np.arange(64) + 0.5) / 32
    x = rays.origins[:, 0, 0, None] + t[:, None] * rays.directions[:, 0, 0, None]
    tau = jax.jit(rep.density)(params, x) / 32
    w = jnp.exp(-jnp.cumsum(tau, -1) + tau) * (1 - jnp.exp(-tau))
    np.testing.assert_allclose(out.alpha[:, 0, 0], w.sum(-1), atol=1e-5)
    np.testing.assert_allclose(
        out.rgb[:, 0, 0], (w[..., None] * jax.jit(rep.color)(params, x)).sum(1), atol=1e-5
    )


@pytest.mark.parametrize(
    ("normals", "changes"),
    [
        ("none", {}),
        pytest.param("finite-difference", {}, marks=pytest.mark.slow),
        ("analytic", DECODED),
        pytest.param("predicted", {}, marks=pytest.mark.slow),
        pytest.param("analytic", {}, marks=pytest.mark.slow),
    ],
)
def test_gradients_match_finite_differences(normals, changes):
    with jax.enable_x64(True):
        small = {"lattice": 0, "resolution": 4, "channels": 2, "hidden": 4, "samples": 5}
        rep = variant(normals=normals, **small, **changes)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), rough(rep))
        look = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), LIT)

        @jax.jit
        def loss(params):
            out = rep.render(params, None, CAMERAS, look, (2, 2))
            return jnp.mean(out.rgb[..., 0]) + jnp.mean(out.alpha * out.depth)

        gradient = jax.grad(loss)(params)
        leaves, tree = jax.tree.flatten(params)
        for seed in range(3):
            keys = jax.random.split(jax.random.key(seed), len(leaves))
            way = [1e-6 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
            ahead = loss(tree.unflatten([a + b for a, b in zip(leaves, way, strict=True)]))
            behind = loss(tree.unflatten([a - b for a, b in zip(leaves, way, strict=True)]))
            slope = sum(map(jnp.vdot, jax.tree.leaves(gradient), way))
            np.testing.assert_allclose(2 * slope, ahead - behind, rtol=1e-5)


@pytest.mark.parametrize(
    ("normals", "others"),
    [
        ("none", {}),
        pytest.param("predicted", {}, marks=pytest.mark.slow),
        pytest.param("finite-difference", {}, marks=pytest.mark.slow),
        ("analytic", DECODED),
        pytest.param("analytic", {}, marks=pytest.mark.slow),
        pytest.param("finite-difference", DECODED, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("fold", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_fast_renderer_equals_the_reference(normals, others, fold):
    if others and not fold:
        pytest.skip("activations are the same code after the first layer")
    with jax.enable_x64(True):
        plan = sparse.Plan(fold=fold, chunk=32, dtype=None)
        params, results = None, []
        look = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), LIT)
        for changes in ({"reference": True}, {"lattice": 0}):
            rep = variant(normals=normals, samples=5, plan=plan, **{**changes, **others})
            if params is None:
                params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), rough(rep))

            def loss(params, rep=rep):
                out = rep.render(params, None, CAMERAS, look, (3, 3))
                return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(out)), out

            results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_fast_renderer_shows_every_background_in_single_precision():
    ground = jax.random.uniform(jax.random.key(5), (2, 3))
    each = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, *a.shape)), LIT).replace(
        background=ground
    )
    for learned in (False, True):
        pair = []
        for reference in (True, False):
            rep = variant(
                normals="predicted", learned_background=learned, reference=reference, cull=1e-7
            )
            params = rough(rep)

            def loss(params, rep=rep):
                out = rep.render(params, jax.random.key(2), CAMERAS, each, (6, 5))
                return jnp.sum(jnp.sin(out.rgb)), out

            pair.append(jax.jit(jax.grad(loss, has_aux=True))(params))
        (exact, picture), (fast, shown) = pair
        for a, b in zip(*map(jax.tree.leaves, (shown, picture)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        for a, b in zip(*map(jax.tree.leaves, (fast, exact)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


def test_a_large_picture_takes_bounded_memory():
    rep = triplane()
    shapes = jax.eval_shape(rep.init, jax.random.key(0))
    around = jax.tree.map(lambda a: a[:1], CAMERAS)
    picture = jax.jit(lambda p: rep.render(p, None, around, Look.albedo(), (512, 512)).rgb)
    memory = picture.lower(shapes).compile().memory_analysis()
    # All 512^2 * 64 samples at once would be 270 MB of density and colour alone.
    assert memory.temp_size_in_bytes < 100e6


def test_activations_are_those_that_are_named():
    x = jnp.array([[0.1, 0.2, 0.3], [1.0, -1.0, 1.0]])
    rep = variant(**{**DECODED, "layers": 1, "hidden": 2})
    params = jax.tree.map(jnp.zeros_like, rep.init(jax.random.key(0)))
    params["mlp"][0]["b"] = jnp.array([2.0, -1.0])
    params["mlp"][1]["w"] = jnp.array([[1.0, 0.0, 9.0, -9.0], [0.0, 1.0, 0.0, 0.0]])
    silu = np.array([2.0, -1.0]) / (1 + np.exp([-2.0, 1.0]))
    density, color = jax.jit(rep.density), jax.jit(rep.color)
    np.testing.assert_allclose(density(params, x), [np.exp(silu[0] - 0.5)] * 2, rtol=1e-6)
    red = 1.02 / (1 + np.exp(-silu[1])) - 0.01
    # Beyond black and white is cut off.
    np.testing.assert_allclose(color(params, x), [[red, 1.0, 0.0]] * 2, rtol=1e-6)
    params["mlp"][1]["b"] = jnp.array([1e4, 0.0, 0.0, 0.0])
    slope = jax.jit(jax.grad(lambda p: rep.density(p, x).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_a_distance_is_a_soft_surface():
    rep = variant(density_activation="laplace", beta=0.02, blob_density=1.0, blob_radius=1.0)
    params = jax.tree.map(jnp.zeros_like, rep.init(jax.random.key(0)))
    x = jnp.array([[0.0, 0.97, 0.0], [0.0, 0.0, 1.0], [1.03, 0.0, 0.0]])
    tail = 0.5 * np.exp(-1.5)
    expected = np.array([1 - tail, 0.5, tail]) / 0.02
    np.testing.assert_allclose(jax.jit(rep.density)(params, x), expected, rtol=1e-4)


def test_planes_may_span_more_than_is_rendered():
    params = rough(variant())
    x = jax.random.uniform(jax.random.key(3), (9, 3), minval=-1.0, maxval=1.0)
    wide, whole = variant(span=1.5, blob_density=0.0), variant(bound=1.5, blob_density=0.0)
    ours, theirs, other = (jax.jit(r.density)(params, x) for r in (wide, whole, variant()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert not np.allclose(ours, other)
    with pytest.raises(ValueError, match=r"--span is 0.5; the planes end within the bound, 1.0"):
        bounds.check(TriplaneConfig(span=0.5))


def test_a_box_shows_its_corners():
    opaque = {"blob_density": 0.0, "density_bias": 50.0, "lattice": 0}
    camera_at = camera.orbit(jnp.array([0.0]), 0.0, 4.0, 0.62)
    shown = {}
    for shape in ("sphere", "box"):
        rep = variant(shape=shape, **opaque)
        params = rep.init(jax.random.key(0))
        out = jax.jit(lambda p, rep=rep: rep.render(p, None, camera_at, Look.albedo(), (16, 16)))
        shown[shape] = np.asarray(out(params).alpha[0] > 0.5)
    corners = np.s_[[1, 1, -2, -2], [1, -2, 1, -2]]
    assert shown["box"][corners].all()
    assert not shown["sphere"][corners].any()
    assert shown["sphere"][8, 8]


@pytest.mark.parametrize("others", [{}, DECODED])
def test_the_lattice_holds_densities(others):
    cfg = TriplaneConfig(**{**SMALL.__dict__, "lattice": 5, **others})
    params = rough(triplane(cfg))
    at = jnp.linspace(-1.0, 1.0, 5)
    x = jnp.stack(jnp.meshgrid(at, at, at, indexing="ij"), -1)
    expected = jax.jit(triplane(cfg).density)(params, x)
    lattice = jax.jit(lambda p: density_lattice(p, cfg))(params)
    np.testing.assert_allclose(lattice, expected, rtol=1e-4, atol=1e-5)


def test_exact_and_finite_difference_normals_point_out_of_the_blob():
    for normals, tolerance in (("analytic", 0.02), ("finite-difference", 0.2)):
        rep = variant(normals=normals, samples=32, resolution=32)
        params = jax.tree.map(lambda a: 0.01 * a, rep.init(jax.random.key(0)))
        out = render(rep, (9, 9))(params, None, LIT)
        direction = math.normalize(out.normal[:, 4, 4])
        np.testing.assert_allclose(direction, CAMERAS.c2w[:, :3, 2], atol=tolerance)


@pytest.mark.parametrize("normals", ["predicted", "finite-difference", "analytic"])
def test_gradients_are_finite_in_an_empty_and_in_a_solid_field(normals):
    rep = variant(normals=normals)
    params = rep.init(jax.random.key(0))

    @jax.jit
    def gradient(params):
        def loss(p):
            out = rep.render(p, None, CAMERAS, LIT, (3, 3))
            return sum(x.sum() for x in jax.tree.leaves(out))

        return jax.grad(loss)(params)

    for density in (-1e3, 1e3):
        params["mlp"][-1]["b"] = params["mlp"][-1]["b"].at[0].set(density)
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(params)))


def test_key_none_is_deterministic_and_keys_differ():
    rep = variant()
    shown = render(rep)
    params = rough(rep)
    look = Look.albedo()
    first, again = shown(params, None, look), shown(params, None, look)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    one, other = (shown(params, jax.random.key(k), look) for k in (1, 2))
    assert not np.array_equal(one.rgb, other.rgb)
    np.testing.assert_array_equal(one.rgb, shown(params, jax.random.key(1), look).rgb)


def test_a_learned_background_is_told_beside_the_object_and_not_in_it():
    rep = variant(learned_background=True)
    params = rep.init(jax.random.key(0))
    params["background"][-1]["b"] = jnp.array([20.0, -20.0, 0.0])
    camera_away = CAMERAS.replace(c2w=CAMERAS.c2w @ jnp.diag(jnp.array([-1.0, 1, -1, 1])))
    out = jax.jit(lambda p: rep.render(p, None, camera_away, Look.albedo(), (3, 3)))(params)
    np.testing.assert_allclose(out.background[0, 1, 1], [1.0, 0.0, 0.5], atol=0.2)
    np.testing.assert_allclose(out.over(out.background)[0, 1, 1], out.background[0, 1, 1])
    np.testing.assert_array_equal(out.over(1.0), 1.0)
    np.testing.assert_array_equal(out.alpha, 0.0)


def test_tv_is_the_mean_squared_step_between_texels():
    rep = variant(levels=1)
    params = rep.init(jax.random.key(0))
    params["planes"] = [jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (3, 8, 8, 4)) * 0.5]
    np.testing.assert_allclose(rep.regularise(params)["tv"], 0.25)


@pytest.mark.slow
def test_fits_known_pictures_in_few_steps():
    rep = triplane(TriplaneConfig(resolution=16, channels=8, hidden=16, coarse=0, samples=24))
    cam = camera.orbit(jnp.arange(4) * jnp.pi / 2, 0.3, 2.7, 0.7)
    rays = camera.rays(cam, (16, 16))
    # A ball, red where x > 0 and blue behind, cut by a sphere of radius 0.6 in closed form.
    middle = -jnp.sum(rays.origins * rays.directions, -1)
    closest = rays.origins + middle[..., None] * rays.directions
    inside = jnp.sum(closest**2, -1) < 0.36
    half = jnp.sqrt(jnp.maximum(0.36 - jnp.sum(closest**2, -1), 0.0))
    front = closest - half[..., None] * rays.directions
    color = jnp.where(front[..., :1] > 0, jnp.array([1.0, 0, 0]), jnp.array([0, 0, 1.0]))
    target = jnp.where(inside[..., None], color, 1.0)

    optimizer = optax.adam(0.02)

    @partial(jax.jit, donate_argnums=0)
    def step(state, key):
        params, opt_state = state

        def loss(params):
            out = rep.render(params, key, cam, Look.albedo(), (16, 16))
            return jnp.mean((out.over(1.0) - target) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    params = rep.init(jax.random.key(0))
    state = (params, optimizer.init(params))
    for i in range(60):
        state, value = step(state, jax.random.fold_in(jax.random.key(1), i))
    assert value < 0.01  # the blob starts at 0.1 and better
