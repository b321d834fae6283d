"""Each kin of SDS against what it must be by its definition, under a linear critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import knobs, linear_critic, linear_weights, pages, shot

from jax3d import diffusion
from jax3d.camera import orbit
from jax3d.guidance import ism, perp_neg, score
from jax3d.guidance.csd import CSDConfig, csd
from jax3d.guidance.hifa import HiFAConfig, hifa
from jax3d.guidance.nfsd import NFSDConfig, nfsd
from jax3d.guidance.score import ScoreConfig
from jax3d.guidance.sds import SDSConfig, sds
from jax3d.guidance.vsd import SecondCritic, VSDConfig, lora, vsd
from jax3d.priors.gaussian import GaussianData, gaussian
from jax3d.types import Cond, Condition, Look

ABAR = diffusion.cosine(100)
CRITIC = linear_critic(ABAR, 4)
WEIGHTS = linear_weights()
CAMERA = orbit(jnp.radians(jnp.array([0.0, 120.0])), 0.0, 2.0, 0.7)
PAGES = pages(3, 4)
RENDER = PAGES.render(PAGES.init(jax.random.key(0)), None, CAMERA, Look.albedo(), (4, 4))
TEXT, NULL, PLAIN, NEGATIVE = jnp.array([[1.0], [0.0]]), -1.0, 5.0, 0.25  # Front and side.
COND = Condition(
    views=Cond(jnp.arange(4.0).reshape(4, 1, 1)),
    null=Cond(jnp.full((1, 1), NULL)),
    plain=Cond(jnp.full((1, 1), PLAIN)),
    negative=Cond(jnp.full((1, 1), NEGATIVE)),
)
UNIFORM = ScoreConfig(weighting="uniform")
KEY = jax.random.key(5)


def square(params, z_t, t, text, camera):
    """A critic in which texts point in directions of their own."""
    return jnp.sin(z_t * (1 + text.tokens[..., None]) + t[:, None, None, None])


SQUARED = CRITIC._replace(denoise=square)


def gradient(guidance, scale, key=KEY, **others):
    """The gradient in the rendered pixels."""
    knob = knobs(guidance_scale=scale, **others)

    def loss(rgb):
        seen = shot(RENDER.replace(rgb=rgb), CAMERA)
        return guidance.loss(WEIGHTS, key, seen, COND, knob, jnp.zeros(()))[0]

    return jax.jit(jax.grad(loss))(RENDER.rgb)


def in_pixels(residual):
    """The gradient in the rendered pixels of a residual in z, at weight 1."""
    residual = jnp.broadcast_to(residual, (2, 4, 4, 2))
    return jnp.einsum("vhwd,cd->vhwc", residual, WEIGHTS["encoder"]) / 2


def noise_of(key=KEY, **others):
    return score.look(CRITIC, WEIGHTS, key, 0, RENDER.over(1.0), knobs(**others), UNIFORM)[1].noise


def test_csd_is_sds_without_its_noise():
    # SDS at scale s is (null - noise) + s (text - null): the first part is SDS at scale 0.
    difference = gradient(sds(CRITIC), 7.0) - gradient(sds(CRITIC), 0.0)
    np.testing.assert_allclose(gradient(csd(CRITIC), 7.0), difference, rtol=1e-4, atol=1e-5)


def test_nfsd_at_large_t_is_free_of_the_image():
    ask = nfsd(CRITIC, NFSDConfig(UNIFORM))
    residual = (NULL - NEGATIVE) + 3.0 * (TEXT - NULL)
    np.testing.assert_allclose(
        gradient(ask, 3.0, t_min=0.5), in_pixels(residual[:, None, None]), rtol=1e-4
    )


def test_nfsd_at_small_t_is_sds_without_subtracting_the_noise():
    small = {"t_min": 0.05, "t_max": 0.15}
    ours = gradient(nfsd(CRITIC, NFSDConfig(UNIFORM)), 3.0, **small)
    theirs = gradient(sds(CRITIC, SDSConfig(UNIFORM)), 3.0, **small)
    np.testing.assert_allclose(ours - theirs, in_pixels(noise_of(**small)), rtol=1e-3, atol=1e-5)


def test_vsd_is_sds_where_the_second_critic_knows_the_noise():
    z = CRITIC.encode(WEIGHTS, None, RENDER.over(1.0))

    def denoise(prior_params, own, z_t, t, text, camera, told):
        alpha, sigma = diffusion.noise_level(ABAR, t, 4)
        return (z_t - alpha * z) / sigma

    ours = gradient(vsd(CRITIC, SecondCritic(None, denoise)), 7.5)
    np.testing.assert_allclose(
        ours, gradient(sds(CRITIC), 7.5, key=jax.random.split(KEY)[0]), rtol=1e-3, atol=1e-4
    )


def test_the_second_critic_is_asked_by_the_plain_prompt_and_guided_by_the_camera():
    def denoise(prior_params, own, z_t, t, text, camera, told):
        return jnp.broadcast_to(text.tokens[..., None] + told[:, None, None, None], z_t.shape)

    config = VSDConfig(UNIFORM, second_scale=3.0)
    base = gradient(sds(CRITIC, SDSConfig(UNIFORM)), 1.0, key=jax.random.split(KEY)[0])
    noise = in_pixels(noise_of(jax.random.split(KEY)[0]))
    ours = gradient(vsd(CRITIC, SecondCritic(None, denoise), config), 1.0)
    np.testing.assert_allclose(ours, base + noise - in_pixels(PLAIN + 3.0), rtol=1e-3, atol=1e-4)


def test_the_second_critic_learns_the_renders():
    # Its best constant factor on z_t is E[eps z_t] / E[z_t^2], over all of the schedule.
    critic = SecondCritic(
        lambda key: jnp.zeros(()), lambda p, own, z_t, t, text, camera, told: own * z_t
    )
    guidance = vsd(CRITIC, critic)

    @jax.jit
    def loss_and_slope(own, key):
        loss = lambda own: guidance.loss(  # noqa: E731
            WEIGHTS, key, shot(RENDER, CAMERA), COND, knobs(), own
        )
        (_, metrics), slope = jax.value_and_grad(loss, has_aux=True)(own)
        return metrics["second_loss"], slope

    keys = jax.random.split(KEY, 200)
    z2 = jnp.mean(CRITIC.encode(WEIGHTS, None, RENDER.over(1.0)) ** 2)
    mean_square = jnp.mean(ABAR * z2 + 1 - ABAR)
    best = jnp.mean(jnp.sqrt(1 - ABAR)) / mean_square
    losses, slopes = jax.vmap(loss_and_slope, (None, 0))(best, keys)
    np.testing.assert_allclose(jnp.mean(slopes), 0, atol=0.05)
    np.testing.assert_allclose(jnp.mean(losses), 1 - best**2 * mean_square, atol=0.03)


def test_lora_changes_nothing_at_first_and_then_the_matched_matrices():
    second = lora(CRITIC, WEIGHTS, rank=2, pattern="unet")
    own = second.init(KEY)
    assert [x.shape for x in jax.tree.leaves(own)] == [(2, 2), (2, 2)]
    z = jnp.ones((2, 4, 4, 2))
    text = score.repeat(COND.plain, 2)
    ask = lambda own: second.denoise(WEIGHTS, own, z, None, text, CAMERA, None)  # noqa: E731
    bare = CRITIC.denoise(WEIGHTS, z, None, text, CAMERA)
    np.testing.assert_array_equal(ask(own), bare)
    (pair,) = own.values()
    pair["up"] = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    shift = jnp.stack([jnp.sum(pair["down"][:, 0]), 0.0])
    np.testing.assert_allclose(ask(own) - bare, jnp.broadcast_to(shift, z.shape), atol=1e-5)


def test_a_lora_may_be_told_the_camera():
    def denoise(params, z_t, t, text, camera):
        if "pose" in params["unet"]:
            hidden = camera.c2w.reshape(-1, 16) @ params["unet"]["pose"]["linear_1"]["kernel"]
            z_t = z_t + (hidden @ params["unet"]["pose"]["linear_2"]["kernel"])[:, None, None]
        return z_t @ params["unet"]["to_q"]

    prior = CRITIC._replace(denoise=denoise)
    weights = {"unet": {"to_q": jnp.eye(2)}}
    shapes = {"linear_1": {"kernel": jnp.zeros((16, 3))}, "linear_2": {"kernel": jnp.zeros((3, 2))}}
    second = lora(prior, weights, camera_weights={"unet": {"pose": shapes}})
    own = second.init(KEY)
    z, told = jnp.ones((2, 4, 4, 2)), jnp.array([1.0, 0.0])
    ask = lambda own: second.denoise(weights, own, z, None, None, CAMERA, told)  # noqa: E731
    np.testing.assert_array_equal(ask(own), z)
    own["unet/pose/linear_2/kernel"] = jnp.ones((3, 2))
    moved = ask(own)
    assert jnp.abs(moved[0] - z[0]).max() > 1e-2
    np.testing.assert_array_equal(moved[1], z[1])


def test_lora_names_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="matches 'attention'"):
        lora(CRITIC, WEIGHTS, pattern="attention")


def gaussian_path(std):
    prior = gaussian(2, ABAR)
    data = GaussianData(jnp.full((2, 2, 3), 0.3), jnp.float32(std))
    denoise = lambda x, t: prior.denoise(data, x, t, COND.plain, None)  # noqa: E731
    return data, denoise


def test_inversion_follows_the_flow_of_gaussian_data_and_returns_with_order_one():
    data, denoise = gaussian_path(0.5)
    z = data.mean + 0.5 * jax.random.normal(KEY, (2, 2, 2, 3))
    # Along the flow, (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is kept.
    a, b = ABAR[jnp.array([90, 60])][:, None, None, None], ABAR[0]
    kept = (z - jnp.sqrt(b) * data.mean) / jnp.sqrt(0.25 * b + 1 - b)
    exact = jnp.sqrt(a) * data.mean + kept * jnp.sqrt(0.25 * a + 1 - a)
    invert = jax.jit(lambda z, path: ism.invert(denoise, z, ABAR, path))

    def errors(steps):
        path = jnp.linspace(0, jnp.array([90, 60]), steps + 1).astype(jnp.int32)
        there = invert(z, path)
        back = invert(there, path[::-1])
        return np.array([jnp.max(jnp.abs(there - exact)), jnp.max(jnp.abs(back - z))])

    coarse, fine = errors(9), errors(90)
    assert np.all(fine < 0.1)
    assert np.all((coarse / fine > 5) & (coarse / fine < 20))


def test_ism_without_an_interval_is_guidance_alone():
    # At s = t the two estimates differ by the text's part only.
    at_once = ism.ISMConfig(UNIFORM, interval=0.0)
    residual = (3.0 * (TEXT - NULL))[:, None, None]
    np.testing.assert_allclose(
        gradient(ism.ism(CRITIC, at_once), 3.0), in_pixels(residual), rtol=1e-3, atol=1e-4
    )


def test_hifa_adds_the_pixels_of_the_estimated_image():
    certain = gaussian(4, ABAR)
    data = GaussianData(jnp.full((4, 4, 3), 0.3), jnp.float32(0.0))
    t = {"t_min": 0.5, "t_max": 0.5}

    def pull(guidance):
        def loss(rgb):
            seen = shot(RENDER.replace(rgb=rgb), CAMERA)
            return guidance.loss(data, KEY, seen, COND, knobs(guidance_scale=1.0, **t), None)[0]

        return jax.jit(jax.grad(loss))(RENDER.rgb)

    extra = pull(hifa(certain, HiFAConfig(UNIFORM, 0.5))) - pull(sds(certain, SDSConfig(UNIFORM)))
    ratio = jnp.sqrt(ABAR[50] / (1 - ABAR[50]))
    seen = RENDER.over(1.0)
    np.testing.assert_allclose(extra, 0.5 * ratio * (seen - 0.3) / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("guidance", [csd, nfsd, ism.ism])
def test_what_rescales_no_estimate_refuses_to(guidance):
    config = {csd: CSDConfig, nfsd: NFSDConfig, ism.ism: ism.ISMConfig}[guidance]
    with pytest.raises(ValueError, match=r"score.rescale is 0.5"):
        guidance(CRITIC, config(ScoreConfig(rescale=0.5)))


def test_recon_pulls_to_the_estimated_image():
    at = score.look(CRITIC, WEIGHTS, KEY, 0, RENDER.over(1.0), knobs(), UNIFORM)[1]
    z = CRITIC.encode(WEIGHTS, None, RENDER.over(1.0))
    eps_hat = jax.random.normal(KEY, z.shape)
    alpha, sigma = diffusion.noise_level(ABAR, at.t, 4)
    x0, _ = diffusion.x0_and_eps(eps_hat, at.z_t, alpha, sigma, "eps")
    w = score.weight(ABAR, at.t, "recon")
    np.testing.assert_allclose(w * (eps_hat - at.noise), z - x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("views", [1, 2])
def test_rescale_gives_x0_the_spread_it_has_without_guidance(views):
    config = ScoreConfig(rescale=1.0)
    prior = CRITIC._replace(views=views)
    _, at = score.look(prior, WEIGHTS, KEY, 0, RENDER.over(1.0), knobs(t_min=0.3), config)
    guided = jax.jit(lambda scale: score.guided(prior, WEIGHTS, at, CAMERA, COND, scale, config))
    eps = [guided(scale) for scale in (1.0, 40.0)]
    alpha, sigma = diffusion.noise_level(ABAR, at.t, 4)
    bare, strong = (np.reshape((at.z_t - sigma * e) / alpha, (2 // views, -1)) for e in eps)
    np.testing.assert_allclose(strong.std(1), bare.std(1), rtol=1e-3)
    assert np.abs(strong - bare).max() > 1e-2


def test_perp_neg_weights_at_the_principal_views():
    camera = orbit(
        jnp.radians(jnp.array([0.0, 44.0, 120.0, -170.0, -80.0, 30.0])),
        jnp.radians(jnp.array([10.0, 0.0, -5.0, 20.0, 0.0, 75.0])),
        2.0,
        0.7,
    )
    positive, negatives, weights = perp_neg.wordings(camera)
    np.testing.assert_allclose(positive.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(positive[1], [44 / 90, 46 / 90, 0, 0], atol=1e-6)
    np.testing.assert_allclose(positive[2], [2 / 3, 0, 1 / 3, 0], atol=1e-6)
    np.testing.assert_array_equal(positive[5], [0, 0, 0, 1])
    assert negatives.argmax(-1).tolist()[:5] == [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]
    # The values of threestudio's own code for these cameras.
    threestudio = [
        [-0.0001225, -1.5739999],
        [-0.6719444, -0.7065580],
        [-0.1105313, -1.6835313],
        [-0.3399594, -1.9129595],
        [-1.3578377, -0.1387215],
        [0.0, 0.0],
    ]
    np.testing.assert_allclose(weights, threestudio, atol=1e-5)


def test_perpendicular_parts_are_perpendicular():
    x, y = jax.random.normal(KEY, (2, 3, 2, 4, 4, 1))
    part = perp_neg.perpendicular(x, y)
    np.testing.assert_allclose(jnp.sum(part * y, axis=(2, 3, 4)), 0, atol=1e-4)
    along = (x - part) / y
    np.testing.assert_allclose(along, jnp.broadcast_to(along[:, :, :1, :1], along.shape), rtol=1e-2)


def test_perp_neg_of_a_batch_is_its_views_one_by_one():
    config = ScoreConfig(view_words="perp-neg")
    camera = orbit(jnp.array([0.5, 2.5, 4.0]), jnp.array([0.0, 0.3, 1.3]), 2.0, 0.7)
    z_t = jax.random.normal(KEY, (3, 4, 4, 2))
    at = score.Noised(jnp.array([10, 50, 80]), z_t, z_t)
    cond = COND.replace(views=Cond(jnp.array([0.3, -2.0, 1.0, 4.0])[:, None, None]))

    @jax.jit
    def guided(at, camera):
        return score.guided(SQUARED, WEIGHTS, at, camera, cond, 7.5, config)

    whole = guided(at, camera)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], (at, camera))
        np.testing.assert_allclose(guided(*one)[0], whole[i], rtol=1e-4, atol=1e-4)
