"""Hunyuan3D 2 (https://arxiv.org/abs/2501.12202), shapes: a picture to an asset, from its folders.

A flow transformer takes latents from noise to a shape by Euler's method, told what DINOv2 sees in
the picture; `hunyuan3d_shape` makes them an asset. Networks that were distilled are told the scale
of their guidance, all others are guided. Letters: n latents, d their width, m tokens, e their
width, s side of a picture.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import bounds, diffusion, image, resample, weights
from jax3d.fields.decoded import DecodedConfig, decoded
from jax3d.models import hunyuan3d_shape as shape
from jax3d.models import lrm
from jax3d.models.base import Model
from jax3d.nn import dino, dit, vecset
from jax3d.nn.dino import Dino, DinoConfig
from jax3d.nn.dit import Dit, DitConfig
from jax3d.nn.vecset import Vecset, VecsetConfig
from jax3d.types import Cond, Condition, Key, Params, Prompt
from jax3d.weights import Flat, WeightsError

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


# The model.


def model(
    design: Design, params: Params, condition: Callable[[Prompt], Condition], name: str
) -> Model:
    """The model; its guidance is `knobs.model_scale`, for which its authors take 5.

    Args:
      design: what it is made of.
      params: `{"dit", "vae", "encoder"}`, of `abstract_params`.
      condition: of `reader`.
      name: for people.
    """
    transformer, vae, times = design.dit, design.vae, jnp.asarray(design.levels, jnp.float32)
    asked = {name: params[name] for name in ("dit", "vae")}
    start = (design.field.latents, design.field.width)

    def begin(key: Key, cond: Condition) -> Float[Array, "n d"]:
        del cond
        return jax.random.normal(key, start)

    def advance(params, z, i, cond, knobs):
        v = velocity(transformer, params["dit"], z, times[i], cond, knobs.model_scale.at(i))
        return moved(z, v, i, times)

    configs = (transformer.config, vae.config, design.encoder.config, design.field)
    facts = [dataclasses.asdict(config) for config in configs]

    def decode(params, z):
        return shape.decode(shape.told_by(vae, params["vae"], z), z, design.field)

    return Model(
        field=design.field,
        representation=decoded(design.field)._replace(mesh=shape.mesher(vae, params["vae"])),
        params=asked,
        condition=condition,
        begin=begin,
        advance=advance,
        steps=len(design.levels) - 1,
        decode=decode,
        name=name,
        digest=weights.digest(params, [*facts, design.picture, design.levels]),
    )


def velocity(
    transformer: Dit,
    params: Params,
    z: Float[Array, "n d"],
    t: Float[Array, ""],
    cond: Condition,
    scale: Float[Array, ""],
) -> Float[Array, "n d"]:
    """The transformer's guided velocity: told the scale, or by both halves in one batch."""
    run = partial(transformer.apply, {"params": params})
    if transformer.config.guidance_embed:
        return run(z[None], t[None], cond.plain.tokens[None], scale[None])[0]
    told = jnp.stack([cond.null.tokens, cond.plain.tokens])
    null, plain = run(jnp.stack([z, z]), jnp.stack([t, t]), told)
    return diffusion.cfg(null, plain, scale)


def moved(
    z: Float[Array, "*n"], v: Float[Array, "*n"], i: Int[Array, ""], times: Float[Array, " t"]
) -> Float[Array, "*n"]:
    """Latents after step i of Euler's method."""
    return z + (times[i + 1] - times[i]) * v


# Pictures.


def reader(design: Design, params: Params) -> Callable[[Prompt], Condition]:
    """How a prompt's picture becomes what the transformer is told: all tokens, or zeros.

    `params` are the encoder's. Without transparency the picture's ground must be plain.
    """

    @jax.jit
    def look(params, seen: Float[Array, "s s 3"]) -> Float[Array, "m e"]:
        tokens = design.encoder.apply({"params": params}, dino.normalise(seen)[None])
        return tokens[0].astype(jnp.float32)

    def condition(prompt: Prompt) -> Condition:
        seen = prepare(lrm.demand_picture(prompt, "Hunyuan3D"), design.picture)
        plain = look(params, jnp.asarray(seen))
        return Condition(Cond(plain), Cond(jnp.zeros_like(plain)))

    return condition


def prepare(picture: Float[np.ndarray, "H W c"], how: Picture) -> Float[np.ndarray, "s s 3"]:
    """A picture as the encoder reads it: the object on the middle of a white square.

    Twice resampled, as the network learnt them: cubic to the framed side, linear to the encoder's.

    Raises:
      ValueError: there is no transparency, and the ground is not plain; or nothing is there.
    """
    square = lrm.squared(image.cut_out(picture), 1 - how.border, background=1.0)
    framed = resample.antialiased(len(square), how.framed, "cubic")
    framed = np.clip(resample.grid(framed, framed, square), 0.0, 1.0)
    last = resample.antialiased(how.framed, how.side, "linear")
    return resample.grid(last, last, framed)


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


# Configs.

_MOST = 256
"""Layers, and pixels of a patch or a grid of positions, that can be meant."""
_MOST_SIDE = 4096


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


def _part(config: Any, name: str, demanded: str | None = None) -> tuple[str, dict[str, Any]]:
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
    return Vecset(VecsetConfig(**weights.checked_fields(params, VecsetConfig)), dtype)


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
    for config, name in ((d, "model"), (v, "vae"), (e, "encoder")):
        bounds.check(config, name)
    layers = max(d.depth, d.depth_single_blocks, v.num_decoder_layers, e.num_hidden_layers)
    if layers > _MOST or e.grid > _MOST or v.num_freqs > 32 or d.mlp_ratio > 64:
        raise WeightsError(f"networks of {layers} layers, or of sizes, that cannot be meant")
    ratio = v.geo_decoder_downsample_ratio
    shares = ((d.hidden_size, d.num_heads), (v.width, ratio), (v.heads, ratio))
    if any(a % b for a, b in (*shares, (v.width, v.heads), (e.hidden_size, e.num_attention_heads))):
        raise WeightsError("a width that its heads do not divide")
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


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder with Hunyuan3D's `config.yaml`, or one of such folders."""
    return bool(_folders(path))


def _folders(path: Path) -> list[Path]:
    def has(folder: Path) -> bool:
        config = folder / "config.yaml"
        if not config.is_file():
            return False
        with config.open("rb") as file:
            return b"Hunyuan3DDiT" in file.read(1 << 16)

    return [path] if has(path) else sorted(filter(has, path.glob("hunyuan3d-dit-*")))


def open(
    path: Path, dtype: Any = jnp.float32, steps: int | None = None, vae: Path | None = None
) -> Model:
    """The model of a folder with `config.yaml` and one file of weights.

    Args:
      path: e.g. `.../hunyuan3d-dit-v2-0`, or what holds one such folder.
      dtype: of the networks' weights and arithmetic; norms, softmax, times, latents, what tells
        points their values, and the assets are float32 always.
      steps: as its authors count them; None takes `STEPS` or `FEW`.
      vae: the folder of another decoder, e.g. `.../hunyuan3d-vae-v2-0-turbo`.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others, or `path`
        holds several models.
    """
    first, *others = _folders(path)
    if others:
        names = ", ".join(folder.name for folder in (first, *others))
        raise WeightsError(f"{path} holds several models: give the folder of one of {names}")
    design, params = load(first, dtype, steps, vae)
    name = f"Hunyuan3D 2, {len(design.levels) - 1} steps, from {first}"
    return model(design, params, reader(design, params["encoder"]), name)


def load(
    folder: Path, dtype: Any = jnp.float32, steps: int | None = None, vae: Path | None = None
) -> tuple[Design, Params]:
    """A folder's model and its weights; arguments and errors are those of `open`."""
    build = partial(from_config, dtype=dtype, steps=steps)
    design, like = weights.described(folder / "config.yaml", build, abstract_params)
    file = _weights_file(folder)
    tensors = names(weights.load(file))
    if vae is None:
        return design, weights.to_flax(tensors, like, file)
    other, own = weights.described(
        vae / "config.yaml", partial(vae_of, dtype=dtype), vecset.abstract_params
    )
    read, made = ((c.num_latents, c.embed_dim) for c in (other.config, design.vae.config))
    if read != made:
        raise WeightsError(f"{vae}: it decodes {read} latents and numbers of each, not {made}")
    tensors = {k: v for k, v in tensors.items() if not k.startswith("vae.")}
    params = weights.to_flax(tensors, {k: v for k, v in like.items() if k != "vae"}, file)
    file = _weights_file(vae)
    params["vae"] = weights.to_flax(decoding(weights.load(file)), own, file)
    return design._replace(vae=other), params


def _weights_file(folder: Path) -> Path:
    pickles = (folder / name for name in ("model.ckpt", "model.fp16.ckpt"))
    try:
        return weights.find_weights(folder, "model")
    except WeightsError:
        if (found := next(filter(Path.is_file, pickles), None)) is None:
            raise
        return found


def abstract_params(design: Design) -> Params:
    """The shapes and dtypes of a model's weights, `{"dit", "vae", "encoder"}`."""
    seen = jax.ShapeDtypeStruct((1, design.picture.side, design.picture.side, 3), jnp.float32)
    return {
        "dit": dit.abstract_params(design.dit),
        "vae": vecset.abstract_params(design.vae),
        "encoder": jax.eval_shape(design.encoder.init, jax.random.key(0), seen)["params"],
    }


_ENCODER = "conditioner.main_image_encoder.model."


def names(tensors: Flat) -> Flat:
    """A checkpoint's tensors under our names."""
    parts = {"model.": "dit.", "vae.": "vae.", _ENCODER: "encoder."}
    own: dict[str, Flat] = {part: {} for part in parts}
    rest = {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.startswith(part)), None)
        (rest if part is None else own[part])[name.removeprefix(part or "")] = tensor
    own["vae."], own[_ENCODER] = decoding(own["vae."]), dino.from_transformers(own[_ENCODER])
    return rest | {parts[part] + k: v for part, flat in own.items() for k, v in flat.items()}


def decoding(tensors: Flat) -> Flat:
    """An autoencoder's tensors without those of its encoder, which needs a surface to read."""
    return {k: v for k, v in tensors.items() if not k.startswith(("encoder.", "pre_kl."))}
