"""Zero123++ (https://arxiv.org/abs/2310.15110): six views of a pictured object, at once.

Stable Diffusion 2 draws one picture of three rows of two views. It is told the object by reference
attention: the picture's latents, noised as much as the sample, go through the same network, and
its self-attention reads those tokens beside its own. CLIP's embedding of the picture is added to
the tokens of an empty text, the more to the later ones. Letters: s side of a view in pixels, l
tokens, d their width, h and w of the picture's latents; the sheet's are 3 h and 2 w.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jax3d import diffusion, image, weights
from jax3d.diffusion import Grid, Prediction
from jax3d.nn import clip_image, clip_text, tokenizer, unet, vae
from jax3d.nn.clip_image import CLIPVisionModel
from jax3d.nn.unet import UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors import schedulers, stable_diffusion
from jax3d.types import Key, Numbers, Params, Prompt
from jax3d.weights import WeightsError

ROWS, COLUMNS = 3, 2
"""Of the sheet; views go row by row."""
AZIMUTH = (30, 90, 150, 210, 270, 330)
"""Of the views, degrees from the picture's."""
ELEVATION = (20, -10, 20, -10, 20, -10)
"""Of the views of version 1.2, degrees above the horizon; 1.1 has 30 and -20."""
FOVY = 30.0
"""Of the views, degrees."""
GREY = 127 / 255
"""Behind the given object."""
SHARE = 0.85
"""Of the picture that a cut-out object spans."""


@struct.dataclass
class Told:
    """What the network is told of one picture, and what it is led away from."""

    tokens: Float[Numbers, "*A l d"]
    null: Float[Numbers, "*A l d"]
    latents: Float[Numbers, "*A h w c"]
    """Of the picture."""
    away: Float[Numbers, "*A h w c"]
    """Of a grey one."""


class SixViews(NamedTuple):
    """The sampler of a folder; functions of one picture, pure but for `condition`."""

    params: Params
    condition: Callable[[Prompt], Told]
    """`condition(Prompt) -> Told`, on the host; raises `ValueError` without a picture"""
    begin: Callable[[Key, Told], Array]
    """`begin(key, Told) -> z`, noise of the sheet"""
    advance: Callable[[Params, Array, Array, Told, Array, Key], Array]
    """`advance(params, z, i, Told, scale, key) -> z`: step i, int32 from 0"""
    steps: int
    decode: Callable[[Params, Array], Array]
    """`decode(params, z) -> [6, s, s, 3]` sRGB in [0, 1]"""
    name: str
    digest: str


def denoise(
    net: UNet2DConditionModel,
    params: Params,
    z: Float[Array, "b H W c"],
    t: Float[Array, ""],
    tokens: Float[Array, "b l d"],
    seen: Float[Array, "b h w c"],
) -> Float[Array, "b H W c"]:
    """The network's output for sheets, each beside a noised picture.

    Args:
      net: the denoiser.
      params: its weights.
      z: noised sheets.
      t: the timestep of both.
      tokens: of the prompts.
      seen: latents of the pictures, noised to the same timestep.
    """
    times = jnp.broadcast_to(t, (len(z),))
    _, kept = net.apply({"params": params}, seen, times, tokens, mutable=["reference"])
    return net.apply({"params": params, **kept}, z, times, tokens)


def advance(
    net: UNet2DConditionModel,
    grid: Grid,
    prediction: Prediction,
    params: Params,
    z: Float[Array, "H W c"],
    i: Array,
    told: Told,
    scale: Array,
    key: Key,
) -> Float[Array, "H W c"]:
    """A step of the ancestral sampler under classifier-free guidance of `scale`."""
    at = jax.tree.map(lambda x: x[i], grid)
    k_seen, k_step = jax.random.split(jax.random.fold_in(key, i))
    pictures = jnp.stack([told.away, told.latents])
    seen = at.alpha * pictures + at.sigma * jax.random.normal(k_seen, pictures.shape)
    tokens = jnp.stack([told.null, told.tokens])
    null, asked = denoise(net, params, jnp.stack([z, z]), at.t, tokens, seen)
    output = diffusion.cfg(null, asked, scale)
    x0, eps = diffusion.x0_and_eps(output, z, at.alpha, at.sigma, prediction)
    return diffusion.ddim_step(x0, eps, at, 1.0, jax.random.normal(k_step, z.shape))


def sample(
    model: "SixViews", params: Params, key: Key, told: Told, scale: Array
) -> Float[Array, "6 s s 3"]:
    """The views of one picture, all steps at once."""

    def step(i, z):
        return model.advance(params, z, i, told, scale, key)

    start = model.begin(jax.random.fold_in(key, model.steps), told)
    return model.decode(params, jax.lax.fori_loop(0, model.steps, step, start))


def unscaled_latents(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """From the latents that the network draws to those of Stable Diffusion."""
    return z / 0.75 + 0.22


def scaled_latents(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Inverse of `unscaled_latents`."""
    return (z - 0.22) * 0.75


def unscaled_image(pixels: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """From the colours that are encoded, about 0, to those in [-1, 1]."""
    return pixels / 0.5 * 0.8


def scaled_image(pixels: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Inverse of `unscaled_image`."""
    return pixels * 0.5 / 0.8


def decode(coder: AutoencoderKL, params: Params, z: Float[Array, "H W c"]) -> Array:
    """The views of a sheet's latents, `[6, s, s, 3]` in [0, 1]."""
    z = coder.unscale(unscaled_latents(z))[None]
    pixels = unscaled_image(coder.apply({"params": params}, z, method="decode")[0])
    height, width, _ = pixels.shape
    cells = pixels.reshape(ROWS, height // ROWS, COLUMNS, width // COLUMNS, 3).swapaxes(1, 2)
    return jnp.clip(0.5 * cells.reshape(-1, *cells.shape[2:]) + 0.5, 0.0, 1.0)


def sheet(views: Float[np.ndarray, "6 s s 3"]) -> Float[np.ndarray, "H W 3"]:
    """The views as one picture."""
    return image.contact_sheet(views, COLUMNS)


class Eye(NamedTuple):
    """The networks that look at the picture, and the tokens of an empty text."""

    tower: CLIPVisionModel
    tower_params: Params
    coder: AutoencoderKL
    coder_params: Params
    nothing: Float[Array, "l d"]
    ramp: Float[Array, " l"]
    """How much of the picture's embedding each token gets."""
    side: int
    """Of a view, pixels."""


def told_of(eye: Eye, pixels: Float[Array, "S S 3"], coded: Float[Array, "s s 3"]) -> Told:
    """What the network is told of a picture in [0, 1], at CLIP's size and at a view's."""
    seen = eye.tower.apply({"params": eye.tower_params}, clip_image.normalise(pixels)[None])
    tokens = eye.nothing + eye.ramp[:, None] * seen.image_embeds.astype(jnp.float32)
    both = jnp.stack([scaled_image(2 * coded - 1), jnp.zeros_like(coded)])
    moments = eye.coder.apply({"params": eye.coder_params}, both, method="encode")
    return Told(tokens, eye.nothing, *moments.mean)


def _reader(eye: Eye):
    look = jax.jit(partial(told_of, eye))

    def condition(prompt: Prompt) -> Told:
        if prompt.image is None:
            raise ValueError("Zero123++ draws views of a picture: give it one")
        rgba = image.cut_out(np.asarray(prompt.image, np.float32))
        square = image.squared(rgba, SHARE, GREY)
        small = clip_image.picture(square, eye.tower.config.image_size)
        return look(small, image.resize(square, (eye.side, eye.side)))

    return condition


# Folders.

STEPS, SIDE = 75, 320
"""Of the sampler, and of a view, pixels, in its makers' scripts."""


def recognises(path: Path) -> bool:
    """Whether it is a folder in diffusers' layout whose `model_index.json` is of Zero123++."""
    index = path / "model_index.json"
    return index.is_file() and "ramping_coefficients" in weights.read_config(index)


def open(path: Path, dtype: Any = jnp.float32, steps: int = STEPS, side: int = SIDE) -> SixViews:
    """The sampler of a Zero123++ folder, with trailing timesteps as its makers' scripts have it.

    Args:
      path: the folder: unet/, vae/, vision_encoder/, text_encoder/, tokenizer/, scheduler/,
        model_index.json. InstantMesh's own denoiser takes the place of the file in unet/.
      dtype: of the denoiser's and the towers' weights and arithmetic; norms, softmax and the
        autoencoder are float32 always.
      steps: of the sampler.
      side: of a view, pixels.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    net, net_params = unet.load(path / "unet", dtype)
    coder, coder_params = vae.load(path / "vae")
    tower, tower_params = clip_image.load(path / "vision_encoder", dtype)
    nothing = _empty_text(path, dtype)
    eye = Eye(tower, tower_params, coder, coder_params, nothing, _ramp(path, len(nothing)), side)
    _demand_fit(net, eye, path)
    schedule = schedulers.read(path / "scheduler", bounded=False)
    config = weights.read_config(path / "scheduler" / "scheduler_config.json")
    sampler = schedulers.sampler({**config, "timestep_spacing": "trailing"}, steps)
    cells = side // 2 ** (len(coder.block_out_channels) - 1)
    shape = (ROWS * cells, COLUMNS * cells, coder.latent_channels)

    def take(params, z, i, told, scale, key):
        own = params["unet"]
        return advance(net, sampler.grid, schedule.prediction, own, z, i, told, scale, key)

    params = {"unet": net_params, "vae": coder_params}
    seen_by = {**params, "tower": tower_params, "nothing": nothing, "ramp": eye.ramp}
    return SixViews(
        params,
        _reader(eye),
        lambda key, told: sampler.start * jax.random.normal(key, shape),
        take,
        steps,
        lambda params, z: decode(coder, params["vae"], z),
        f"Zero123++, {ROWS * COLUMNS} views of {side} px, from {path}",
        stable_diffusion.digest(seen_by, [], schedule, net, coder),
    )


def _empty_text(path: Path, dtype: Any) -> Float[Array, "l d"]:
    model, params = clip_text.load(path / "text_encoder", dtype)
    length, words = model.config.max_position_embeddings, model.config.vocab_size
    reader = tokenizer.load(path / "tokenizer", length, words=words)
    out = jax.jit(model.apply)({"params": params}, jnp.asarray(reader.ids([""])))
    return out.last_hidden_state[0].astype(jnp.float32)


def _ramp(path: Path, length: int) -> Float[Array, " l"]:
    config = weights.read_config(path / "model_index.json")
    ramp = weights.checked(config, {"ramping_coefficients": tuple[float, ...]})[
        "ramping_coefficients"
    ]
    if len(ramp) != length:
        raise WeightsError(
            f"{path / 'model_index.json'}: {len(ramp)} ramping_coefficients for {length} tokens"
        )
    return jnp.asarray(ramp, jnp.float32)


def _demand_fit(net: UNet2DConditionModel, eye: Eye, path: Path) -> None:
    """Raises `WeightsError` where the parts of a folder were not made for each other."""
    channels = eye.coder.latent_channels
    if {net.in_channels, net.out_channels} != {channels}:
        raise WeightsError(
            f"{path}: the UNet takes {net.in_channels} channels and gives {net.out_channels}, "
            f"latents have {channels}"
        )
    tower, width = eye.tower.config, eye.nothing.shape[1]
    made = tower.projection_dim if tower.with_projection else None
    if not made == width == net.cross_attention_dim:
        raise WeightsError(
            f"{path}: the UNet reads tokens of width {net.cross_attention_dim}, its text encoder "
            f"makes {width} and its vision encoder {made}"
        )
