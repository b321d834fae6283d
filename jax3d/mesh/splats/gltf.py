"""glTF 2.0 with KHR_gaussian_splatting, as its release candidate has it, in a GLB.

One mesh of points: who does not know the extension shows these in their colours. Axes "rub", as
glTF asks; scales are standard deviations, opacities and quaternions (x, y, z, w) are plain floats.
Colours are sRGB as they are shown, COLOR_0 is linear as everywhere in glTF.
"""

import json
import os
import struct

import numpy as np

from jax3d.files import whole
from jax3d.image import srgb_to_linear
from jax3d.mesh.splats.axes import demand_some, to_file
from jax3d.render.ewa import SH0
from jax3d.types import Gaussians

_NAME = "KHR_gaussian_splatting"
_KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_FLOAT, _POINTS = 5126, 0


def write_splat_glb(path: str | os.PathLike, gaussians: Gaussians) -> None:
    """Write a GLB; errors as those of `splats.write`."""
    demand_some(gaussians, path)
    attributes = _attributes(to_file(gaussians, "rub"))
    body = b"".join(x.astype("<f4").tobytes() for x in attributes.values())
    views, accessors, begin = [], [], 0
    for name, x in attributes.items():
        views.append({"buffer": 0, "byteOffset": begin, "byteLength": 4 * x.size})
        begin += 4 * x.size
        accessors.append(
            {
                "bufferView": len(accessors),
                "componentType": _FLOAT,
                "count": len(x),
                "type": _KINDS[x.shape[1]],
            }
        )
        if name == "POSITION":
            accessors[-1] |= {"min": x.min(axis=0).tolist(), "max": x.max(axis=0).tolist()}
    primitive = {
        "attributes": {name: i for i, name in enumerate(attributes)},
        "mode": _POINTS,
        "extensions": {
            _NAME: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "projection": "perspective",
                "sortingMethod": "cameraDistance",
            }
        },
    }
    tree = {
        "asset": {"version": "2.0", "generator": "jax3d"},
        "extensionsUsed": [_NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "meshes": [{"primitives": [primitive], "name": "asset"}],
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    with whole(path) as file:
        file.write_bytes(_glb(json.dumps(tree, separators=(",", ":")).encode(), body))


def _attributes(known: Gaussians) -> dict[str, np.ndarray]:
    """The arrays `[n, c]` by their semantics."""
    unit = known.quats / np.linalg.norm(known.quats, axis=-1, keepdims=True)
    shown = srgb_to_linear(np.clip(SH0 * known.sh[:, 0] + 0.5, 0.0, 1.0))
    opacities = known.opacities[:, None]
    found = {
        "POSITION": known.means,
        "COLOR_0": np.concatenate([shown, opacities], axis=-1),
        f"{_NAME}:ROTATION": unit[:, [1, 2, 3, 0]],
        f"{_NAME}:SCALE": known.scales,
        f"{_NAME}:OPACITY": opacities,
    }
    place = 0
    for degree in range(int(np.sqrt(known.sh.shape[1]))):
        for i in range(2 * degree + 1):
            found[f"{_NAME}:SH_DEGREE_{degree}_COEF_{i}"] = known.sh[:, place]
            place += 1
    return found


def _glb(tree: bytes, body: bytes) -> bytes:
    """The two chunks of a GLB; floats need no padding."""
    tree += b" " * (-len(tree) % 4)
    chunks = b"".join(
        struct.pack("<I4s", len(data), kind) + data
        for data, kind in ((tree, b"JSON"), (body, b"BIN\0"))
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
