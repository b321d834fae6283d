"""diffusers' PriorTransformer as Shap-E has it (https://arxiv.org/abs/2305.02463, section 4.3).

A transformer that cleans latents, a sequence of vectors, told the noise level and a condition by
tokens in front of them. Letters: b samples, n latents, d their width, m tokens of the condition, e
their width, l = m + 1 + n, c width of the transformer.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d import weights
from jax3d.bounds import Count
from jax3d.nn.attention import Attention
from jax3d.nn.layers import dense, layer_norm
from jax3d.nn.unet_blocks import ACTIVATIONS, TimestepEmbedding, timestep_embedding
from jax3d.types import Params
from jax3d.weights import Flat, WeightsError


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The transformer as its `config.json` describes it."""

    num_attention_heads: Count = 16
    attention_head_dim: Count = 64
    num_layers: Count = 24
    embedding_dim: Count = 1024
    """Width of the latents."""
    num_embeddings: Count = 1024
    """How many latents there are."""
    time_embed_dim: Count = 4096
    """Hidden width of the time's embedding."""
    time_embed_act_fn: str = "gelu"
    embedding_proj_dim: Count = 768
    """Width of the condition's tokens."""
    embedding_proj_norm_type: str | None = None
    """"layer": those tokens are normalised first."""
    clip_embed_dim: Count = 2048
    """Width of the output, of which the first half is the latents' estimate."""


class PriorTransformer(nn.Module):
    """A transformer of latents."""

    config: PriorConfig = PriorConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], t: Float[Array, " b"], told: Float[Array, "b m e"]
    ) -> Float[Array, "b n o"]:
        """What it makes of noisy latents at times `t`, told tokens of a condition."""
        c, told_by = self.config, told.shape[1]
        width = c.num_attention_heads * c.attention_head_dim
        time = TimestepEmbedding(
            c.time_embed_dim, c.time_embed_act_fn, dtype=self.dtype, out_dim=width,
            name="time_embedding",
        )(timestep_embedding(t, width))  # fmt: skip
        if c.embedding_proj_norm_type == "layer":
            told = layer_norm("embedding_proj_norm")(told)
        told = dense(width, self.dtype, True, "embedding_proj")(told)
        x = dense(width, self.dtype, True, "proj_in")(x)
        start = nn.initializers.normal(0.02)
        where = self.param("positional_embedding", start, (1, c.num_embeddings, width))
        # What stands in front of the latents has no positions.
        x = jnp.concatenate([told, time[:, None].astype(x.dtype), x + where], axis=1)
        x = layer_norm("norm_in")(x).astype(self.dtype)
        for i in range(c.num_layers):
            x = Block(c, self.dtype, name=f"transformer_blocks_{i}")(x)
        x = layer_norm("norm_out")(x)[:, told_by + 1 :]
        return dense(c.clip_embed_dim, self.dtype, True, "proj_to_clip_embeddings")(x).astype(
            jnp.float32
        )


class Block(nn.Module):
    """Self-attention and a feed-forward layer, both residual."""

    config: PriorConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """The next tokens."""
        c = self.config
        attention = Attention(
            c.num_attention_heads,
            c.attention_head_dim,
            x.shape[-1],
            self.dtype,
            qkv_bias=True,
            name="attn1",
        )
        x = x + attention(layer_norm("norm1")(x))
        return x + FeedForward(self.dtype, name="ff")(layer_norm("norm3")(x))


class FeedForward(nn.Module):
    """Two linear layers around the exact GELU, at four times the width."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Maps each token by itself."""
        hidden = dense(4 * x.shape[-1], self.dtype, True, "net_0_proj")(x)
        hidden = nn.gelu(hidden, approximate=False)
        return dense(x.shape[-1], self.dtype, True, "net_2")(hidden)


# Folders.

_FIXED = {
    "added_emb_type": (None,),
    "additional_embeddings": (0,),
    "dropout": (0.0,),
    "embedding_proj_norm_type": (None, "layer"),
    "encoder_hid_proj_type": (None,),
    "norm_in_type": ("layer",),
    "time_embed_act_fn": tuple(ACTIVATIONS),
}
"""Settings of diffusers' class that are read here only at these values; other priors, of image
embeddings (unCLIP, Kandinsky), have others."""
_MOST_LAYERS = 128


def from_config(config: dict[str, Any], dtype: Any = jnp.float32) -> PriorTransformer:
    """The transformer that a diffusers `prior/config.json` describes.

    Raises:
      WeightsError: the file lacks something, or asks for what is not supported.
    """
    kind = config.get("_class_name", "PriorTransformer")
    if kind != "PriorTransformer":
        raise WeightsError(f"the config is of a {weights.shown(kind)}, not of a PriorTransformer")
    for name, known in _FIXED.items():
        if name in config and config[name] not in known:
            raise WeightsError(
                f"{name} = {weights.shown(config[name])} is not supported, only {known}"
            )
    chosen = weights.checked_fields(config, PriorConfig)
    demanded = {f.name for f in dataclasses.fields(PriorConfig)} - {"embedding_proj_norm_type"}
    if lost := sorted((demanded | {"norm_in_type"}) - set(config)):
        raise WeightsError(f"lacks {', '.join(lost)}")
    c = PriorConfig(**chosen)
    if c.num_layers > _MOST_LAYERS or c.clip_embed_dim < c.embedding_dim:
        raise WeightsError(
            f"a prior of {c.num_layers} layers that makes {c.clip_embed_dim} numbers of latents "
            f"of {c.embedding_dim} cannot be meant"
        )
    return PriorTransformer(c, dtype)


def abstract_params(prior: PriorTransformer) -> Params:
    """The shapes and dtypes of a transformer's parameters; nothing is computed."""
    c = prior.config
    x = jax.ShapeDtypeStruct((1, c.num_embeddings, c.embedding_dim), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    told = jax.ShapeDtypeStruct((1, 1, c.embedding_proj_dim), jnp.float32)
    return jax.eval_shape(prior.init, jax.random.key(0), x, t, told)["params"]


def load(folder: Path, dtype: Any = jnp.float32) -> tuple[PriorTransformer, Params]:
    """The transformer of a diffusers `prior/` folder and its weights.

    Args:
      folder: with `config.json` and weights.
      dtype: of weights and arithmetic; norms, softmax and what comes out are float32 always.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the other.
    """
    prior, like = weights.described(
        folder / "config.json", lambda config: from_config(config, dtype), abstract_params
    )
    file = weights.find_weights(folder, "diffusion_pytorch_model")
    return prior, weights.to_flax(rename(weights.load(file)), like, file)


def rename(tensors: Flat) -> Flat:
    """Tensors under our names, without the statistics of CLIP that Shap-E never reads."""
    kept = {k: v for k, v in tensors.items() if k not in ("clip_mean", "clip_std")}
    return {k.replace(".ff.net.0.proj.", ".ff.net.0_proj."): v for k, v in kept.items()}
