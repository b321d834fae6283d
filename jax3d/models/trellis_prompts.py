"""How TRELLIS is told of a text or of a picture.

Letters: s side of a picture, l tokens, e their width.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax3d import resample, weights
from jax3d.models import lrm
from jax3d.nn import clip_text, dino, tokenizer
from jax3d.nn.dino import Dino, DinoConfig
from jax3d.nn.trellis import plain_norm
from jax3d.types import Cond, Condition, Prompt
from jax3d.weights import WeightsError

SIDE = 518
"""Of the picture, pixels."""
SOLID, MARGIN = 0.8, 1.2
"""Opacity above which a pixel is the object's, and the cut-out's side by that of the object."""


class Reader(NamedTuple):
    """How a prompt becomes what the flows are told."""

    condition: Callable[[Prompt], Condition]
    width: int
    """Of a token."""
    digest: str
    """Of what decides."""


def read_texts(folder: Path, dtype: Any) -> Reader:
    """The reader of a folder with `text_encoder/` and `tokenizer/`."""
    if not (folder / "text_encoder").is_dir():
        raise WeightsError(
            f"{folder}: TRELLIS reads texts by CLIP ViT-L/14, which its checkpoints lack; put the "
            "text_encoder/ and tokenizer/ of a Stable Diffusion 1.x, which are the same, there"
        )
    tower, params = clip_text.load(folder / "text_encoder", dtype)
    c = tower.config
    words = tokenizer.load(folder / "tokenizer", c.max_position_embeddings, words=c.vocab_size)

    @jax.jit
    def embed(params, ids: Int[Array, "b l"]) -> Float[Array, "b l e"]:
        return tower.apply({"params": params}, ids).last_hidden_state.astype(jnp.float32)

    def condition(prompt: Prompt) -> Condition:
        if prompt.image is not None:
            raise ValueError("this TRELLIS reads text alone; leave the picture out")
        if not prompt.text.strip():
            raise ValueError("the prompt is empty: say what to make")
        for text in (prompt.text, prompt.negative):
            if (count := words.count(text)) > words.room:
                raise ValueError(
                    f"{weights.shown(text)} has {count} tokens; TRELLIS reads {words.room}"
                )
        plain, null = embed(params, jnp.asarray(words.ids([prompt.text, prompt.negative])))
        return Condition(Cond(plain), Cond(null))

    facts = {k: v for k, v in dataclasses.asdict(c).items() if k != "dtype"}
    return Reader(condition, c.hidden_size, weights.digest(params, facts))


def read_pictures(folder: Path, name: str, dtype: Any, encoder: DinoConfig | None = None) -> Reader:
    """The reader of a folder with the weights of DINOv2's encoder `name`.

    Args:
      folder: of the checkpoint.
      name: as DINOv2's code calls it, such as "dinov2_vitl14_reg".
      dtype: of its weights and arithmetic.
      encoder: its sizes, where they are others than the name says.
    """
    c = encoder or _encoder(name)
    net = Dino(c, dtype, normalised=False)
    image = jax.ShapeDtypeStruct((1, *(c.grid * c.patch_size,) * 2, 3), jnp.float32)
    like = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    file = _encoder_file(folder, name)
    flat = dino.from_dinov2(weights.load(file))
    flat = {k: v for k, v in flat.items() if not k.startswith("norm.")}
    params = weights.to_flax(flat, like, file)
    side = c.grid * c.patch_size

    @jax.jit
    def embed(params, image: Float[Array, "s s 3"]) -> Float[Array, "l e"]:
        return plain_norm(net.apply({"params": params}, dino.normalise(image)[None])[0], 1e-5)

    def condition(prompt: Prompt) -> Condition:
        image = picture(lrm.demand_picture(prompt, "this TRELLIS"), side)
        plain = embed(params, jnp.asarray(image))
        return Condition(Cond(plain), Cond(jnp.zeros_like(plain)))

    return Reader(condition, c.hidden_size, weights.digest(params, dataclasses.asdict(c)))


def _encoder(name: str) -> DinoConfig:
    if match := re.fullmatch(r"dinov2_vit([sbl])14(_reg)?", name):
        return dino.vit(match[1], 4 if match[2] else 0)
    raise WeightsError(
        f"image_cond_model = {weights.shown(name)} is not supported, only dinov2_vits14, b14 and "
        "l14, each with or without _reg"
    )


def _encoder_file(folder: Path, name: str) -> Path:
    stem = f"{name}4_pretrain" if name.endswith("_reg") else f"{name}_pretrain"
    names = [f"{stem}.safetensors", f"{stem}.pth"]
    for one in names:
        if (folder / one).is_file():
            return folder / one
    raise WeightsError(
        f"{folder}: TRELLIS sees by DINOv2, which its checkpoints lack; put {names[1]} of DINOv2's "
        "authors there, or the same as .safetensors"
    )


def picture(image: Float[np.ndarray, "H W c"], side: int = SIDE) -> Float[np.ndarray, "s s 3"]:
    """A picture as the encoder reads it: the object on black, in the middle of a square.

    What is not transparent is cut out with a margin; a picture without transparency is taken whole.

    Raises:
      ValueError: nothing of it is opaque.
    """
    height, width = image.shape[:2]
    if image.shape[-1] == 3 or image[..., 3].min() == 1.0:
        cut = image[..., :3]
        top, left = (max(height, width) - n for n in (height, width))
        cut = np.pad(cut, ((top // 2, top - top // 2), (left // 2, left - left // 2), (0, 0)))
    else:
        solid = image[..., 3] > SOLID
        rows, columns = (np.flatnonzero(solid.any(axis)) for axis in (1, 0))
        if not len(rows):
            raise ValueError(f"no pixel of the picture is more opaque than {SOLID}")
        longer = max(rows[-1] - rows[0], columns[-1] - columns[0])
        half = max(int(longer * MARGIN) // 2, 1)
        cut = image[..., :3] * image[..., 3:]
        for axis, found in ((0, rows), (1, columns)):
            # Python rounds halves to even, as the authors' cutting does.
            begin, end = (round((found[0] + found[-1]) / 2 + away) for away in (-half, half))
            cut = _between(cut, axis, begin, end)
    matrices = (resample.antialiased(n, side, "lanczos") for n in cut.shape[:2])
    return np.clip(resample.grid(*matrices, cut), 0.0, 1.0)


def _between(image: np.ndarray, axis: int, begin: int, end: int) -> np.ndarray:
    """Rows or columns, zeros where there are none."""
    size = image.shape[axis]
    index = np.clip(np.arange(begin, end), 0, size - 1)
    inside = (np.arange(begin, end) == index).reshape([-1 if k == axis else 1 for k in range(3)])
    return np.take(image, index, axis) * inside
