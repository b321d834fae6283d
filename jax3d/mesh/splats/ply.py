"""INRIA's PLY of 3D Gaussians: logarithms of scales, logits of opacities, raw harmonics.

Properties are read by name, since not all write the same (gsplat leaves the normals out), and
written in INRIA's order. `f_rest` has all coefficients of red, then of green, then of blue.

Letters: n Gaussians, k coefficients of spherical harmonics.
"""

import os
import re

import numpy as np

from jax3d.files import whole
from jax3d.mesh.splats.axes import (
    Axes,
    demand_some,
    demand_sound,
    logit,
    opacity,
    to_file,
    to_world,
)
from jax3d.types import Gaussians

_MOST_HEADER = 1 << 16
"""Bytes of a header that is read; one of degree 3 has 1,500."""
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_NAMES = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_RESTS = (0, 9, 24, 45)
"""Properties `f_rest` of degree 0 to 3."""


def read_ply(path: str | os.PathLike, axes: Axes = "rdf") -> Gaussians:
    """Read a PLY whose axes are `axes`.

    Raises:
      ValueError: It is no binary PLY of Gaussians, is truncated, or holds numbers that are not
        finite; the message says which.
      OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        layout, count, begin = _layout(file.read(_MOST_HEADER), path)
    there = os.path.getsize(path) - begin
    if count * layout.itemsize > there:
        raise ValueError(
            f"{path} is truncated: its header says {count} vertices of {layout.itemsize} bytes, "
            f"and {max(there, 0)} bytes follow"
        )
    if count == 0:
        raise ValueError(f"{path} holds no Gaussians")
    vertices = np.memmap(path, layout, "r", begin, (count,))

    def columns(*names):
        return np.stack([np.asarray(vertices[name], np.float32) for name in names], axis=-1)

    rest = _rest(layout.names, path)
    sh = columns(*(f"f_dc_{i}" for i in range(3)))[:, None]
    if rest:
        # Channel by channel in the file.
        more = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(count, 3, -1)
        sh = np.concatenate([sh, np.moveaxis(more, 1, 2)], axis=1)
    with np.errstate(over="ignore"):
        scales = np.exp(columns("scale_0", "scale_1", "scale_2"))
    found = Gaussians(
        means=columns("x", "y", "z"),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        scales=scales,
        opacities=opacity(columns("opacity")[:, 0]),
        sh=sh,
    )
    demand_sound(found, path)
    return to_world(found, axes)


def write_ply(path: str | os.PathLike, gaussians: Gaussians, axes: Axes = "rdf") -> None:
    """Write a PLY with `axes`, normals of zero included; errors as those of `splats.write`."""
    demand_some(gaussians, path)
    known = to_file(gaussians, axes)
    n, k = known.sh.shape[:2]
    rest = 3 * (k - 1)
    names = [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    values = np.concatenate(
        [
            known.means,
            np.zeros((n, 3), np.float32),
            known.sh[:, 0],
            np.moveaxis(known.sh[:, 1:], 1, 2).reshape(n, rest),
            logit(known.opacities)[:, None],
            np.log(np.maximum(known.scales, 1e-12)),
            known.quats,
        ],
        axis=1,
    )
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    lines += [f"property float {name}" for name in names] + ["end_header", ""]
    with whole(path) as file:
        file.write_bytes("\n".join(lines).encode() + values.astype("<f4").tobytes())


def _layout(header: bytes, path) -> tuple[np.dtype, int, int]:
    """The layout of a vertex, how many there are, and where they begin."""
    head, end, _ = header.partition(b"\nend_header\n")
    if not end:
        head, end, _ = header.partition(b"\r\nend_header\r\n")
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        first, lines = "", []
    if first.strip() != "ply" or not end:
        raise ValueError(
            f"{path} is no PLY: it has no header that ends within {_MOST_HEADER} bytes"
        )
    order, elements = None, []
    for line in lines:
        words = line.split()
        match words:
            case ["comment" | "obj_info", *_] | []:
                pass
            case ["format", kind, _]:
                order = _ORDERS.get(kind)
                if order is None:
                    raise ValueError(f"{path} is {kind}; export it as a binary PLY")
            case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                elements.append((name, int(count), []))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1][2].append((name, kind))
            case ["property", "list", *_] if elements:
                elements[-1][2].append(("a list", None))
            case _:
                raise ValueError(f"{path} has a header line that no PLY has: {line.strip()[:60]!r}")
    return _vertices(order, elements, len(head) + len(end), path)


def _vertices(order: str | None, elements, begin: int, path) -> tuple[np.dtype, int, int]:
    names = [name for name, _, _ in elements]
    if "chunk" in names:
        raise ValueError(f"{path} is compressed by SuperSplat; export it as a plain PLY")
    if order is None or "vertex" not in names:
        raise ValueError(f"{path} is no PLY of Gaussians: it has no format or no vertices")
    for name, count, properties in elements:
        own = [each for each, _ in properties]
        if any(kind is None for _, kind in properties) or len(set(own)) < len(own):
            raise ValueError(f"{path}: its {name} has a list or two properties of one name")
        layout = np.dtype([(each, order + _TYPES[kind]) for each, kind in properties])
        if name == "vertex":
            break
        begin += count * layout.itemsize
    if missing := [each for each in _NAMES if each not in own]:
        raise ValueError(f"{path} is no PLY of Gaussians: it lacks {', '.join(missing)}")
    return layout, count, begin


def _rest(names, path) -> int:
    """How many properties `f_rest` there are."""
    rest = sum(name.startswith("f_rest_") for name in names)
    if rest not in _RESTS or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise ValueError(
            f"{path} has {rest} properties f_rest; degree 0 to 3 have 0, 9, 24 or 45, by number"
        )
    return rest
