"""Frames of a scene, as NeRF datasets tell of them: where pictures are, poses and lenses.

A folder has `transforms.json` (nerfstudio, instant-ngp), or `transforms_train.json` and
`transforms_test.json` (Blender): frames with a `file_path`, a `transform_matrix` from the camera to
the world (OpenGL axes, +z up), and a lens, of the frame or of all: `fl_x`, `fl_y`, `cx`, `cy` in
pixels of a picture of `w` x `h`, or `camera_angle_x`.

Folders are not trusted: pictures lie within them, numbers are finite, matrices are poses.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

EVERY = 8
"""Without a split of the maker's, so many-th pictures are held out, the first of all among them."""

_MOST_FRAMES, _MOST_BYTES = 10_000, 64 << 20
"""Of a transforms file."""
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".webp")
"""Blender's scenes leave the suffix out."""
_LENS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2")
_ANGLES = ("camera_angle_x", "camera_angle_y")
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


class Frame(NamedTuple):
    """One photograph, as the file tells of it."""

    path: Path
    name: str
    """Of the picture, as the file has it."""
    c2w: Float[np.ndarray, "4 4"]
    """OpenGL axes, in the scene's own units."""
    lens: dict[str, float]
    """What is said of `_LENS` and `_ANGLES`."""
    where: str
    """For people."""


class Scene(NamedTuple):
    """The frames of a folder."""

    seen: list[Frame]
    unseen: list[Frame]
    """Held out."""


def scan(folder: str | os.PathLike) -> Scene:
    """The frames of a scene's folder, without a look at the pictures.

    Raises:
      ValueError: There is no transforms file, or one that lies; the message says where.
      OSError: It cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    train, test = (folder / f"transforms_{part}.json" for part in ("train", "test"))
    if train.exists():
        unseen = _frames(folder, test)[0] if test.exists() else []
        seen, _ = _frames(folder, train)
        return Scene(seen, unseen) if unseen else _split(seen, {})
    whole = folder / "transforms.json"
    if not whole.exists():
        raise ValueError(f"{folder} has no transforms.json, nor a transforms_train.json")
    return _split(*_frames(folder, whole))


def _split(frames: list[Frame], about: Mapping) -> Scene:
    """By the maker's list of test pictures, or every eighth, where there are so many."""
    named = about.get("test_filenames")
    if isinstance(named, list) and named:
        names = {str(name).removeprefix("./") for name in named}
        held = [frame.name in names for frame in frames]
    else:
        held = [len(frames) >= EVERY and i % EVERY == 0 for i in range(len(frames))]
    seen = [frame for frame, out in zip(frames, held, strict=True) if not out]
    return Scene(seen, [frame for frame, out in zip(frames, held, strict=True) if out])


def _frames(folder: Path, path: Path) -> tuple[list[Frame], dict]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES >> 20} MiB: no scene needs as much")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or no JSON ({error})") from None
    frames = about.get("frames") if isinstance(about, dict) else None
    if not isinstance(frames, list) or not 1 <= len(frames) <= _MOST_FRAMES:
        raise ValueError(f"{path} has no list `frames` of 1 to {_MOST_FRAMES} pictures")
    found = [_frame(folder, about, frame, f"{path}, frame {i}") for i, frame in enumerate(frames)]
    return found, about


def _frame(folder: Path, about: Mapping, frame: Any, where: str) -> Frame:
    name = frame.get("file_path") if isinstance(frame, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{where} has no file_path")
    both = {**about, **frame}
    model = both.get("camera_model", "OPENCV")
    if model not in _MODELS:
        raise ValueError(f"{where} is of a {model} camera; undistort it to a pinhole's")
    if "mask_path" in frame:
        raise ValueError(f"{where} has a mask_path; put the mask into the picture's alpha instead")
    lens = {key: _number(both[key], f"{where}: {key}") for key in _LENS + _ANGLES if key in both}
    if lens.get("k4", 0.0):
        raise ValueError(f"{where} has k4, a fisheye's; undistort it to a pinhole's")
    matrix = _pose(frame.get("transform_matrix"), where)
    name, picture = name.removeprefix("./"), _inside(folder, name, where)
    return Frame(picture, name, matrix, lens, f"{where}, {name[:80]}")


def _inside(folder: Path, name: str, where: str) -> Path:
    """The picture's file; raises `ValueError` for one that is not there, or not in the folder."""
    root = folder.resolve()
    for suffix in _SUFFIXES:
        try:
            path = (root / f"{name}{suffix}").resolve()
        except RuntimeError:
            raise ValueError(f"{where}: {name[:80]!r} is a link to itself") from None
        if not path.is_relative_to(root):
            raise ValueError(f"{where}: {name[:80]!r} is not within {folder}")
        if path.is_file():
            return path
    raise ValueError(f"{where}: there is no picture {name[:80]!r}")


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise ValueError(f"{where} is {str(value)[:40]}; expected a number")
    return float(value)


def _pose(matrix: Any, where: str) -> Float[np.ndarray, "4 4"]:
    """A rotation and a place; raises `ValueError` for what is none."""
    try:
        pose = np.array([[_number(x, where) for x in row] for row in matrix])
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"{where}: its transform_matrix is no 4 x 4 matrix of finite numbers")
    turn = pose[:3, :3]
    rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
    last = len(pose) < 4 or np.abs(pose[3] - [0, 0, 0, 1]).max() < 1e-6
    if not rigid or not last:
        raise ValueError(f"{where}: its transform_matrix is no rotation and place")
    return np.concatenate([pose[:3], [[0, 0, 0, 1]]])
