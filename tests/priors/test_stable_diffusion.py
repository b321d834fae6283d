"""Latent critics: the official gradient, cheap latents, batches of assets."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import NETWORKS, vectors, write_network, write_tokenizer
from toys import knobs, shot

from jax3d import diffusion
from jax3d.camera import orbit
from jax3d.guidance.sds import sds
from jax3d.nn import unet, vae
from jax3d.nn.tokenizer import Tokenizer
from jax3d.priors import stable_diffusion as sd
from jax3d.types import Cond, Condition, Prompt, Render

ABAR = diffusion.scaled_linear()


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.mark.slow
def test_sds_gradient_of_an_image_through_the_encoder(tmp_path):
    """threestudio's Stable Diffusion guidance at scale 100, by autograd in torch."""
    io = vectors("sd15/sds_image_grad")
    net, net_params = unet.load(write_network(tmp_path, "sd15", "unet"))
    coder, coder_params = vae.load(write_network(tmp_path, "sd15", "vae"))
    params = {"unet": net_params, "vae": coder_params}
    prior = sd.latent_prior(sd.text_network(net, 64), coder, ABAR, "eps", 64)

    def encode(image):
        rgb = jax.image.resize(image, (1, 64, 64, 3), "linear", antialias=False)
        moments = coder.apply({"params": params["vae"]}, 2 * rgb - 1, method="encode")
        return coder.scale(moments.sample(nhwc(io["posterior_eps"])))

    z, pullback = jax.jit(lambda x: jax.vjp(encode, x))(nhwc(io["in_image"]))
    np.testing.assert_allclose(z, nhwc(io["latents"]), atol=1e-5)

    noise, t = nhwc(io["in_noise"]), jnp.asarray(io["in_t"], jnp.int32)
    z_t = diffusion.q_sample(ABAR, z, t, noise)
    both = Cond(jnp.asarray(io["in_cond_uncond"]))
    cond, uncond = jax.jit(prior.denoise)(
        params, jnp.repeat(z_t, 2, 0), jnp.repeat(t, 2), both, None
    )
    # threestudio counts its scale from the prompt's prediction: ours is one more.
    residual = diffusion.cfg(uncond, cond, 101.0) - noise
    gradient = (1 - ABAR[t]) * residual
    scale = np.abs(io["grad_latents"]).max()
    np.testing.assert_allclose(gradient, nhwc(io["grad_latents"]), atol=1e-4 * scale)
    (image_gradient,) = pullback(gradient)
    scale = np.abs(io["grad_image"]).max()
    np.testing.assert_allclose(image_gradient, nhwc(io["grad_image"]), atol=1e-4 * scale)


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    return vae.load(write_network(tmp_path_factory.mktemp("sd15"), "sd15", "vae"))


def test_the_posterior_is_sampled(coder):
    module, params = coder
    prior = sd.latent_prior(lambda *_: None, module, ABAR, "eps", 32)
    rgb = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))

    @jax.jit
    def both(key):
        moments = module.apply({"params": params}, 2 * rgb - 1, method="encode")
        return prior.encode({"vae": params}, key, rgb), moments

    draws = jnp.stack([both(jax.random.key(k))[0] for k in range(64)])
    moments = both(jax.random.key(0))[1]
    std = jnp.exp(0.5 * moments.logvar)
    error = (draws / module.scaling_factor).mean(0) - moments.mean
    assert jnp.sqrt(jnp.mean((error / std) ** 2)) < 1.3 / 8
    spread = (draws / module.scaling_factor).std(0) / std
    assert jnp.abs(spread.mean() - 1) < 0.05


def test_cheap_latents_are_the_best_affine_map_of_flat_colours(coder):
    module, params = coder
    fit = np.asarray(sd.fit_rgb_to_latents(module, params))
    levels = np.linspace(0, 1, 3, dtype=np.float32)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    flat = jnp.asarray(np.broadcast_to(colors[:, None, None], (27, 16, 16, 3)))
    moments = jax.jit(lambda x: module.apply({"params": params}, x, method="encode"))(2 * flat - 1)
    latents = module.scaling_factor * np.asarray(moments.mean).mean((1, 2))
    design = np.concatenate([colors, np.ones((27, 1), np.float32)], 1)
    np.testing.assert_allclose(design.T @ (design @ fit - latents), 0, atol=2e-4)
    prior = sd.latent_prior(lambda *_: None, module, ABAR, "eps", 32)
    cheap = sd.rgb_as_latents(prior, jnp.asarray(fit), 4)
    z = cheap.encode({}, jax.random.key(0), flat[:5])
    np.testing.assert_allclose(
        z, np.broadcast_to((design @ fit)[:5, None, None], z.shape), atol=1e-5
    )


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_whatever_is_predicted_comes_out_as_noise(coder, prediction):
    keys = jax.random.split(jax.random.key(0))
    x0, eps = (jax.random.normal(k, (2, 4, 4, 4)) for k in keys)
    t = jnp.array([100, 800])
    z_t = diffusion.q_sample(ABAR, x0, t, eps)
    says = {"eps": eps, "x0": x0, "v": diffusion.velocity(ABAR, x0, t, eps)}[prediction]
    prior = sd.latent_prior(lambda *_: says, coder[0], ABAR, prediction, 32)
    text = Cond(jnp.zeros((2, 3, 5)))
    np.testing.assert_allclose(prior.denoise({"unet": {}}, z_t, t, text, None), eps, atol=2e-5)


def test_views_must_come_in_groups(coder):
    prior = sd.latent_prior(lambda *_: None, coder[0], ABAR, "eps", 32, views=4)
    text = Cond(jnp.zeros((6, 3, 5)))
    with pytest.raises(ValueError, match="6 images are not in groups of 4"):
        prior.denoise({"unet": {}}, jnp.zeros((6, 4, 4, 4)), jnp.zeros(6, jnp.int32), text, None)


def test_assets_fold_into_the_batch_and_share_the_weights():
    """A step of A assets is one batch of the network: same products, no weight with an A axis."""
    net = unet.from_config(NETWORKS["sd15"]["unet"]["config"])
    params = unet.abstract_params(net)
    prior = sd.latent_prior(sd.text_network(net, 64), vae.AutoencoderKL(), ABAR, "eps", 64)

    def denoise(params, z_t, tokens):
        t = jnp.full(len(z_t), 500)
        return prior.denoise({"unet": params}, z_t, t, Cond(tokens), None)

    def lowered(assets):
        z_t = jax.ShapeDtypeStruct((*assets, 2, 8, 8, 4), jnp.float32)
        tokens = jax.ShapeDtypeStruct((*assets, 2, 7, 24), jnp.float32)
        f = jax.vmap(denoise, in_axes=(None, 0, 0)) if assets else denoise
        return jax.jit(f).lower(params, z_t, tokens).as_text()

    one, many = lowered(()), lowered((5,))
    convolutions = re.findall(r"stablehlo\.convolution.*", many)
    assert len(convolutions) == one.count("stablehlo.convolution") > 20
    # Every convolution sees 5 x 2 images and the weights as they are stored.
    assert all(re.search(r"\(tensor<10x\d+x\d+x\d+xf32>, tensor<[13]x", c) for c in convolutions)
    assert "tensor<5x3x3x" not in many
    assert many.count("stablehlo.dot_general") == one.count("stablehlo.dot_general")


@pytest.mark.slow
def test_a_step_of_many_assets_is_one_batch():
    """All of an SDS step, encoder and its gradient included: as many convolutions as for one."""
    net = unet.from_config(NETWORKS["sd15"]["unet"]["config"])
    coder = vae.from_config(NETWORKS["sd15"]["vae"]["config"])
    params = {"unet": unet.abstract_params(net), "vae": vae.abstract_params(coder)}
    prior = sd.latent_prior(sd.text_network(net, 32), coder, ABAR, "eps", 32)
    guidance = sds(prior)
    camera = orbit(jnp.arange(2.0), 0.2, 2.0, 0.7)

    def gradient(rgb, params, tokens, seed):
        cond = Condition(Cond(tokens[0]), Cond(tokens[0]), Cond(tokens))

        def loss(rgb):
            alpha = jnp.ones(rgb.shape[:-1])
            render = Render(rgb, alpha, alpha, rgb, alpha)
            seen = shot(render, camera)
            return guidance.loss(params, jax.random.key(seed), seen, cond, knobs(0), None)[0]

        return jax.grad(loss)(rgb)

    def lowered(*assets):
        rgb = jax.ShapeDtypeStruct((*assets, 2, 32, 32, 3), jnp.float32)
        tokens = jax.ShapeDtypeStruct((*assets, 4, 7, 24), jnp.float32)
        seed = jax.ShapeDtypeStruct(assets, jnp.uint32)
        f = jax.vmap(gradient, in_axes=(0, None, 0, 0)) if assets else gradient
        return jax.jit(f).lower(rgb, params, tokens, seed).as_text()

    one, many = lowered(), lowered(5)
    assert many.count("stablehlo.convolution") == one.count("stablehlo.convolution") > 50
    # The UNet sees 5 assets x 2 views x (text, null), the encoder 5 x 2, and no weight is copied.
    batches = re.findall(r"stablehlo\.convolution.*?\(tensor<(\d+)x", many)
    assert set(batches) == {"20", "10"}
    assert "tensor<5x3x3x" not in many


def reader(room):
    """A tokenizer that counts words."""
    return Tokenizer(lambda texts: None, lambda text: len(text.replace(",", " , ").split()), room)


@pytest.mark.parametrize(("text", "suffixes", "rooms", "kept"), [
    ("a red chair", ("",), [3], "a red chair"),
    ("a red chair", ("",), [2], "a red"),
    ("a  red\nchair ", ("",), [2], "a  red"),
    ("a red chair", (", side view", ", front"), [6], "a red chair"),
    ("a red chair", (", side view", ", front"), [5], "a red"),
    ("a red chair", (", side view",), [6, 4], "a"),
    ("a red chair", (", side view",), [4, 6], "a"),
    ("", (", side view",), [3], ""),
])  # fmt: skip
def test_words_that_leave_room_for_a_suffix(text, suffixes, rooms, kept):
    assert sd.kept_words(text, suffixes, [reader(room) for room in rooms]) == kept


def test_a_first_word_that_is_too_long():
    with pytest.raises(ValueError, match="begins with a word that alone is too long"):
        sd.kept_words("chair", (", side view",), [reader(3)])


@pytest.fixture(scope="module")
def condition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_network(folder, "sd15", "text_encoder")
    write_tokenizer(folder / "tokenizer")
    return sd.text_encoder(sd.read_towers(folder, jnp.float32))


def test_a_long_prompt_keeps_its_view_words_and_says_what_it_loses(condition):
    # 14 letters fit, and 11 beside a view word's three tokens.
    with pytest.warns(sd.PromptCut) as caught:
        long = condition(Prompt("a b c d e f g h i j k l m n o p"))
    assert str(caught[0].message) == (
        "longer than the critic's text encoder reads: the prompt loses 'o p'; "
        "the prompt beside its view word loses 'l m n o p'"
    )
    short = condition(Prompt("a b c d e f g h i j k"))
    np.testing.assert_array_equal(long.views.tokens, short.views.tokens)
    for one, other in itertools.combinations(long.views.tokens, 2):
        assert jnp.abs(one - other).max() > 1e-3
    full = condition(Prompt("a b c d e f g h i j k")).plain
    assert jnp.abs(long.plain.tokens - full.tokens).max() > 1e-3


def test_a_long_negative_prompt_says_what_it_loses(condition):
    with pytest.warns(sd.PromptCut, match="the negative prompt loses 'o p'"):
        condition(Prompt("a b", "a b c d e f g h i j k l m n o p"))


def test_a_prompt_that_fits_says_nothing(condition):
    condition(Prompt("a b c d e f g h i j k", "a b c d e f g h i j k l m n"))
