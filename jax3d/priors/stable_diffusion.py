"""Text-to-image critics in latent space: Stable Diffusion 1, 2 and XL, and networks like them.

A critic is put together of a `Network`, which maps noisy latents to its prediction, and the
autoencoder whose latents those are. Letters as in `base`; b images, l tokens, d their width.
"""

import bisect
import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jax3d import weights
from jax3d.diffusion import Prediction, noise_level, x0_and_eps
from jax3d.nn import clip_text, tokenizer, unet, vae
from jax3d.nn.clip_text import CLIPTextModel
from jax3d.nn.tokenizer import Tokenizer
from jax3d.nn.unet import AddedConditions, UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors import schedulers
from jax3d.priors.base import Critic, Prior
from jax3d.prompts import VIEW_SUFFIXES, wordings
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
        t: Num[Array, " b"],
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


class TextTower(NamedTuple):
    """A text encoder with its weights and the tokenizer that it was trained with."""

    model: CLIPTextModel
    params: Params
    tokenizer: Tokenizer


class PromptCut(UserWarning):
    """A prompt is longer than a critic's text encoder reads, and its last words fall off."""


def text_encoder(
    towers: Sequence[TextTower], zero_null: bool = False
) -> Callable[[Prompt], Condition]:
    """`condition(Prompt) -> Condition` of one tower or of SDXL's two.

    One tower gives its last, normalised state. Of two, the states before the last layer are
    joined, and the second one's projection is the pooled embedding.

    Args:
      towers: one (SD 1 and 2) or two (SDXL).
      zero_null: the null text, where no negative prompt is given, is zeros and not the embedding
        of an empty text.
    """

    @jax.jit
    def embed(params, ids: list[Int[Array, "b l"]]) -> Cond:
        outputs = [
            tower.model.apply({"params": p}, i)
            for tower, p, i in zip(towers, params, ids, strict=True)
        ]
        if len(outputs) == 1:
            return Cond(outputs[0].last_hidden_state.astype(jnp.float32))
        tokens = jnp.concatenate([o.hidden_states[-2] for o in outputs], axis=-1)
        pooled = outputs[-1].text_embeds.astype(jnp.float32)
        return Cond(tokens.astype(jnp.float32), pooled)

    def embed_texts(texts: list[str]) -> Cond:
        ids = [jnp.asarray(tower.tokenizer.ids(texts)) for tower in towers]
        return embed([tower.params for tower in towers], ids)

    encode = condition_of(embed_texts)
    tokenizers = [tower.tokenizer for tower in towers]

    def condition(prompt: Prompt) -> Condition:
        plain = kept_words(prompt.text, ("",), tokenizers)
        worded = kept_words(prompt.text, VIEW_SUFFIXES, tokenizers)
        negative = kept_words(prompt.negative, ("",), tokenizers)
        _tell_what_falls_off(prompt, plain, worded, negative)
        found = encode(prompt._replace(text=plain, negative=negative), worded)
        if zero_null and not prompt.negative:
            found = found.replace(null=jax.tree.map(jnp.zeros_like, found.null))
        return found

    return condition


def kept_words(text: str, suffixes: Sequence[str], tokenizers: Sequence[Tokenizer]) -> str:
    """The text, without the last words that leave no room in a tower for one of the suffixes.

    Raises:
      ValueError: not even the first word fits.
    """

    def excess(text: str) -> int:
        return max(t.count(text + suffix) - t.room for t in tokenizers for suffix in suffixes)

    if excess(text) <= 0:
        return text
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    fit = bisect.bisect_right(ends, 0, key=lambda end: excess(text[:end]))
    if not fit:
        raise ValueError(
            f"the prompt begins with a word that alone is too long for the text encoder: "
            f"{weights.shown(text)}"
        )
    return text[: ends[fit - 1]]


def _tell_what_falls_off(prompt: Prompt, plain: str, worded: str, negative: str) -> None:
    lost = {
        "the prompt": prompt.text[len(plain) :],
        "the prompt beside its view word": prompt.text[len(worded) :],
        "the negative prompt": prompt.negative[len(negative) :],
    }
    said = [f"{what} loses {words.strip()!r}" for what, words in lost.items() if words.strip()]
    if said:
        message = f"longer than the critic's text encoder reads: {'; '.join(said)}"
        warnings.warn(message, PromptCut, stacklevel=3)


def condition_of(embed_texts: Callable[[list[str]], Cond]) -> Callable[..., Condition]:
    """`condition(Prompt, worded=None) -> Condition` from an embedding of plain texts.

    `worded` takes the place of the prompt's text before a view word.
    """

    def condition(prompt: Prompt, worded: str | None = None) -> Condition:
        if not prompt.text.strip():
            raise ValueError("the prompt is empty: say what to make")
        views = wordings(prompt.text if worded is None else worded)
        both = embed_texts([*views, prompt.negative, prompt.text])

        def pick(rows: Any) -> Cond:
            return jax.tree.map(lambda x: x[rows], both)

        return Condition(plain=pick(-1), null=pick(-2), views=pick(np.arange(len(views))))

    return condition


# Folders.


def unet_class(folder: Path) -> str | None:
    """The class that a folder's `unet/config.json` names; None where there is no `unet/`.

    Raises:
      WeightsError: the file is missing or no JSON object.
    """
    if not (folder / "unet").is_dir():
        return None
    return str(weights.read_config(folder / "unet" / "config.json").get("_class_name"))


def recognises(folder: Path) -> bool:
    """Whether it is a folder in diffusers' layout with a text-to-image UNet of latents."""
    return (folder / "vae").is_dir() and unet_class(folder) == "UNet2DConditionModel"


def open(folder: Path, dtype: Any = jnp.float32) -> Critic:
    """The critic of a Stable Diffusion 1, 2 or XL folder.

    Args:
      folder: in diffusers' layout.
      dtype: of the denoiser's and the text towers' weights and arithmetic; norms, softmax and
        the autoencoder are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    net, net_params = unet.load(folder / "unet", dtype)
    coder, coder_params = vae.load(folder / "vae")
    schedule = schedulers.read(folder / "scheduler", bounded=False)
    towers = read_towers(folder, dtype)
    size = demand_fit(net, coder, towers, folder)
    params = {"unet": net_params, "vae": coder_params}
    double = len(towers) > 1
    return Critic(
        latent_prior(
            text_network(net, size), coder, schedule.alphas_cumprod, schedule.prediction, size
        ),
        params,
        text_encoder(towers, double and _zero_null(folder)),
        f"Stable Diffusion{' XL' if double else ''}, {size} px, "
        f"{schedule.prediction}-prediction, from {folder}",
        digest(params, towers, schedule, net, coder),
        schedule.sampler,
    )


def read_towers(folder: Path, dtype: Any) -> list[TextTower]:
    """The text towers of a folder in diffusers' layout, each with its tokenizer."""
    towers = []
    for suffix in ("", "_2"):
        if (folder / f"text_encoder{suffix}").is_dir() or not suffix:
            model, params = clip_text.load(folder / f"text_encoder{suffix}", dtype)
            length, words = model.config.max_position_embeddings, model.config.vocab_size
            reader = tokenizer.load(folder / f"tokenizer{suffix}", length, words=words)
            towers.append(TextTower(model, params, reader))
    return towers


def demand_fit(
    net: UNet2DConditionModel, coder: AutoencoderKL, towers: Sequence[TextTower], source: Path
) -> int:
    """The side of the critic's images, pixels.

    Raises:
      WeightsError: the denoiser was made for another task, or for other parts than lie beside it.
    """
    channels = coder.latent_channels
    if (net.in_channels, net.out_channels) != (channels, channels):
        raise weights.WeightsError(
            f"{source}: the UNet takes {net.in_channels} channels and gives {net.out_channels}, "
            f"latents have {channels}: inpainting, depth, editing and upscaling models, which are "
            "told a picture beside the text, are not supported"
        )
    if (coder.in_channels, coder.out_channels) != (3, 3):
        raise weights.WeightsError(f"{source}: the autoencoder's pictures are not RGB")
    width = net.encoder_hid_dim or net.cross_attention_dim
    width = width[0] if isinstance(width, tuple) else width
    given = sum(tower.model.config.hidden_size for tower in towers)
    if given != width:
        raise weights.WeightsError(
            f"{source}: the UNet reads text embeddings of width {width}, its text encoders make "
            f"{given}: the folder mixes parts of different models"
        )
    pooled = net.addition_embed_type == "text_time"
    if pooled != (len(towers) == 2) or (pooled and not towers[1].model.config.with_projection):
        raise weights.WeightsError(
            f"{source}: {len(towers)} text encoders beside a UNet of addition_embed_type "
            f"{net.addition_embed_type}; SDXL has two, the second with a projection, others one"
        )
    return net.sample_size * 2 ** (len(coder.block_out_channels) - 1)


def digest(
    params: Params,
    towers: Sequence[TextTower],
    schedule: schedulers.Schedule,
    *networks: UNet2DConditionModel | AutoencoderKL,
) -> str:
    """Of all that a critic judges by: weights and their types, schedule, networks' settings."""
    settings = [
        {f.name: getattr(net, f.name) for f in dataclasses.fields(net) if f.name not in _OTHERWISE}
        for net in networks
    ]
    settings += [vars(tower.model.config) | {"dtype": None} for tower in towers]
    tree = [params, [tower.params for tower in towers], schedule.alphas_cumprod]
    return weights.digest(tree, [schedule.prediction, settings])


_OTHERWISE = ("parent", "name", "dtype", "remat")
"""Fields of networks that decide nothing, or are seen in the weights."""


def _zero_null(folder: Path) -> bool:
    """SDXL's null text is zeros, unless its `model_index.json` says otherwise."""
    index = folder / "model_index.json"
    config = weights.read_config(index) if index.is_file() else {}
    return config.get("force_zeros_for_empty_prompt", True) is not False
