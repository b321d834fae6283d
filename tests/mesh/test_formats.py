"""One object, one look: each format is read by a reader of its own, written from the standard."""

import io
import json
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from jax3d import image
from jax3d import mesh as meshing
from jax3d.render.raster import sample_texture
from jax3d.types import Mesh

WRITERS = {"glb": meshing.write_glb, "obj": meshing.write_obj, "ply": meshing.write_ply}


def solid(x):
    """A long, tilted body off the centre: no two axes look alike."""
    inside = 0.3 - np.linalg.norm((x - [0.15, -0.1, 0.2]) / [1.6, 1.0, 0.6], axis=-1)
    return 500.0 / (1 + np.exp(np.clip(-300 * inside, -50, 50)))


def paint(x):
    """The place tells the colour, and dark ones are among them."""
    return np.clip(0.5 + 0.75 * np.asarray(x), 0.02, 0.98)


@pytest.fixture(scope="module")
def textured():
    config = meshing.MeshConfig(resolution=48, faces=600, texture=256)
    return meshing.build(solid, paint, 1.0, config)


@pytest.fixture(scope="module")
def colored(textured):
    mesh = meshing.simplify(Mesh(*welded(textured)), 400)
    return mesh.replace(colors=paint(mesh.vertices).astype(np.float32))


def welded(mesh):
    vertices, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    return vertices, place.reshape(-1)[mesh.faces]


def read_glb(path):
    """glTF 2.0: vertices, faces, uvs from the upper left, linear colours, texture, material."""
    content = path.read_bytes()
    magic, version, length, json_length, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    tree, blob = json.loads(content[20 : 20 + json_length]), content[28 + json_length :]
    assert content[24 + json_length : 28 + json_length] == b"BIN\0"

    def view(index):
        at = tree["bufferViews"][index]
        start = at.get("byteOffset", 0)
        return blob[start : start + at["byteLength"]]

    def accessor(index):
        a = tree["accessors"][index]
        kind, width = {5125: "<u4", 5126: "<f4"}[a["componentType"]], {"SCALAR": 1}.get(a["type"])
        width = width or int(a["type"][-1])
        data = np.frombuffer(view(a["bufferView"])[a.get("byteOffset", 0) :], kind)
        return data[: a["count"] * width].reshape(-1, width)

    (mesh,) = tree["meshes"]
    (primitive,) = mesh["primitives"]
    for node in tree["nodes"]:
        np.testing.assert_array_equal(np.reshape(node.get("matrix", np.eye(4)), (4, 4)), np.eye(4))
    found = {k: accessor(i) for k, i in primitive["attributes"].items()}
    material = tree["materials"][primitive["material"]]
    texture = None
    if "baseColorTexture" in material["pbrMetallicRoughness"]:
        source = tree["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
        png = Image.open(io.BytesIO(view(tree["images"][source["source"]]["bufferView"])))
        assert (png.format, png.mode) == ("PNG", "RGB")
        texture = np.asarray(png, np.float32) / 255
    return found, accessor(primitive["indices"]).reshape(-1, 3), material, texture


def read_obj(path):
    """Wavefront: rows by keyword, and its material's rows."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    values = {
        k: np.array([r[1:] for r in rows if r[0] == k], np.float64) for k in ("v", "vt", "vn")
    }
    corners = [[c.split("/") for c in r[1:]] for r in rows if r[0] == "f"]
    faces = {
        k: np.array([[int(c[i]) - 1 for c in f] for f in corners])
        for i, k in enumerate(("v", "vt", "vn"))
        if i < len(corners[0][0]) and corners[0][0][i]
    }
    names = {r[0]: r[1] for r in rows if r[0] in ("mtllib", "usemtl")}
    material = {}
    if "mtllib" in names:
        for line in (path.parent / names["mtllib"]).read_text().splitlines():
            key, *rest = line.split()
            material[key] = rest
        assert material["newmtl"] == [names["usemtl"]]
    return values, faces, material


def read_ply(path):
    """Binary little-endian PLY of triangles."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == "element"}
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(r[2], kinds[r[1]]) for r in lines if r[0] == "property" and r[1] in kinds]
    assert ["property", "list", "uchar", "int", "vertex_indices"] in lines
    vertex = np.frombuffer(body, np.dtype(fields), counts["vertex"])
    face = np.frombuffer(
        body, np.dtype([("n", "u1"), ("i", "<i4", 3)]), counts["face"], offset=vertex.nbytes
    )
    assert (face["n"] == 3).all()
    assert len(body) == vertex.nbytes + face.nbytes
    return vertex, face["i"]


def corners(path):
    """Places `[F, 3, 3]` in the file's axes and sRGB colours `[F, 3, 3]` or None at corners."""
    match path.suffix:
        case ".glb":
            found, faces, _, texture = read_glb(path)
            colors = None
            if texture is not None:
                uv = found["TEXCOORD_0"].astype(np.float64)
                colors = sample_texture(texture, np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1))
            elif "COLOR_0" in found:
                colors = image.linear_to_srgb(found["COLOR_0"][:, :3])
            return found["POSITION"][faces], None if colors is None else colors[faces]
        case ".obj":
            values, faces, material = read_obj(path)
            place = values["v"][faces["v"], :3]
            if "map_Kd" in material:
                texture = image.read_image(path.parent / material["map_Kd"][0])
                return place, sample_texture(texture, values["vt"])[faces["vt"]]
            return place, values["v"][faces["v"], 3:] if values["v"].shape[1] == 6 else None
        case ".ply":
            vertex, faces = read_ply(path)
            place = np.stack([vertex[k] for k in "xyz"], axis=-1)
            if "red" not in vertex.dtype.names:
                return place[faces], None
            colors = np.stack([vertex[k] for k in ("red", "green", "blue")], axis=-1) / 255
            return place[faces], colors[faces]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", ["textured", "colored"])
def test_a_point_of_the_object_has_its_place_and_colour_in_every_format(
    suffix, kind, request, tmp_path
):
    mesh = request.getfixturevalue(kind)
    WRITERS[suffix](tmp_path / f"a.{suffix}", mesh)
    place, color = corners(tmp_path / f"a.{suffix}")
    # +y up and the front, the world's +x, towards +z: the world's (x, y, z) is (z, x, y) of a file.
    world = np.stack([place[..., 2], place[..., 0], place[..., 1]], axis=-1)
    np.testing.assert_allclose(world, mesh.vertices[mesh.faces], atol=1e-6)
    error = np.abs(color - paint(world))
    # A texel at a sharp bend looks along another normal: the texture is a little off there.
    assert np.quantile(error, 0.99) < (0.06 if kind == "textured" else 0.003)
    turned = np.abs(color - paint(place))
    assert np.median(turned) > 0.1


def test_all_formats_agree_to_the_last_bit_of_8(textured, colored, tmp_path):
    for mesh in (textured, colored):
        for suffix, write in WRITERS.items():
            write(tmp_path / f"a.{suffix}", mesh)
        glb, obj, ply = (corners(tmp_path / f"a.{s}")[1] for s in WRITERS)
        np.testing.assert_allclose(obj, glb, atol=0.51 / 255)
        np.testing.assert_allclose(ply, glb, atol=1.01 / 255)


def test_winding_and_normals_look_outwards_in_every_format(textured, tmp_path):
    for suffix, write in WRITERS.items():
        path = tmp_path / f"a.{suffix}"
        write(path, textured)
        place, _ = corners(path)
        a, b, c = np.moveaxis(place.astype(np.float64), 1, 0)
        flat = np.cross(b - a, c - a)
        assert np.einsum("fi,fi->", a, flat) > 0
        match suffix:
            case "glb":
                found, faces, _, _ = read_glb(path)
                normals = found["NORMAL"][faces]
            case "obj":
                values, faces, _ = read_obj(path)
                normals = values["vn"][faces["vn"]]
            case "ply":
                vertex, faces = read_ply(path)
                normals = np.stack([vertex[k] for k in ("nx", "ny", "nz")], axis=-1)[faces]
        flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
        assert np.median(np.einsum("fki,fi->fk", normals, flat)) > 0.9


def test_the_look_is_matt_and_opaque_and_only_of_the_texture(textured, colored, tmp_path):
    plain = colored.replace(colors=None)
    for mesh, attributes in (
        (textured, {"POSITION", "NORMAL", "TEXCOORD_0"}),
        (colored, {"POSITION", "NORMAL", "COLOR_0"}),
        (plain, {"POSITION", "NORMAL"}),
    ):
        meshing.write_glb(tmp_path / "a.glb", mesh)
        found, _, material, texture = read_glb(tmp_path / "a.glb")
        assert set(found) == attributes
        assert (texture is None) == (mesh.texture is None)
        shine = material["pbrMetallicRoughness"]
        assert (shine["metallicFactor"], shine["roughnessFactor"]) == (0.0, 1.0)
        assert shine.get("baseColorFactor", [1, 1, 1, 1]) == [1, 1, 1, 1]
        assert material.get("alphaMode", "OPAQUE") == "OPAQUE"
        assert not any(material.get("emissiveFactor", [0, 0, 0]))
    meshing.write_obj(tmp_path / "a.obj", textured)
    values, _, material = read_obj(tmp_path / "a.obj")
    assert values["v"].shape[1] == 3
    numbers = {
        k: [float(x) for x in v] for k, v in material.items() if k not in ("newmtl", "map_Kd")
    }
    assert numbers == {
        "Kd": [1, 1, 1], "Ka": [1, 1, 1], "Ks": [0, 0, 0], "Ns": [0], "d": [1], "illum": [1],
        "Pr": [1], "Pm": [0],
    }  # fmt: skip
    assert material["map_Kd"] == ["a.png"]


@pytest.mark.parametrize("kind", ["textured", "colored", "plain"])
def test_glb_comes_back_as_it_was(kind, textured, colored, tmp_path):
    mesh = {"textured": textured, "colored": colored, "plain": colored.replace(colors=None)}[kind]
    meshing.write_glb(tmp_path / "a.glb", mesh)
    back = meshing.load_glb(tmp_path / "a.glb")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, mesh.faces)
    for name, atol in (("colors", 1e-6), ("uvs", 1e-6), ("texture", 0.51 / 255)):
        expected, found = getattr(mesh, name), getattr(back, name)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_allclose(found, expected, atol=atol)


FRAMES = np.random.default_rng(0).random((3, 64, 64, 3))
OUTPUTS = {
    "a.glb": lambda path, mesh: meshing.write_glb(path, mesh),
    "a.obj": lambda path, mesh: meshing.write_obj(path, mesh.replace(texture=None)),
    "a.ply": lambda path, mesh: meshing.write_ply(path, mesh),
    "a.png": lambda path, mesh: image.write_png(path, mesh.texture),
    "a.gif": lambda path, mesh: image.write_video(path, FRAMES),
    "a.mp4": lambda path, mesh: image.write_video(path, FRAMES),
}


@pytest.fixture
def tiny_disk():
    """Files end at 1000 bytes; the rest of a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_write_that_fails_leaves_the_old_file(name, textured, tmp_path, tiny_disk):
    (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=f"{name} could not be written: ."):
        OUTPUTS[name](tmp_path / name, textured)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: "old"}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_missing_folder_is_named(name, textured, tmp_path):
    with pytest.raises(OSError, match=rf"none/{name} could not be written"):
        OUTPUTS[name](tmp_path / "none" / name, textured)


def test_an_obj_is_there_only_with_what_it_names(textured, tmp_path, tiny_disk):
    with pytest.raises(OSError, match="could not be written"):
        meshing.write_obj(tmp_path / "a.obj", textured)
    assert not (tmp_path / "a.obj").exists()
