"""What a `config.yaml` of Hunyuan3D 2 says: its networks, its sampler, how pictures are prepared.

Configs are not trusted: what they claim is held to what can be meant before anything is built.
Letters: s side of a picture.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax3d import bounds, weights
from jax3d.fields.decoded import DecodedConfig
from jax3d.models import hunyuan3d_shape as shape
from jax3d.nn import dit, vecset
from jax3d.nn.dino import Dino, DinoConfig
from jax3d.nn.dit import Dit, DitConfig
from jax3d.nn.vecset import Vecset, VecsetConfig
from jax3d.types import Params
from jax3d.weights import WeightsError

STEPS, FEW = 50, 5
"""Of the sampler, as its authors take; few where steps were distilled as well ("turbo")."""
BORDER = 0.15
"""Share of the picture that is left free around the object."""


class Picture(NamedTuple):
    """How a picture is prepared."""

    framed: int
    """Side to which it is brought with its border, pixels."""
    border: float
    """Share of it that is left free."""
    side: int
    """Of what the encoder reads, pixels."""


class Design(NamedTuple):
    """A model before its weights."""

    dit: Dit
    vae: Vecset
    encoder: Dino
    picture: Picture
    levels: tuple[float, ...]
    """Times from 0, noise, to 1, a shape: one more than steps."""
    field: DecodedConfig
    """Of the assets."""


_MOST = 256
"""Layers, pixels of a patch and patches of a side that can be meant."""
_MOST_SIDE, _MOST_LATENTS = 4096, 1 << 15


def from_config(
    config: dict[str, Any], dtype: Any = jnp.float32, steps: int | None = None
) -> Design:
    """The model that a parsed `config.yaml` describes.

    Raises:
      ValueError: it lacks something, or asks for what is not supported.
    """
    _, params = _part(config, "model", "Hunyuan3DDiT")
    if params.get("time_factor", dit.UNIT) != dit.UNIT:
        raise WeightsError(f"time_factor = {weights.shown(params['time_factor'])}, not {dit.UNIT}")
    transformer = Dit(DitConfig(**weights.checked_fields(params, DitConfig)), dtype)
    vae = vae_of(config.get("vae"), dtype)
    encoder, side = _encoder(config, dtype)
    scheduler, settings = _part(config, "scheduler")
    steps = (FEW if scheduler.startswith("Consistency") else STEPS) if steps is None else steps
    _, processor = _part(config, "image_processor", "ImageProcessorV2")
    found = weights.checked(processor, {"size": int, "border_ratio": float | None})
    border = found.get("border_ratio")
    border = BORDER if border is None else border
    picture = Picture(found.get("size", 512), border, side)
    _demand_sound(transformer.config, vae.config, encoder.config, picture)
    made = (vae.config.num_latents, vae.config.embed_dim)
    times = tuple(map(float, levels(scheduler, settings, steps)))
    return Design(transformer, vae, encoder, picture, times, shape.field(*made))


def _part(
    config: dict[str, Any], name: str, demanded: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The class that a part of a config names, without its module, and its settings."""
    part = config.get(name)
    part = part if isinstance(part, dict) else {}
    target, params = part.get("target"), part.get("params", {})
    if not isinstance(target, str) or not isinstance(params, dict):
        raise WeightsError(f"{name} is no mapping with a target and params")
    kind = target.rpartition(".")[2]
    if demanded is not None and kind != demanded:
        raise WeightsError(f"{name} is a {weights.shown(kind)}, not a {demanded}")
    return kind, params


def vae_of(config: Any, dtype: Any = jnp.float32) -> Vecset:
    """The decoder of shapes that a section, or the `config.yaml` of a folder of its own, describes.

    Raises:
      ValueError: as `from_config`.
    """
    _, params = _part({"vae": config}, "vae", "ShapeVAE")
    needed = ("num_latents", "embed_dim", "width", "heads", "num_decoder_layers")
    if lost := [name for name in needed if name not in params]:
        raise WeightsError(f"vae lacks {', '.join(lost)}")
    c = VecsetConfig(**weights.checked_fields(params, VecsetConfig))
    bounds.check(c, "vae")
    if max(c.num_decoder_layers, c.num_freqs) > _MOST or c.num_latents > _MOST_LATENTS:
        raise WeightsError(
            f"{c.num_latents} latents through {c.num_decoder_layers} layers to points of "
            f"{c.num_freqs} octaves cannot be meant"
        )
    ratio = c.geo_decoder_downsample_ratio
    if c.width % c.heads or c.width % ratio or c.heads % ratio:
        raise WeightsError(
            f"a width of {c.width} that {c.heads} heads, and {ratio} for points, do not divide"
        )
    return Vecset(c, dtype)


def _encoder(config: dict[str, Any], dtype: Any) -> tuple[Dino, int]:
    """The encoder of pictures, and the side of those that it reads."""
    _, params = _part(config, "conditioner", "SingleImageEncoder")
    found = params.get("main_image_encoder")
    found = found if isinstance(found, dict) else {}
    kwargs = found.get("kwargs")
    inner = kwargs.get("config") if isinstance(kwargs, dict) else None
    if found.get("type") != "DinoImageEncoder" or not isinstance(inner, dict):
        kind = weights.shown(found.get("type"))
        raise WeightsError(f"the encoder is a {kind}; supported is DinoImageEncoder with a config")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    kinds = dict.fromkeys(names, int) | {"mlp_ratio": int, "layer_norm_eps": float}
    c = weights.checked(inner, kinds | {"use_swiglu_ffn": bool})
    if lost := sorted(set(kinds) - set(c)):
        raise WeightsError(f"the encoder's config lacks {', '.join(lost)}")
    fixed = {"use_cls_token": kwargs, "qkv_bias": inner}
    if wrong := [name for name, where in fixed.items() if where.get(name, True) is not True]:
        raise WeightsError(f"an encoder without {wrong[0]} is not supported")
    side = weights.checked(kwargs, {"image_size": int}).get("image_size", 224)
    if not 0 < c["patch_size"] <= _MOST or side % c["patch_size"] or not 0 < side <= _MOST_SIDE:
        raise WeightsError(f"a picture of {side} pixels in patches of {c['patch_size']}")
    wide = c["hidden_size"] * c["mlp_ratio"]
    swiglu = c.get("use_swiglu_ffn", False)
    return Dino(
        DinoConfig(
            patch_size=c["patch_size"],
            grid=c["image_size"] // c["patch_size"],
            hidden_size=c["hidden_size"],
            num_hidden_layers=c["num_hidden_layers"],
            num_attention_heads=c["num_attention_heads"],
            # Two thirds of the width have as many weights, gated; in steps of 8.
            intermediate_size=(wide * 2 // 3 + 7) // 8 * 8 if swiglu else wide,
            layer_norm_eps=c["layer_norm_eps"],
            layer_scale=True,
            swiglu=swiglu,
        ),
        dtype,
    ), side


def _demand_sound(d: DitConfig, v: VecsetConfig, e: DinoConfig, picture: Picture) -> None:
    bounds.check(d, "model")
    bounds.check(e, "encoder")
    layers = max(d.depth, d.depth_single_blocks, e.num_hidden_layers)
    if layers > _MOST or e.grid > _MOST or d.mlp_ratio > _MOST:
        raise WeightsError(f"networks of {layers} layers, or of their sizes, cannot be meant")
    for width, heads in (
        (d.hidden_size, d.num_heads),
        (e.hidden_size, e.num_attention_heads),
    ):
        if width % heads:
            raise WeightsError(f"a width of {width} that {heads} heads do not divide")
    if (d.in_channels, d.context_in_dim) != (v.embed_dim, e.hidden_size):
        raise WeightsError(
            f"the transformer makes latents of {d.in_channels} numbers told tokens of "
            f"{d.context_in_dim}; the decoder reads {v.embed_dim}, the encoder makes "
            f"{e.hidden_size}"
        )
    if not 0 < picture.framed <= _MOST_SIDE or not 0 <= picture.border < 1:
        raise WeightsError(
            f"a picture of {picture.framed} pixels with a border of {picture.border}"
        )


def abstract_params(design: Design) -> Params:
    """The shapes and dtypes of a model's weights, `{"dit", "vae", "encoder"}`."""
    seen = jax.ShapeDtypeStruct((1, design.picture.side, design.picture.side, 3), jnp.float32)
    return {
        "dit": dit.abstract_params(design.dit),
        "vae": vecset.abstract_params(design.vae),
        "encoder": jax.eval_shape(design.encoder.init, jax.random.key(0), seen)["params"],
    }


# Times.


def levels(scheduler: str, settings: dict[str, Any], steps: int) -> np.ndarray:
    """The times of a sampler, from 0 to 1.

    Args:
      scheduler: its authors' class: of flow matching, or of a flow whose steps were distilled.
      settings: of it.
      steps: as they count them. One that would stand still is left out: of flow matching the last.

    Raises:
      ValueError: it is another, or its settings cannot be meant.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling takes at least 1")
    kinds = {"num_train_timesteps": int, "pcm_timesteps": int, "shift": float}
    chosen = weights.checked(settings, kinds)
    trained, few = chosen.get("num_train_timesteps", 1000), chosen.get("pcm_timesteps", 50)
    if scheduler == "FlowMatchEulerDiscreteScheduler":
        shift = chosen.get("shift", 1.0)
        if shift <= 0 or settings.get("use_dynamic_shifting"):
            raise WeightsError(f"a shift of {shift:g}, or one that moves, is not supported")
        found = np.linspace(0.0, 1.0, steps)
        found = shift * found / (1 + (shift - 1) * found)
    elif scheduler == "ConsistencyFlowMatchEulerDiscreteScheduler":
        if not 1 <= steps <= few <= trained:
            raise WeightsError(f"{steps} steps of {few} phases of {trained} times")
        begins = np.maximum(np.arange(few) * (trained // few) - 1, 0)
        taken = np.linspace(0, few, steps, endpoint=False).astype(int)
        found = np.linspace(0.0, 1.0, trained)[begins][taken]
    else:
        raise WeightsError(f"the scheduler {weights.shown(scheduler)} is not known")
    return np.append(found[found < 1.0], 1.0)
