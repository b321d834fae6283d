"""Critics of one given picture: the object in it, seen from another camera.

Zero-1-to-3 (https://arxiv.org/abs/2303.11328), as Zero123-XL and Stable-Zero123: Stable Diffusion 1
whose text gives way to one token, made of CLIP's embedding of the picture and of the camera's
movement, and whose noisy latents are joined by those of the picture. Letters: v views, b images,
s side of a picture in pixels, d width of the token.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import image, weights
from jax3d.nn import clip_image, unet, vae
from jax3d.nn.clip_image import CLIPVisionModel
from jax3d.nn.layers import dense
from jax3d.nn.unet import UNet2DConditionModel
from jax3d.nn.vae import AutoencoderKL
from jax3d.priors import schedulers, stable_diffusion
from jax3d.priors.base import Critic
from jax3d.priors.stable_diffusion import Network
from jax3d.types import Camera, Cond, Condition, Params, Prompt
from jax3d.weights import WeightsError, find_weights, to_flax

POSE = 4
"""Numbers that tell a camera's movement."""
FOVY = math.radians(49.1)
"""Field of view of the pictures that the networks learnt from, radians."""
RADIUS = 0.95 / math.sin(FOVY / 2)
"""Distance of the picture's camera, metres: its border touches a ball of 0.95 m."""


def relative_pose(camera: Camera, reference: Camera) -> Float[Array, "*v 4"]:
    """What the network is told of a camera (section 3.2).

    Args:
      camera: the views asked for.
      reference: the view of the picture, broadcast against them.

    Returns:
      The difference of polar angles (reference's elevation minus the view's, radians), sine and
      cosine of the difference of azimuths, and the difference of distances.
    """
    turn = camera.azimuth - reference.azimuth
    lift = reference.elevation - camera.elevation
    away = camera.radius - reference.radius
    return jnp.stack([lift, jnp.sin(turn), jnp.cos(turn), away], axis=-1)


def absolute_pose(camera: Camera, reference: Camera) -> Float[Array, "*v 4"]:
    """The same for Stable-Zero123, whose last number is the polar angle of the picture's view."""
    pose = relative_pose(camera, reference)
    return pose.at[..., 3].set(math.pi / 2 - reference.elevation)


class CameraProjection(nn.Module):
    """The token of a picture and a movement: a linear map of both."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, seen: Float[Array, "b d"], pose: Float[Array, "b 4"]) -> Float[Array, "b d"]:
        """Joins the embedding of the picture and the movement."""
        return dense(self.width, self.dtype, True, "proj")(jnp.concatenate([seen, pose], -1))


def picture_network(unet: UNet2DConditionModel, stable: bool) -> Network:
    """A UNet that is told a picture: its weights are `{"unet": ..., "projection": ...}`.

    Of a `Cond` it reads the picture's embedding (`tokens`, one), latents (`image`) and camera
    (`source`). Without a picture, where the embedding is zero, the token is zero too.
    """
    projection = CameraProjection(unet.cross_attention_dim, unet.dtype)
    movement = absolute_pose if stable else relative_pose

    def network(params, z_t, t, told: Cond, camera: Camera | None):
        if camera is None:
            raise ValueError("this critic has to be told the camera: leave use_camera on")
        seen = told.tokens[:, 0]
        pose = movement(camera, told.source)
        token = projection.apply({"params": params["projection"]}, seen, pose)
        token = jnp.where(jnp.any(seen != 0, axis=-1, keepdims=True), token, 0)
        z = jnp.concatenate([z_t, told.image.astype(z_t.dtype)], axis=-1)
        return unet.apply({"params": params["unet"]}, z, t, token[:, None])

    return network


class Eye(NamedTuple):
    """The networks that look at the picture."""

    tower: CLIPVisionModel
    tower_params: Params
    coder: AutoencoderKL
    coder_params: Params
    size: int
    """Side of the pictures whose latents are taken, pixels."""


def embedded(
    eye: Eye, pixels: Float[Array, "b s s 3"], coded: Float[Array, "b S S 3"]
) -> tuple[Float[Array, "b 1 d"], Float[Array, "b h w 4"]]:
    """The embeddings of pictures as CLIP takes them, and latents of the same pictures.

    Both in [0, 1]. The latents are the posterior's mode and, unlike the noisy ones, not scaled.
    """
    seen = eye.tower.apply({"params": eye.tower_params}, clip_image.normalise(pixels))
    moments = eye.coder.apply({"params": eye.coder_params}, 2 * coded - 1, method="encode")
    return seen.image_embeds[:, None].astype(jnp.float32), moments.mean


def source(elevation: float) -> Camera:
    """The picture's camera, which looks at the front from an elevation in degrees."""
    return cameras.orbit(0.0, math.radians(elevation), RADIUS, FOVY)


def picture_reader(eye: Eye):
    """`condition(Prompt) -> Condition`: the picture on white, and nothing in its place."""
    look = jax.jit(partial(embedded, eye))

    def condition(prompt: Prompt) -> Condition:
        if prompt.image is None:
            raise ValueError("this critic judges by a picture: give it one (--image)")
        given, square = cut_out(prompt.image, eye.size)
        small = clip_image.picture(square, eye.tower.config.image_size)
        tokens, latents = look(small[None], image.resize(square, (eye.size, eye.size))[None])
        plain = Cond(tokens[0], image=latents[0], source=source(prompt.elevation))
        null = plain.replace(tokens=jnp.zeros_like(plain.tokens), image=jnp.zeros_like(plain.image))
        return Condition(plain=plain, null=null, given=jnp.asarray(given))

    return condition


SHARE = 0.85
"""Of the picture that a cut-out object spans."""


def cut_out(picture: Any, side: int) -> tuple[Float[np.ndarray, "s s 4"], np.ndarray]:
    """A person's picture as the camera of `source` sees it, and on a white square of its own size.

    Transparency is believed; without, the object is cut out of a plain ground. Raises `ValueError`
    where the ground is not plain or nothing stands on it.
    """
    rgba = image.cut_out(np.asarray(picture, np.float32))
    return image.framed(rgba, SHARE, side), image.squared(rgba, SHARE, 1.0)


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder in diffusers' layout with Zero-1-to-3's projection of the camera."""
    return (path / "clip_camera_projection").is_dir()


def open(path: Path, dtype: Any = jnp.float32) -> Critic:
    """Zero123-XL or Stable-Zero123 from a folder as ashawkey converted them.

    Nothing in a folder tells the two apart but its path: that of the latter has "stable-zero123".

    Args:
      path: the folder: unet/, vae/, image_encoder/, clip_camera_projection/, scheduler/.
      dtype: of the denoiser's and the tower's weights and arithmetic; norms, softmax and the
        autoencoder are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    stable = re.search("stable[-_]?zero123", f"{path} {path.resolve()}", re.IGNORECASE) is not None
    net, net_params = unet.load(path / "unet", dtype)
    coder, coder_params = vae.load(path / "vae")
    tower, tower_params = clip_image.load(path / "image_encoder", dtype)
    schedule = schedulers.read(path / "scheduler", bounded=False)
    _demand_fit(net, coder, tower, path)
    size = net.sample_size * 2 ** (len(coder.block_out_channels) - 1)
    eye = Eye(tower, tower_params, coder, coder_params, size)
    told = {"unet": net_params, "projection": _projection(path, net, dtype)}
    params = {"unet": told, "vae": coder_params}
    prior = stable_diffusion.latent_prior(
        picture_network(net, stable),
        coder,
        schedule.alphas_cumprod,
        schedule.prediction,
        size,
        reads_camera=True,
    )
    name = "Stable-Zero123" if stable else "Zero123"
    digest = stable_diffusion.digest({**params, "tower": tower_params}, [], schedule, net, coder)
    condition = picture_reader(eye)
    told_by = f"{name}, {size} px, from {path}"
    return Critic(prior, params, condition, told_by, f"{name} {digest}", schedule.sampler)


def _projection(path: Path, net: UNet2DConditionModel, dtype: Any) -> Params:
    folder = path / "clip_camera_projection"
    width = net.cross_attention_dim
    like = jax.eval_shape(
        CameraProjection(width, dtype).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, width), jnp.float32),
        jax.ShapeDtypeStruct((1, POSE), jnp.float32),
    )["params"]
    file = find_weights(folder, "diffusion_pytorch_model")
    return to_flax(weights.load(file), like, file)


def _demand_fit(
    net: UNet2DConditionModel, coder: AutoencoderKL, tower: CLIPVisionModel, path: Path
) -> None:
    """Raises `WeightsError` where the parts of a folder were not made for each other."""
    channels = coder.latent_channels
    if (net.in_channels, net.out_channels) != (2 * channels, channels):
        raise WeightsError(
            f"{path}: the UNet takes {net.in_channels} channels and gives {net.out_channels}; "
            f"noisy latents beside a picture's are {2 * channels}, {channels} come out"
        )
    c = tower.config
    if not c.with_projection or c.projection_dim != net.cross_attention_dim:
        raise WeightsError(
            f"{path}: the UNet reads tokens of width {net.cross_attention_dim}, its image encoder "
            f"makes {c.projection_dim if c.with_projection else 'none'}"
        )
