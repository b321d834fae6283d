"""Shap-E (https://arxiv.org/abs/2305.02463) from diffusers' folders: text or a picture to an asset.

A transformer samples latents by Heun's method; `shap_e_renderer` makes them a small network, which
is the asset (`fields.nerstf`): a radiance field and a textured surface in one. Letters: n latents,
d their width, m tokens that tell, e their width, s side of a picture.
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

from jax3d import diffusion, weights
from jax3d.diffusion import Grid, HeunState, Prediction
from jax3d.fields import nerstf
from jax3d.fields.nerstf import NerstfConfig
from jax3d.image import squared
from jax3d.models import lrm, shap_e_renderer
from jax3d.models.base import Model
from jax3d.models.shap_e_renderer import Tables
from jax3d.nn import clip_image, clip_text, prior_transformer, tokenizer
from jax3d.nn.prior_transformer import PriorTransformer
from jax3d.priors import schedulers
from jax3d.types import Cond, Condition, Key, Params, Prompt
from jax3d.weights import WeightsError

STEPS = 64
"""Of the sampler, as its authors take; the network is called twice in each but the last."""
BACKGROUND, SHARE = 1.0, 0.8
"""Grey behind an object that was cut out, and how much of the picture it spans; ours."""


class Sampling(NamedTuple):
    """How latents are drawn."""

    grid: Grid
    start: float
    """Standard deviation of the noise to start from."""
    prediction: Prediction
    clip: float | None
    """Of estimates of the clean latents."""


class Design(NamedTuple):
    """A model before its weights."""

    prior: PriorTransformer
    sampling: Sampling
    field: NerstfConfig
    """Of the assets."""
    tables: Tables
    """By which they are meshed."""


class Reader(NamedTuple):
    """How a prompt becomes what the transformer is told."""

    condition: Callable[[Prompt], Condition]
    width: int
    """Of a token."""
    digest: str
    """Of what decides."""
    scale: float
    """Of the guidance, in diffusers' pipelines."""


# The model.


def model(design: Design, params: Params, reader: Reader, name: str) -> Model:
    """Of 2N - 1 steps, each a call of the transformer, for N of the sampler.

    Its guidance is `knobs.model_scale`.

    Args:
      design: what it is made of.
      params: `{"prior", "renderer"}`, the latter of `shap_e_renderer.load`.
      reader: of its prompts.
      name: for people.
    """
    prior, sampling, field, tables = design
    shape = (prior.config.num_embeddings, prior.config.embedding_dim)

    def begin(key: Key, cond: Condition) -> HeunState:
        del cond
        return diffusion.heun_start(sampling.start * jax.random.normal(key, shape))

    def advance(params, z, i, cond, knobs):
        at = diffusion.heun_level(i, sampling.grid)
        output = guided(prior, params["prior"], z.z, at.t, cond, knobs.model_scale.at(i))
        _, eps = diffusion.estimate(output, z.z, at, sampling.prediction, sampling.clip)
        return diffusion.heun_step(z, eps, i, sampling.grid)

    facts = [dataclasses.asdict(prior.config), dataclasses.asdict(field)]
    facts += [sampling.start, sampling.prediction, sampling.clip, reader.digest]
    return Model(
        field=field,
        representation=nerstf.nerstf(field)._replace(
            mesh=partial(shap_e_renderer.mesh, tables=tables)
        ),
        params=params,
        condition=reader.condition,
        begin=begin,
        advance=advance,
        steps=2 * len(sampling.grid.t) - 1,
        decode=lambda params, z: shap_e_renderer.decode(params["renderer"], z.z),
        name=name,
        digest=weights.digest([params, sampling.grid, tables], facts),
        scale=reader.scale,
    )


def guided(
    prior: PriorTransformer,
    params: Params,
    z: Float[Array, "n d"],
    t: Float[Array, ""],
    cond: Condition,
    scale: Float[Array, ""],
) -> Float[Array, "n d"]:
    """The transformer's estimate under classifier-free guidance, both halves in one batch."""
    told = jnp.stack([cond.null.tokens, cond.plain.tokens])
    both, times = jnp.broadcast_to(z, (2, *z.shape)), jnp.broadcast_to(t, (2,))
    # The rest of the output are variances, which nobody reads.
    null, plain = prior.apply({"params": params}, both, times, told)[..., : z.shape[-1]]
    return diffusion.cfg(null, plain, scale)


# Prompts.


def read_texts(folder: Path, dtype: Any) -> Reader:
    """The reader of a folder with `text_encoder/` and `tokenizer/`."""
    tower, params = clip_text.load(folder / "text_encoder", dtype)
    c = tower.config
    if not c.with_projection:
        raise WeightsError(f"{folder / 'text_encoder'}: a tower without a projection")
    words = tokenizer.load(folder / "tokenizer", c.max_position_embeddings, words=c.vocab_size)

    @jax.jit
    def embed(params, ids: Int[Array, "b l"]) -> Float[Array, "b 1 e"]:
        found = tower.apply({"params": params}, ids).text_embeds.astype(jnp.float32)
        found = found / jnp.linalg.norm(found, axis=-1, keepdims=True)
        return (found * c.projection_dim**0.5)[:, None]

    def condition(prompt: Prompt) -> Condition:
        if prompt.image is not None:
            raise ValueError("this Shap-E reads text alone; leave the picture out")
        if not prompt.text.strip():
            raise ValueError("the prompt is empty: say what to make")
        for text in (prompt.text, prompt.negative):
            if (count := words.count(text)) > words.room:
                raise ValueError(
                    f"{weights.shown(text)} has {count} tokens; Shap-E reads {words.room}"
                )
        plain, null = embed(params, jnp.asarray(words.ids([prompt.text, prompt.negative])))
        return Condition(Cond(plain), Cond(null if prompt.negative else jnp.zeros_like(null)))

    return Reader(condition, c.projection_dim, weights.digest(params, _facts(c)), 4.0)


def read_pictures(folder: Path, dtype: Any) -> Reader:
    """The reader of a folder with `image_encoder/`."""
    tower, params = clip_image.load(folder / "image_encoder", dtype)
    c = tower.config

    @jax.jit
    def embed(params, image: Float[Array, "s s 3"]) -> Float[Array, "m e"]:
        seen = tower.apply({"params": params}, clip_image.normalise(image)[None])
        return seen.last_hidden_state[0, 1:].astype(jnp.float32)

    def condition(prompt: Prompt) -> Condition:
        image = picture(lrm.demand_picture(prompt, "this Shap-E"), c.image_size)
        plain = embed(params, jnp.asarray(image))
        return Condition(Cond(plain), Cond(jnp.zeros_like(plain)))

    return Reader(condition, c.hidden_size, weights.digest(params, _facts(c)), 3.0)


def _facts(config: Any) -> dict[str, Any]:
    """A tower's settings, without the types that are seen in its weights."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "dtype"}


def picture(image: Float[np.ndarray, "H W c"], side: int) -> Float[np.ndarray, "s s 3"]:
    """A picture as the encoder reads it.

    What is not transparent is laid on the middle of a white square; without transparency the middle
    square of the picture is taken.
    """
    if image.shape[-1] == 4 and image[..., 3].min() < 1.0:
        image = squared(image, SHARE, BACKGROUND)
    return clip_image.picture(image[..., :3], side)


# Folders.


def recognises(path: Path) -> bool:
    """Whether it is a folder of Shap-E in diffusers' layout."""
    return (path / "prior").is_dir() and (path / "shap_e_renderer").is_dir()


def open(path: Path, dtype: Any = jnp.float32, steps: int = STEPS) -> Model:
    """The model of a folder in diffusers' layout, by text or by picture as it has an encoder.

    Args:
      path: with `prior/`, `scheduler/`, `shap_e_renderer/`, and `text_encoder/` and `tokenizer/`,
        or `image_encoder/`.
      dtype: of the transformer's and the encoder's weights and arithmetic; norms, softmax, latents
        and assets are float32 always.
      steps: of the sampler.

    Raises:
      ValueError: a file is missing, damaged, unsupported or does not fit the others.
    """
    texts = (path / "text_encoder").is_dir()
    reader = (read_texts if texts else read_pictures)(path, dtype)
    design, params = load(path, dtype, steps)
    if (width := design.prior.config.embedding_proj_dim) != reader.width:
        raise WeightsError(
            f"{path}: the prior is told tokens of width {width}, its encoder makes {reader.width}: "
            "the folder mixes parts of different models"
        )
    what = "texts" if texts else "pictures"
    return model(design, params, reader, f"Shap-E of {what}, {steps} steps, from {path}")


def load(path: Path, dtype: Any = jnp.float32, steps: int = STEPS) -> tuple[Design, Params]:
    """All but the reader; arguments and errors are those of `open`."""
    sampling = read_sampling(path / "scheduler", steps)
    prior, prior_params = prior_transformer.load(path / "prior", dtype)
    renderer, renderer_params, tables = shap_e_renderer.load(path / "shap_e_renderer")
    made = (prior.config.num_embeddings, prior.config.embedding_dim)
    if made != renderer.latents:
        raise WeightsError(
            f"{path}: the prior makes {made[0]} latents of {made[1]} numbers, the renderer reads "
            f"{renderer.latents[0]} of {renderer.latents[1]}: the folder mixes parts of different "
            "models"
        )
    params = {"prior": prior_params, "renderer": renderer_params}
    return Design(prior, sampling, renderer.field, tables), params


def read_sampling(folder: Path, steps: int) -> Sampling:
    """The sampler of a `scheduler/` folder.

    Raises:
      ValueError: a file is missing, damaged, or asks for what is not supported.
    """
    path = folder / "scheduler_config.json"
    config = weights.read_config(path)
    if (kind := config.get("_class_name")) != "HeunDiscreteScheduler":
        raise WeightsError(f"{path}: {weights.shown(kind)}; Shap-E is sampled by Heun's method")
    schedule = schedulers.read(folder, bounded=True)
    found, clip = schedule.sampler(steps), schedulers.clip(config)
    if callable(clip):
        raise WeightsError(f"{path}: thresholding is not supported")
    return Sampling(found.grid, found.start, schedule.prediction, clip)
