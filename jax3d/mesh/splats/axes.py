"""The axes of files, and what all formats ask of Gaussians.

Letters: n Gaussians, k coefficients of spherical harmonics.
"""

import os
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from jax3d.render.ewa import harmonic_basis
from jax3d.types import Gaussians

Axes = Literal["world", "rub", "rdf"]
"""Where x, y and z point, to who looks at the object's front: "world" is towards him, to his right
and up; "rub" right, up, and back to him; "rdf" right, down, and to the front, away from him."""

_FROM_WORLD = {
    "world": np.eye(3),
    "rub": np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "rdf": np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
}

Up = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
"""Which of a file's axes points up; +y is usual in "rub", -y in "rdf"."""

_FRONTS = {"x": (2, 1), "+y": (2, 1), "-y": (2, -1), "z": (0, 1)}
"""The axis and sign that is taken for the front, by the one that is up."""


def stood_up(gaussians: Gaussians, axes: Axes, up: Up) -> Gaussians:
    """What was read by a file's usual `axes`, where another of its axes is up."""
    axis, sign = _FRONTS.get(up) or _FRONTS[up[1]]
    front, top = sign * np.eye(3)[axis], np.eye(3)["xyz".index(up[1])]
    top = top if up[0] == "+" else -top
    from_file = np.stack([front, np.cross(top, front), top])
    return turned(gaussians, from_file @ _FROM_WORLD[axes])


def to_file(gaussians: Gaussians, axes: Axes) -> Gaussians:
    """From world axes to a file's, as float32 on the host."""
    return turned(gaussians, _FROM_WORLD[axes])


def to_world(gaussians: Gaussians, axes: Axes) -> Gaussians:
    """From a file's axes to the world's."""
    return turned(gaussians, _FROM_WORLD[axes].T)


def turned(gaussians: Gaussians, rotation: Float[np.ndarray, "3 3"]) -> Gaussians:
    """The whole scene under a rotation about the origin, with what it looks like from each side."""
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return Gaussians(
        means=_float(np.asarray(gaussians.means) @ rotation.T),
        quats=_float(_product((w, x, y, z), np.asarray(gaussians.quats))),
        scales=_float(gaussians.scales),
        opacities=_float(gaussians.opacities),
        sh=_float(_turned_sh(np.asarray(gaussians.sh), rotation)),
    )


def demand_some(gaussians: Gaussians, path: str | os.PathLike) -> None:
    """Raises `ValueError` where there is nothing to write, or what cannot be written."""
    if len(gaussians.means) == 0:
        raise ValueError(f"{path}: there are no Gaussians to write")
    demand_sound(gaussians, path)


def demand_sound(gaussians: Gaussians, path: str | os.PathLike) -> None:
    """Raises `ValueError` where a number is not finite or a rotation is none."""
    groups = {name: getattr(gaussians, name) for name in gaussians.__dataclass_fields__}
    for name, x in groups.items():
        if bad := int(np.sum(~np.isfinite(x))):
            raise ValueError(
                f"{path}: {bad} of {x.size} numbers of the {name} are not finite; the file is "
                "damaged or its training has diverged: export it again"
            )
    if lost := int(np.sum(np.all(np.asarray(gaussians.quats) == 0, axis=-1))):
        raise ValueError(f"{path}: {lost} rotations are (0, 0, 0, 0), which is none")


def logit(opacities: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The inverse of `opacity`, within what float32 tells from 0 and 1."""
    odds = np.clip(np.asarray(opacities, np.float64), 1e-7, 1 - 1e-7)
    return _float(np.log(odds) - np.log1p(-odds))


def opacity(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The sigmoid."""
    return _float(0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float64)))


def _float(x) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)


def _product(left, right: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Hamilton's, of one quaternion (w, x, y, z) and many."""
    a, b, c, d = left
    w, x, y, z = right.T
    return np.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        axis=-1,
    )


def _turned_sh(sh: Float[np.ndarray, "n k 3"], rotation) -> Float[np.ndarray, "n k 3"]:
    """Coefficients that say of a turned direction what `sh` says of the direction.

    A degree's harmonics stay among themselves: the matrix follows from as many directions as it
    takes.
    """
    directions = np.random.default_rng(0).normal(size=(32, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    before, after = (
        np.stack(harmonic_basis(*d.T, sh.shape[1]), axis=-1)
        for d in (directions, directions @ rotation.T)
    )
    parts, begin = [sh[:, :1]], 1
    for degree in range(1, int(np.sqrt(sh.shape[1]))):
        of = slice(begin, begin + 2 * degree + 1)
        matrix = np.linalg.lstsq(after[:, of], before[:, of], rcond=None)[0]
        parts.append(np.einsum("ij,njc->nic", matrix, sh[:, of]))
        begin = of.stop
    return np.concatenate(parts, axis=1)
