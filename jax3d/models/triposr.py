"""TripoSR (https://arxiv.org/abs/2403.02151): one picture to a triplane, whatever its camera.

Its world is ours: +z up, and the picture is taken from azimuth 0, at +x. Its density is not by the
metre: a ray's way through the cube counts as 1, whatever its length. Ours agrees with it on the
rays that cross the cube along an axis.
"""

import dataclasses
import math
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
from jax3d.nn.lrm import MOST_LAYERS, TripoSR, TripoSRConfig
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError

BACKGROUND, SHARE = 0.5, 0.85
"""Grey behind the object, and how much of the picture the object spans."""

_KINDS = {
    "cond_image_size": int,
    "image_tokenizer.pretrained_model_name_or_path": str,
    "tokenizer.plane_size": int,
    "tokenizer.num_channels": int,
    "backbone.num_attention_heads": int,
    "backbone.attention_head_dim": int,
    "backbone.num_layers": int,
    "post_processor.out_channels": int,
    "decoder.n_neurons": int,
    "decoder.n_hidden_layers": int,
    "decoder.activation": str,
    "renderer.radius": float,
    "renderer.feature_reduction": str,
    "renderer.density_activation": str,
    "renderer.density_bias": float,
    "renderer.num_samples_per_ray": int,
}
_WORDS = {
    "image_tokenizer.pretrained_model_name_or_path": ("facebook/dino-vitb16",),
    "decoder.activation": ("silu", "relu"),
    "renderer.feature_reduction": ("concat",),
    "renderer.density_activation": ("exp",),
}
"""What is supported, where a config could say another word."""


def design(
    config: dict[str, Any], dtype: Any = jnp.float32, encoder: DinoConfig = dino.VIT_B16
) -> Design:
    """The model that a `config.yaml` describes.

    Args:
      config: parsed.
      dtype: of the network's weights and arithmetic.
      encoder: of the image; the config only names it.

    Raises:
      ValueError: the config lacks something, or asks for what is not supported.
    """
    c = _checked(config)
    network = TripoSR(
        TripoSRConfig(
            plane_size=c["tokenizer.plane_size"],
            channels=c["tokenizer.num_channels"],
            num_attention_heads=c["backbone.num_attention_heads"],
            attention_head_dim=c["backbone.attention_head_dim"],
            num_layers=c["backbone.num_layers"],
            out_channels=c["post_processor.out_channels"],
        ),
        encoder,
        dtype,
    )
    field = lrm.field(
        texels=2 * c["tokenizer.plane_size"],
        channels=c["post_processor.out_channels"],
        hidden=c["decoder.n_neurons"],
        layers=c["decoder.n_hidden_layers"],
        radius=c["renderer.radius"],
        samples=c["renderer.num_samples_per_ray"],
    )
    field = dataclasses.replace(
        field,
        activation=c["decoder.activation"],
        density_activation=c["renderer.density_activation"],
        density_bias=c["renderer.density_bias"] - math.log(2 * c["renderer.radius"]),
    )
    side = c["cond_image_size"]
    read = lrm.demand_picture, partial(picture, side=side), partial(planes, network)
    return lrm.checked(Design(network, field, side, *read))


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config that are read, by dotted names."""
    sections = {k: v for k, v in config.items() if isinstance(v, dict)}
    flat = config | {f"{k}.{name}": v for k, part in sections.items() for name, v in part.items()}
    found = weights.checked(flat, _KINDS)
    if lost := sorted(set(_KINDS) - set(found)):
        raise WeightsError(f"lacks {', '.join(lost)}")
    for name, words in _WORDS.items():
        if found[name] not in words:
            raise WeightsError(
                f"{name} = {weights.shown(found[name])} is not supported, only {', '.join(words)}"
            )
    layers = max(found["backbone.num_layers"], found["decoder.n_hidden_layers"])
    if layers > MOST_LAYERS or not found["renderer.radius"] > 0:
        raise WeightsError(
            f"{layers} layers around a cube of half side {found['renderer.radius']:g} cannot be "
            "meant"
        )
    return found


def planes(
    network: TripoSR, params: Params, image: Float[Array, "s s 3"]
) -> Float[Array, "3 r r c"]:
    """Planes of one picture; the network's have the first axis of the world along columns."""
    return network.apply({"params": params}, image[None])[0].swapaxes(1, 2)


def picture(image: Float[np.ndarray, "H W c"], side: int) -> Float[np.ndarray, "s s 3"]:
    """A picture as the network learnt them: the object on grey, centred."""
    square = squared(image, SHARE, BACKGROUND)
    matrix = resample.antialiased(len(square), side, "linear")
    return resample.grid(matrix, matrix, square)


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder with TripoSR's `config.yaml`."""
    config = path / "config.yaml"
    if not config.is_file():
        return False
    with config.open("rb") as file:
        return b"tsr.models" in file.read(1 << 16)


def open(path: Path, dtype: Any = jnp.float32) -> Model:
    """The model of a folder with `config.yaml` and `model.ckpt` or `model.safetensors`.

    Args:
      path: the folder.
      dtype: of the network's weights and arithmetic; norms, softmax, positions, planes and the
        assets are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    built, params = load(path, dtype)
    return lrm.model(built, params, f"TripoSR, {built.side} px, from {path}")


def load(
    folder: Path, dtype: Any = jnp.float32, encoder: DinoConfig = dino.VIT_B16
) -> tuple[Design, Params]:
    """A folder's model and its weights; arguments and errors are those of `open` and `design`."""
    built, like = weights.described(
        folder / "config.yaml",
        partial(design, dtype=dtype, encoder=encoder),
        lrm.abstract_params,
    )
    checkpoint = folder / "model.ckpt"
    file = checkpoint if checkpoint.is_file() else weights.find_weights(folder, "model")
    return built, lrm.fill(names(weights.load(file)), like, file)


_ENCODER = "image_tokenizer.model."
_RULES = (
    (r"^tokenizer\.embeddings$", "embeddings"),
    (r"^post_processor\.", ""),
    (r"^decoder\.layers\.(\d{0,3}[02468])\.", lrm.every_other),
)


def names(tensors: Flat) -> Flat:
    """A checkpoint's tensors under our names."""
    own = {k: v for k, v in tensors.items() if not k.startswith(_ENCODER)}
    flat = {dino.renamed(k, _RULES): v for k, v in own.items()}
    return flat | lrm.encoder_names(tensors, _ENCODER, dino.from_transformers)
