"""Vision transformers trained by DINO (https://arxiv.org/abs/2104.14294) and DINOv2 (2304.07193).

One network under the parameter names of DINOv2's code; `from_dinov2` and `from_transformers` rename
checkpoints of that code and of transformers' `ViTModel` and `Dinov2Model`. It may be told something
of each image, such as its camera. Letters: b images, h and w pixels, l tokens, c width of the
tokens, k of what is told.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import resample
from jax3d.bounds import Count, Natural, Positive
from jax3d.nn.attention import Attention
from jax3d.nn.layers import dense, layer_norm
from jax3d.weights import Flat, WeightsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """Sizes of an encoder."""

    patch_size: Count = 16
    """Pixels."""
    grid: Count = 14
    """Side of the table of positions, patches."""
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    """Hidden width of the perceptrons."""
    layer_norm_eps: Positive = 1e-12
    registers: Natural = 0
    """Tokens after the class token that stand for no patch (https://arxiv.org/abs/2309.16588)."""
    layer_scale: bool = False
    """Whether each branch is scaled channel by channel before it is added (DINOv2)."""
    antialias: bool = False
    """How the table of positions is resampled; see `positions`."""
    swiglu: bool = False
    """Whether the perceptrons are gated (https://arxiv.org/abs/2002.05202), as DINOv2's giant's."""


VIT_B16 = DinoConfig()
"""facebook/dino-vitb16."""


def vit(letter: str, registers: int) -> DinoConfig:
    """DINOv2's ViT of size "s", "b" or "l" with patches of 14 pixels, for pictures of 518."""
    width, layers = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}[letter]
    return DinoConfig(
        patch_size=14,
        grid=37,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        layer_norm_eps=1e-6,
        registers=registers,
        layer_scale=True,
        antialias=registers > 0,
    )


class Dino(nn.Module):
    """An encoder of pictures."""

    config: DinoConfig = VIT_B16
    dtype: Any = jnp.float32
    normalised: bool = True
    """Whether tokens come out of the last norm; else before it."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], told: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b l c"]:
        """The tokens: the class token, the registers, the patches row by row.

        Args:
          images: as `normalise` leaves them, or not, as the weights were trained.
          told: an embedding by which each layer's norms are modulated; None: they are plain.

        Raises:
          ValueError: the sides are no multiples of the patch's.
        """
        c = self.config
        x = Embeddings(c, self.dtype, name="embeddings")(images)
        for i in range(c.num_hidden_layers):
            x = Block(c, self.dtype, name=f"blocks_{i}")(x, told)
        return layer_norm("norm", c.layer_norm_eps)(x) if self.normalised else x


class Embeddings(nn.Module):
    """Patches with their positions, and the tokens before them."""

    config: DinoConfig
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b l c"]:
        """The tokens that the first layer reads."""
        c, (b, height, width, _) = self.config, images.shape
        side = (c.patch_size, c.patch_size)
        if height % c.patch_size or width % c.patch_size:
            raise ValueError(
                f"pictures of {width} x {height} pixels; sides must be multiples of {c.patch_size}"
            )
        project = nn.Conv(
            c.hidden_size, side, side, "VALID", dtype=self.dtype, param_dtype=self.dtype,
            name="projection",
        )  # fmt: skip
        patches = project(images)

        def table(name, count):
            return self.param(name, nn.initializers.normal(0.02), (1, count, c.hidden_size))

        def each(tokens):
            return jnp.broadcast_to(tokens, (b, *tokens.shape[1:]))

        where = table("position_embeddings", 1 + c.grid**2)[0]
        where = positions(where, *patches.shape[1:3], c.antialias)
        flat = patches.reshape(b, -1, c.hidden_size)
        x = jnp.concatenate([each(table("cls_token", 1)), flat], axis=1) + where
        if c.registers:
            registers = each(table("register_tokens", c.registers))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        return x.astype(self.dtype)


def positions(
    table: Float[Array, "k c"], height: int, width: int, antialias: bool
) -> Float[Array, "l c"]:
    """A table of the class token's and a square's positions, for `height` x `width` patches.

    A square of another size is resampled: antialiased where the model has registers; else by plain
    cubic convolution as if it were 0.1 patches larger, which DINO's code did against rounding, and
    all models were used with.
    """
    side = round((len(table) - 1) ** 0.5)
    if (height, width) == (side, side):
        return table

    def matrix(m: int) -> np.ndarray:
        if antialias:
            return resample.antialiased(side, m, "cubic")
        return resample.bicubic(side, resample.positions(side, m, side / (m + 0.1)))

    square = table[1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(matrix(m), table.dtype) for m in (height, width))
    square = jnp.einsum("hi,wj,ijc->hwc", rows, columns, square, precision="highest")
    return jnp.concatenate([table[:1], square.reshape(height * width, -1)])


class Block(nn.Module):
    """Self-attention and a perceptron, both residual."""

    config: DinoConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], told: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b l c"]:
        """The next tokens; `told` modulates both norms (adaLN of DiT, without its gates)."""
        c, width = self.config, self.config.hidden_size
        modulation = None
        if told is not None:
            modulation = dense(4 * width, self.dtype, True, "adaLN_modulation_1")(nn.silu(told))
            modulation = jnp.split(modulation[:, None].astype(jnp.float32), 4, axis=-1)

        def norm(x, i):
            y = layer_norm(f"norm{i + 1}", c.layer_norm_eps)(x)
            return y if modulation is None else y * (1 + modulation[2 * i + 1]) + modulation[2 * i]

        def scaled(y, name):
            return LayerScale(name=name)(y).astype(self.dtype) if c.layer_scale else y

        attention = Attention(
            c.num_attention_heads,
            width // c.num_attention_heads,
            width,
            self.dtype,
            qkv_bias=True,
            name="attn",
        )
        x = x + scaled(attention(norm(x, 0)), "ls1")
        return x + scaled(self._mlp(norm(x, 1)), "ls2")

    def _mlp(self, y: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        c, hidden = self.config, self.config.intermediate_size
        if c.swiglu:
            gate, y = jnp.split(dense(2 * hidden, self.dtype, True, "weights_in")(y), 2, axis=-1)
            return dense(c.hidden_size, self.dtype, True, "weights_out")(nn.silu(gate) * y)
        y = nn.gelu(dense(hidden, self.dtype, True, "fc1")(y), approximate=False)
        return dense(c.hidden_size, self.dtype, True, "fc2")(y)


class LayerScale(nn.Module):
    """A factor for each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """The scaled tokens."""
        return x * self.param("gamma", nn.initializers.ones, x.shape[-1:])


def normalise(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Colours in [0, 1] as DINO's encoders learnt them: less ImageNet's mean, by its deviation."""
    return (images - jnp.array(MEAN)) / jnp.array(STD)


# Names of checkpoints.


_DINOV2 = (
    (r"^patch_embed\.proj\.", "embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|register_tokens)$", r"embeddings.\1"),
    (r"\.attn\.proj\.", ".attn.to_out.0."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
)
_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.", "embeddings."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.(fc[12]|weights_in|weights_out)\.", r".\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.query\.", ".attn.to_q."),
    (r"\.attention\.attention\.key\.", ".attn.to_k."),
    (r"\.attention\.attention\.value\.", ".attn.to_v."),
    (r"\.attention\.output\.dense\.", ".attn.to_out.0."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"^layernorm\.", "norm."),
)


Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]
"""Regular expressions, each with what `re.sub` puts in its place."""


def renamed(name: str, rules: Rules) -> str:
    """A tensor's name after all rules, one after another."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def from_dinov2(tensors: Flat) -> Flat:
    """Tensors of DINOv2's code under this network's names; queries, keys and values are split.

    Raises:
      WeightsError: a joint projection is not three alike.
    """
    flat: Flat = {}
    for name, tensor in tensors.items():
        if name == "mask_token":  # of training
            continue
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name):
            flat |= {f"{match[1]}to_{k}.{match[2]}": part for k, part in split_qkv(name, tensor)}
        else:
            flat[renamed(name, _DINOV2)] = tensor
    return flat


def from_transformers(tensors: Flat) -> Flat:
    """Tensors of transformers' `ViTModel` or `Dinov2Model` under this network's names.

    The pooler is left out, and the token that hides patches in training.
    """
    unread = ("pooler.", "embeddings.mask_token")
    kept = {k: v for k, v in tensors.items() if not k.startswith(unread)}
    return {renamed(k, _TRANSFORMERS): v for k, v in kept.items()}


def split_qkv(name: str, tensor: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The rows of a joint projection by "q", "k" and "v", as views.

    Raises:
      WeightsError: they are not three alike.
    """
    if not tensor.ndim or len(tensor) % 3:
        raise WeightsError(f"{name} of shape {tensor.shape} is not queries, keys and values")
    rows = len(tensor) // 3
    return [(k, tensor[i * rows : (i + 1) * rows]) for i, k in enumerate("qkv")]
