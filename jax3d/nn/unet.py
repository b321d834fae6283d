"""The denoising networks of Stable Diffusion 1, 2 and XL, MVDream and DeepFloyd IF.

One module under diffusers' class, configuration and parameter names, so that a `config.json`
describes it and its safetensors fill it. Two things are wider than there: `views` joins the
self-attention of that many consecutive images (MVDream), and `class_labels=None` leaves a class
embedding out (a camera that is not told).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax3d import weights
from jax3d.nn.attention import AttentionAddedKV, Transformer2DModel
from jax3d.nn.layers import conv, dense, group_norm, layer_norm
from jax3d.nn.unet_blocks import (
    ACTIVATIONS,
    DownBlock2D,
    Downsample2D,
    MidBlock2D,
    ResnetBlock2D,
    TimestepEmbedding,
    UpBlock2D,
    Upsample2D,
    timestep_embedding,
)
from jax3d.types import Params
from jax3d.weights import WeightsError, find_weights, to_flax

_FIXED = {
    "addition_embed_type": (None, "text", "text_time"),
    "attention_type": ("default",),
    "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
    "cross_attention_norm": (None, "group_norm", "layer_norm"),
    "downsample_padding": (0, 1),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "mid_block_scale_factor": (1,),
    "mid_block_type": (
        None,
        "UNetMidBlock2DCrossAttn",
        "UNetMidBlock2DSimpleCrossAttn",
    ),
    "resnet_out_scale_factor": (1.0,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
}
"""Settings of diffusers' class that are read here only at these values."""


_BY_LEVEL = (
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "num_attention_heads",
    "transformer_layers_per_block",
    "only_cross_attention",
    "cross_attention_dim",
)
"""Settings that are one for all levels or one for each."""


class AddedConditions(NamedTuple):
    """What SDXL's network is told beside the text tokens."""

    text_embeds: Float[Array, "b p"]
    time_ids: Float[Array, "b 6"]
    """Original height and width, crop top and left, target height and width, pixels."""


class UNet2DConditionModel(nn.Module):
    """The network as its `config.json` describes it; names and meanings are diffusers'.

    `attention_head_dim` is the NUMBER of heads in plain attention blocks, for historical reasons,
    and their width in the `Simple` ones. `dtype` is that of weights and arithmetic; norms,
    softmax and the time embedding are float32 always. The last `image_tokens` of the context are
    of a picture, and read by layers of their own. `remat` recomputes the layers' insides in a
    backward pass instead of keeping them.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_dim: int | tuple[int, ...] = 768
    cross_attention_norm: str | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    center_input_sample: bool = False
    downsample_padding: int = 1
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: int | float = 0
    timestep_post_act: str | None = None
    time_embedding_act_fn: str | None = None
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    class_embeddings_concat: bool = False
    projection_class_embeddings_input_dim: int | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    views: int = 1
    image_tokens: int = 0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        encoder_hidden_states: Float[Array, "b m d"],
        class_labels: Num[Array, "b ..."] | None = None,
        added: AddedConditions | None = None,
    ) -> Float[Array, "b h w o"]:
        """The network's prediction.

        Args:
          sample: noisy images or latents; with `views > 1`, b is a multiple of it and the views
            of one scene are consecutive.
          timesteps: in [0, 1000), whole or not.
          encoder_hidden_states: the text's tokens.
          class_labels: indices, noise levels or vectors (cameras), by `class_embed_type`.
          added: SDXL's pooled text and sizes; None leaves them out.
        """
        context = encoder_hidden_states
        temb = self._time_embedding(timesteps, context, class_labels, added)
        if self.encoder_hid_dim is not None:
            context = dense(_at(self.cross_attention_dim, 0), self.dtype, True, "encoder_hid_proj")(
                context
            )
        x = 2 * sample - 1 if self.center_input_sample else sample
        x = conv(self.block_out_channels[0], self.conv_in_kernel, self.dtype, "conv_in")(x)
        skips = [x]
        for i in range(len(self.block_out_channels)):
            x, new = self._down_block(i)(x, temb, context)
            skips += new
        if self.mid_block_type is not None:
            x = self._mid_block()(x, temb, context)
        for i in range(len(self.block_out_channels)):
            block = self._up_block(i)
            used, skips = skips[-block.layers :], skips[: -block.layers]
            size = skips[-1].shape[1:3] if skips else x.shape[1:3]
            x = block(x, temb, size, used, context)
        x = group_norm(self.norm_num_groups, self.norm_eps, "conv_norm_out")(x)
        x = ACTIVATIONS[self.act_fn](x)
        x = conv(self.out_channels, self.conv_out_kernel, self.dtype, "conv_out")(x)
        return x.astype(jnp.float32)

    def _time_embedding(self, timesteps, context, class_labels, added) -> Float[Array, "b e"]:
        """Time, class and added embeddings in one vector per image."""
        width = self.block_out_channels[0]
        mlp = partial(TimestepEmbedding, 4 * width, dtype=self.dtype)
        sinusoids = partial(
            timestep_embedding, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )
        act, post_act = self.act_fn, self.timestep_post_act
        temb = mlp(act, post_act, name="time_embedding")(sinusoids(timesteps, width))
        if class_labels is not None or self.is_initializing():
            label = self._class_embedding(mlp, sinusoids, class_labels, len(temb))
            if label is not None:
                concat = self.class_embeddings_concat
                temb = jnp.concatenate([temb, label], axis=-1) if concat else temb + label
        match self.addition_embed_type:
            case "text":
                heads = self.addition_embed_type_num_heads
                temb += TextTimeEmbedding(heads, 4 * width, self.dtype, name="add_embedding")(
                    context
                )
            case "text_time" if added is not None:
                ids = sinusoids(added.time_ids.reshape(-1), self.addition_time_embed_dim)
                ids = ids.reshape(len(temb), -1)
                both = jnp.concatenate([added.text_embeds, ids], axis=-1)
                temb += mlp(name="add_embedding")(both)
        if self.time_embedding_act_fn is not None:
            temb = ACTIVATIONS[self.time_embedding_act_fn](temb)
        return temb

    def _class_embedding(self, mlp, sinusoids, labels, b: int) -> Float[Array, "b e"] | None:
        width = self.block_out_channels[0]
        if labels is None:
            lengths = {"identity": 4 * width}
            lengths |= dict.fromkeys(
                ("projection", "simple_projection"), self.projection_class_embeddings_input_dim
            )
            length = lengths.get(self.class_embed_type)
            labels = jnp.zeros((b, length) if length else (b,))
        match self.class_embed_type:
            case "timestep":
                return mlp(self.act_fn, name="class_embedding")(sinusoids(labels, width))
            case "projection":
                return mlp(name="class_embedding")(labels)
            case "simple_projection":
                return dense(4 * width, self.dtype, True, "class_embedding")(labels)
            case "identity":
                return labels
        if self.num_class_embeds is None:
            return None
        table = nn.Embed(
            self.num_class_embeds,
            4 * width,
            dtype=self.dtype,
            param_dtype=self.dtype,
            name="class_embedding",
        )
        return table(labels.astype(jnp.int32))

    def _resnet(self, kind: str, features: int) -> Callable[..., nn.Module]:
        """The maker of a block's residual layers; only pixel-space blocks can skip an act."""
        return partial(
            ResnetBlock2D,
            features,
            groups=self.norm_num_groups,
            epsilon=self.norm_eps,
            act=self.act_fn,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
            skip_time_act=self.resnet_skip_time_act and _is_pixel(kind),
            dtype=self.dtype,
        )

    def _attention(
        self, kind: str, level: int, only_cross: bool
    ) -> Callable[..., nn.Module] | None:
        """The maker of a level's attention layers, by the block's name."""
        channels = self.block_out_channels[level]
        if "Simple" in kind:
            width = _at(self.attention_head_dim, level)
            maker = partial(
                AttentionAddedKV,
                heads=channels // width,
                head_dim=width,
                groups=self.norm_num_groups,
                only_cross_attention=only_cross,
                cross_attention_norm=self.cross_attention_norm,
                dtype=self.dtype,
            )
            return self._recomputed(maker)
        if "CrossAttn" not in kind:
            return None
        named = self.num_attention_heads
        heads = _at(self.attention_head_dim if named is None else named, level)
        maker = partial(
            Transformer2DModel,
            heads=heads,
            head_dim=channels // heads,
            layers=_at(self.transformer_layers_per_block, level),
            groups=self.norm_num_groups,
            use_linear_projection=self.use_linear_projection,
            views=self.views,
            only_cross_attention=only_cross,
            image_tokens=self.image_tokens,
            dtype=self.dtype,
        )
        return self._recomputed(maker)

    def _recomputed(self, maker: partial) -> partial:
        """The maker of the same layers, which keep nothing for a backward pass under `remat`."""
        if not self.remat:
            return maker
        return partial(nn.remat(maker.func), *maker.args, **maker.keywords)

    def _down_block(self, i: int) -> DownBlock2D:
        kind = self.down_block_types[i]
        resnet = self._resnet(kind, self.block_out_channels[i])
        last = i == len(self.block_out_channels) - 1
        # Without padding diffusers pads right and below, as the autoencoder does.
        plain = partial(Downsample2D, self.downsample_padding == 0, self.dtype)
        downsample = resnet if _is_pixel(kind) else plain
        return DownBlock2D(
            _at(self.layers_per_block, i),
            self._recomputed(resnet),
            self._attention(kind, i, _at(self.only_cross_attention, i)),
            None if last else downsample,
            name=f"down_blocks_{i}",
        )

    def _mid_block(self) -> MidBlock2D:
        level = len(self.block_out_channels) - 1
        only_cross = self.mid_block_only_cross_attention
        if only_cross is None:  # a single answer for all levels holds for the middle too
            only_cross = self.only_cross_attention is True
        plain = "Simple" not in self.mid_block_type
        return MidBlock2D(
            self._recomputed(self._resnet(self.mid_block_type, self.block_out_channels[-1])),
            self._attention(self.mid_block_type, level, only_cross and not plain),
            name="mid_block",
        )

    def _up_block(self, i: int) -> UpBlock2D:
        level = len(self.block_out_channels) - 1 - i
        kind = self.up_block_types[i]
        resnet = self._resnet(kind, self.block_out_channels[level])
        upsample = resnet if _is_pixel(kind) else partial(Upsample2D, dtype=self.dtype)
        return UpBlock2D(
            _at(self.layers_per_block, level) + 1,
            self._recomputed(resnet),
            self._attention(kind, level, _at(self.only_cross_attention, level)),
            None if level == 0 else upsample,
            name=f"up_blocks_{i}",
        )


class TextTimeEmbedding(nn.Module):
    """The text tokens pooled by attention of their mean, for the time embedding (DeepFloyd IF)."""

    heads: int
    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, context: Float[Array, "b m d"]) -> Float[Array, "b e"]:
        """One vector per text."""
        pooled = AttentionPooling(self.heads, self.dtype, name="pool")(layer_norm("norm1")(context))
        return layer_norm("norm2")(dense(self.dim, self.dtype, True, "proj")(pooled))


class AttentionPooling(nn.Module):
    """Attention from the mean token to itself and all tokens."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b d"]:
        """One vector per sequence."""
        b, _, d = x.shape
        position = self.param(
            "positional_embedding", nn.initializers.normal(d**-0.5), (1, d), self.dtype
        )
        mean = x.mean(axis=1, keepdims=True) + position
        x = jnp.concatenate([mean, x], axis=1)

        def project(tokens, name):
            return dense(d, self.dtype, True, name)(tokens).reshape(
                b, -1, self.heads, d // self.heads
            )

        y = jax.nn.dot_product_attention(
            project(mean, "q_proj"), project(x, "k_proj"), project(x, "v_proj")
        )
        return y.reshape(b, d)


def from_config(config: dict[str, Any]) -> UNet2DConditionModel:
    """The network that a diffusers `unet/config.json` describes.

    Raises:
      ValueError: the file describes another class, or asks for what is not supported.
    """
    kind = config.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise ValueError(f"the config is of a {kind}, not of a UNet2DConditionModel")
    for name, known in _FIXED.items():
        if name in config and config[name] not in known:
            raise ValueError(f"{name} = {config[name]!r} is not supported, only {known}")
    known_blocks = ("DownBlock2D", "CrossAttn{}Block2D", "SimpleCrossAttn{}Block2D")
    for way in ("Down", "Up"):
        known = {name.format(way).replace("Down", way) for name in known_blocks}
        known.add(f"Resnet{way}sampleBlock2D")
        if strange := set(config.get(f"{way.lower()}_block_types", ())) - known:
            raise ValueError(f"blocks of unknown kind: {', '.join(sorted(strange))}")
    ours = ("parent", "name", "views", "dtype", "remat")
    unet = UNet2DConditionModel(**weights.checked_fields(config, UNet2DConditionModel, ours))
    _demand_levels(unet)
    return unet


_MOST_LAYERS = 512
"""Layers that are traced; SDXL, the deepest published one, has 70."""


def _demand_levels(unet: UNet2DConditionModel) -> None:
    """Raises where lists are not one entry a level, or are of a size that cannot be meant."""
    levels = len(unet.block_out_channels)
    for name in _BY_LEVEL:
        value = getattr(unet, name)
        if isinstance(value, tuple) and len(value) != levels:
            raise WeightsError(
                f"{name} has {len(value)} entries, block_out_channels {levels} levels"
            )
    layers = (
        _at(unet.layers_per_block, i) * max(_at(unet.transformer_layers_per_block, i), 1)
        for i in range(levels)
    )
    if not 1 <= levels <= 8 or sum(layers) > _MOST_LAYERS // 2 or not 1 <= unet.sample_size <= 1024:
        raise WeightsError(
            f"a network of {levels} levels, layers_per_block {unet.layers_per_block}, "
            f"transformer_layers_per_block {unet.transformer_layers_per_block} and sample_size "
            f"{unet.sample_size} cannot be meant"
        )


def abstract_params(unet: UNet2DConditionModel) -> Params:
    """The shapes and dtypes of a network's parameters; nothing is computed."""
    context = unet.encoder_hid_dim or _at(unet.cross_attention_dim, 0)
    side = 2 ** len(unet.block_out_channels)
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    added = None
    if unet.addition_embed_type == "text_time":
        pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        added = AddedConditions(shape((unet.views, pooled)), shape((unet.views, 6)))
    return jax.eval_shape(
        unet.init,
        jax.random.key(0),
        shape((unet.views, side, side, unet.in_channels)),
        shape((unet.views,)),
        shape((unet.views, 1 + unet.image_tokens, context)),
        None,
        added,
    )["params"]


def load(folder: str | Path, dtype: Any = jnp.float32) -> tuple[UNet2DConditionModel, Params]:
    """The network of a diffusers `unet/` folder and its weights.

    Raises:
      ValueError: a file is missing, damaged or does not fit, or another class is described.
    """
    unet, like = weights.described(
        Path(folder) / "config.json",
        lambda config: from_config(config).clone(dtype=dtype),
        abstract_params,
    )
    path = find_weights(folder, "diffusion_pytorch_model")
    return unet, to_flax(weights.load(path), like, path)


def _is_pixel(kind: str) -> bool:
    """Whether a block is of the kinds that DeepFloyd IF is made of."""
    return "Simple" in kind or kind.startswith("Resnet")


def _at(value: Any, level: int) -> Any:
    """A setting that is one for all levels or one for each."""
    return value[level] if isinstance(value, tuple) else value
