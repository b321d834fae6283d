"""3D Gaussians on disk: INRIA's PLY, .splat, .spz and glTF (host side).

Gaussians come and go in the library's own terms: metres, world axes with +z up and the front
towards +x, true values instead of logarithms and logits. Formats have axes of their own, named as
spz names them, by where x, y and z point: "rub" is right, up, back (glTF, and .spz by
declaration), "rdf" is right, down, front (COLMAP's, in which INRIA's PLY usually is: the file
itself says nothing, viewers of splats take it so). Positions, rotations and spherical harmonics are
turned together. None of the formats has units: they are taken for metres.

| suffix | read | written | keeps |
|---|---|---|---|
| .ply | by the names of its properties | in INRIA's order | float32 |
| .splat | yes | yes | 8 bits, degree 0 |
| .spz | versions 1 to 3 | versions 1 to 3 | 24 bits of position, 8 and fewer of the rest |
| .glb | KHR_gaussian_splatting, release candidate | the same | float32 |

Files are not trusted: what a header claims is held against the file's size before anything is
allocated, and numbers that are not finite are refused.
"""

import os
from pathlib import Path

from jax3d.mesh.splats.axes import Up, stood_up
from jax3d.mesh.splats.gltf import write_splat_glb
from jax3d.mesh.splats.gltf_reader import read_splat_glb
from jax3d.mesh.splats.ply import read_ply, write_ply
from jax3d.mesh.splats.splat import read_splat, write_splat
from jax3d.mesh.splats.spz import read_spz, write_spz
from jax3d.types import Gaussians

__all__ = [
    "Up",
    "demand_known",
    "read",
    "read_ply",
    "read_splat",
    "read_splat_glb",
    "read_spz",
    "write",
    "write_ply",
    "write_splat",
    "write_splat_glb",
    "write_spz",
]

_READERS = {".ply": read_ply, ".splat": read_splat, ".spz": read_spz, ".glb": read_splat_glb}
_WRITERS = {".ply": write_ply, ".splat": write_splat, ".spz": write_spz, ".glb": write_splat_glb}


def read(path: str | os.PathLike, up: Up | None = None) -> Gaussians:
    """Read a file in the format that its suffix names, in that format's usual axes.

    Where its maker took another of the file's axes for `up`, that one becomes +z.

    Raises:
      ValueError: There is no reader for the suffix, or the file is not what it names.
      OSError: It cannot be read.
    """
    found = _of(_READERS, path)(path)
    if up is None:
        return found
    usual = "rdf" if Path(path).suffix.lower() in (".ply", ".splat") else "rub"
    return stood_up(found, usual, up)


def demand_known(path: str | os.PathLike) -> None:
    """Raises `ValueError` where there is no reader for the suffix."""
    _of(_READERS, path)


def write(path: str | os.PathLike, gaussians: Gaussians) -> None:
    """Write a file in the format that its suffix names; it is there whole or not at all.

    Raises:
      ValueError: There is no writer for the suffix, or nothing to write.
      OSError: It cannot be written.
    """
    _of(_WRITERS, path)(path, gaussians)


def _of(functions: dict, path: str | os.PathLike):
    suffix = Path(path).suffix.lower()
    if suffix not in functions:
        known = ", ".join(functions)
        raise ValueError(f"{path}: {suffix or 'no suffix'} is no format of Gaussians here: {known}")
    return functions[suffix]
