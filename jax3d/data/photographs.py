"""Posed photographs of a scene in cameras of ours: what a fit looks at.

Our cameras are square, with square pixels and the principal point in the middle. So each picture
is laid onto such a one, which sees all that the photograph saw: distortions of the OPENCV model are
undone, and pixels that the photograph does not reach are not `known`. The scene is moved and
scaled, not turned, so that what the cameras look at fills a ball of `RADIUS`.

Letters: n pictures, v of them, S pixels a side.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from jax3d import image
from jax3d.data.transforms import Frame, Scene
from jax3d.types import Camera, Numbers, Scalars

RADIUS = 0.9
"""Of the ball that a scene fills, metres: as of the props."""

_MOST_HELD = 4 << 30
"""Bytes of a scene's pictures."""

Transparent = Literal["empty", "unknown"]
"""What a photograph's transparency says: that nothing is there, or nothing."""


@struct.dataclass
class Photographs:
    """Pictures of one scene, of which the first `count` are there; the others are room."""

    rgba: UInt8[Numbers, "*A n S S 4"]
    """sRGB times coverage, and coverage, by 255."""
    known: Bool[Numbers, "*A n S S"]
    """Where the photograph says something."""
    camera: Camera
    """`[*A, n]`, in the normalised scene."""
    count: Int[Scalars, "*A"]
    centre: Float[Numbers, "*A 3"]
    """What is the origin here, in the scene's own coordinates."""
    scale: Float[Scalars, "*A"]
    """Metres here of one unit there."""


def shown(
    photographs: Photographs,
    index: Int[Array, " v"],
    background: Float[Array, "..."],
    size: int,
    transparent: Transparent = "empty",
) -> tuple[Float[Array, "v S S 3"], Bool[Array, "v S S"]]:
    """Photographs over a background, `size` pixels a side, and where they say something.

    `background` is `[3]`, one colour a view or one a pixel. Raises `ValueError` where the size does
    not divide that of the photographs.
    """
    side = photographs.rgba.shape[-2]
    if side % size:
        raise ValueError(f"photographs of {side} pixels a side are no whole multiple of {size}")
    rgba, known = (jnp.asarray(x)[index] for x in (photographs.rgba, photographs.known))
    rgba = _pooled(rgba.astype(jnp.float32) / 255, side // size, jnp.mean)
    known = _pooled(known, side // size, jnp.all)
    background = jnp.asarray(background)
    if 1 < background.ndim < rgba.ndim:
        background = background[..., None, None, :]
    alpha = rgba[..., 3:]
    if transparent == "unknown":
        known = known & (alpha[..., 0] > 0.999)
    return rgba[..., :3] + (1 - alpha) * background, known


def _pooled(x: Array, by: int, over: Callable) -> Array:
    """Squares of `by` pixels made one."""
    v, side, _, *rest = x.shape
    return over(x.reshape(v, side // by, by, side // by, by, *rest), axis=(2, 4))


# ---------------------------------------------------------------------------- its pictures


def read(scene: Scene, size: int, room: int) -> Photographs:
    """The seen pictures of a scene, `size` pixels a side; of more than `room`, evenly spread ones.

    Raises:
      ValueError: A picture is none, its lens is absurd, or the cameras look at no one place.
      OSError: One cannot be read.
    """
    if room * size * size * 5 > _MOST_HELD:
        raise ValueError(
            f"{room} pictures of {size} x {size} pixels take {room * size * size * 5 >> 20} MiB a "
            f"scene, and at most {_MOST_HELD >> 20} are held: ask for smaller or for fewer ones"
        )
    chosen = np.unique(np.linspace(0, len(scene.seen) - 1, room).round().astype(int))
    frames = [scene.seen[i] for i in chosen]
    if not frames:
        raise ValueError("there are no pictures but those that are held out")
    laid = [_laid(frame, size) for frame in frames]
    poses = np.stack([frame.c2w for frame in frames])
    centre, scale = _framing(poses, laid, frames[0].where)
    return _photographs(frames, laid, centre, scale, room)


def held_out(scene: Scene, like: Photographs, size: int) -> Photographs | None:
    """The unseen pictures, in the place that the seen ones have; None where there is none.

    Raises as `read` does.
    """
    if not scene.unseen:
        return None
    laid = [_laid(frame, size) for frame in scene.unseen]
    return _photographs(scene.unseen, laid, like.centre, like.scale, len(laid))


class _Laid(NamedTuple):
    """A photograph in our camera."""

    rgba: UInt8[np.ndarray, "S S 4"]
    known: Bool[np.ndarray, "S S"]
    half: float
    """Tangent of half the field of view."""
    narrow: float
    """The same to the nearest side of the photograph."""


class _Lens(NamedTuple):
    """In pixels of the picture at hand."""

    fx: float
    fy: float
    cx: float
    cy: float
    bend: tuple[float, ...]
    """k1, k2, k3, p1, p2 of OpenCV."""


def _laid(frame: Frame, size: int) -> _Laid:
    picture = image.read_picture(frame.path, upright=False)
    height, width = picture.shape[:2]
    lens = _lens(frame, height, width)
    picture[..., :3] *= picture[..., 3:]
    layers = np.concatenate([picture, np.ones_like(picture[..., :1])], axis=-1)
    if any(lens.bend):
        layers = _straightened(layers, lens)
    sides = (
        lens.cx / lens.fx,
        (width - lens.cx) / lens.fx,
        lens.cy / lens.fy,
        (height - lens.cy) / lens.fy,
    )
    half = max(sides)
    layers = _resampled(layers, lens, half, size)
    rgba = image.to_uint8(layers[..., :4])
    return _Laid(rgba, layers[..., 4] > 0.999, half, min(sides))


def _lens(frame: Frame, height: int, width: int) -> _Lens:
    """Raises `ValueError` for a lens that cannot have taken the picture."""
    told, where = frame.lens, frame.where
    w, h = told.get("w", float(width)), told.get("h", float(height))
    if not (w > 0 and h > 0 and abs(w * height / (h * width) - 1) < 0.02):
        raise ValueError(
            f"{where}: w x h is {w:g} x {h:g}, and the picture has {width} x {height} pixels"
        )
    if "fl_x" in told:
        fx = told["fl_x"] * width / w
    elif 0 < told.get("camera_angle_x", 0.0) < math.pi:
        fx = width / 2 / math.tan(told["camera_angle_x"] / 2)
    else:
        raise ValueError(f"{where} has neither fl_x nor a camera_angle_x between 0 and pi")
    if "fl_y" in told:
        fy = told["fl_y"] * height / h
    elif "fl_x" not in told and 0 < told.get("camera_angle_y", 0.0) < math.pi:
        fy = height / 2 / math.tan(told["camera_angle_y"] / 2)
    else:
        fy = fx
    cx, cy = told.get("cx", w / 2) * width / w, told.get("cy", h / 2) * height / h
    sound = 0.1 < fx / width < 100 and 1 / 3 < fx / max(fy, 1e-9) < 3
    if not sound or not (0 < cx < width and 0 < cy < height):
        raise ValueError(
            f"{where}: focal lengths {fx:.4g}, {fy:.4g} and principal point ({cx:.4g}, {cy:.4g}) "
            f"are no lens of {width} x {height} pixels"
        )
    return _Lens(fx, fy, cx, cy, tuple(told.get(k, 0.0) for k in ("k1", "k2", "k3", "p1", "p2")))


def _straightened(layers: Float[np.ndarray, "H W c"], lens: _Lens) -> Float[np.ndarray, "H W c"]:
    """The picture that the lens would have taken without its distortion; 0 where it took none."""
    from scipy.ndimage import map_coordinates

    height, width = layers.shape[:2]
    k1, k2, k3, p1, p2 = lens.bend
    x = ((np.arange(width) + 0.5 - lens.cx) / lens.fx)[None, :]
    y = ((np.arange(height) + 0.5 - lens.cy) / lens.fy)[:, None]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    place = [bent_y * lens.fy + lens.cy - 0.5, bent_x * lens.fx + lens.cx - 0.5]
    parts = [map_coordinates(layer, place, order=1) for layer in np.moveaxis(layers, -1, 0)]
    return np.stack(parts, axis=-1)


def _resampled(layers, lens: _Lens, half: float, size: int) -> Float[np.ndarray, "S S c"]:
    """Means over the pixels of a square camera; 0 beyond the picture."""
    from PIL import Image

    height, width = layers.shape[:2]
    left, right = lens.cx - half * lens.fx, lens.cx + half * lens.fx
    top, bottom = lens.cy - half * lens.fy, lens.cy + half * lens.fy
    before = [max(math.ceil(-x), 0) for x in (top, left)]
    after = [max(math.ceil(x), 0) for x in (bottom - height, right - width)]
    layers = np.pad(layers, [*zip(before, after, strict=True), (0, 0)]).astype(np.float32)
    (up, aside), (height, width) = before, layers.shape[:2]
    box = (left + aside, top + up, min(right + aside, width), min(bottom + up, height))
    parts = [
        Image.fromarray(np.ascontiguousarray(layer)).resize((size, size), Image.Resampling.BOX, box)
        for layer in np.moveaxis(layers, -1, 0)
    ]
    return np.stack([np.asarray(part) for part in parts], axis=-1)


def _photographs(frames, laid: list[_Laid], centre, scale, room: int) -> Photographs:
    count, size = len(laid), len(laid[0].rgba)
    rgba = np.zeros((room, size, size, 4), np.uint8)
    known = np.zeros((room, size, size), bool)
    rgba[:count], known[:count] = [x.rgba for x in laid], [x.known for x in laid]
    c2w = np.stack([frame.c2w for frame in frames])
    c2w[:, :3, 3] = scale * (c2w[:, :3, 3] - centre)
    x, y, z = c2w[:, :3, 3].T
    radius = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    parts = [
        c2w,
        2 * np.arctan([each.half for each in laid]),
        np.arctan2(y, x),
        np.arcsin(z / np.maximum(radius, 1e-9)),
        radius,
    ]
    more = room - count
    camera = Camera(*(np.concatenate([part, np.repeat(part[:1], more, axis=0)]) for part in parts))
    return Photographs(
        rgba=rgba,
        known=known,
        camera=Camera(**{k: np.float32(v) for k, v in vars(camera).items()}),
        count=np.int32(count),
        centre=np.float32(centre),
        scale=np.float32(scale),
    )


# ------------------------------------------------------------------------ where the object is


def _framing(
    c2w: Float[np.ndarray, "n 4 4"], laid: list[_Laid], where: str
) -> tuple[Float[np.ndarray, "3"], float]:
    """Centre and scale by which what all look at comes into the ball.

    The centre is the nearest place to all optical axes, and the ball what the cameras, in the
    median, see whole; where the pictures have coverage, both are those of the object's visual hull.
    """
    eyes, ahead = c2w[:, :3, 3], -c2w[:, :3, 2]
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None]
    total = across.sum(axis=0)
    if np.linalg.eigvalsh(total)[0] < 1e-3 * len(c2w):
        raise ValueError(f"{where}, and the others: the cameras all look the same way")
    centre = np.linalg.solve(total, np.einsum("nij,nj->i", across, eyes))
    away = np.linalg.norm(eyes - centre, axis=-1)
    if np.median(np.sum((centre - eyes) * ahead, axis=-1)) <= 0:
        raise ValueError(f"{where}, and the others: the cameras look outwards, at no one object")
    narrow = np.arctan([each.narrow for each in laid])
    radius = float(np.median(away * np.sin(narrow)))
    hull = _hull(c2w, laid, centre, 1.5 * radius)
    if hull is None:
        return centre, RADIUS / radius
    low, high = hull.min(axis=0), hull.max(axis=0)
    middle = (low + high) / 2
    return middle, RADIUS / float(np.linalg.norm(hull - middle, axis=-1).max())


_HULL = 48
"""Points a side of the grid on which a visual hull is looked for."""


def _hull(c2w, laid: list[_Laid], centre, reach: float):
    """Points of what no picture shows to be empty; None where it leaves the cube around `centre`.

    Pictures without coverage show nothing to be empty.
    """
    axis = np.linspace(-reach, reach, _HULL)
    x = centre + np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    left = np.ones(len(x), bool)
    for pose, each in zip(c2w, laid, strict=True):
        size = len(each.known)
        local = (x - pose[:3, 3]) @ pose[:3, :3]
        depth = np.where(local[:, 2] < -1e-9, -local[:, 2], np.inf)
        column, row = (
            np.floor(size / 2 * (1 + sign * local[:, i] / depth / each.half)).astype(int)
            for i, sign in ((0, 1), (1, -1))
        )
        sees = (depth < np.inf) & (np.minimum(row, column) >= 0) & (np.maximum(row, column) < size)
        row, column = np.where(sees, row, 0), np.where(sees, column, 0)
        empty = each.known & (each.rgba[..., 3] < 128)
        left &= ~(sees & empty[row, column])
    inside = np.argwhere(left.reshape(_HULL, _HULL, _HULL))
    if len(inside) < 2 or inside.min() == 0 or inside.max() == _HULL - 1:
        return None
    return x[left]
