import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d import camera
from jax3d.render import shading, volume
from jax3d.types import Look, Rays

render = jax.jit(volume.render_reference, static_argnums=(0, 4))
EVEN = volume.VolumeConfig(samples=64)


def parallel_rays(n, width=0.5):
    """Rays along +y through a row of points on the x axis."""
    x = jnp.linspace(-width, width, n)
    origins = jnp.stack([x, jnp.full(n, -3.0), jnp.zeros(n)], -1)
    return Rays(origins[None, None], jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), (1, 1, n, 3)))


def two_looks(background):
    return Look(background, jnp.ones(2), jnp.zeros(2), jnp.array([[0.0, 0, 1], [0, 0, 1]]))


def constant(sigma, x):
    return volume.Samples(
        jnp.full(len(x), sigma), jnp.broadcast_to(jnp.array([1.0, 0, 0]), x.shape)
    )


@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0, 1e6])
def test_homogeneous_ball_absorbs_exponentially(sigma):
    rays = parallel_rays(7)
    length = 2 * np.sqrt(1 - np.linspace(-0.5, 0.5, 7) ** 2)
    look = Look.albedo()
    for coarse in (0, 16):
        cfg = volume.VolumeConfig(coarse=coarse, samples=32, weights=True)
        out = render(constant, jnp.array(sigma), rays, look, cfg)
        alpha = 1 - np.exp(-sigma * length)
        np.testing.assert_allclose(out.alpha[0, 0], alpha, rtol=1e-5)
        shown = out.over([0.0, 0.0, 1.0])[0, 0]
        np.testing.assert_allclose(shown[:, 0], alpha, rtol=1e-5)
        np.testing.assert_allclose(shown[:, 2], 1 - alpha, atol=1e-6)
        np.testing.assert_allclose(out.weights.sum(-1), out.alpha, atol=1e-5)


def test_homogeneous_box_has_the_length_of_the_slab():
    cfg = volume.VolumeConfig(shape="box", bound=0.6, samples=5)
    out = render(constant, jnp.array(2.0), parallel_rays(4, 1.0), Look.albedo(), cfg)
    np.testing.assert_allclose(
        out.alpha[0, 0], [0, 1 - np.exp(-2.4), 1 - np.exp(-2.4), 0], rtol=1e-5
    )


def test_two_layers_blend_front_to_back():
    sigma = jnp.array([3.0, 8.0])

    def layers(sigma, x):
        front = x[:, 1] < 0
        rgb = jnp.where(front[:, None], jnp.array([1.0, 0, 0]), jnp.array([0, 1.0, 0]))
        return volume.Samples(jnp.where(front, sigma[0], sigma[1]), rgb)

    out = render(layers, sigma, parallel_rays(1, 0.0), Look.albedo(), EVEN)
    near, far = 1 - np.exp(-3.0), 1 - np.exp(-8.0)
    rest = (1 - near) * (1 - far)
    expected = [near + rest, (1 - near) * far + rest, rest]
    np.testing.assert_allclose(out.over(1.0)[0, 0, 0], expected, atol=1e-5)


def test_depth_of_a_wall_is_its_distance():
    wall = lambda p, x: volume.Samples(jnp.where(x[:, 1] > p, 1e4, 0.0), jnp.ones_like(x))  # noqa: E731
    cfg = volume.VolumeConfig(coarse=64, samples=64)
    out = render(wall, 0.25, parallel_rays(3), Look.albedo(), cfg)
    np.testing.assert_allclose(out.depth[0, 0], 3.25, atol=0.01)


def test_rays_that_miss_show_the_background_with_zero_gradients():
    rays = Rays(jnp.array([[[[5.0, 0, 0]]]]), jnp.array([[[[0.0, 0, 1.0]]]]))

    def red(sigma, origins, shape):
        cfg = volume.VolumeConfig(shape=shape, coarse=8, samples=8)
        rays_ = rays.replace(origins=origins)
        return render(constant, sigma, rays_, Look.albedo(), cfg)

    for shape in ("sphere", "box"):
        out = red(jnp.array(7.0), rays.origins, shape)
        np.testing.assert_allclose(out.over([0.2, 0.4, 0.6])[0, 0, 0], [0.2, 0.4, 0.6])
        gradient = jax.grad(lambda *a: red(*a).rgb.sum() + red(*a).depth.sum(), (0, 1))
        for g in gradient(jnp.array(7.0), rays.origins, shape):
            assert jnp.isfinite(g).all()


def ball(params, x):
    """A soft ball with a smooth colour and analytic normals."""
    center, softness = params[:3], params[3]
    to = x - center
    r = jnp.sqrt(jnp.sum(to * to, -1) + 1e-3)
    sigma = 20 * jax.nn.sigmoid((0.6 - r) / softness)
    return volume.Samples(sigma, jax.nn.sigmoid(3 * x + params[4:7]), to / r[:, None])


PARAMS = jnp.array([0.1, -0.05, 0.2, 0.1, 0.3, -0.2, 0.1])


@pytest.mark.parametrize("shape", ["sphere", "box"])
def test_gradients_match_finite_differences(shape):
    with jax.enable_x64(True):
        cfg = volume.VolumeConfig(shape=shape, samples=16)
        look = Look(
            jnp.array([0.1, 0.5, 0.9]), jnp.array(0.3), jnp.array(0.4), jnp.array([0.6, 0, 0.8])
        )

        cotangent = jax.random.normal(jax.random.key(0), (3, 3))

        @jax.jit
        def loss(x):
            rays = camera.rays(camera.orbit(x[None, 7], 0.3, 2.5, 0.7), (3, 3))
            out = volume.render_reference(ball, x[:7], rays, look, cfg)
            picture = out.rgb.sum(-1) + out.alpha + out.depth * out.alpha + out.normal.sum(-1)
            return jnp.vdot(picture[0], cotangent)

        x = jnp.append(jnp.asarray(PARAMS, jnp.float64), 0.4)
        numeric = [(loss(x + e) - loss(x - e)) / 2e-5 for e in 1e-5 * jnp.eye(8)]
        np.testing.assert_allclose(jax.grad(loss)(x), numeric, rtol=1e-6, atol=1e-7)


def test_tiles_change_nothing():
    rays = camera.rays(camera.orbit(jnp.array([0.4, 1.0]), 0.3, 2.5, 0.7), (5, 7))
    look = two_looks(jnp.array([[0.1, 0.5, 0.9], [1.0, 0, 0]]))
    whole, tiles = (
        render(
            ball,
            PARAMS,
            rays,
            look,
            volume.VolumeConfig(coarse=8, samples=8, tile=tile),
            jax.random.key(3),
        )
        for tile in (1000, 16)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tiles), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_orientation_penalty_is_that_of_normals_that_face_away():
    def slab(normal_y, x):
        normal = jnp.stack([jnp.zeros(len(x)), jnp.full(len(x), normal_y), jnp.zeros(len(x))], -1)
        return volume.Samples(jnp.full(len(x), 100.0), jnp.ones_like(x), normal)

    for normal_y, expected in ((-1.0, 0.0), (0.5, 0.25)):
        out = render(slab, normal_y, parallel_rays(1, 0.0), Look.albedo(), EVEN)
        np.testing.assert_allclose(out.orient, expected, atol=1e-5)
        np.testing.assert_allclose(out.normal[0, 0, 0], [0, normal_y, 0], atol=1e-5)


def test_lambertian_and_textureless_shading():
    albedo = jnp.full((1, 1, 3), 0.5)
    normal = jnp.array([[[0.0, 0, 1.0]]])

    def shade(ambient, white, light):
        look = Look(jnp.zeros((1, 3)), jnp.array([ambient]), jnp.array([white]), jnp.array([light]))
        return float(shading.shade(albedo, normal, look)[0, 0, 0])

    assert shade(1.0, 0.0, [0.0, 0, -1.0]) == pytest.approx(0.5)
    assert shade(0.2, 0.0, [0.0, 0.6, 0.8]) == pytest.approx(0.5 * (0.2 + 0.8 * 0.8))
    assert shade(0.2, 0.0, [0.0, 0, -1.0]) == pytest.approx(0.5 * 0.2)
    assert shade(0.2, 1.0, [0.0, 0.6, 0.8]) == pytest.approx(0.2 + 0.8 * 0.8)


def test_pictures_lie_over_one_colour_or_one_a_view_or_a_pixel():
    rays = camera.rays(camera.orbit(jnp.zeros(2), 0.0, 5.0, 2.0), (3, 3))
    colors = jnp.array([[1.0, 0, 0], [0, 1.0, 0]])
    look = two_looks(colors)
    out = render(constant, jnp.array(1.0), rays, look, EVEN)
    np.testing.assert_allclose(out.over(look.background)[:, 0, 0], colors, atol=1e-6)
    np.testing.assert_allclose(out.over(colors[0])[:, 0, 0], colors[jnp.zeros(2, int)], atol=1e-6)
    pixels = jax.random.uniform(jax.random.key(0), (2, 3, 3, 3))
    out = render(constant, jnp.array(0.0), rays, look, EVEN)
    np.testing.assert_allclose(out.over(pixels), pixels, atol=1e-6)
