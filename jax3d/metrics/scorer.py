"""The scorer: an independent judge of what a picture shows and from where.

A small contrastive image-text model with an azimuth head, trained on renders of the prop world with
seeds of their own and never used in optimisation. It gives R-precision (Park et al. 2021, as
DreamFusion uses it: the share of pictures whose own caption is the nearest of a set) and the view
metric; its accuracy on ground-truth renders is the ceiling of every score.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import weights
from jax3d.data import prop_shapes, props
from jax3d.nn.props_scorer import Scorer, ScorerConfig
from jax3d.types import Key, Params

SIZE = 64
"""Side of the images that the scorer looks at, pixels."""
WEIGHTS = Path(__file__).parent / "weights" / "scorer.safetensors"


class Verdict(NamedTuple):
    """What the scorer sees in n images."""

    similarity: Float[np.ndarray, "n captions"]
    """Cosine similarity to each caption asked about."""
    azimuth: Float[np.ndarray, " n"]
    """Most likely azimuth of the camera, radians."""
    name: np.ndarray
    """[n] most likely class."""
    color: np.ndarray
    """[n] most likely colour, given the true class."""


def init(key: Key, config: ScorerConfig) -> Params:
    """Fresh weights."""
    rgb, ids = jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros((1, props.MAX_WORDS), jnp.int32)
    return Scorer(config).init(key, rgb, ids)["params"]


def load(path: Path | str = WEIGHTS) -> Params:
    """The scorer's weights; raises `weights.WeightsError` where they are missing or damaged."""
    like = jax.eval_shape(functools.partial(init, config=ScorerConfig()), jax.random.key(0))
    return weights.load_tree(path, like)


def report_card(path: Path = WEIGHTS) -> dict:
    """The scorer's accuracy on ground-truth renders, written when it was trained."""
    return json.loads(path.with_suffix(".json").read_text())


@functools.partial(jax.jit, static_argnames="bins")
def _embed(params: Params, rgb: Array, ids: Array, bins: int):
    config = ScorerConfig(azimuth_bins=bins)
    logits, azimuth = Scorer(config).apply({"params": params}, rgb, ids)
    return logits / jnp.exp(jnp.minimum(params["log_scale"], 4.6)), azimuth


def similarity(
    params: Params, rgb: Float[Array, "n H W 3"], ids: Int[Array, "c L"]
) -> Float[Array, "n c"]:
    """How near pictures are to captions, given as word ids: cosines of their embeddings."""
    rgb = jax.image.resize(rgb, (len(rgb), SIZE, SIZE, 3), "linear")
    return _embed(params, rgb, ids, params["image"]["azimuth"]["bias"].shape[0])[0]


def judge(
    params: Params,
    rgb: Float[np.ndarray, "n H W 3"],
    captions: list[str],
    names: list[str],
) -> Verdict:
    """What the scorer sees.

    Args:
      params: From `load`.
      rgb: Pictures of any square size, [0, 1]; averaged down to 64x64.
      captions: Captions to compare with, in words of the prop world.
      names: The true class of each picture, for the question of its colour.

    Raises:
      ValueError: A caption or name has a word that the prop world does not know.
    """
    bins = params["image"]["azimuth"]["bias"].shape[0]
    tints = [f"a {color} {name}" for name in props.CLASSES for color in props.COLORS]
    asked = [*captions, *(f"a {name}" for name in props.CLASSES), *tints]
    rgb = jax.image.resize(jnp.asarray(rgb), (len(rgb), SIZE, SIZE, 3), "linear")
    similarity, azimuth = _embed(params, rgb, jnp.asarray(props.word_ids(asked)), bins)
    similarity = np.asarray(similarity)
    first, tint = len(captions), len(captions) + len(props.CLASSES)
    name = similarity[:, first:tint].argmax(1)
    colors = list(props.COLORS)
    table = similarity[:, tint:].reshape(len(rgb), len(props.CLASSES), len(colors))
    true = np.array([props.CLASSES.index(n) for n in names])
    color = table[np.arange(len(rgb)), true].argmax(1)
    # The circular mean of the likely bins is finer than the bins.
    turns = jnp.exp(2j * jnp.pi * jnp.arange(bins) / bins)
    direction = jnp.angle(jax.nn.softmax(azimuth) @ turns)
    return Verdict(
        similarity[:, :first],
        np.asarray(direction),
        np.array(props.CLASSES)[name],
        np.array(colors)[color],
    )


def angle_between(a, b):
    """Unsigned difference of azimuths, radians in [0, pi]."""
    return np.abs((np.asarray(a) - np.asarray(b) + np.pi) % (2 * np.pi) - np.pi)


AZIMUTH_TOLERANCE = np.pi / 6
"""A view counts as told right within 30 degrees; chance is one in six."""


class Scores(NamedTuple):
    """Shares of pictures, in [0, 1]."""

    r_precision: float
    """The own caption is the nearest of all."""
    name: float
    color: float
    azimuth: float
    """Seen from where it was, within `AZIMUTH_TOLERANCE`; classes with a front alone. NaN where
    there is none."""


def scores(
    verdict: Verdict,
    caption: np.ndarray,
    specs: list[props.Spec],
    azimuth: np.ndarray,
) -> Scores:
    """How often the scorer sees what was asked for.

    Args:
      verdict: Of n pictures.
      caption: [n] index of each picture's own caption.
      specs: [n] what each picture should show.
      azimuth: [n] where it should be seen from, radians.
    """
    front = np.array([s.name not in prop_shapes.FRONTLESS for s in specs])
    right = angle_between(verdict.azimuth, azimuth) < AZIMUTH_TOLERANCE
    return Scores(
        r_precision=float(np.mean(verdict.similarity.argmax(1) == caption)),
        name=float(np.mean(verdict.name == np.array([s.name for s in specs]))),
        color=float(np.mean(verdict.color == np.array([s.color for s in specs]))),
        azimuth=float(np.mean(right[front])) if front.any() else float("nan"),
    )
