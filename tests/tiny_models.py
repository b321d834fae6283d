"""The embedded generators at toy size, with weights of which none is zero."""

import jax
import jax.numpy as jnp

from jax3d import weights
from jax3d.models import props_lrm, props_native
from jax3d.nn.props_encoder import EncoderConfig
from jax3d.nn.props_flow import FlowConfig

FLOW = FlowConfig(width=8, hidden=16, blocks=1, embedding=8, frequencies=2)
EYE = EncoderConfig(widths=(4, 4), blocks=1, out=8)
COMPONENTS, FEATURES = 5, 12


def fresh():
    """The native generator's network as its training begins with it."""
    init = jax.jit(props_native.init, static_argnums=(1, 2))
    return init(jax.random.key(0), FLOW, COMPONENTS)


def filled(params):
    """The same tree with random numbers."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [
            (0.3 * jax.random.normal(k, x.shape)).astype(x.dtype) if x.dtype == jnp.float32 else x
            for k, x in zip(keys, leaves, strict=True)
        ]
    )


def native():
    """The native generator, codec included."""
    params = filled({**fresh(), "codec": props_native.codec_like(COMPONENTS, FEATURES)})
    spread = jnp.linspace(2.0, 0.2, COMPONENTS)
    return {**params, "codec": params["codec"]._replace(spread=spread)}


def write_native(path):
    """Writes it; returns the path."""
    props_native.save(path, native(), FLOW)
    return path


def write_lrm(path):
    """Writes a reconstructor on the codec that ships; returns the path."""
    codec = props_native.load()["codec"]
    params = filled(props_lrm.init(jax.random.key(0), EYE, FLOW, codec.basis.shape[0]))
    props_lrm.save(path, params, EYE, FLOW, weights.digest(codec))
    return path
