"""The embedded native generator: text to an asset of the prop world, without a critic.

A rectified flow on the latents of `props_latents`, z_t = (1 - t) z + t noise, whose network
predicts the clean latents; a sample is integrated from noise by Euler's method in `steps` steps
(Liu et al. 2022), with classifier-free guidance. Trained by `train.native`.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax3d import weights
from jax3d.bounds import Count, Text
from jax3d.data import prop_fields, props
from jax3d.fields.grid import GridConfig
from jax3d.models import props_latents
from jax3d.models.base import Model
from jax3d.models.props_latents import PAINT_NUMBERS, Codec
from jax3d.nn.props_flow import FlowConfig, PropsFlow
from jax3d.priors.base import Critic
from jax3d.types import Cond, Condition, Key, Params, Prompt

NAME = "embedded native generator"
WEIGHTS = Path(__file__).parent / "weights" / "native.safetensors"
STEPS = 24
FIELD = GridConfig(props_latents.RESOLUTION, prop_fields.HALF)
"""What the latents decode to."""


@dataclasses.dataclass(frozen=True)
class NativeConfig:
    """The embedded native generator in a recipe."""

    steps: Count = STEPS
    """Of the sampler."""
    weights: Text = ""
    """Path of weights that `jax3d train native` wrote; by default those that ship."""

    asks_critic: ClassVar[bool] = False

    def build(self, critic: Critic | None) -> Model:
        """Opens it; raises `WeightsError` as `load` does."""
        del critic
        return open_model(self.weights or WEIGHTS, self.steps)


def init(key: Key, config: FlowConfig, components: int) -> Params:
    """Fresh weights of the network and its word table: `{"words": ..., "flow": ...}`."""
    k_words, k_flow = jax.random.split(key)
    z, told = jnp.zeros((components + PAINT_NUMBERS,)), jnp.zeros((config.embedding,))
    return {
        "words": jax.random.normal(k_words, (config.words, config.embedding)),
        "flow": PropsFlow(config).init(k_flow, z, jnp.zeros(()), told)["params"],
    }


def embed(table: Float[Array, "w e"], ids: Array) -> Float[Array, "*b L e"]:
    """Embeddings of word ids; id 0 pads and embeds to zero."""
    return table[ids] * (ids > 0)[..., None]


def gist(tokens: Float[Array, "*b L e"]) -> Float[Array, "*b e"]:
    """A caption as the network is told of it: the sum of its words, in a length of its own."""
    known = jnp.sum(jnp.any(tokens != 0, -1), -1, keepdims=True)
    return jnp.sum(tokens, -2) / jnp.sqrt(1.0 + known)


def predict(
    flow: Params,
    config: FlowConfig,
    spread: Float[Array, " d"],
    z_t: Float[Array, "*b d"],
    t: Float[Array, "*b"],
    told: Float[Array, "*b e"],
) -> Float[Array, "*b d"]:
    """Estimates the clean latents, told what they shall be.

    The network adds to the best linear guess, that of a Gaussian of standard deviation `spread`,
    in units of how far the truth is from it.
    """
    a, s = (1.0 - t)[..., None], t[..., None]
    deviation = jnp.sqrt((a * spread) ** 2 + s**2)
    out = PropsFlow(config).apply({"params": flow}, z_t / deviation, t, told)
    return a * (spread / deviation) ** 2 * z_t + s * spread / deviation * out


def spreads(codec: Codec) -> Float[Array, " e"]:
    """Standard deviations of the latents, paints included."""
    return jnp.concatenate([codec.spread, jnp.ones(PAINT_NUMBERS)])


def condition(table: Float[Array, "w e"], prompt: Prompt) -> Condition:
    """A prompt and the unconditional, or negative, one.

    Raises:
      ValueError: It has a picture, or words that the world does not know.
    """
    if prompt.image is not None:
        raise ValueError(f"the {NAME} reads text alone; leave the picture out")
    plain = props.word_ids([prompt.text])[0]
    null = props.word_ids([prompt.negative])[0] if prompt.negative else np.zeros_like(plain)
    plain, null = (Cond(embed(table, jnp.asarray(ids))) for ids in (plain, null))
    return Condition(plain=plain, null=null)


def advance(
    params: Params,
    z: Float[Array, " d"],
    i: Array,
    told: Float[Array, "2 e"],
    guidance_scale: Array,
    config: FlowConfig,
    steps: int,
) -> Float[Array, " d"]:
    """Euler's step `i` of `steps`: from noise level `1 - i / steps` to the next lower one.

    `told` is what the sample shall be, then what guidance (of `guidance_scale`) leads away from.
    """
    t = 1.0 - i / steps
    both, times = jnp.broadcast_to(z, (2, *z.shape)), jnp.broadcast_to(t, (2,))
    spread = spreads(params["codec"])
    seen, unseen = predict(params["flow"], config, spread, both, times, told)
    x0 = unseen + guidance_scale * (seen - unseen)
    # (z - x0) / t is the velocity.
    return z - (z - x0) / (t * steps)


def load(path: Path | str = WEIGHTS) -> Params:
    """Weights from a safetensors file; its `.json` neighbour describes them.

    Raises:
      weights.WeightsError: The file is missing, damaged or made for another network.
    """
    return weights.load_tree(path, _described(Path(path))[1])


def codec_like(components: int, features: int) -> Codec:
    """A codec of the given sizes, empty."""
    return Codec(
        mean=jnp.zeros(features),
        basis=jnp.zeros((components, features), jnp.int8),
        scale=jnp.zeros(components),
        spread=jnp.zeros(components),
        label_weight=jnp.zeros(()),
        cells=jnp.zeros(features, jnp.int32),
        materials=jnp.zeros(prop_fields.materials().shape),
    )


def save(path: Path | str, params: Params, config: FlowConfig) -> None:
    """Writes weights as float16 (the basis as it is), and beside them what describes them."""
    path = Path(path)
    weights.save_safetensors(params, path, dtype=np.float16)
    components, features = params["codec"].basis.shape
    described = {
        "network": dataclasses.asdict(config),
        "components": components,
        "features": features,
    }
    path.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")


def read_config(path: Path) -> tuple[FlowConfig, int, int]:
    """The network of a weight file, and its numbers of components and features.

    Raises:
      weights.WeightsError: There is none, or it has unknown fields.
    """
    return _described(path)[0]


def _described(path: Path) -> tuple[tuple[FlowConfig, int, int], Params]:
    try:
        return weights.described(path.with_suffix(".json"), _config_of, _abstract_params)
    except weights.WeightsError as error:
        raise weights.WeightsError(
            f"{error}; `jax3d train native` writes a description of its network beside the weights"
        ) from error


def _config_of(fields: dict[str, Any]) -> tuple[FlowConfig, int, int]:
    network = flow_of(fields)
    sizes = weights.checked(fields, {"components": int, "features": int})
    return network, sizes["components"], sizes["features"]


def flow_of(fields: dict[str, Any]) -> FlowConfig:
    """The flow of a parsed description; raises `WeightsError` where none can be meant."""
    network = weights.settings(fields.get("network"), FlowConfig)
    if network.blocks > MOST_BLOCKS:
        raise weights.WeightsError(f"{network.blocks} blocks cannot be meant")
    return network


MOST_BLOCKS = 64
"""Blocks that are traced; the shipped networks have 3."""


def _abstract_params(described: tuple[FlowConfig, int, int]) -> Params:
    config, components, features = described
    fresh = functools.partial(init, config=config, components=components)
    codec = jax.eval_shape(functools.partial(codec_like, components, features))
    return {**jax.eval_shape(fresh, jax.random.key(0)), "codec": codec}


def recognises(path: Path) -> bool:
    """Whether it is a weight file that `jax3d train native` wrote."""
    return path.suffix == ".safetensors" and path.with_suffix(".json").is_file()


def open(path: Path | str = WEIGHTS, dtype: Any = jnp.float32) -> Model:
    """The generator in its usual steps; it computes in float32, whatever `dtype` says.

    Raises:
      weights.WeightsError: See `load`.
    """
    del dtype
    return open_model(path)


def open_model(path: Path | str = WEIGHTS, steps: int = STEPS) -> Model:
    """The generator, ready to be a stage or to be sampled from.

    Raises:
      weights.WeightsError: See `load`.
    """
    params = load(path)
    config, components, _ = read_config(Path(path))

    def begin(key: Key, cond: Condition) -> Float[Array, " d"]:
        del cond
        return jax.random.normal(key, (components + PAINT_NUMBERS,))

    def take(params, z, i, cond, knobs):
        told = gist(jnp.stack([cond.plain.tokens, cond.null.tokens]))
        return advance(params, z, i, told, knobs.model_scale.at(i), config, steps)

    return Model(
        field=FIELD,
        representation=FIELD.build(),
        params=params,
        condition=functools.partial(condition, params["words"]),
        begin=begin,
        advance=take,
        steps=steps,
        decode=lambda params, z: props_latents.decode(params["codec"], z),
        name=NAME,
        digest=weights.digest(params),
    )
