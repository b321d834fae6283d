"""The .splat format: 32 bytes a Gaussian, without a header, of degree 0.

Three float32 of position, three of scale (standard deviations), 8 bits each of red, green, blue and
opacity, and of a unit quaternion (w, x, y, z) as 128 + 128 q.
"""

import os

import numpy as np

from jax3d.files import whole
from jax3d.mesh.splats.axes import Axes, demand_some, demand_sound, to_file, to_world
from jax3d.render.ewa import SH0
from jax3d.types import Gaussians

_ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def read_splat(path: str | os.PathLike, axes: Axes = "rdf") -> Gaussians:
    """Read a .splat whose axes are `axes`.

    Raises:
      ValueError: It is empty, no multiple of 32 bytes long, or holds numbers that are no scene.
      OSError: It cannot be read.
    """
    size = os.path.getsize(path)
    if size == 0 or size % _ROW.itemsize:
        raise ValueError(
            f"{path} has {size} bytes, and a .splat 32 for each Gaussian: it is truncated, or none"
        )
    rows = np.memmap(path, _ROW, "r")
    quats = (rows["quat"].astype(np.float32) - 128) / 128
    found = Gaussians(
        means=np.asarray(rows["mean"], np.float32),
        quats=quats,
        scales=np.asarray(rows["scale"], np.float32),
        opacities=rows["rgba"][:, 3].astype(np.float32) / 255,
        sh=((rows["rgba"][:, :3].astype(np.float32) / 255 - 0.5) / SH0)[:, None],
    )
    demand_sound(found, path)
    if np.min(found.scales) < 0:
        raise ValueError(f"{path} has scales below 0: it is damaged, or no .splat")
    return to_world(found, axes)


def write_splat(path: str | os.PathLike, gaussians: Gaussians, axes: Axes = "rdf") -> None:
    """Write a .splat with `axes`; errors as those of `splats.write`.

    The largest and most opaque come first, so that a part of the file looks like the whole.
    Harmonics above degree 0 are left out.
    """
    demand_some(gaussians, path)
    known = to_file(gaussians, axes)
    order = np.argsort(-np.prod(known.scales, axis=-1) * known.opacities, kind="stable")
    rows = np.empty(len(order), _ROW)
    rows["mean"], rows["scale"] = known.means[order], known.scales[order]
    rgba = np.concatenate([known.sh[:, 0] * SH0 + 0.5, known.opacities[:, None]], axis=-1)
    unit = known.quats / np.linalg.norm(known.quats, axis=-1, keepdims=True)
    rows["rgba"] = _bytes(255 * rgba[order])
    rows["quat"] = _bytes(128 + 128 * unit[order])
    with whole(path) as file:
        file.write_bytes(rows.tobytes())


def _bytes(x) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)
