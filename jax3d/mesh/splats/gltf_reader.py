"""Gaussians from a GLB with KHR_gaussian_splatting, release candidate.

One set of Gaussians, whose node may turn, move and scale it evenly. What the file claims is held
against its size before anything is allocated.
"""

import json
import os
import struct
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from jax3d.mesh.splats.axes import demand_sound, to_world, turned
from jax3d.types import Gaussians

_NAME = "KHR_gaussian_splatting"
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_POINTS = 0
_MOST_TREE = 16 << 20
"""Bytes of the JSON; a large scene has 10,000."""
_DEEPEST = 64
"""Nodes above that of the Gaussians."""


class _Glb(NamedTuple):
    path: str | os.PathLike
    tree: dict
    body: np.ndarray
    """Bytes, memory-mapped."""

    def refuse(self, why: str) -> ValueError:
        """What to raise."""
        return ValueError(f"{self.path} {why}")

    def item(self, kind: str, index: Any) -> dict:
        """An object of one of the tree's lists."""
        items = self.tree.get(kind)
        found = items[index] if _is_index(index, items) else None
        if not isinstance(found, dict):
            raise self.refuse(f"names {kind}[{index!r}], and has none")
        return found


def read_splat_glb(path: str | os.PathLike) -> Gaussians:
    """Read a GLB of Gaussians, in its axes "rub".

    Raises:
      ValueError: It is no GLB, holds no Gaussians or several sets, or is not what it claims.
      OSError: It cannot be read.
    """
    glb = _open(path)
    mesh, primitive = _primitive(glb)
    about = primitive["extensions"][_NAME]
    if not isinstance(about, dict) or about.get("kernel", "ellipse") != "ellipse":
        raise glb.refuse("has Gaussians of another kernel than ellipses")
    if about.get("colorSpace", "srgb_rec709_display") != "srgb_rec709_display":
        raise glb.refuse("has linear colours; export it with srgb_rec709_display")
    found = _gaussians(glb, primitive.get("attributes"))
    demand_sound(found, path)
    if found.scales.min() < 0:
        raise glb.refuse("has scales below 0: an earlier draft's logarithms, or damage")
    return to_world(_placed(glb, mesh, found), "rub")


def _open(path: str | os.PathLike) -> _Glb:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            raise ValueError(f"{path} is no GLB")
        version, length, first, kind = struct.unpack("<4xIII4s", head)
        if version != 2 or kind != b"JSON" or not 20 + first <= min(length, size):
            raise ValueError(f"{path} is truncated, or no GLB of version 2")
        if first > _MOST_TREE:
            raise ValueError(f"{path} begins with {first} bytes of JSON, more than any scene has")
        text, rest = file.read(first), file.read(8)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its JSON cannot be read ({error})") from None
    begin, there = 28 + first, 0
    if len(rest) == 8:
        there, kind = struct.unpack("<I4s", rest)
        if kind != b"BIN\0" or begin + there > size:
            raise ValueError(f"{path} is truncated: its second chunk does not lie in it")
    if not isinstance(tree, dict) or not there:
        raise ValueError(f"{path} holds no Gaussians: it has no binary chunk")
    return _Glb(path, tree, np.memmap(path, np.uint8, "r", begin, (there,)))


def _primitive(glb: _Glb) -> tuple[int, dict]:
    """The one set of Gaussians, and the mesh that it is in."""
    meshes = glb.tree.get("meshes")
    found = []
    for i, mesh in enumerate(meshes if isinstance(meshes, list) else []):
        parts = mesh.get("primitives") if isinstance(mesh, dict) else None
        for part in parts if isinstance(parts, list) else []:
            extensions = part.get("extensions") if isinstance(part, dict) else None
            if isinstance(extensions, dict) and _NAME in extensions:
                found.append((i, part))
    if len(found) != 1:
        raise glb.refuse(f"holds {len(found)} sets of Gaussians ({_NAME}); one is read")
    if found[0][1].get("mode") != _POINTS:
        raise glb.refuse("has Gaussians that are no points (mode 0)")
    return found[0]


def _gaussians(glb: _Glb, attributes: Any) -> Gaussians:
    if not isinstance(attributes, dict):
        raise glb.refuse("has Gaussians without attributes")

    def array(name: str, kind: str) -> np.ndarray:
        if name not in attributes:
            raise glb.refuse(f"has Gaussians without {name}")
        return _array(glb, attributes[name], kind, name)

    means = array("POSITION", "VEC3")
    names = [name for name in attributes if name.startswith(f"{_NAME}:SH_DEGREE_")]
    degree = max((d for d in range(4) if _coefficient(d, 0) in attributes), default=0)
    wanted = [_coefficient(d, i) for d in range(degree + 1) for i in range(2 * d + 1)]
    if {*names} - {*wanted}:
        raise glb.refuse("has harmonics of a degree that is not whole, or above 3")
    quats = array(f"{_NAME}:ROTATION", "VEC4")
    scales = array(f"{_NAME}:SCALE", "VEC3")
    opacities = array(f"{_NAME}:OPACITY", "SCALAR")
    sh = [array(name, "VEC3") for name in wanted]
    counts = {len(x) for x in (means, quats, scales, opacities, *sh)}
    if len(counts) > 1 or not len(means):
        raise glb.refuse(f"has attributes of {sorted(counts)} Gaussians; expected one number")
    return Gaussians(
        means=means,
        quats=quats[:, [3, 0, 1, 2]],
        scales=scales,
        opacities=opacities[:, 0],
        sh=np.stack(sh, axis=1),
    )


def _coefficient(degree: int, i: int) -> str:
    return f"{_NAME}:SH_DEGREE_{degree}_COEF_{i}"


def _array(glb: _Glb, index: Any, kind: str, name: str) -> np.ndarray:
    """An accessor's numbers `[n, width]` as float32."""
    accessor = glb.item("accessors", index)
    code, count = accessor.get("componentType"), accessor.get("count")
    if accessor.get("type") != kind or code not in _TYPES or "sparse" in accessor:
        raise glb.refuse(f"has {name} as no plain {kind} of floats or small whole numbers")
    view = glb.item("bufferViews", accessor.get("bufferView"))
    layout = np.dtype(_TYPES[code])
    width = _WIDTHS[kind] * layout.itemsize
    numbers = [
        *(view.get(key, 0) for key in ("buffer", "byteOffset", "byteLength")),
        *(accessor.get("byteOffset", 0), view.get("byteStride", width), count),
    ]
    if not all(type(x) is int and 0 <= x < 1 << 40 for x in numbers):
        raise glb.refuse(f"has {name} at places that are no numbers")
    buffer, begin, length, shift, stride, count = numbers
    last = shift + (count - 1) * stride + width if count else 0
    if buffer or begin + length > len(glb.body) or last > length or stride < width:
        raise glb.refuse(f"claims {count} of {name}, which its {len(glb.body)} bytes do not hold")
    own = glb.body[begin + shift : begin + length]
    rows = np.lib.stride_tricks.as_strided(own, (count, width), (stride, 1))
    values = np.ascontiguousarray(rows).view(layout).astype(np.float32)
    if layout.kind != "f" and accessor.get("normalized"):
        values = np.maximum(values / np.iinfo(layout).max, -1.0)
    return values


# ------------------------------------------------------------------------------------ nodes


def _placed(glb: _Glb, mesh: int, found: Gaussians) -> Gaussians:
    """The Gaussians where the nodes put them."""
    nodes = glb.tree.get("nodes", [])
    nodes = nodes if isinstance(nodes, list) else []
    mine = [
        i for i, node in enumerate(nodes) if isinstance(node, dict) and node.get("mesh") == mesh
    ]
    if len(mine) > 1:
        raise glb.refuse("shows its Gaussians at several nodes; one is read")
    above = {}
    for i, node in enumerate(nodes):
        children = node.get("children", []) if isinstance(node, dict) else []
        above |= {child: i for child in children if _is_index(child, nodes)}
    matrix, place = np.eye(4), mine[0] if mine else None
    for _ in range(_DEEPEST):
        if place is None:
            break
        matrix, place = _matrix(glb, nodes[place]) @ matrix, above.get(place)
    else:
        raise glb.refuse(f"has nodes deeper than {_DEEPEST}, or in a circle")
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    turn = matrix[:3, :3] / (scale if scale > 1e-12 else 1.0)
    if not scale > 1e-12 or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-3:
        raise glb.refuse("has a node that mirrors, skews or scales unevenly")
    if np.abs(matrix - np.eye(4)).max() < 1e-9:
        return found
    found = turned(found, turn)
    means = scale * found.means + matrix[:3, 3]
    return found.replace(means=np.float32(means), scales=np.float32(scale * found.scales))


def _matrix(glb: _Glb, node: dict) -> np.ndarray:
    def numbers(key: str, usual: list[float]) -> np.ndarray:
        value = node.get(key, usual)
        flat = isinstance(value, list) and len(value) == len(usual)
        if not flat or not all(type(x) in (int, float) and abs(x) < 1e12 for x in value):
            raise glb.refuse(f"has a node whose {key} is no list of {len(usual)} numbers")
        return np.array(value, float)

    if "matrix" in node:
        return numbers("matrix", [0.0] * 16).reshape(4, 4).T
    quat = numbers("rotation", [0.0, 0.0, 0.0, 1.0])
    if not 0.5 < np.linalg.norm(quat) < 2:
        raise glb.refuse("has a node whose rotation is no unit quaternion")
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(quat).as_matrix() * numbers("scale", [1.0] * 3)
    matrix[:3, 3] = numbers("translation", [0.0] * 3)
    return matrix


def _is_index(index: Any, items: Any) -> bool:
    return type(index) is int and isinstance(items, list) and 0 <= index < len(items)
