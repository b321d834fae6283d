"""The embedded reconstructor: a picture to an asset of the prop world.

The rectified flow of `props_native` on the latents of `props_latents`, told a picture beside the
caption, or in its place. The camera is not known; the asset comes out in the canonical frame, +x
its front and +z up, in its own size. Trained by `train.lrm`. Letters: s pixels along a side, e
numbers that tell, d of a latent.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jax3d import image, weights
from jax3d.bounds import Count, Text
from jax3d.data import props
from jax3d.models import props_latents, props_native
from jax3d.models.base import Model
from jax3d.models.props_latents import PAINT_NUMBERS
from jax3d.nn.props_encoder import EncoderConfig, PropsEncoder
from jax3d.nn.props_flow import FlowConfig
from jax3d.priors.base import Critic
from jax3d.types import Key, Numbers, Params, Prompt

NAME = "embedded reconstructor"
WEIGHTS = Path(__file__).parent / "weights" / "lrm.safetensors"
SIZE = 64
"""Side of the picture that the encoder sees, pixels."""
RATIO = 0.85
"""Longer side of the object's box in that picture."""
STEPS = 12


@dataclasses.dataclass(frozen=True)
class LrmConfig:
    """The embedded reconstructor in a recipe."""

    steps: Count = STEPS
    """Of the sampler."""
    weights: Text = ""
    """Path of weights that `jax3d train lrm` wrote; by default those that ship."""

    asks_critic: ClassVar[bool] = False

    def build(self, critic: Critic | None) -> Model:
        """Opens it; raises `WeightsError` as `load` does."""
        del critic
        return open_model(self.weights or WEIGHTS, self.steps)


@struct.dataclass
class Asked:
    """What the flow is told."""

    picture: Float[Numbers, "*b s s 4"]
    """As `PropsEncoder` sees it."""
    tokens: Float[Numbers, "*b L e"]
    """Of the caption; zero where there is none."""


@struct.dataclass
class Latent:
    """A sample on its way, and what it is made from."""

    z: Float[Numbers, "*b d"]
    picture: Float[Numbers, "*b s s 4"]


def init(key: Key, encoder: EncoderConfig, flow: FlowConfig, components: int) -> Params:
    """Fresh weights: `{"encoder", "words", "flow"}`."""
    k_encoder, k_flow = jax.random.split(key)
    told = PropsEncoder(encoder).init(k_encoder, jnp.zeros((SIZE, SIZE, 4)))["params"]
    return {"encoder": told, **props_native.init(k_flow, flow, components)}


def encode(params: Params, config: EncoderConfig, pictures: Float[Array, "*b s s 4"]) -> Array:
    """What the flow is told of pictures, `[*b, e]`."""
    return PropsEncoder(config).apply({"params": params["encoder"]}, pictures)


def box(shown: Bool[Array, "H W"]) -> Float[Array, "3"]:
    """The box of what is shown, in pixels: centre along rows and columns, and longer side.

    Of a picture that shows nothing it is the whole.
    """
    found = [_ends(shown.any(1 - axis), shown.shape[axis]) for axis in range(2)]
    (top, bottom), (left, right) = found
    side = jnp.maximum(bottom - top, right - left)
    return jnp.stack([(top + bottom) / 2, (left + right) / 2, side]).astype(jnp.float32)


def _ends(line: Bool[Array, " n"], n: int):
    empty = ~line.any()
    first, last = jnp.argmax(line), n - jnp.argmax(line[::-1])
    return jnp.where(empty, 0, first), jnp.where(empty, n, last)


def frame(rgba: Float[Array, "H W 4"], box: Float[Array, "3"]) -> Float[Array, "s s 4"]:
    """A picture as the encoder sees it: the box in its middle, sRGB over white, and coverage."""
    covered = rgba[..., 3:]
    # Outside the picture nothing is covered, and all is white.
    below_white = jnp.concatenate([(rgba[..., :3] - 1.0) * covered, covered], -1)
    zoom = RATIO * SIZE / box[2]
    seen = jax.image.scale_and_translate(
        below_white,
        (SIZE, SIZE, 4),
        (0, 1),
        jnp.stack([zoom, zoom]),
        SIZE / 2 - zoom * box[:2],
        "linear",
    )
    return seen.at[..., :3].add(1.0)


_UNSEEN = 0.02
"""Coverage below which a pixel is no part of the object."""
_MOST = 256
"""Side to which a picture is reduced before it is framed, pixels: one program for all pictures."""


def prepare(picture: Float[np.ndarray, "H W c"]) -> Float[np.ndarray, "s s 4"]:
    """A person's picture as the encoder sees it, on the host.

    Args:
      picture: sRGB in [0, 1], with coverage as a fourth channel; without, or where it is 1
        everywhere, the object is cut out of a plain ground.

    Raises:
      ValueError: The ground is not plain, or nothing stands on it.
    """
    rgba = image.cut_out(picture)
    height, width = rgba.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    covered = rgba[..., 3:]
    square[top : top + height, left : left + width] = np.concatenate(
        [rgba[..., :3] * covered, covered], -1
    )
    small = image.resize(square, (_MOST, _MOST))
    coverage = small[..., 3:]
    small[..., :3] = small[..., :3] / np.maximum(coverage, 1e-4)
    return np.asarray(_framed(jnp.clip(small, 0.0, 1.0)))


@jax.jit
def _framed(rgba: Float[Array, "H H 4"]) -> Float[Array, "s s 4"]:
    return frame(rgba, box(rgba[..., 3] > _UNSEEN))


_GROUND = 0.08
"""Difference from the border's colour below which a pixel of a drawn picture is its ground."""


def drawn(rgb: Float[Array, "H H 3"]) -> Float[Array, "s s 4"]:
    """A picture that a critic drew on white or grey, as the encoder sees it, its ground whitened.

    The object's pale parts go with a ground like them, so its coverage is told as not known.
    """
    border = jnp.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    shown = jnp.abs(rgb - jnp.median(border, axis=0)).max(-1) > _GROUND
    white = jnp.where(shown[..., None], rgb, 1.0)
    whole = jnp.concatenate([white, jnp.ones_like(rgb[..., :1])], -1)
    return frame(whole, box(shown)).at[..., 3].set(1.0)


def words(params: Params, ids: Int[np.ndarray, " L"]) -> Float[Array, "L e"]:
    """Word ids as the flow reads them."""
    return props_native.embed(params["words"], jnp.asarray(ids))


def condition(params: Params, prompt: Prompt) -> Asked:
    """A picture, and its caption where there is one.

    Raises:
      ValueError: There is no picture, nothing can be cut out of it, or the caption has words that
        the world does not know.
    """
    if prompt.image is None:
        raise ValueError(f"the {NAME} makes assets from pictures; give it one")
    said = bool(prompt.text.strip())
    ids = props.word_ids([prompt.text])[0] if said else np.zeros(props.MAX_WORDS, np.int32)
    picture = jnp.asarray(prepare(np.asarray(prompt.image)))
    return Asked(picture, words(params, ids))


def save(
    path: Path | str, params: Params, encoder: EncoderConfig, flow: FlowConfig, codec: str
) -> None:
    """Writes weights as float16, and beside them what describes them.

    `codec` is the digest of the native generator's codec, on whose latents they were trained.
    """
    path = Path(path)
    weights.save_safetensors(params, path, dtype=np.float16)
    described = {
        "encoder": dataclasses.asdict(encoder),
        "network": dataclasses.asdict(flow),
        "codec": codec,
    }
    path.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")


def read_config(path: Path) -> tuple[EncoderConfig, FlowConfig, str]:
    """The networks of a weight file, and the digest of its codec.

    Raises:
      weights.WeightsError: There is none, or it has unknown fields.
    """
    return _described(path)[0]


def _described(path: Path) -> tuple[tuple[EncoderConfig, FlowConfig, str], Params]:
    components = props_native.read_config(props_native.WEIGHTS)[1]
    try:
        return weights.described(
            path.with_suffix(".json"),
            _config_of,
            lambda found: jax.eval_shape(
                lambda key: init(key, found[0], found[1], components), jax.random.key(0)
            ),
        )
    except weights.WeightsError as error:
        raise weights.WeightsError(
            f"{error}; `jax3d train lrm` writes a description of its networks beside the weights"
        ) from error


def _config_of(fields: dict[str, Any]) -> tuple[EncoderConfig, FlowConfig, str]:
    encoder = weights.settings(fields.get("encoder"), EncoderConfig)
    if encoder.blocks * len(encoder.widths) > props_native.MOST_BLOCKS:
        raise weights.WeightsError(f"{weights.shown(fields['encoder'])} cannot be meant")
    return encoder, props_native.flow_of(fields), weights.checked(fields, {"codec": str})["codec"]


def load(path: Path | str = WEIGHTS) -> Params:
    """Weights from a safetensors file, with the native generator's codec.

    Raises:
      weights.WeightsError: The file is missing, damaged, made for another network, or for another
        codec than the one that ships.
    """
    path = Path(path)
    (_, _, trained_on), like = _described(path)
    codec = props_native.load()["codec"]
    if weights.digest(codec) != trained_on:
        raise weights.WeightsError(
            f"{path} was trained on latents of another codec than {props_native.WEIGHTS} holds"
        )
    return {**weights.load_tree(path, like), "codec": codec}


def recognises(path: Path) -> bool:
    """Whether it is a weight file that `jax3d train lrm` wrote."""
    try:
        read_config(path)
    except weights.WeightsError:
        return False
    return path.suffix == ".safetensors"


def open(path: Path | str = WEIGHTS, dtype: Any = jnp.float32) -> Model:
    """The reconstructor in its usual steps; it computes in float32, whatever `dtype` says.

    Raises:
      weights.WeightsError: See `load`.
    """
    del dtype
    return open_model(path)


def open_model(path: Path | str = WEIGHTS, steps: int = STEPS) -> Model:
    """The reconstructor, ready to be a stage or to be sampled from.

    Raises:
      weights.WeightsError: See `load`.
    """
    params = load(path)
    encoder, flow, _ = read_config(Path(path))
    numbers = params["codec"].basis.shape[0] + PAINT_NUMBERS

    def begin(key: Key, asked: Asked) -> Latent:
        return Latent(jax.random.normal(key, (numbers,)), asked.picture)

    def take(params, latent, i, asked, knobs):
        seen = encode(params, encoder, asked.picture) + props_native.gist(asked.tokens)
        told, scale = jnp.stack([seen, jnp.zeros_like(seen)]), knobs.model_scale.at(i)
        z = props_native.advance(params, latent.z, i, told, scale, flow, steps)
        return latent.replace(z=z)

    return Model(
        field=props_native.FIELD,
        representation=props_native.FIELD.build(),
        params=params,
        condition=functools.partial(condition, params),
        begin=begin,
        advance=take,
        steps=steps,
        decode=lambda params, latent: props_latents.decode(params["codec"], latent.z),
        name=NAME,
        digest=weights.digest(params),
        show=lambda latent: latent.picture[None, ..., :3],
    )
