"""Attention of latent diffusion networks, under diffusers' class and parameter names.

Letters: b images (or views), h and w pixels, l and m tokens, c channels, d width of the context.
Self-attention may join `views` consecutive images into one sequence (MVDream, section 3.1,
https://arxiv.org/abs/2308.16512), or look at another batch of images beside its own (reference
attention, https://arxiv.org/abs/2310.15110, section 2.2): a call of a network with
`mutable=["reference"]` leaves what its self-attention read, and a call that is given this variable
reads it too. Nothing else in a network looks across images.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax3d.nn.layers import conv, dense, group_norm, layer_norm


def attend(
    q: Float[Array, "b l n d"], k: Float[Array, "b m n d"], v: Float[Array, "b m n d"]
) -> Float[Array, "b l n d"]:
    """softmax(q k^T / sqrt(d)) v for each of n heads, with a float32 softmax.

    It is `jax.nn.dot_product_attention`. XLA's CPU backend runs that as batched products in
    awkward layouts with all logits in memory, so there the same is done a head and some rows at
    a time, 2 to 8 times faster.
    """
    return jax.lax.platform_dependent(
        q, k, v, cpu=_attend_by_head, default=jax.nn.dot_product_attention
    )


def _attend_by_head(q: Array, k: Array, v: Array, rows: int = 256) -> Array:
    b, length, n, d = q.shape
    rows = rows if length % rows == 0 else length

    @jax.checkpoint
    def some_rows(q, k, v):
        logits = d**-0.5 * jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (y / total).astype(q.dtype)

    def head(qkv):
        q, k, v = qkv
        y = jax.lax.map(lambda q: some_rows(q, k, v), q.reshape(-1, rows, d))
        return y.reshape(length, d)

    by_head = (x.swapaxes(1, 2).reshape(b * n, -1, d) for x in (q, k, v))
    return jax.lax.map(head, tuple(by_head)).reshape(b, n, length, d).swapaxes(1, 2)


class Attention(nn.Module):
    """Multi-head attention; heads are the slow axis of the channels."""

    heads: int
    head_dim: int
    out_dim: int
    dtype: Any = jnp.float32
    qkv_bias: bool = False
    out_bias: bool = True
    image_tokens: int = 0
    """The last tokens of the context, of a picture, which have keys and values of their own
    (IP-Adapter, https://arxiv.org/abs/2308.06721, section 3.2.2)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], context: Float[Array, "b m d"] | None = None
    ) -> Float[Array, "b l o"]:
        """Attends from `x` to `context`, or to itself without one."""
        context = x if context is None else context
        of_image = context[:, context.shape[1] - self.image_tokens :]
        context = context[:, : context.shape[1] - self.image_tokens]
        inner = self.heads * self.head_dim

        def project(tokens, name):
            y = dense(inner, self.dtype, self.qkv_bias, name)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        q, k, v = project(x, "to_q"), project(context, "to_k"), project(context, "to_v")
        y = attend(q, k, v)
        if self.image_tokens:
            y = y + attend(q, project(of_image, "to_k_ip"), project(of_image, "to_v_ip"))
        y = y.reshape(*x.shape[:-1], inner)
        return dense(self.out_dim, self.dtype, self.out_bias, "to_out_0")(y)


class GEGLU(nn.Module):
    """Linear layer whose first half is gated by the exact GELU of its second half."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l o"]:
        """Doubles the width, then gates it back to `dim`."""
        value, gate = jnp.split(dense(2 * self.dim, self.dtype, True, "proj")(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU at four times the width, then a linear layer."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Maps each token by itself."""
        channels = x.shape[-1]
        x = GEGLU(4 * channels, self.dtype, name="net_0")(x)
        return dense(channels, self.dtype, True, "net_2")(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention (over `views` images at once), cross-attention and a feed-forward layer."""

    heads: int
    head_dim: int
    views: int = 1
    only_cross_attention: bool = False
    image_tokens: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], context: Float[Array, "b m d"] | None
    ) -> Float[Array, "b l c"]:
        """Applies the three residual layers; images are in groups of `views`."""
        b, length, channels = x.shape

        def attention(name, **own):
            return Attention(
                self.heads, self.head_dim, channels, dtype=self.dtype, name=name, **own
            )

        y = layer_norm("norm1")(x)
        if self.only_cross_attention:
            y = attention("attn1")(y, context)
        else:
            joint = y.reshape(b // self.views, self.views * length, channels)
            reference = self.get_variable("reference", "tokens")
            self.sow("reference", "tokens", joint, lambda old, new: new, lambda: None)
            beside = joint if reference is None else jnp.concatenate([joint, reference], axis=1)
            y = attention("attn1")(joint, beside).reshape(x.shape)
        x = x + y
        told = attention("attn2", image_tokens=self.image_tokens)
        x = x + told(layer_norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(layer_norm("norm3")(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, row-major, with a residual."""

    heads: int
    head_dim: int
    layers: int = 1
    groups: int = 32
    use_linear_projection: bool = False
    views: int = 1
    only_cross_attention: bool = False
    image_tokens: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"] | None
    ) -> Float[Array, "b h w c"]:
        """Mixes pixels with each other and with the context."""
        b, h, w, c = x.shape
        inner = self.heads * self.head_dim

        def project(y, features, name):
            if self.use_linear_projection:
                return dense(features, self.dtype, True, name)(y)
            y = conv(features, 1, self.dtype, name)(y.reshape(b, h, w, -1))
            return y.reshape(b, h * w, features)

        y = group_norm(self.groups, 1e-6, "norm")(x).reshape(b, h * w, c)
        y = project(y, inner, "proj_in")
        for i in range(self.layers):
            y = BasicTransformerBlock(
                self.heads,
                self.head_dim,
                self.views,
                self.only_cross_attention,
                self.image_tokens,
                self.dtype,
                name=f"transformer_blocks_{i}",
            )(y, context)
        return x + project(y, c, "proj_out").reshape(x.shape)


class AttentionAddedKV(nn.Module):
    """Attention over pixels with the text's keys and values put in front (DeepFloyd IF)."""

    heads: int
    head_dim: int
    groups: int = 32
    only_cross_attention: bool = False
    cross_attention_norm: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b h w c"]:
        """Attends from pixels to text tokens and, unless told not to, to pixels."""
        b, h, w, c = x.shape
        match self.cross_attention_norm:
            case "group_norm":
                context = group_norm(32, 1e-5, "norm_cross")(context)
            case "layer_norm":
                context = layer_norm("norm_cross")(context)

        def project(tokens, name):
            y = dense(self.heads * self.head_dim, self.dtype, True, name)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

        pixels = group_norm(self.groups, 1e-5, "group_norm")(x).reshape(b, h * w, c)
        q, k = project(pixels, "to_q"), project(context, "add_k_proj")
        v = project(context, "add_v_proj")
        if not self.only_cross_attention:
            k = jnp.concatenate([k, project(pixels, "to_k")], axis=1)
            v = jnp.concatenate([v, project(pixels, "to_v")], axis=1)
        y = attend(q, k, v).reshape(b, h * w, -1)
        return x + dense(c, self.dtype, True, "to_out_0")(y).reshape(x.shape)
