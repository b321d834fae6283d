"""Attention by head against `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax3d.nn.attention import attend


def qkv(length, context, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, length, 3, 8), (2, context, 3, 8), (2, context, 3, 8))
    return [2 * jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("length", "context"), [(512, 512), (100, 7)])
def test_attention_by_head_is_attention(length, context):
    args = qkv(length, context)
    expected, pullback = jax.vjp(jax.nn.dot_product_attention, *args)
    ours, ours_pullback = jax.vjp(attend, *args)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    for a, b in zip(ours_pullback(expected), pullback(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)


def test_half_precision_keeps_a_float32_softmax():
    # Logits around 100 apart overflow or collapse where the softmax is done in bfloat16.
    q, k, v = qkv(64, 64, jnp.bfloat16)
    ours = attend(4 * q, 4 * k, v)
    exact = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in (4 * q, 4 * k, v)))
    assert ours.dtype == jnp.bfloat16
    assert float(jnp.abs(ours.astype(jnp.float32) - exact).max()) < 0.05


def test_vmap_is_a_loop():
    args = [jnp.stack([x, 2 * x]) for x in qkv(100, 7)]
    looped = jnp.stack([attend(*(x[i] for x in args)) for i in range(2)])
    np.testing.assert_allclose(jax.vmap(attend)(*args), looped, atol=1e-6)
