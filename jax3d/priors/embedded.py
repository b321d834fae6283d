"""The embedded critic: a small diffusion model of the prop world, shipped with the package.

One set of weights answers three kinds of question, because words and camera were dropped
independently in training: the bare caption (as photographs are taken: mostly from the front),
the caption with a view word (side, front, back, overhead), and the caption with the exact camera.
It works on 64x64 pixels and predicts the clean image on a cosine schedule.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import camera as cameras
from jax3d import diffusion, weights
from jax3d.data import props
from jax3d.nn.props_unet import PropsUNet, UNetConfig, WordTable
from jax3d.priors.base import Critic, Prior
from jax3d.types import Camera, Cond, Condition, Key, Params, Prompt

SIZE = 64
"""Side of the images, pixels."""
NAME = "embedded prop critic"
"""Of the critic, for people."""
WEIGHTS = Path(__file__).parent / "weights" / "props.safetensors"


def init(key: Key, config: UNetConfig) -> Params:
    """Fresh weights: `{"words": ..., "unet": ...}`."""
    k_words, k_unet = jax.random.split(key)
    ids = jnp.zeros((1, props.MAX_WORDS), jnp.int32)
    side = SIZE // config.patch
    return {
        "words": WordTable(config.words, config.word_width).init(k_words, ids)["params"],
        "unet": PropsUNet(config).init(
            k_unet,
            jnp.zeros((1, SIZE, SIZE, 3)),
            jnp.zeros((1,)),
            jnp.zeros((1, props.MAX_WORDS, config.word_width)),
            jnp.zeros((1, side, side, 6)),
            jnp.zeros((1, POSE)),
            jnp.ones((1,), bool),
        )["params"],
    }


POSE = 9
"""Numbers in the pose embedding's input."""


def pose_features(camera: Camera) -> Float[Array, "b 9"]:
    """Three harmonics of the azimuth, the elevation, and how far the object is for its lens."""
    turns = [f(k * camera.azimuth) for k in (1, 2, 3) for f in (jnp.sin, jnp.cos)]
    zoom = 5.0 * (camera.radius * jnp.sin(camera.fovy / 2) / 0.95 - 1.07)
    return jnp.stack([*turns, jnp.sin(camera.elevation), jnp.cos(camera.elevation), zoom], -1)


def plucker(camera: Camera, side: int) -> Float[Array, "b side side 6"]:
    """Direction and moment (origin x direction) of the ray through each cell's centre."""
    rays = cameras.rays(camera, (side, side))
    return jnp.concatenate([rays.directions, jnp.cross(rays.origins, rays.directions)], -1)


def predict_x0(
    params: Params,
    config: UNetConfig,
    z_t: Float[Array, "b H W 3"],
    t: Float[Array, " b"],
    words: Float[Array, "b L D"],
    camera: Camera | None,
    camera_known: Array | None = None,
) -> Float[Array, "b H W 3"]:
    """The network's own prediction; `camera_known [b]` masks cameras, None tells all given."""
    b, side = z_t.shape[0], z_t.shape[1] // config.patch
    if camera is None:
        rays, pose = jnp.zeros((b, side, side, 6)), jnp.zeros((b, POSE))
        camera_known = jnp.zeros((b,), bool)
    else:
        rays, pose = plucker(camera, side), pose_features(camera)
        camera_known = jnp.ones((b,), bool) if camera_known is None else camera_known
    return PropsUNet(config).apply(
        {"params": params["unet"]}, z_t, t, words, rays, pose, camera_known
    )


def props_prior(config: UNetConfig | None = None) -> Prior:
    """The critic as a `Prior`; z are pixels in [-1, 1] and t counts 1000 steps."""
    config = config or shipped_config()
    alphas_cumprod = diffusion.cosine()

    def encode(params, key, rgb):
        del params, key
        return 2.0 * rgb - 1.0

    def decode(params, z):
        del params
        return (z + 1.0) / 2.0

    def denoise(params, z_t, t, text, camera):
        x0 = predict_x0(params, config, z_t, t.astype(jnp.float32), text.tokens, camera)
        alpha, sigma = diffusion.noise_level(alphas_cumprod, t, z_t.ndim)
        return diffusion.x0_and_eps(x0, z_t, alpha, sigma, "x0")[1]

    return Prior(encode, decode, denoise, alphas_cumprod, SIZE)


def load(path: Path | str = WEIGHTS) -> Params:
    """Weights from a safetensors file, float32; its `.json` neighbour holds the `UNetConfig`.

    Raises:
      weights.WeightsError: The file is missing, damaged or made for another network.
    """
    return weights.load_tree(path, _described(Path(path))[1])


def save(path: Path | str, params: Params, config: UNetConfig) -> None:
    """Writes weights as float16 safetensors, with their `UNetConfig` beside them."""
    path = Path(path)
    weights.save_safetensors(params, path, dtype=np.float16)
    path.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def read_config(path: Path) -> UNetConfig:
    """The `UNetConfig` of a weight file.

    Raises:
      weights.WeightsError: There is none, it has unknown fields, or describes no network.
    """
    return _described(path)[0]


def _described(path: Path) -> tuple[UNetConfig, Params]:
    try:
        return weights.described(path.with_suffix(".json"), _config_of, _abstract_params)
    except weights.WeightsError as error:
        raise weights.WeightsError(
            f"{error}; `jax3d train prior` writes a description of its network beside the weights"
        ) from error


def _config_of(fields: dict[str, Any]) -> UNetConfig:
    config = weights.settings(fields, UNetConfig)
    levels = {len(config.widths), len(config.blocks), len(config.attention)}
    if len(levels) > 1 or not config.widths or sum(config.blocks) > _MOST_BLOCKS:
        raise weights.WeightsError(
            f"widths, blocks and attention are one entry a level, and blocks are at most "
            f"{_MOST_BLOCKS} in all; here {weights.shown(fields)}"
        )
    return config


_MOST_BLOCKS = 64
"""Blocks that are traced; the shipped network has 4."""


def _abstract_params(config: UNetConfig) -> Params:
    return jax.eval_shape(functools.partial(init, config=config), jax.random.key(0))


@functools.cache
def shipped_config() -> UNetConfig:
    """The `UNetConfig` of the weights that ship with the package."""
    return read_config(WEIGHTS)


def condition(params: Params, prompt: Prompt) -> Condition:
    """A prompt as it is and worded for each view, and the unconditional or negative one.

    Raises:
      ValueError: See `data.props.word_ids`.
    """
    table = params["words"]["embedding"]

    def embed(ids):
        return Cond(tokens=table[ids] * (ids > 0)[..., None])

    plain = props.word_ids([prompt.text])[0]
    count = int((plain > 0).sum())
    if count == props.MAX_WORDS:
        raise ValueError(
            f"the prompt {prompt.text!r} leaves no room for a view word; drop one of its words"
        )
    worded = np.tile(plain, (len(props.VIEW_WORDS), 1))
    worded[:, count] = props.word_ids(list(props.VIEW_WORDS))[:, 0]
    null = props.word_ids([prompt.negative])[0] if prompt.negative else np.zeros_like(plain)
    return Condition(
        views=embed(jnp.asarray(worded)),
        null=embed(jnp.asarray(null)),
        plain=embed(jnp.asarray(plain)),
    )


def recognises(path: Path) -> bool:
    """Whether it is a weight file that `jax3d train prior` wrote."""
    return path.suffix == ".safetensors" and path.with_suffix(".json").is_file()


def open(path: Path | str = WEIGHTS, dtype: Any = jnp.float32) -> Critic:
    """The embedded critic, ready to be asked; it computes in float32, whatever `dtype` says.

    Raises:
      weights.WeightsError: See `load`.
    """
    del dtype
    config, like = _described(Path(path))
    params, prior = weights.load_tree(path, like), props_prior(config)
    digest = weights.digest([params, prior.alphas_cumprod], dataclasses.asdict(config))
    return Critic(prior, params, functools.partial(condition, params), NAME, digest)
