"""Gaussians from glTF: there and back, moved by nodes, and no trust in what a file claims."""

import json
import struct

import numpy as np
import pytest
from test_splats import assert_same, many

from jax3d.mesh import splats
from jax3d.mesh.splats import axes as axes_of

EXTENSION = "KHR_gaussian_splatting"


def parts(path):
    """The tree and the body of a GLB."""
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def put(path, tree, body):
    """Write them again."""
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(body), b"BIN\0") + body
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


@pytest.fixture
def glb(tmp_path):
    splats.write(tmp_path / "a.glb", many(1, 5))
    return tmp_path / "a.glb"


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_there_and_back(tmp_path, degree):
    splats.write(tmp_path / "a.glb", many(degree))
    assert_same(splats.read(tmp_path / "a.glb"), many(degree), sh=1e-5)


def test_nodes_move_and_turn_and_scale(glb):
    tree, body = parts(glb)
    half = float(np.sqrt(0.5))
    # A quarter about y, below a parent that doubles and lifts.
    tree["nodes"] = [
        {"mesh": 0, "rotation": [0, half, 0, half]},
        {"children": [0], "scale": [2, 2, 2], "translation": [0, 3, 0]},
    ]
    put(glb, tree, body)
    found, known = (axes_of.to_file(x, "rub") for x in (splats.read(glb), many(1, 5)))
    x, y, z = known.means.T
    np.testing.assert_allclose(found.means, 2 * np.stack([z, y, -x], -1) + [0, 3, 0], atol=1e-5)
    np.testing.assert_allclose(found.scales, 2 * known.scales, rtol=1e-6)
    turned = axes_of.turned(known, np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]))
    np.testing.assert_allclose(found.sh, turned.sh, atol=1e-5)


def test_normalised_bytes_are_read(glb):
    tree, body = parts(glb)
    place = tree["meshes"][0]["primitives"][0]["attributes"][f"{EXTENSION}:OPACITY"]
    accessor = tree["accessors"][place]
    view = tree["bufferViews"][accessor["bufferView"]]
    accessor |= {"componentType": 5121, "normalized": True}
    view["byteStride"] = 4
    levels = np.array([[0, 9, 9, 9], [51, 9, 9, 9], [102, 9, 9, 9], [204, 9, 9, 9], [255] * 4])
    begin = view["byteOffset"]
    body = body[:begin] + levels.astype(np.uint8).tobytes() + body[begin + 20 :]
    put(glb, tree, body)
    np.testing.assert_allclose(splats.read(glb).opacities, [0, 0.2, 0.4, 0.8, 1], atol=1e-6)


def change(*path, to):
    """Sets one value of the tree."""

    def edit(tree):
        *way, last = path
        for step in way:
            tree = tree[step]
        tree[last] = to

    return edit


PRIMITIVE = ("meshes", 0, "primitives", 0)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (change("accessors", 0, "count", to=10**12), "claims"),
        (change("accessors", 0, "count", to=-1), "no numbers"),
        (change("accessors", 0, "count", to=6), "claims 6"),
        (change("accessors", 0, "count", to=True), "no numbers"),
        (change("accessors", 0, "count", to=4), r"\[4, 5\] Gaussians"),
        (change("accessors", 0, "byteOffset", to=4), "claims"),
        (change("accessors", 0, "bufferView", to=99), "bufferViews"),
        (change("accessors", 0, "type", to="MAT4"), "no plain VEC3"),
        (change("accessors", 0, "sparse", to={}), "no plain VEC3"),
        (change("bufferViews", 0, "byteLength", to=1 << 50), "no numbers"),
        (change("bufferViews", 0, "byteStride", to=2), "claims"),
        (change("bufferViews", 0, "buffer", to=1), "claims"),
        (change(*PRIMITIVE, "mode", to=4), "no points"),
        (change(*PRIMITIVE, "attributes", to=[]), "without attributes"),
        (change(*PRIMITIVE, "attributes", "POSITION", to="0"), "accessors"),
        (change(*PRIMITIVE, "extensions", to={}), "holds 0 sets"),
        (change("meshes", to=7), "holds 0 sets"),
        (change(*PRIMITIVE, "extensions", EXTENSION, "kernel", to="box"), "another kernel"),
        (
            change(*PRIMITIVE, "extensions", EXTENSION, "colorSpace", to="lin_rec709_display"),
            "linear colours",
        ),
        (change("nodes", 0, "scale", to=[1, 1, 2]), "unevenly"),
        (change("nodes", 0, "scale", to=[-1, 1, 1]), "mirrors"),
        (change("nodes", 0, "scale", to=[0, 0, 0]), "unevenly"),
        (change("nodes", 0, "matrix", to=[1, 2]), "no list of 16"),
        (change("nodes", 0, "children", to=[0]), "in a circle"),
        (change("nodes", to=[{"mesh": 0}, {"mesh": 0}]), "several nodes"),
    ],
)
def test_a_lying_tree_is_told(glb, edit, told):
    tree, body = parts(glb)
    edit(tree)
    put(glb, tree, body)
    with pytest.raises(ValueError, match=told) as error:
        splats.read(glb)
    assert str(glb) in str(error.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no GLB"),
        (b"glTF" + bytes(40), "truncated"),
        (struct.pack("<4sIII4s", b"glTF", 2, 24, 4, b"JSON") + b"{{{{", "JSON cannot be read"),
        (struct.pack("<4sIII4s", b"glTF", 2, 24, 4, b"JSON") + b"[]  ", "no binary chunk"),
        (struct.pack("<4sIII4s", b"glTF", 2, 1 << 31, 1 << 30, b"JSON"), "truncated"),
    ],
)
def test_what_is_no_glb_is_told(tmp_path, data, told):
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(ValueError, match=told):
        splats.read(tmp_path / "a.glb")


def test_a_truncated_glb_is_told(glb):
    glb.write_bytes(glb.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated"):
        splats.read(glb)


@pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "+z", "-z"])
def test_another_axis_may_be_up(tmp_path, up):
    known = many(1)
    splats.write_ply(tmp_path / "a.ply", known, "world")
    found = splats.read(tmp_path / "a.ply", up)
    axis, sign = "xyz".index(up[1]), 1 if up[0] == "+" else -1
    np.testing.assert_allclose(found.means[:, 2], sign * known.means[:, axis], atol=1e-6)
    turn, *_ = np.linalg.lstsq(known.means, found.means, rcond=None)
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-4)


@pytest.mark.parametrize(("name", "up"), [("a.ply", "-y"), ("a.spz", "+y")])
def test_a_formats_own_axis_changes_nothing(tmp_path, name, up):
    splats.write(tmp_path / name, many(1))
    assert_same(splats.read(tmp_path / name, up), splats.read(tmp_path / name), sh=1e-5)
