"""Niantic's .spz, versions 1 to 3: one gzip stream of a header and six arrays, in axes "rub".

The header has 16 bytes: "NGSP", version, count, degree of the harmonics, bits behind the point of
positions, flags, zero. Then, each for all Gaussians:

| array | bytes a Gaussian | value |
|---|---|---|
| positions | 9 (version 1: 6) | 24-bit whole numbers, by 2^bits (version 1: float16) |
| opacities | 1 | 255 times |
| colours | 3 | 255 (0.15 sh0 + 0.5) |
| scales | 3 | 16 (ln scale + 10) |
| rotations | 3, version 3: 4 | 127.5 (1 + x, y, z), with w >= 0; version 3: "smallest three" |
| harmonics | 3 (k - 1) | 128 (1 + sh), 5 bits of degree 1 and 4 of the others; channels innermost |

Smallest three: two bits name the greatest of (x, y, z, w), whose sign is made positive; ten bits
each tell sign and size, by sqrt(1/2) / 511, of the others, the first one in the highest bits.

Letters: n Gaussians, k coefficients of spherical harmonics.
"""

import gzip
import os
import struct
import zlib
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from jax3d.files import whole
from jax3d.mesh.splats.axes import demand_some, demand_sound, to_file, to_world
from jax3d.types import Gaussians

_HEADER = struct.Struct("<4sIIBBBB")
_MOST_RATIO = 1032
"""Bytes that gzip can make of one."""
_MOST = 1 << 31
"""Bytes of the arrays that are read: 30 million Gaussians of degree 3."""
_ANTIALIASED, _EXTENDED = 1, 2
_COLOR = 0.15
_HALF = np.sqrt(0.5)


def read_spz(path: str | os.PathLike) -> Gaussians:
    """Read a .spz of version 1 to 3.

    That it was trained antialiased (a flag) is not kept: show such with
    `SplatConfig(antialiased=True)`. Records of extensions are skipped.

    Raises:
      ValueError: It is of another format, version or degree, or truncated.
      OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] == b"NGSP":
        raise ValueError(f"{path} is of version 4 or later; export it as version 3 (gzip)")
    unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
    header = _unzipped(unzip, data, _HEADER.size, path)
    if len(header) < _HEADER.size or header[:4] != b"NGSP":
        raise ValueError(f"{path} is no .spz: its gzip stream does not begin with NGSP")
    _, version, count, degree, bits, flags, _ = _HEADER.unpack(header)
    if version not in (1, 2, 3) or degree > 3 or bits > 23:
        raise ValueError(
            f"{path} says version {version}, degree {degree}, {bits} fractional bits; versions 1 "
            "to 3 and degrees 0 to 3 are read"
        )
    widths = _widths(version, (degree + 1) ** 2)
    size = count * sum(widths)
    if count == 0 or size > min(_MOST_RATIO * len(data), _MOST):
        raise ValueError(
            f"{path} says {count} Gaussians, {size} bytes, which its {len(data)} cannot hold"
        )
    body = _unzipped(unzip, unzip.unconsumed_tail, size, path)
    if len(body) < size:
        raise ValueError(f"{path} is truncated: {len(body)} of {size} bytes are there")
    # The checksum comes last. What follows the arrays are extensions, where the flag says so.
    if not flags & _EXTENDED and (
        _unzipped(unzip, unzip.unconsumed_tail, 1, path) or not unzip.eof
    ):
        raise ValueError(f"{path} is damaged: its gzip stream does not end with the last array")
    ends = np.cumsum([0, *widths]) * count
    parts = [np.frombuffer(body[a:b], np.uint8).reshape(count, -1) for a, b in pairwise(ends)]
    found = _unpacked(parts, version, bits)
    demand_sound(found, path)
    return to_world(found, "rub")


def write_spz(
    path: str | os.PathLike,
    gaussians: Gaussians,
    version: Literal[1, 2, 3] = 3,
    *,
    antialiased: bool = False,
) -> None:
    """Write a .spz; errors as those of `splats.write`.

    Positions farther than 2048 m from the origin have fewer bits behind the point. `antialiased`
    sets the flag that viewers go by.
    """
    demand_some(gaussians, path)
    known = to_file(gaussians, "rub")
    farthest = float(np.max(np.abs(known.means)))
    bits = int(np.clip(np.floor(23 - np.log2(max(farthest, 1e-9)) - 1e-6), 0, 12))
    degree = int(np.sqrt(known.sh.shape[1])) - 1
    header = _HEADER.pack(
        b"NGSP", version, len(known.means), degree, bits, _ANTIALIASED * antialiased, 0
    )
    body = b"".join(part.tobytes() for part in _packed(known, version, bits))
    # The same Gaussians give the same bytes.
    with whole(path) as file:
        file.write_bytes(gzip.compress(header + body, mtime=0))


def _unzipped(unzip, data: bytes, most: int, path) -> bytes:
    try:
        return unzip.decompress(data, most) if most else b""
    except zlib.error as error:
        raise ValueError(f"{path} is no .spz of version 1 to 3, or damaged ({error})") from error


def _widths(version: int, k: int) -> list[int]:
    """Bytes of a Gaussian in each array."""
    return [6 if version == 1 else 9, 1, 3, 3, 4 if version == 3 else 3, 3 * (k - 1)]


def _unpacked(parts: list[np.ndarray], version: int, bits: int) -> Gaussians:
    positions, opacities, colors, scales, rotations, sh = parts
    if version == 1:
        means = positions.view("<f2").astype(np.float32)
    else:
        wide = np.zeros((len(positions), 3, 4), np.uint8)
        # Into the upper bytes, so that the shift back brings the sign down.
        wide[..., 1:] = positions.reshape(-1, 3, 3)
        means = (wide.view("<i4")[..., 0] >> 8).astype(np.float32) / 2**bits
    first = (colors.astype(np.float32) / 255 - 0.5) / _COLOR
    rest = (sh.astype(np.float32) - 128) / 128
    return Gaussians(
        means=means,
        quats=_smallest_three(rotations) if version == 3 else _first_three(rotations),
        scales=np.exp(scales.astype(np.float32) / 16 - 10),
        opacities=opacities[:, 0].astype(np.float32) / 255,
        sh=np.concatenate([first[:, None], rest.reshape(len(first), -1, 3)], axis=1),
    )


def _packed(known: Gaussians, version: int, bits: int) -> list[np.ndarray]:
    n = len(known.means)
    if version == 1:
        positions = known.means.astype("<f2")
    else:
        whole_numbers = np.round(known.means.astype(np.float64) * 2**bits).astype("<i4")
        positions = np.ascontiguousarray(whole_numbers[..., None].view(np.uint8)[..., :3])
    logs = np.log(np.maximum(known.scales, 1e-12))
    unit = known.quats / np.linalg.norm(known.quats, axis=-1, keepdims=True)
    return [
        positions,
        _bytes(255 * known.opacities),
        _bytes(255 * (_COLOR * known.sh[:, 0] + 0.5)),
        _bytes(16 * (logs + 10)),
        _to_smallest_three(unit) if version == 3 else _to_first_three(unit),
        np.concatenate(
            [_few_bits(known.sh[:, 1:4], 5), _few_bits(known.sh[:, 4:], 4)], axis=1
        ).reshape(n, -1),
    ]


def _few_bits(sh: Float[np.ndarray, "n q 3"], bits: int) -> UInt8[np.ndarray, "n q 3"]:
    """As bytes of which the lower bits are zero."""
    step = 1 << (8 - bits)
    q = np.round(128 * sh).astype(np.int32) + 128
    return np.clip((q + step // 2) // step * step, 0, 255).astype(np.uint8)


def _first_three(rotations: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    xyz = rotations.astype(np.float32) / 127.5 - 1
    w = np.sqrt(np.maximum(1 - np.sum(xyz**2, axis=-1, keepdims=True), 0))
    return np.concatenate([w, xyz], axis=-1)


def _to_first_three(unit: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 3"]:
    signed = np.where(unit[:, :1] < 0, -unit, unit)
    return _bytes(127.5 * (1 + signed[:, 1:]))


def _smallest_three(rotations: UInt8[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    code = np.ascontiguousarray(rotations).view("<u4")[:, 0]
    rows, greatest = np.arange(len(code)), code >> 30
    xyzw = np.zeros((len(code), 4), np.float32)
    for i in reversed(range(4)):
        told = i != greatest
        size = (code & 511).astype(np.float32) * np.float32(_HALF / 511)
        xyzw[:, i] = np.where(told, np.where(code >> 9 & 1, -size, size), 0)
        code = np.where(told, code >> 10, code)
    xyzw[rows, greatest] = np.sqrt(np.maximum(1 - np.sum(xyzw**2, axis=-1), 0))
    return xyzw[:, [3, 0, 1, 2]]


def _to_smallest_three(unit: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    xyzw = unit[:, [1, 2, 3, 0]]
    rows, greatest = np.arange(len(xyzw)), np.argmax(np.abs(xyzw), axis=-1)
    xyzw = np.where(xyzw[rows, greatest][:, None] < 0, -xyzw, xyzw)
    code = greatest.astype(np.uint32)
    for i in range(4):
        size = np.minimum(np.floor(511 * np.abs(xyzw[:, i]) / _HALF + 0.5), 511).astype(np.uint32)
        own = (xyzw[:, i] < 0).astype(np.uint32) << 9 | size
        code = np.where(i != greatest, code << 10 | own, code)
    return code.astype("<u4")[:, None].view(np.uint8)


def _bytes(x) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)
