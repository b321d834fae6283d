"""The synthetic prop world: captioned objects with known shape, colour, front and cameras.

A `Spec` (class, colour, attribute) names what an object is; a builder in `prop_shapes` turns a
spec and random proportions into signed-distance primitives, and `render` shows the scene to
orbit cameras. Every object faces world +x, which is azimuth 0, stands along +z, and is centred and
scaled so that its bounding box has a diagonal of 1.7.
"""

import difflib
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import camera as cameras
from jax3d.camera import from_front
from jax3d.data import prop_shapes
from jax3d.render import sdf
from jax3d.types import Camera, Key

COLORS = {
    "red": (0.80, 0.06, 0.07),
    "orange": (0.98, 0.50, 0.05),
    "yellow": (0.98, 0.84, 0.10),
    "green": (0.10, 0.62, 0.16),
    "teal": (0.05, 0.60, 0.60),
    "blue": (0.08, 0.25, 0.85),
    "purple": (0.47, 0.12, 0.66),
    "pink": (0.97, 0.50, 0.70),
    "brown": (0.40, 0.21, 0.08),
    "black": (0.09, 0.09, 0.10),
    "gray": (0.52, 0.53, 0.55),
    "white": (0.94, 0.94, 0.93),
}
CLASSES = tuple(prop_shapes.BUILDERS)
BOUND = 0.85
"""Radius of the sphere around the origin that holds every object."""

_PHRASES = {
    "armrests": "with armrests",
    "chimney": "with a chimney",
    "flag": "with a flag",
    "hat": "with a hat",
    "scarf": "with a scarf",
    "antenna": "with an antenna",
}
"""Attributes that follow the noun; all others are adjectives before it."""

_FUNCTION_WORDS = {"a", "an", "the", "of", "with", "and", "that", "is", "in", "it", "has", "on"}
_FUNCTION_WORDS |= {"photo", "model", "3d", "view"}
VIEW_WORDS = ("side", "front", "back", "overhead")
WORDINGS = 7
MAX_WORDS = 8
"""Word ids kept of a caption, a view word included."""


class Spec(NamedTuple):
    """What an object is. `attribute` is empty for the plain kind."""

    name: str
    color: str
    attribute: str


@functools.cache
def specs() -> tuple[Spec, ...]:
    """Every (class, colour, attribute) of the world, in a fixed order."""
    return tuple(
        Spec(name, color, attribute)
        for name, (_, attributes) in prop_shapes.BUILDERS.items()
        for color in COLORS
        for attribute in attributes
    )


def is_held_out(spec: Spec) -> bool:
    """Whether a combination is kept from training: one in ten, by a hash of its words."""
    digest = hashlib.sha256(" ".join(spec).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def vocabulary() -> tuple[str, ...]:
    """The words that carry meaning, in the order of their token ids (from 1; 0 pads)."""
    attributes = sorted({s.attribute for s in specs() if s.attribute})
    return (*CLASSES, *COLORS, *attributes, *VIEW_WORDS)


def words(caption: str) -> list[str]:
    """Lower-case words of a caption without punctuation and function words."""
    clean = "".join(c if c.isalnum() else " " for c in caption.lower())
    return [w for w in clean.split() if w not in _FUNCTION_WORDS]


def word_ids(captions: list[str]) -> Int[np.ndarray, "n L"]:
    """Token ids of captions, padded with 0.

    Raises:
      ValueError: A caption is empty, has a word that the world does not know (the message names
        the nearest one and all that it knows), or has too many words.
    """
    known = vocabulary()
    ids = {word: i + 1 for i, word in enumerate(known)}
    rows = np.zeros((len(captions), MAX_WORDS), np.int32)
    for row, caption in zip(rows, captions, strict=True):
        said = words(caption)
        if not said:
            raise ValueError(
                f"the prompt {caption!r} names nothing; say for instance 'a red chair'"
            )
        if len(said) > MAX_WORDS:
            raise ValueError(
                f"the prompt {caption!r} has {len(said)} words that count; "
                f"the prop world takes {MAX_WORDS}"
            )
        for k, word in enumerate(said):
            if word not in ids:
                near = difflib.get_close_matches(word, known, 1, 0.0)[0]
                raise ValueError(
                    f"the prop world has no word {word!r} (nearest: {near!r}); "
                    f"it knows: {', '.join(known)}"
                )
            row[k] = ids[word]
    return rows


def caption(spec: Spec, wording: int = 0) -> str:
    """One of the `WORDINGS` ways of saying a spec; the last three leave something out."""
    name, color, attribute = spec
    phrase = _PHRASES.get(attribute, "")
    adjective = "" if phrase else attribute
    match wording:
        case 0:
            parts = ["a", adjective, color, name, phrase]
        case 1:
            parts = ["a photo of a", color, adjective, name, phrase]
        case 2:
            parts = ["a", name, phrase, "that is", color, adjective and f"and {adjective}"]
        case 3:
            parts = ["3d model of a", adjective, name, phrase, "in", color]
        case 4:
            parts = ["a", color, name]
        case 5:
            parts = ["a", adjective, name, phrase]
        case 6:
            parts = ["a", name]
        case _:
            raise ValueError(f"wording is {wording}; there are {WORDINGS}, counted from 0")
    text = " ".join(p for p in parts if p)
    return "an" + text[1:] if text.startswith("a o") else text


def parse(text: str) -> Spec | None:
    """The spec that a caption spells out, or None where it names no class and colour."""
    said = words(text)
    names = [w for w in said if w in CLASSES]
    colors = [w for w in said if w in COLORS]
    if len(names) != 1 or not colors:
        return None
    attributes = prop_shapes.BUILDERS[names[0]][1]
    return Spec(names[0], colors[0], next((w for w in said if w in attributes), ""))


@functools.cache
def caption_table() -> Int[np.ndarray, "specs wordings L"]:
    """Word ids of every caption of the world, in the order of `specs()`."""
    return np.stack([word_ids([caption(s, k) for k in range(WORDINGS)]) for s in specs()])


def build(chosen: list[Spec], seed: int) -> sdf.Scene:
    """Scenes of the given specs with proportions drawn from `seed`, NumPy leaves `[N, P, ...]`.

    An object depends on `(seed, its place in chosen)` and its spec alone.
    """
    index = np.arange(len(chosen))
    leaves = None
    for name, (builder, attributes) in prop_shapes.BUILDERS.items():
        mine = index[[s.name == name for s in chosen]]
        if not len(mine):
            continue
        group = [chosen[i] for i in mine]
        color = np.array([COLORS[s.color] for s in group], np.float32)
        has = {a: np.array([s.attribute == a for s in group]) for a in attributes}
        parts = prop_shapes.Parts(len(mine), color, has, _uniforms(seed, mine))
        builder(parts)
        scene = parts.scene()
        if leaves is None:
            leaves = jax.tree.map(lambda x: np.zeros((len(chosen), *x.shape[1:]), x.dtype), scene)
        for whole, part in zip(jax.tree.leaves(leaves), jax.tree.leaves(scene), strict=True):
            whole[mine] = part
    return leaves


def _uniforms(seed: int, index: np.ndarray) -> np.ndarray:
    """[n, 24] numbers in [0, 1), a pure function of (seed, index): Weyl steps of a hash."""
    columns = np.arange(24, dtype=np.uint64)
    x = index.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    x = x + columns * np.uint64(0xD1B54A32D192ED03)
    x = x + np.array([seed], np.uint64) * np.uint64(0x8CB92BA72F3D8DD7)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / float(1 << 24)


def view_word(azimuth: Float[Array, "*v"], elevation: Float[Array, "*v"]) -> Array:
    """Index into VIEW_WORDS of each orbit position (the rules of `prompts.hard_weights`)."""
    turn = from_front(azimuth)
    word = jnp.where(turn < jnp.pi / 4, 1, jnp.where(turn > 3 * jnp.pi / 4, 2, 0))
    return jnp.where(elevation > jnp.pi / 3, 3, word)


def sample_cameras(key: Key, n: int, front_heavy: bool) -> Camera:
    """Orbit cameras of the training set: uniform around, or as photographs are taken.

    Front-heavy views fall within a normal of 35 degrees around the front and look slightly down.
    """
    k_az, k_el, k_over, k_fov, k_dist = jax.random.split(key, 5)
    if front_heavy:
        azimuth = jnp.radians(35.0) * jax.random.normal(k_az, (n,))
        elevation = jax.random.uniform(k_el, (n,), minval=0.0, maxval=jnp.radians(30.0))
    else:
        azimuth = jax.random.uniform(k_az, (n,), maxval=2 * jnp.pi)
        share = jax.random.uniform(k_el, (n,))
        low = jnp.radians(-10.0 + 60.0 * share)
        high = jnp.radians(50.0 + 35.0 * share)
        elevation = jnp.where(jax.random.uniform(k_over, (n,)) < 0.12, high, low)
    fovy = jax.random.uniform(k_fov, (n,), minval=jnp.radians(37.0), maxval=jnp.radians(47.0))
    relative = jax.random.uniform(k_dist, (n,), minval=0.98, maxval=1.17)
    radius = relative * 0.95 / jnp.sin(fovy / 2)
    return cameras.orbit(azimuth, elevation, radius, fovy)


def render(
    scene: sdf.Scene,
    camera: Camera,
    light: Float[Array, "3"],
    ambient: Float[Array, ""],
    size: int,
) -> Float[Array, "size size 4"]:
    """One scene seen by one camera: straight (not premultiplied) sRGB and coverage.

    Args:
      scene: Without leading axes.
      camera: Without leading axes.
      light: Unit vector towards the light, world space.
      ambient: Share of light that reaches every surface, [0, 1].
      size: Side of the square image, pixels.
    """
    rays = cameras.rays(camera, (size, size))
    rays = jax.tree.map(lambda x: x.reshape(-1, 3), rays)
    pixel = 2 * jnp.tan(camera.fovy / 2) / size
    point, _, alpha = sdf.trace(scene, rays, BOUND * 1.03, pixel)
    n = sdf.normal(scene, point)
    diffuse = jnp.maximum(n @ light, 0.0)
    rgb = sdf.albedo(scene, point) * (ambient + (1 - ambient) * diffuse)[:, None]
    return jnp.concatenate([rgb, alpha[:, None]], -1).reshape(size, size, 4)


def sample_light(key: Key, camera: Camera) -> Float[Array, "3"]:
    """A light around one camera's shoulder; tied to the camera, it tells no azimuth."""
    toward = camera.c2w[:3, 2] + 0.45 * jax.random.normal(key, (3,)) + jnp.array([0.0, 0.0, 0.5])
    return toward / jnp.linalg.norm(toward)
