"""CLIP's encoders of pictures (ViT), under transformers' parameter names.

Letters: b pictures, s side of a picture in pixels, l tokens, c width of the tower, p width of the
shared image-text space.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import resample, weights
from jax3d.bounds import Count, Positive
from jax3d.nn.clip_text import MOST_LAYERS, Layers, Stack, has_projection, rename
from jax3d.nn.layers import dense, layer_norm
from jax3d.types import Params
from jax3d.weights import WeightsError, find_weights, to_flax

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1], where CLIP was trained."""


class ImageOutput(NamedTuple):
    """What a tower says of a batch of pictures."""

    last_hidden_state: Float[Array, "b l c"]
    """After the last layer, not normalised: the class token, then the patches row by row."""
    hidden_states: tuple[Float[Array, "b l c"], ...]
    """What the first layer reads, then the state after each layer."""
    pooled: Float[Array, "b c"]
    """The class token, normalised."""
    image_embeds: Float[Array, "b p"] | None
    """`pooled` in the shared space, if the tower has the projection."""


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """A tower as its `config.json` describes it; `with_projection` adds the shared space."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    image_size: Count = 224
    """Side of the pictures, pixels."""
    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    projection_dim: Count = 512
    with_projection: bool = False
    dtype: Any = jnp.float32

    @property
    def stack(self) -> Stack:
        """Of its layers."""
        return Stack(
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            self.hidden_act,
            self.layer_norm_eps,
            causal=False,
            dtype=self.dtype,
        )


class CLIPVisionModel(nn.Module):
    """A tower of pictures."""

    config: CLIPVisionConfig = CLIPVisionConfig()

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> ImageOutput:
        """Reads pictures that `normalise` has prepared."""
        c = self.config
        states, pooled = VisionTransformer(c, name="vision_model")(images)
        embeds = None
        if c.with_projection:
            embeds = dense(c.projection_dim, c.dtype, False, "visual_projection")(pooled)
        return ImageOutput(states[-1], states, pooled, embeds)


class VisionTransformer(nn.Module):
    """Embeddings, layers, and the norm of the class token."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "b s s 3"]
    ) -> tuple[tuple[Float[Array, "b l c"], ...], Float[Array, "b c"]]:
        """All hidden states, and the class token's last one normalised."""
        c = self.config
        x = Embeddings(c, name="embeddings")(images)
        x = layer_norm("pre_layrnorm", c.layer_norm_eps)(x)  # transformers' spelling
        states = Layers(c.stack, name="encoder")(x)
        return states, layer_norm("post_layernorm", c.layer_norm_eps)(states[-1][:, 0])


class Embeddings(nn.Module):
    """The class token and the patches, with their positions."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b l c"]:
        """Their sum."""
        c, side = self.config, (self.config.patch_size,) * 2
        if images.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(
                f"pictures of {images.shape[2]} x {images.shape[1]} pixels; the encoder reads "
                f"{c.image_size} x {c.image_size}"
            )
        patches = nn.Conv(
            c.hidden_size, side, side, "VALID", use_bias=False, dtype=c.dtype, param_dtype=c.dtype,
            name="patch_embedding",
        )(images)  # fmt: skip
        patches = patches.reshape(len(images), -1, c.hidden_size)
        start = nn.initializers.normal(0.02)
        one = self.param("class_embedding", start, (c.hidden_size,), c.dtype)
        one = jnp.broadcast_to(one, (len(images), 1, c.hidden_size))
        x = jnp.concatenate([one, patches], axis=1)
        where = nn.Embed(
            x.shape[1], c.hidden_size, dtype=c.dtype, param_dtype=c.dtype, name="position_embedding"
        )
        return x + where(jnp.arange(x.shape[1]))


def normalise(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Colours in [0, 1] as CLIP learnt them: less their mean, by their deviation."""
    return (images - jnp.array(MEAN)) / jnp.array(STD)


def picture(image: Float[np.ndarray, "H W 3"], side: int) -> Float[np.ndarray, "s s 3"]:
    """A picture in [0, 1] at a tower's size, as CLIP's code has it, on the host.

    The shorter side is brought to `side` pixels, by cubic convolution; of the longer one the
    middle is taken.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    matrices = []
    for n in (height, width):
        m = max(int(side * n / short), side)
        begin = (m - side) // 2
        matrices.append(resample.antialiased(n, m, "cubic")[begin : begin + side])
    return np.clip(resample.grid(*matrices, image), 0.0, 1.0)


# Folders.


def from_config(config: dict[str, Any], dtype: Any = jnp.float32) -> CLIPVisionModel:
    """The tower that a transformers `image_encoder/config.json` describes.

    Raises:
      ValueError: the file describes another class, or asks for what is not supported.
    """
    projects = has_projection(config, "CLIPVisionModel")
    if config.get("num_channels", 3) != 3:
        raise WeightsError(
            f"num_channels = {weights.shown(config['num_channels'])}; only 3 is read"
        )
    chosen = weights.checked_fields(config, CLIPVisionConfig, ("dtype", "with_projection"))
    c = CLIPVisionConfig(**chosen, with_projection=projects, dtype=dtype)
    fits = 0 < c.patch_size <= c.image_size <= _MOST_PIXELS
    if c.num_hidden_layers > MOST_LAYERS or not fits:
        raise WeightsError(
            f"a tower of {c.num_hidden_layers} layers on pictures of {c.image_size} pixels in "
            f"patches of {c.patch_size} cannot be meant"
        )
    return CLIPVisionModel(c)


_MOST_PIXELS = 4096


def abstract_params(tower: CLIPVisionModel) -> Params:
    """The shapes and dtypes of a tower's parameters; nothing is computed."""
    side = tower.config.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(tower.init, jax.random.key(0), images)["params"]


def load(folder: str | Path, dtype: Any = jnp.float32) -> tuple[CLIPVisionModel, Params]:
    """The tower of a transformers `image_encoder/` folder and its weights.

    Raises:
      ValueError: a file is missing, damaged or does not fit, or another class is described.
    """
    tower, like = weights.described(
        Path(folder) / "config.json",
        lambda config: from_config(config, dtype),
        abstract_params,
    )
    path = find_weights(folder, "model")
    return tower, to_flax(rename(weights.load(path)), like, path)
