"""Critics of several views at once that are told a picture beside the text.

ImageDream (https://arxiv.org/abs/2312.02201): MVDream whose cross-attention has layers of their own
for a picture's tokens (section 3.2, local), and whose views attend to the picture as to one view
more, which has no camera and no noise (pixel). Letters: b views, in groups of 4; l tokens of text
and picture, d their width.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import image, weights
from jax3d.nn import clip_image, resampler, unet, vae
from jax3d.nn.clip_image import CLIPVisionModel
from jax3d.nn.resampler import Resampler
from jax3d.nn.unet import UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors import ldm, mvdream, stable_diffusion, zero123
from jax3d.priors.base import Critic
from jax3d.priors.mvdream import VIEWS, camera_vectors
from jax3d.priors.stable_diffusion import Network
from jax3d.types import Cond, Condition, Params, Prompt
from jax3d.weights import Flat, WeightsError, to_flax


def picture_network(unet: UNet2DConditionModel, pixel: bool) -> Network:
    """A UNet with joint attention over 4 views, or with `pixel` over these and the picture.

    Of a `Cond` it reads the tokens, of which the last are the picture's, and in the pixel mode its
    latents (`image`).
    """
    if not pixel:
        return mvdream.view_network(unet.clone(views=VIEWS))
    net = unet.clone(views=VIEWS + 1)

    def network(params, z_t, t, told: Cond, camera):
        if camera is None:
            raise ValueError("this critic has to be told the camera: leave use_camera on")

        def grouped(x):
            return x.reshape(-1, VIEWS, *x.shape[1:])

        def with_one_more(x, one):
            x = jnp.concatenate([grouped(x), one[:, None]], axis=1)
            return x.reshape(-1, *x.shape[2:])

        poses, times = camera_vectors(camera.c2w), jnp.broadcast_to(t, (len(z_t),))
        first = lambda x: grouped(x)[:, 0]  # noqa: E731
        z = with_one_more(z_t, first(told.image).astype(z_t.dtype))
        tokens = with_one_more(told.tokens, first(told.tokens))
        poses = with_one_more(poses, jnp.zeros_like(first(poses)))
        out = net.apply({"params": params}, z, with_one_more(times, first(times)), tokens, poses)
        return out.reshape(-1, VIEWS + 1, *out.shape[1:])[:, :VIEWS].reshape(z_t.shape)

    return network


class Eye(NamedTuple):
    """The networks that look at the picture."""

    tower: CLIPVisionModel
    tower_params: Params
    reader: Resampler
    reader_params: Params
    coder: AutoencoderKL
    coder_params: Params
    size: int
    """Side of the pictures whose latents are taken, pixels."""


def tokens_of(eye: Eye, states: Float[Array, "b m e"]) -> Float[Array, "b n d"]:
    """The picture's tokens of a tower's hidden states before its last layer."""
    return eye.reader.apply({"params": eye.reader_params}, states).astype(jnp.float32)


def _look(eye: Eye, pixels: Float[Array, "S S 3"], coded: Float[Array, "s s 3"]):
    """Tokens of a picture and of none, and the latents of the picture."""
    seen = eye.tower.apply({"params": eye.tower_params}, clip_image.normalise(pixels)[None])
    states = seen.hidden_states[-2]
    both = tokens_of(eye, jnp.concatenate([states, jnp.zeros_like(states)]))
    moments = eye.coder.apply({"params": eye.coder_params}, 2 * coded[None] - 1, method="encode")
    return both[0], both[1], eye.coder.scale(moments.mean)[0]


def picture_reader(eye: Eye, read_text):
    """`condition(Prompt) -> Condition` of a text and a picture, on white."""
    look = jax.jit(partial(_look, eye))

    def condition(prompt: Prompt) -> Condition:
        if prompt.image is None:
            raise ValueError("this critic judges by a picture beside the text: give it one")
        given, square = zero123.cut_out(prompt.image, eye.size)
        small = clip_image.picture(square, eye.tower.config.image_size)
        seen, unseen, latents = look(small, image.resize(square, (eye.size, eye.size)))
        read = read_text(prompt)

        def beside(cond: Cond, tokens, latents) -> Cond:
            lead = cond.tokens.shape[:-2]
            tokens = jnp.broadcast_to(tokens, (*lead, *tokens.shape))
            return cond.replace(
                tokens=jnp.concatenate([cond.tokens, tokens], axis=-2),
                image=jnp.broadcast_to(latents, (*lead, *latents.shape)),
            )

        source = zero123.source(prompt.elevation)
        plain = beside(read.plain, seen, latents).replace(source=source)
        null = beside(read.null, unseen, jnp.zeros_like(latents)).replace(source=source)
        return Condition(plain=plain, null=null, given=jnp.asarray(given))

    return condition


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder in diffusers' layout with ImageDream's UNet."""
    if not path.is_dir() or stable_diffusion.unet_class(path) != "MultiViewUNetModel":
        return False
    return bool(weights.read_config(path / "unet" / "config.json").get("ip_dim"))


def open(path: Path, dtype: Any = jnp.float32) -> Critic:
    """ImageDream from a folder as ashawkey converted it.

    Nothing in a folder tells its two modes apart: it is of the pixel mode, which is the released
    one, save where its path has "local".

    Args:
      path: the folder: unet/, vae/, text_encoder/, tokenizer/, image_encoder/.
      dtype: of the denoiser's and the towers' weights and arithmetic; norms, softmax and the
        autoencoder are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    pixel = re.search("local", f"{path} {path.resolve()}", re.IGNORECASE) is None
    file = weights.find_weights(path / "unet", "diffusion_pytorch_model")
    net, net_params, reader, reader_params = networks(
        weights.load(file), weights.read_config(path / "unet" / "config.json"), file, dtype
    )
    coder, coder_params = vae.load(path / "vae")
    towers = stable_diffusion.read_towers(path, dtype)
    tower, tower_params = clip_image.load(path / "image_encoder", dtype)
    size = stable_diffusion.demand_fit(net, coder, towers, path)
    width = reader_params["proj_in"]["kernel"].shape[0]
    if tower.config.hidden_size != width:
        raise WeightsError(
            f"{path}: the UNet reads states of width {width}, the image encoder's are "
            f"{tower.config.hidden_size} wide"
        )
    eye = Eye(tower, tower_params, reader, reader_params, coder, coder_params, size)
    prior, schedule = mvdream.view_prior(picture_network(net, pixel), coder, size)
    params = {"unet": net_params, "vae": coder_params}
    mode = "pixel" if pixel else "local"
    seen_by = {**params, "tower": tower_params, "reader": reader_params}
    return Critic(
        prior,
        params,
        picture_reader(eye, stable_diffusion.text_encoder(towers)),
        f"ImageDream, {mode} mode, {VIEWS} views of {size} px, from {path}",
        f"{mode} {stable_diffusion.digest(seen_by, towers, schedule, net, coder)}",
    )


def networks(
    tensors: Flat, config: dict[str, Any], source: str | Path, dtype: Any = jnp.float32
) -> tuple[UNet2DConditionModel, Params, Resampler, Params]:
    """The denoiser and the reader of the picture, which share a file.

    Raises:
      WeightsError: tensors are missing, left over or do not fit the config.
    """
    net, reader, like, named = fitting(tensors, config, source, dtype)
    params = to_flax(named, like, source)
    reader_params = params.pop(_READER)
    return net, params, reader, reader_params


_READER = "image_embed"


def fitting(
    tensors: Flat, config: dict[str, Any], source: str | Path, dtype: Any = jnp.float32
) -> tuple[UNet2DConditionModel, Resampler, Params, Flat]:
    """Both networks, the shapes of their weights under one roof, and the tensors by our names.

    Raises:
      WeightsError: the tensors have no reader of a picture, or the config's sizes clash.
    """
    sizes, width = resampler.infer_config(ldm.part(tensors, f"{_READER}."))
    reader = Resampler(sizes, dtype)
    try:
        net = unet.from_config(ldm.unet_config(config))
        net = net.clone(image_tokens=sizes.queries, dtype=dtype)
        like = unet.abstract_params(net)
    except Exception as error:  # sizes that clash, of a dozen classes
        raise WeightsError(f"{source}: {weights.first_line(error)}") from error
    like = {**like, _READER: resampler.abstract_params(reader, width)}
    return net, reader, like, ldm.unet_names(tensors, net.layers_per_block)
