"""The text towers of CLIP (ViT-L, OpenCLIP H and bigG), under transformers' parameter names.

Letters: b texts, l tokens, c width of the tower, p width of the shared image-text space.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax3d import weights
from jax3d.bounds import Count, Natural, Positive
from jax3d.nn.layers import dense, layer_norm
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError, find_weights, to_flax

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


class TextOutput(NamedTuple):
    """What a text tower says of a batch of texts."""

    last_hidden_state: Float[Array, "b l c"]
    """After the final norm."""
    pooled: Float[Array, "b c"]
    """`last_hidden_state` at the end-of-text token."""
    hidden_states: tuple[Float[Array, "b l c"], ...]
    """Before the final norm: the embeddings, then the state after each layer."""
    text_embeds: Float[Array, "b p"] | None
    """`pooled` in the shared space, if the tower has the projection."""


class Stack(NamedTuple):
    """Sizes of a tower's layers."""

    layers: int
    heads: int
    intermediate: int
    """Hidden width of the perceptrons."""
    act: str
    eps: float
    """Of the norms."""
    causal: bool
    """Tokens attend to themselves and to those before them; else to all."""
    dtype: Any


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """A tower as its `config.json` describes it; `with_projection` adds the shared space."""

    vocab_size: Count = 49408
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    max_position_embeddings: Count = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    eos_token_id: Natural = 2
    projection_dim: Count = 768
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
            causal=True,
            dtype=self.dtype,
        )


class CLIPTextModel(nn.Module):
    """A text tower."""

    config: CLIPTextConfig = CLIPTextConfig()

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b l"]) -> TextOutput:
        """Reads token ids; padding is attended to like any token, as the critics learnt it."""
        c = self.config
        hidden_states, last = TextTransformer(c, name="text_model")(input_ids)
        # Configs from before the end token was recorded say 2; the end has the greatest id there.
        legacy = c.eos_token_id == 2
        at = jnp.argmax(input_ids if legacy else input_ids == c.eos_token_id, axis=-1)
        pooled = jnp.take_along_axis(last, at[:, None, None], axis=1)[:, 0]
        embeds = None
        if c.with_projection:
            embeds = dense(c.projection_dim, c.dtype, False, "text_projection")(pooled)
        return TextOutput(last, pooled, hidden_states, embeds)


class TextTransformer(nn.Module):
    """Embeddings, causal layers, final norm."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b l"]
    ) -> tuple[tuple[Float[Array, "b l c"], ...], Float[Array, "b l c"]]:
        """All hidden states, and the last one normalised."""
        c = self.config
        x = Embeddings(c, name="embeddings")(input_ids)
        states = Layers(c.stack, name="encoder")(x)
        return states, layer_norm("final_layer_norm", c.layer_norm_eps)(states[-1])


class Embeddings(nn.Module):
    """Token and position tables."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b l"]) -> Float[Array, "b l c"]:
        """Their sum."""
        c = self.config

        def table(size, name):
            return nn.Embed(size, c.hidden_size, dtype=c.dtype, param_dtype=c.dtype, name=name)

        tokens = table(c.vocab_size, "token_embedding")(input_ids)
        positions = jnp.arange(input_ids.shape[-1])
        return tokens + table(c.max_position_embeddings, "position_embedding")(positions)


# Layers, of texts and of pictures.


class Layers(nn.Module):
    """The stack of layers."""

    stack: Stack

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> tuple[Float[Array, "b l c"], ...]:
        """The input and the state after each layer."""
        states = [x]
        for i in range(self.stack.layers):
            states.append(Layer(self.stack, name=f"layers_{i}")(states[-1]))
        return tuple(states)


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, both residual."""

    stack: Stack

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """The next state."""
        s = self.stack
        x = x + SelfAttention(s, name="self_attn")(layer_norm("layer_norm1", s.eps)(x))
        return x + MLP(s, name="mlp")(layer_norm("layer_norm2", s.eps)(x))


class SelfAttention(nn.Module):
    """Multi-head attention with biases."""

    stack: Stack

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """What each token reads of the others."""
        s, width = self.stack, x.shape[-1]
        heads = (*x.shape[:-1], s.heads, -1)
        q, k, v = (dense(width, s.dtype, True, f"{name}_proj")(x).reshape(heads) for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v, is_causal=s.causal)
        return dense(width, s.dtype, True, "out_proj")(y.reshape(x.shape))


class MLP(nn.Module):
    """Two linear layers around the activation."""

    stack: Stack

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Maps each token by itself."""
        s, width = self.stack, x.shape[-1]
        x = dense(s.intermediate, s.dtype, True, "fc1")(x)
        return dense(width, s.dtype, True, "fc2")(ACTIVATIONS[s.act](x))


# Folders.


MOST_LAYERS = 128
"""Layers that are traced; OpenCLIP bigG, the deepest tower in use, has 32."""


def from_config(config: dict[str, Any], dtype: Any = jnp.float32) -> CLIPTextModel:
    """The tower that a transformers `text_encoder/config.json` describes.

    Raises:
      ValueError: the file describes another class, or asks for what is not supported.
    """
    projects = has_projection(config, "CLIPTextModel")
    chosen = weights.checked_fields(config, CLIPTextConfig, ("dtype", "with_projection"))
    tower = CLIPTextConfig(**chosen, with_projection=projects, dtype=dtype)
    if tower.num_hidden_layers > MOST_LAYERS or tower.max_position_embeddings < 3:
        raise WeightsError(
            f"a tower of {tower.num_hidden_layers} layers and {tower.max_position_embeddings} "
            "positions cannot be meant"
        )
    return CLIPTextModel(tower)


def has_projection(config: dict[str, Any], name: str) -> bool:
    """Whether a config's tower projects into the space that texts and pictures share.

    Raises:
      WeightsError: it is not of the class `name`, or has an unknown activation.
    """
    kind = (config.get("architectures") or [name])[0]
    if kind not in (name, f"{name}WithProjection"):
        raise WeightsError(f"the config is of a {weights.shown(kind)}, not of a {name}")
    if (act := config.get("hidden_act", "quick_gelu")) not in ACTIVATIONS:
        raise WeightsError(
            f"hidden_act = {weights.shown(act)} is not supported, only {sorted(ACTIVATIONS)}"
        )
    return kind != name


def abstract_params(tower: CLIPTextModel) -> Params:
    """The shapes and dtypes of a tower's parameters; nothing is computed."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(tower.init, jax.random.key(0), ids)["params"]


def load(folder: str | Path, dtype: Any = jnp.float32) -> tuple[CLIPTextModel, Params]:
    """The tower of a transformers `text_encoder/` folder and its weights.

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


def rename(tensors: Flat) -> Flat:
    """Tensors without the buffer of positions that old files carry."""
    return {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
