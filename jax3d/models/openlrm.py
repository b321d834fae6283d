"""OpenLRM (https://github.com/3DTopia/OpenLRM after https://arxiv.org/abs/2311.04400).

One picture to a triplane, which stands as the camera saw it: a picture from above tilts the asset.
In its world the camera stands at -y with +z up; ours sees the front from +x, a quarter turn on: our
(x, y, z) are its (-y, x, z).
"""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import resample, weights
from jax3d.image import squared
from jax3d.models import lrm
from jax3d.models.base import Model
from jax3d.models.lrm import Design
from jax3d.nn import dino
from jax3d.nn.dino import DinoConfig
from jax3d.nn.lrm import MOST_LAYERS, OpenLRM, OpenLRMConfig
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError

CAMERA = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, 0.0, 1.0, 0.0, 0.0, 0.75, 0.75, 0.5, 0.5)
"""Of the picture: the upper rows of its pose in OpenLRM's world, focal lengths, principal point."""
BACKGROUND, SHARE = 1.0, 0.8
"""Grey behind the object, and how much of the picture the object spans."""
HIDDEN, LAYERS = 64, 3
"""Of the decoder."""
SIDES = {512: 224, 768: 336, 1024: 448}
"""Sides of the pictures of small, base and large, pixels, by the transformer's width: the config
does not tell them."""
MOST = 512
"""Pixels to which larger pictures are first averaged, as OpenLRM's tool does."""


def design(
    config: dict[str, Any], dtype: Any = jnp.float32, encoder: DinoConfig | None = None
) -> Design:
    """The model that a `config.json` describes.

    Args:
      config: parsed.
      dtype: of the network's weights and arithmetic.
      encoder: of the image, where it is another than the config names.

    Raises:
      ValueError: the config lacks something, or asks for what is not supported.
    """
    kinds = {f.name: int for f in dataclasses.fields(OpenLRMConfig)}
    c = weights.checked(
        config,
        {**kinds, "rendering_samples_per_ray": int, "encoder_type": str, "encoder_model_name": str},
    )
    if lost := sorted({*kinds, "rendering_samples_per_ray", "encoder_type"} - set(c)):
        raise WeightsError(f"lacks {', '.join(lost)}")
    if c["transformer_layers"] > MOST_LAYERS:
        raise WeightsError(f"transformer_layers = {c['transformer_layers']} cannot be meant")
    encoder = encoder or _encoder(c["encoder_type"], c.get("encoder_model_name", ""))
    network = OpenLRM(
        OpenLRMConfig(**{name: c[name] for name in kinds}),
        encoder,
        normalised=c["encoder_type"] == "dino",
        dtype=dtype,
    )
    texels, samples = 2 * c["triplane_low_res"], c["rendering_samples_per_ray"]
    field = lrm.field(texels, c["triplane_dim"], HIDDEN, LAYERS, radius=1.0, samples=samples)
    # Half of its samples are placed by the other half.
    field = dataclasses.replace(field, coarse=samples // 2, density_bias=-1.0, rgb_padding=0.001)
    side = SIDES.get(c["transformer_dim"], encoder.grid * encoder.patch_size)
    read = lrm.demand_picture, partial(picture, side=side), partial(planes, network)
    return lrm.checked(Design(network, field, side, *read))


def _encoder(kind: str, name: str) -> DinoConfig:
    if kind == "dino" and name == "facebook/dino-vitb16":
        return dino.VIT_B16
    if kind == "dinov2" and (match := re.fullmatch(r"dinov2_vit([sbl])14(_reg)?", name)):
        return dino.vit(match[1], 4 if match[2] else 0)
    raise WeightsError(
        f"encoder_type = {weights.shown(kind)}, encoder_model_name = {weights.shown(name)} is not "
        "supported, only dino with facebook/dino-vitb16 and dinov2 with dinov2_vits14, b14, l14, "
        "each with or without _reg"
    )


def planes(
    network: OpenLRM, params: Params, image: Float[Array, "s s 3"]
) -> Float[Array, "3 r r c"]:
    """Planes of one picture, in our frame."""
    return turned(network.apply({"params": params}, image[None], jnp.array([CAMERA]))[0])


def turned(planes: Float[Array, "3 r r c"]) -> Float[Array, "3 r r c"]:
    """OpenLRM's planes in our frame: its own are [y, x], [z, x] and [y, z], rows first."""
    yx, zx, yz = planes
    return jnp.stack([yx[::-1], yz[::-1], zx.swapaxes(0, 1)])


def picture(image: Float[np.ndarray, "H W c"], side: int) -> Float[np.ndarray, "s s 3"]:
    """A picture as the network learnt them: the object on white, centred."""
    square = squared(image, SHARE, BACKGROUND)
    if len(square) > MOST:
        matrix = resample.antialiased(len(square), MOST, "linear")
        square = resample.grid(matrix, matrix, square)
    # Corner to corner.
    matrix = resample.bicubic(len(square), np.linspace(0.0, len(square) - 1.0, side))
    return np.clip(resample.grid(matrix, matrix, square), 0.0, 1.0)


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder with OpenLRM's `config.json`."""
    config = path / "config.json"
    return config.is_file() and {"triplane_low_res", "encoder_feat_dim"} <= set(
        weights.read_config(config)
    )


def open(path: Path, dtype: Any = jnp.float32) -> Model:
    """The model of a folder with `config.json` and `model.safetensors`, as the hub has it.

    Args:
      path: the folder.
      dtype: of the network's weights and arithmetic; norms, softmax, positions, planes and the
        assets are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    built, params = load(path, dtype)
    return lrm.model(built, params, f"OpenLRM, {built.side} px, from {path}")


def load(
    folder: Path, dtype: Any = jnp.float32, encoder: DinoConfig | None = None
) -> tuple[Design, Params]:
    """A folder's model and its weights; arguments and errors are those of `open` and `design`."""
    built, like = weights.described(
        folder / "config.json",
        partial(design, dtype=dtype, encoder=encoder),
        lrm.abstract_params,
    )
    file = weights.find_weights(folder, "model")
    return built, lrm.fill(names(weights.load(file)), like, file)


_ENCODER = "encoder.model."
_RULES = (
    (r"^camera_embedder\.mlp\.", "camera_embedder."),
    (r"^transformer\.", ""),
    (r"^synthesizer\.decoder\.net\.(\d{0,3}[02468])\.", lrm.every_other),
)


def names(tensors: Flat) -> Flat:
    """A checkpoint's tensors under our names; the decoder's first layer reads our planes."""
    v1 = any(name.startswith(f"{_ENCODER}embeddings.") for name in tensors)
    rename = dino.from_transformers if v1 else dino.from_dinov2
    own = {k: v for k, v in tensors.items() if not k.startswith(_ENCODER)}
    own = {dino.renamed(k, _RULES): v for k, v in lrm.attention_names(own).items()}
    if (first := "decoder.0.weight") in own:
        own[first] = _turned(first, own[first])
    return own | lrm.encoder_names(tensors, _ENCODER, rename)


def _turned(name: str, weight: np.ndarray) -> np.ndarray:
    """The first layer's weights on features of our planes: the last two have changed places."""
    if weight.ndim != 2 or weight.shape[1] % 3:
        raise WeightsError(f"{name} of shape {weight.shape} does not read three planes")
    parts = np.split(weight, 3, axis=1)
    return np.concatenate([parts[0], parts[2], parts[1]], axis=1)
