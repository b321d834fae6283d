import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera
from jax3d.render import sparse, volume
from jax3d.types import Look, Rays

CAMERAS = camera.orbit(jnp.array([0.4, 2.0]), 0.3, 2.5, 0.7)
RAYS = camera.rays(CAMERAS, (4, 5))
FLAT = jax.tree.map(lambda a: a.reshape(-1, 3), RAYS)


def head(net, h, x):
    r = jnp.sqrt(jnp.sum(x * x, -1) + 1e-3)
    sigma = jax.nn.softplus(h @ net["density"] + net["hard"] * (0.5 - r))
    return volume.Samples(sigma, jax.nn.sigmoid(h @ net["color"]), x / r[:, None])


# A table of one row per coordinate: the lookup is x itself times the table.
FIELD = sparse.Split(
    gather=lambda table, x: x @ table,
    scatter=lambda table, x, dh: table + x.T @ dh,
    head=head,
)


def parameters(hard, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key, *shape: jax.random.normal(key, shape, dtype)  # noqa: E731
    net = {
        "density": draw(keys[0], 6),
        "color": draw(keys[1], 6, 3),
        "hard": jnp.asarray(hard, dtype),
    }
    return draw(keys[2], 3, 6), net


def lattice_of(params, g):
    at = jnp.linspace(-1.0, 1.0, g)
    x = jnp.stack(jnp.meshgrid(at, at, at, indexing="ij"), -1)
    return FIELD(params, x.reshape(-1, 3)).sigma.reshape(g, g, g)


def shown(renderer, cfg, params, lattice=None):
    """The picture, and its gradient in a random direction."""

    def loss(params):
        # None of the chunk sizes divides the 40 * 7 samples.
        extra = {} if lattice is None else {"lattice": lattice}
        out = renderer(FIELD, params, RAYS, Look.albedo(), cfg, **extra)
        picture = jnp.concatenate([out.rgb, out.normal, out.alpha[..., None]], -1)
        return jnp.vdot(picture, jnp.cos(jnp.arange(picture.size)).reshape(picture.shape)), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def assert_same(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(jnp.abs(y).max())))


@pytest.mark.parametrize(("chunk", "shape"), [(16, "sphere"), (1024, "box")])
def test_equals_the_reference_in_double_precision(chunk, shape):
    with jax.enable_x64(True):
        rays64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), RAYS)
        params = parameters(3.0, jnp.float64)

        def loss(renderer, params):
            cfg = volume.VolumeConfig(samples=7, chunk=chunk, shape=shape, bound=0.8)
            look = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), Look.albedo())
            out = renderer(FIELD, params, rays64, look, cfg)
            return jnp.sum(out.rgb**2 + out.normal) + jnp.sum(out.depth * out.alpha)

        pair = [
            jax.jit(jax.value_and_grad(lambda p, r=r: loss(r, p)))(params)
            for r in (volume.render, volume.render_reference)
        ]
        assert_same(*pair, atol=1e-9)


@pytest.mark.parametrize("hard", [300.0, 3.0])
def test_culling_keeps_opaque_and_foggy_scenes(hard):
    params = parameters(hard)
    cull = 1e-4
    cfg = volume.VolumeConfig(samples=24, chunk=64, cull=cull)
    lattice = lattice_of(params, 16)
    assert_same(
        shown(volume.render, cfg, params, lattice),
        shown(volume.render_reference, cfg, params),
        atol=24 * cull,
    )


def test_culling_leaves_out_what_is_empty_or_hidden():
    edges, t = volume.place(None, FLAT, jnp.full(40, 0.5), volume.VolumeConfig(samples=32))
    x = FLAT.origins[:, None] + t[..., None] * FLAT.directions[:, None]
    lattice = lattice_of(parameters(500.0), 32)
    keep = sparse.occupied(sparse.bounds(lattice), FLAT, edges, t, 1.0, 1e-3)
    sigma = FIELD(parameters(500.0), x.reshape(-1, 3)).sigma.reshape(40, 32)
    w, _ = volume.weights(sigma, edges)
    assert not jnp.any((w > 1e-3) & ~keep)
    assert 0.0 < keep.mean() < 0.25
    r = jnp.linalg.norm(x, axis=-1)
    assert not keep[r > 0.75].any()
    assert not keep[r < 0.2].any()


def test_a_cull_of_zero_drops_nothing_that_has_density():
    edges, t = volume.place(None, FLAT, jnp.full(40, 0.5), volume.VolumeConfig(samples=8))
    lattice = lattice_of(parameters(3.0), 8)
    keep = sparse.occupied(sparse.bounds(lattice), FLAT, edges, t, 1.0, 0.0)
    assert (keep == (jnp.diff(edges, axis=-1) > 0)).all()


def test_samples_that_prove_invisible_are_shown_and_get_no_gradient():
    params = parameters(30.0)
    cfg = volume.VolumeConfig(samples=8, chunk=16)
    edges, t = volume.place(None, FLAT, jnp.full(40, 0.5), cfg)
    sigma = sparse.evaluate(FIELD, params, FLAT, t).sigma.reshape(t.shape)
    free = sparse.visible(sigma, sigma, edges, 1e-3)
    assert 0.0 < free.mean() < 1.0

    def shown(params, keep):
        samples = sparse.hold(sparse.evaluate(FIELD, params, FLAT, t, keep, 16), free)
        return jnp.sum(jnp.sin(samples.sigma)), samples

    def visible(params):
        x = FLAT.origins[:, None] + t[..., None] * FLAT.directions[:, None]
        return jnp.sum(jnp.where(free.ravel(), jnp.sin(FIELD(params, x.reshape(-1, 3)).sigma), 0))

    everything = jnp.ones_like(free)
    gradient, samples = jax.jit(jax.grad(shown, has_aux=True))(params, everything)
    np.testing.assert_allclose(samples.sigma.reshape(t.shape), sigma, rtol=1e-5)
    assert_same(gradient, jax.jit(jax.grad(visible))(params), atol=1e-5)


def test_neighbourhood_bounds_every_adjacent_sample():
    lattice = jax.random.normal(jax.random.key(0), (5, 5, 5))
    padded = np.pad(lattice, 1, mode="edge")
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    high, low = sparse.bounds(lattice)
    np.testing.assert_array_equal(high, blocks.max((-3, -2, -1)))
    np.testing.assert_array_equal(low, blocks.min((-3, -2, -1)))


def test_a_batch_of_scenes_is_each_of_them():
    params = [parameters(hard) for hard in (300.0, 3.0)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *params)
    cfg = volume.VolumeConfig(samples=24, chunk=64)

    def gradient(params):
        loss = lambda p: jnp.sum(  # noqa: E731
            volume.render(FIELD, p, RAYS, Look.albedo(), cfg, lattice=lattice_of(p, 8)).rgb ** 2
        )
        return jax.grad(loss)(params)

    at_once = jax.jit(jax.vmap(gradient))(batch)
    in_turn = jax.jit(lambda batch: jax.lax.map(gradient, batch))(batch)
    assert_same(at_once, in_turn, atol=1e-5)


def test_descends_in_a_scan_as_in_a_loop():
    start = jax.tree.map(lambda *a: jnp.stack(a), parameters(300.0), parameters(3.0))
    cfg = volume.VolumeConfig(samples=24, chunk=64)

    def step(params):
        def loss(p):
            out = volume.render(FIELD, p, RAYS, Look.albedo(), cfg, lattice=lattice_of(p, 8))
            return jnp.mean((out.rgb - 0.2) ** 2)

        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))

    @jax.jit
    def scanned(params):
        return jax.lax.scan(lambda p, _: (jax.vmap(step)(p), None), params, length=3)[0]

    once, params = jax.jit(lambda p: jax.lax.map(step, p)), start
    for _ in range(3):
        params = once(params)
    assert_same(scanned(start), params, atol=1e-5)
    assert not np.allclose(params[0], start[0], atol=1e-4)


def test_gradients_of_rays_are_refused():
    def loss(origins):
        rays = Rays(origins, RAYS.directions)
        return volume.render(
            FIELD, parameters(3.0), rays, Look.albedo(), volume.VolumeConfig()
        ).rgb.sum()

    with pytest.raises(NotImplementedError, match="render_reference"):
        jax.grad(loss)(RAYS.origins)


def test_tiles_change_nothing():
    params, lattice = parameters(30.0), lattice_of(parameters(30.0), 8)

    def picture(tile):
        cfg = volume.VolumeConfig(samples=9, tile=tile)
        key = jax.random.key(1)
        return jax.jit(lambda p: volume.render(FIELD, p, RAYS, Look.albedo(), cfg, key, lattice))(
            params
        )

    assert_same(picture(1000), picture(16), atol=1e-6)


def test_memory_follows_the_tile_and_not_the_picture():
    rays = camera.rays(CAMERAS, (128, 128))
    cfg = volume.VolumeConfig(samples=64, tile=1024)
    program = jax.jit(lambda p: volume.render(FIELD, p, rays, Look.albedo(), cfg).rgb)
    memory = program.lower(parameters(3.0)).compile().memory_analysis().temp_size_in_bytes
    # All samples at once would be 2 * 128^2 * 64 * (4 + 3 + 3) floats, 80 MB.
    assert memory < 20e6
