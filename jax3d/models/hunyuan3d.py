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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import diffusion, image, resample, weights
from jax3d.fields.decoded import decoded
from jax3d.models import hunyuan3d_config as configs
from jax3d.models import hunyuan3d_shape as shape
from jax3d.models import lrm
from jax3d.models.base import Model
from jax3d.models.hunyuan3d_config import Design, Picture
from jax3d.nn import dino, vecset
from jax3d.nn.dit import Dit
from jax3d.types import Cond, Condition, Key, Params, Prompt
from jax3d.weights import Flat, WeightsError

SCALE = 5.0
"""Of the guidance, by its authors."""

# The model.


def model(
    design: Design, params: Params, condition: Callable[[Prompt], Condition], name: str
) -> Model:
    """The model; its guidance is `knobs.model_scale`.

    Args:
      design: what it is made of.
      params: `{"dit", "vae", "encoder"}`.
      condition: of `reader`.
      name: for people.
    """
    transformer, vae, times = design.dit, design.vae, jnp.asarray(design.levels, jnp.float32)
    start = (design.field.latents, design.field.width)

    def begin(key: Key, cond: Condition) -> Float[Array, "n d"]:
        del cond
        return jax.random.normal(key, start)

    def advance(params, z, i, cond, knobs):
        v = velocity(transformer, params["dit"], z, times[i], cond, knobs.model_scale.at(i))
        return moved(z, v, i, times)

    parts = (transformer.config, vae.config, design.encoder.config, design.field)
    facts = [dataclasses.asdict(config) for config in parts]

    def decode(params, z):
        return shape.decode(shape.told_by(vae, params["vae"], z), z, design.field)

    return Model(
        field=design.field,
        representation=decoded(design.field)._replace(mesh=shape.mesher(vae, params["vae"])),
        params={part: params[part] for part in ("dit", "vae")},
        condition=condition,
        begin=begin,
        advance=advance,
        steps=len(design.levels) - 1,
        decode=decode,
        name=name,
        digest=weights.digest(params, [*facts, design.picture, design.levels]),
        scale=SCALE,
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
    square = image.squared(image.cut_out(picture), 1 - how.border, background=1.0)
    framed = resample.antialiased(len(square), how.framed, "cubic")
    framed = np.clip(resample.grid(framed, framed, square), 0.0, 1.0)
    last = resample.antialiased(how.framed, how.side, "linear")
    return resample.grid(last, last, framed)


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
      steps: as its authors count them; None takes as many as they do.
      vae: the folder of another decoder, e.g. `.../hunyuan3d-vae-v2-0-turbo`.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others, or `path`
        holds several models.
    """
    first, *others = _folders(path)
    if others:
        listed = ", ".join(folder.name for folder in (first, *others))
        raise WeightsError(f"{path} holds several models: give the folder of one of {listed}")
    design, params = load(first, dtype, steps, vae)
    name = f"Hunyuan3D 2, {len(design.levels) - 1} steps, from {first}"
    return model(design, params, reader(design, params["encoder"]), name)


def load(
    folder: Path, dtype: Any = jnp.float32, steps: int | None = None, vae: Path | None = None
) -> tuple[Design, Params]:
    """A folder's model and its weights; arguments and errors are those of `open`."""
    build = partial(configs.from_config, dtype=dtype, steps=steps)
    design, like = weights.described(folder / "config.yaml", build, configs.abstract_params)
    file = _weights_file(folder)
    tensors = names(weights.load(file))
    if vae is None:
        return design, weights.to_flax(tensors, like, file)
    other, own = weights.described(
        vae / "config.yaml", partial(configs.vae_of, dtype=dtype), vecset.abstract_params
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
