"""What models from pictures to a triplane in one pass have in common.

Large reconstruction models (https://arxiv.org/abs/2311.04400) put a network of the picture before a
small decoder of points. Here the decoder becomes part of each asset: what a model leaves are the
parameters of a `fields.triplane`, to be rendered, meshed and refined like any other.

Letters: s side of the picture that a network reads, r texels along a plane, c channels.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import bounds, weights
from jax3d.fields.triplane import TriplaneConfig, triplane
from jax3d.models.base import Model
from jax3d.nn import dino, lrm
from jax3d.types import Params, Prompt
from jax3d.weights import Flat, WeightsError

LATTICE = 64
"""Points along an axis of the lattice by which renders skip empty space: about one a texel."""


class Design(NamedTuple):
    """A model before its weights."""

    network: lrm.Network
    field: TriplaneConfig
    """Of the assets; its network is the decoder."""
    side: int
    """Of the picture that the network reads, pixels."""
    demand: Callable[[Prompt, str], Any]
    """`demand(prompt, name of the model) -> [H, W, 3 or 4]`, the prompt's picture, or `[v, H, W,
    3 or 4]` for a network of v views; raises `ValueError` where the prompt has none such"""
    picture: Callable[[Any], Any]
    """`picture([H, W, 3 or 4]) -> [s, s, 3]`, or of views: what the network is shown, on the
    host"""
    planes: Callable[[Params, Any], Any]
    """`planes(params, image[s, s, 3]) -> [3, r, r, c]`, or of views: of `network`, by the pairs of
    axes and in the frame of `fields.triplane`"""


def field(
    texels: int, channels: int, hidden: int, layers: int, radius: float, samples: int
) -> TriplaneConfig:
    """A triplane as these models have it, without what differs between them.

    The planes' texels are cells (torch's `grid_sample` without aligned corners) and end in zero: as
    ours are points, corner to corner, a border of zeros and a span of a texel more say the same.

    Args:
      texels: r, of the network's planes.
      channels: of each plane.
      hidden: width of the decoder.
      layers: hidden layers of the decoder.
      radius: half side of the cube of the object, metres.
      samples: along each ray.
    """
    return TriplaneConfig(
        resolution=texels + 2,
        channels=channels,
        levels=1,
        hidden=hidden,
        layers=layers,
        bound=radius,
        shape="box",
        span=radius * (texels + 1) / texels,
        blob_density=0.0,
        samples=samples,
        lattice=LATTICE,
    )


_MOST = 4096
"""Pixels of a picture's side, and samples of a ray, that can be meant."""


def checked(design: Design) -> Design:
    """The same, once its numbers are known to be sound.

    Raises:
      ValueError: they are not.
    """
    bounds.check(design.field, "field")
    patch = design.network.encoder.patch_size
    if not 0 < design.side <= _MOST or design.side % patch or design.field.samples > _MOST:
        raise WeightsError(
            f"a picture of {design.side} pixels in patches of {patch}, or {design.field.samples} "
            "samples of a ray, cannot be meant"
        )
    return design


def model(design: Design, params: Params, name: str) -> Model:
    """The model of one step; its weights are those of `fill`."""
    field = design.field
    texels = field.resolution - 2

    def condition(prompt: Prompt) -> Float[Array, "*v s s 3"]:
        return jnp.asarray(design.picture(design.demand(prompt, name)))

    def begin(key, image):
        del key, image
        return jnp.zeros((3, texels, texels, field.channels))

    def advance(params, z, i, image, knobs):
        del z, i, knobs
        return design.planes(params["network"], image)

    def decode(params, z):
        padded = jnp.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return {"planes": [padded], "mlp": [dict(layer) for layer in params["decoder"]]}

    facts = [dataclasses.asdict(field), design.side, type(design.network).__name__]
    return Model(
        field=field,
        representation=triplane(field),
        params=params,
        condition=condition,
        begin=begin,
        advance=advance,
        steps=1,
        decode=decode,
        name=name,
        digest=weights.digest(params, facts),
    )


# Weights.


def abstract_params(design: Design) -> Params:
    """The shapes of a model's weights under one roof: the network's, and `decoder_0`, ..."""
    f = design.field
    widths = (3 * f.channels, *(f.hidden,) * f.layers, 4)
    return lrm.abstract_params(design.network) | abstract_perceptron("decoder", widths)


def fill(tensors: Flat, like: Params, source: Any) -> Params:
    """A model's weights, `{"network": ..., "decoder": [{"w", "b"}, ...]}`.

    Arguments and errors are those of `weights.to_flax`.
    """
    return split(weights.to_flax(tensors, like, source))


def split(tree: Params) -> Params:
    """What `abstract_params` describes, as the model has it: network and decoder apart."""
    network = {k: v for k, v in tree.items() if not k.startswith("decoder_")}
    return {"network": network, "decoder": perceptron(tree, "decoder")}


def abstract_perceptron(name: str, widths: Sequence[int]) -> Params:
    """The shapes of a perceptron's layers, `{name}_0`, ..., in checkpoints."""
    return {
        f"{name}_{i}": {
            "kernel": jax.ShapeDtypeStruct((a, b), jnp.float32),
            "bias": jax.ShapeDtypeStruct((b,), jnp.float32),
        }
        for i, (a, b) in enumerate(pairwise(widths))
    }


def perceptron(tree: Params, name: str) -> list[Params]:
    """The layers of `abstract_perceptron` as `fields.triplane.perceptron` reads them."""
    count = sum(k.rpartition("_")[0] == name for k in tree)
    layers = [tree[f"{name}_{i}"] for i in range(count)]
    return [{"w": layer["kernel"], "b": layer["bias"]} for layer in layers]


def encoder_names(tensors: Flat, prefix: str, rename: Callable[[Flat], Flat]) -> Flat:
    """The tensors of the image encoder, which begin with `prefix`, under our names."""
    inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {f"encoder.{k}": v for k, v in rename(inner).items()}


def every_other(match: re.Match) -> str:
    """`decoder.3.` for a match of the decoder's layer 6: every other one is an activation."""
    return f"decoder.{int(match[1]) // 2}."


_ATTENTION = (
    (r"_attn\.([qkv])_proj_weight$", r"_attn.to_\1.weight"),
    (r"_attn\.out_proj\.", "_attn.to_out.0."),
)


def attention_names(tensors: Flat) -> Flat:
    """Tensors of torch's `MultiheadAttention` under our names, joint projections split.

    Raises:
      WeightsError: a joint projection is not three alike.
    """
    flat: Flat = {}
    for name, tensor in tensors.items():
        if name.endswith("_attn.in_proj_weight"):
            stem = name.removesuffix("in_proj_weight")
            flat |= {f"{stem}to_{k}.weight": part for k, part in dino.split_qkv(name, tensor)}
        else:
            flat[dino.renamed(name, _ATTENTION)] = tensor
    return flat


# Pictures.


def demand_picture(prompt: Prompt, name: str) -> Float[np.ndarray, "H W c"]:
    """A prompt's picture.

    Raises:
      ValueError: there is none, or it is no picture with 3 or 4 channels in [0, 1].
    """
    if prompt.image is None:
        raise ValueError(f"{name} reads a picture; the prompt {prompt.text!r} has none")
    image = np.asarray(prompt.image)
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.size:
        raise ValueError(
            f"the picture is an array of shape {image.shape}; expected [H, W, 3] or [H, W, 4]"
        )
    return within(image)


def within(image: np.ndarray) -> np.ndarray:
    """The same in float32; raises `ValueError` where it is not in [0, 1]."""
    image = image.astype(np.float32)
    if not (np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0):
        raise ValueError(
            f"the picture's values lie between {image.min():g} and {image.max():g}; expected "
            "numbers from 0 to 1 (divide bytes by 255)"
        )
    return image
