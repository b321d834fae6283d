"""Text-to-image critics in latent space: Stable Diffusion 1, 2 and XL, and networks like them.

A critic is put together of a `Network`, which maps noisy latents to its prediction, and the
autoencoder whose latents those are. Letters as in `base`; b images, l tokens, d their width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d.diffusion import Prediction, noise_level, x0_and_eps
from jax3d.nn.clip_text import CLIPTextModel
from jax3d.nn.tokenizer import Tokenize
from jax3d.nn.unet import AddedConditions, UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors.base import Prior
from jax3d.prompts import wordings
from jax3d.types import Camera, Cond, Condition, Key, Params, Prompt

POSE = 16
"""Numbers of a camera-to-world matrix."""

Network = Callable[[Params, Array, Array, Cond, Camera | None], Array]
"""`network(params, z_t[b, h, w, c], t[b], Cond[b], Camera[b] | None) -> prediction`."""


def text_network(unet: UNet2DConditionModel, size: int) -> Network:
    """A UNet that knows the text alone; cameras are ignored, save by `camera_weights`.

    Args:
      unet: SD 1, 2 or XL; the latter reads `Cond.pooled` and is told that images are of
        `size` pixels and uncropped.
      size: side of the images, pixels.
    """

    camera_told = unet.clone(
        class_embed_type="projection", projection_class_embeddings_input_dim=POSE
    )

    def network(params, z_t, t, text, camera):
        net, pose = unet, None
        if "class_embedding" in params and unet.class_embed_type is None and camera is not None:
            net, pose = camera_told, camera.c2w.reshape(-1, POSE)
        added = None
        if unet.addition_embed_type == "text_time":
            if text.pooled is None:
                raise ValueError("this network asks for a pooled text embedding beside the tokens")
            ids = jnp.array([size, size, 0, 0, size, size], jnp.float32)
            added = AddedConditions(text.pooled, jnp.broadcast_to(ids, (len(z_t), 6)))
        return net.apply({"params": params}, z_t, t, text.tokens, pose, added)

    return network


def camera_weights(params: Params) -> Params:
    """Shapes of the weights by which a `text_network` learns to be told the camera.

    They embed the flat camera-to-world matrix where diffusers has a class embedding, as the second
    critic of variational score distillation does. `params` are the weights, or their shapes, of
    any critic; for one whose network has no time embedding, or knows cameras, there are none.
    """
    unet = params.get("unet", {}) if isinstance(params, dict) else {}
    if "time_embedding" not in unet or "class_embedding" in unet:
        return {}
    kernel = unet["time_embedding"]["linear_2"]["kernel"]
    width = kernel.shape[1]

    def layer(rows):
        bias = jax.ShapeDtypeStruct((width,), jnp.float32)
        return {"kernel": jax.ShapeDtypeStruct((rows, width), jnp.float32), "bias": bias}

    return {"unet": {"class_embedding": {"linear_1": layer(POSE), "linear_2": layer(width)}}}


def handed_over_network(model: Any) -> Network:
    """A `FlaxUNet2DConditionModel` of diffusers 0.39 or older, whose params become the weights.

    Such a network sees channels first and the text alone. Its GELU is the tanh approximation, so
    its output differs from ours on the same weights by some 1e-4.
    """

    def network(params, z_t, t, text, camera):
        del camera
        output = model.apply({"params": params}, jnp.moveaxis(z_t, -1, 1), t, text.tokens)
        return jnp.moveaxis(output.sample, 1, -1)

    return network


def latent_prior(
    network: Network,
    vae: AutoencoderKL,
    alphas_cumprod: Float[Array, " T"],
    prediction: Prediction,
    size: int,
    views: int = 1,
    reads_camera: bool = False,
) -> Prior:
    """A critic of latents; its weights are `{"unet": ..., "vae": ...}`.

    Images are encoded by a sample of the autoencoder's posterior, not by its mode (DreamFusion's
    successors all do so), and gradients go through the encoder.

    Args:
      network: maps noisy latents to its prediction.
      vae: the autoencoder of the latents.
      alphas_cumprod: abar of the network's schedule.
      prediction: what the network predicts.
      size: side of the images, pixels.
      views: images that the network looks at together.
      reads_camera: whether the network looks at the camera.
    """

    def encode(params, key: Key, rgb: Float[Array, "v H W 3"]) -> Float[Array, "v h w z"]:
        moments = vae.apply({"params": params["vae"]}, 2 * rgb - 1, method="encode")
        eps = jax.random.normal(key, moments.mean.shape)
        return vae.scale(moments.sample(eps))

    def decode(params, z: Float[Array, "v h w z"]) -> Float[Array, "v H W 3"]:
        pixels = vae.apply({"params": params["vae"]}, vae.unscale(z), method="decode")
        return jnp.clip(0.5 * pixels + 0.5, 0.0, 1.0)

    def denoise(
        params,
        z_t: Float[Array, "b h w z"],
        t: Int[Array, " b"],
        text: Cond,
        camera: Camera | None,
    ) -> Float[Array, "b h w z"]:
        if len(z_t) % views:
            raise ValueError(f"{len(z_t)} images are not in groups of {views} views")
        output = network(params["unet"], z_t, t, text, camera)
        alpha, sigma = noise_level(alphas_cumprod, t, z_t.ndim)
        return x0_and_eps(output, z_t, alpha, sigma, prediction)[1]

    return Prior(encode, decode, denoise, alphas_cumprod, size, views, reads_camera)


def fit_rgb_to_latents(vae: AutoencoderKL, params: Params) -> Float[Array, "4 z"]:
    """The affine map from a colour to its latents: least squares over flat images.

    The rows are the red, green and blue coefficients and the constant.
    """
    levels = jnp.linspace(0.0, 1.0, 3)
    colors = jnp.stack(jnp.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    side = 2 ** (len(vae.block_out_channels) + 1)
    flat = jnp.broadcast_to(colors[:, None, None], (len(colors), side, side, 3))
    moments = vae.apply({"params": params}, 2 * flat - 1, method="encode")
    latents = vae.scale(moments.mean).mean(axis=(1, 2))
    return jnp.linalg.lstsq(jnp.pad(colors, ((0, 0), (0, 1)), constant_values=1), latents)[0]


def rgb_as_latents(prior: Prior, rgb_to_latents: Float[Array, "4 z"], side: int) -> Prior:
    """The same critic with a cheap encoder: images shrunk to `side` and mapped colour by colour.

    It forgoes the autoencoder's detail and spares its forward and backward pass, for the first
    part of a run (the latent warm-up of Latent-NeRF, https://arxiv.org/abs/2211.07600).
    """

    def encode(params, key: Key, rgb: Float[Array, "v H W 3"]) -> Float[Array, "v h w z"]:
        del params, key
        small = jax.image.resize(rgb, (len(rgb), side, side, 3), "linear", antialias=False)
        return small @ rgb_to_latents[:3] + rgb_to_latents[3]

    return prior._replace(encode=encode)


TextTowers = Sequence[tuple[CLIPTextModel, Params, Tokenize]]
"""One text tower (SD 1 and 2) or two (SDXL), each with its tokenizer."""


def text_encoder(towers: TextTowers) -> Callable[[Prompt], Condition]:
    """`condition(Prompt) -> Condition` of one tower or of SDXL's two.

    One tower gives its last, normalised state. Of two, the states before the last layer are
    joined, and the second one's projection is the pooled embedding.
    """

    @jax.jit
    def embed(params, ids: list[Int[Array, "b l"]]) -> Cond:
        outputs = [
            tower.apply({"params": p}, i)
            for (tower, _, _), p, i in zip(towers, params, ids, strict=True)
        ]
        if len(outputs) == 1:
            return Cond(outputs[0].last_hidden_state.astype(jnp.float32))
        tokens = jnp.concatenate([o.hidden_states[-2] for o in outputs], axis=-1)
        pooled = outputs[-1].text_embeds.astype(jnp.float32)
        return Cond(tokens.astype(jnp.float32), pooled)

    def embed_texts(texts: list[str]) -> Cond:
        return embed([p for _, p, _ in towers], [jnp.asarray(t(texts)) for _, _, t in towers])

    return condition_of(embed_texts)


def condition_of(embed_texts: Callable[[list[str]], Cond]) -> Callable[[Prompt], Condition]:
    """`condition(Prompt) -> Condition` from an embedding of plain texts."""

    def condition(prompt: Prompt) -> Condition:
        if not prompt.text.strip():
            raise ValueError("the prompt is empty: say what to make")
        views = wordings(prompt.text)
        both = embed_texts([*views, prompt.negative, prompt.text])

        def pick(rows: Any) -> Cond:
            return jax.tree.map(lambda x: x[rows], both)

        return Condition(plain=pick(-1), null=pick(-2), views=pick(np.arange(len(views))))

    return condition
