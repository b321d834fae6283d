"""Gaussians on disk: there and back, by hand, turned, and no trust in headers."""

import gzip
import json
import struct

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax3d.mesh import splats
from jax3d.mesh.splats import axes as axes_of
from jax3d.render.ewa import SH0, harmonic_basis
from jax3d.types import Gaussians


def many(degree=0, n=7):
    """Gaussians at random."""
    rng = np.random.default_rng(degree)
    found = Gaussians(
        means=0.7 * rng.uniform(-1, 1, (n, 3)),
        quats=rng.normal(size=(n, 4)),
        scales=0.15 * np.exp(0.6 * rng.normal(size=(n, 3))),
        opacities=rng.uniform(0.02, 0.98, n),
        sh=0.5 * rng.normal(size=(n, (degree + 1) ** 2, 3)),
    )
    return jax.tree.map(lambda x: x.astype(np.float32), found)


def one(**how):
    """One Gaussian in the world's axes, turned by nothing."""
    plain = {
        "means": [[1.0, 2, 3]],
        "quats": [[1.0, 0, 0, 0]],
        "scales": [[0.1, 0.2, 0.3]],
        "opacities": [0.75],
        "sh": [[[0.0, 1, -1]]],
    }
    return Gaussians(**{k: np.array(v, np.float32) for k, v in (plain | how).items()})


def unit(quats):
    """Of length 1."""
    return quats / np.linalg.norm(quats, axis=-1, keepdims=True)


def assert_same_rotations(a, b, atol=1e-6):
    """A quaternion and its negative are one rotation."""
    cosine = np.sum(unit(a.astype(float)) * unit(b.astype(float)), axis=-1)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=atol)


def assert_same(a, b, mean=1e-6, rest=1e-6, quat=1e-6, sh=None):
    np.testing.assert_allclose(a.means, b.means, atol=mean)
    assert_same_rotations(a.quats, b.quats, quat)
    np.testing.assert_allclose(np.log(a.scales), np.log(b.scales), atol=max(rest, 1e-5))
    np.testing.assert_allclose(a.opacities, b.opacities, atol=rest)
    np.testing.assert_allclose(a.sh, b.sh, atol=rest if sh is None else sh)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(a))


@pytest.mark.parametrize("axes", ["world", "rub", "rdf"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_there_and_back(tmp_path, degree, axes):
    known = many(degree)
    splats.write_ply(tmp_path / "a.ply", known, axes)
    assert_same(splats.read_ply(tmp_path / "a.ply", axes), known, sh=1e-5)


def test_a_ply_by_hand(tmp_path):
    sh = np.zeros((1, 4, 3), np.float32)
    sh[0, 1:] = np.arange(9).reshape(3, 3)
    splats.write_ply(tmp_path / "a.ply", one(sh=sh), "world")
    data = (tmp_path / "a.ply").read_bytes()
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 1"]
    names = [line.removeprefix("property float ") for line in lines[3:]]
    wanted = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2"
    wanted += "".join(f" f_rest_{i}" for i in range(9))
    wanted += " opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert names == wanted.split()
    values = np.frombuffer(body, "<f4")
    np.testing.assert_allclose(values[:9], [1, 2, 3, 0, 0, 0, 0, 0, 0])
    # All coefficients of red, then of green, then of blue.
    np.testing.assert_allclose(values[9:18], [0, 3, 6, 1, 4, 7, 2, 5, 8], atol=1e-6)
    np.testing.assert_allclose(
        values[18:], [np.log(3), *np.log([0.1, 0.2, 0.3]), 1, 0, 0, 0], rtol=1e-5
    )


@pytest.mark.parametrize(("order", "mark"), [("little", "<"), ("big", ">")])
def test_a_ply_is_read_by_name(tmp_path, order, mark):
    # Another order, other types, no normals, an element before, and properties of others.
    kinds = {"opacity": "double", "red": "uchar", "y": "float", "x": "float", "z": "float"}
    kinds |= {
        f"{name}_{i}": "float32" for name in ("rot", "scale") for i in range(4 - (name == "scale"))
    }
    kinds |= {f"f_dc_{i}": "float" for i in range(3)}
    numbers = {"double": "f8", "uchar": "u1", "float": "f4", "float32": "f4"}
    layout = np.dtype([(name, mark + numbers[kind]) for name, kind in kinds.items()])
    rows = np.zeros(2, layout)
    rows["x"], rows["y"], rows["z"] = [1, 4], [2, 5], [3, 6]
    rows["rot_0"], rows["scale_1"], rows["opacity"], rows["f_dc_2"] = 2.0, -1.0, [0, 1], 0.5
    head = f"ply\r\nformat binary_{order}_endian 1.0\r\ncomment made by hand\r\nelement other 3\r\n"
    head += "property short a\r\nproperty float b\r\nelement vertex 2\r\n"
    head += (
        "".join(f"property {kind} {name}\r\n" for name, kind in kinds.items()) + "end_header\r\n"
    )
    (tmp_path / "a.ply").write_bytes(head.encode() + bytes(3 * 6) + rows.tobytes() + b"more")
    found = splats.read_ply(tmp_path / "a.ply", "world")
    np.testing.assert_allclose(found.means, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(found.scales, [[1, np.exp(-1), 1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found.opacities, [0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
    np.testing.assert_allclose(found.sh[:, 0], [[0, 0, 0.5]] * 2)


def test_splat_there_and_back(tmp_path):
    known = many(2)
    splats.write_splat(tmp_path / "a.splat", known)
    assert (tmp_path / "a.splat").stat().st_size == 32 * 7
    found = splats.read(tmp_path / "a.splat")
    order = np.argsort(-np.prod(known.scales, -1) * known.opacities)
    known = jax.tree.map(lambda x: x[order], known.replace(sh=known.sh[:, :1]))
    shown = np.clip(known.sh, -0.5 / SH0, 0.5 / SH0)
    assert_same(found, known.replace(sh=shown), rest=0.002, quat=1e-4, sh=0.01)


def test_a_splat_by_hand(tmp_path):
    splats.write_splat(tmp_path / "a.splat", one(quats=[[0.0, 0, 0, -2]]), "world")
    data = (tmp_path / "a.splat").read_bytes()
    np.testing.assert_allclose(struct.unpack("<6f", data[:24]), [1, 2, 3, 0.1, 0.2, 0.3], rtol=1e-6)
    color = [round(255 * (0.5 + SH0 * x)) for x in (0, 1, -1)]
    assert list(data[24:]) == [*color, 191, 128, 128, 128, 0]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz_there_and_back(tmp_path, degree, version):
    known = many(degree, 40)
    mean = 1e-3 if version == 1 else 0.5 / 4096 + 1e-6
    quat = 1e-5 if version == 3 else 5e-3
    # Steps of 1/8, of which a degree's seven coefficients mix up to sqrt(7) where axes turn.
    inside = np.clip(known.sh, -0.3, 0.3)
    whole = known.replace(sh=np.concatenate([known.sh[:, :1], inside[:, 1:]], axis=1))
    splats.write_spz(tmp_path / "a.spz", whole, version)
    found = splats.read_spz(tmp_path / "a.spz")
    assert_same(found, whole, mean=mean, rest=0.032, quat=quat, sh=0.2)
    assert np.all(np.abs(found.sh[:, :1] - whole.sh[:, :1]) < 0.5 / 255 / 0.15 + 1e-6)


def test_an_spz_by_hand(tmp_path):
    # Axes "rub": x, y, z are the world's y, z, x.
    half = np.float32(np.sqrt(0.5))
    known = axes_of.to_world(
        one(quats=[[half, 0, -half, 0]], sh=[[[0.0, 1, -1], *[[0.3, 0, -2]] * 3]]), "rub"
    )
    splats.write_spz(tmp_path / "a.spz", known, 2, antialiased=True)
    data = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert data[:16] == struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 1, 12, 1, 0)
    fixed = [(4096 * x).to_bytes(3, "little") for x in (1, 2, 3)]
    assert data[16:25] == b"".join(fixed)
    assert list(data[25:29]) == [191, 128, 166, 89]
    assert list(data[29:32]) == [round(16 * (np.log(s) + 10)) for s in (0.1, 0.2, 0.3)]
    assert list(data[32:35]) == [128, 37, 128]
    # 0.3 * 128 = 38.4 is 38 + 128, in steps of 8.
    assert list(data[35:]) == [168, 128, 0] * 3
    splats.write_spz(tmp_path / "b.spz", known, 3)
    (code,) = struct.unpack("<I", gzip.decompress((tmp_path / "b.spz").read_bytes())[32:36])
    # y and w are as great; y comes first and is made positive: x, z of 0, w of -511 steps.
    assert code in (1 << 30 | 1 << 9 | 511, 3 << 30 | (1 << 9 | 511) << 10)


def test_spz_positions_far_away_have_fewer_bits(tmp_path):
    far = one(means=[[5000.0, -0.25, 9000.0]])
    splats.write_spz(tmp_path / "a.spz", far)
    np.testing.assert_allclose(splats.read_spz(tmp_path / "a.spz").means, far.means, atol=1e-3)


def test_gltf_is_as_the_release_candidate_says(tmp_path):
    known = many(2, 5)
    splats.write(tmp_path / "a.glb", known)
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    tree = json.loads(data[20 : 20 + size])
    body = data[28 + size :]
    assert tree["buffers"] == [{"byteLength": len(body)}]
    assert tree["extensionsUsed"] == ["KHR_gaussian_splatting"]
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    about = primitive["extensions"]["KHR_gaussian_splatting"]
    assert about["kernel"] == "ellipse"
    assert about["colorSpace"] == "srgb_rec709_display"

    def array(name):
        accessor = tree["accessors"][primitive["attributes"][name]]
        view = tree["bufferViews"][accessor["bufferView"]]
        begin, width = view["byteOffset"], {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        assert (accessor["componentType"], accessor["count"]) == (5126, 5)
        assert view["byteLength"] == 4 * 5 * width
        return np.frombuffer(body[begin : begin + view["byteLength"]], "<f4").reshape(
            5, width
        ), accessor

    turned = axes_of.to_file(known, "rub")
    positions, accessor = array("POSITION")
    np.testing.assert_allclose(positions, known.means[:, [1, 2, 0]], atol=1e-6)
    np.testing.assert_allclose(accessor["min"], positions.min(0))
    np.testing.assert_allclose(accessor["max"], positions.max(0))
    name = "KHR_gaussian_splatting:"
    rotations = array(f"{name}ROTATION")[0]
    assert_same_rotations(rotations[:, [3, 0, 1, 2]], turned.quats)
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(array(f"{name}SCALE")[0], known.scales, rtol=1e-6)
    np.testing.assert_allclose(array(f"{name}OPACITY")[0][:, 0], known.opacities, rtol=1e-6)
    coefficients = [f"{name}SH_DEGREE_{d}_COEF_{i}" for d in range(3) for i in range(2 * d + 1)]
    for k, each in enumerate(coefficients):
        np.testing.assert_allclose(array(each)[0], turned.sh[:, k], atol=1e-6)
    assert len(primitive["attributes"]) == 5 + 9
    # Linear light, for those who show points.
    srgb = np.clip(0.5 + SH0 * known.sh[:, 0], 0, 1)
    colors = array("COLOR_0")[0]
    np.testing.assert_allclose(
        np.where(
            colors[:, :3] > 0.0031308,
            1.055 * colors[:, :3] ** (1 / 2.4) - 0.055,
            12.92 * colors[:, :3],
        ),
        srgb,
        atol=1e-5,
    )
    np.testing.assert_allclose(colors[:, 3], known.opacities, rtol=1e-6)


@pytest.mark.parametrize("axes", ["rub", "rdf"])
def test_axes_turn_all_together(axes):
    turn = {"rub": [[0, 1, 0], [0, 0, 1], [1, 0, 0]], "rdf": [[0, 1, 0], [0, 0, -1], [-1, 0, 0]]}
    turn = np.array(turn[axes], np.float32)
    known = many(3)
    turned = axes_of.to_file(known, axes)
    np.testing.assert_allclose(turned.means, known.means @ turn.T, atol=1e-6)

    def covariances(gaussians):
        # q v q*, of each axis
        axes = np.stack([_rotate(gaussians.quats, e) for e in np.eye(3)], axis=-1)
        return np.einsum("nik,nk,njk->nij", axes, gaussians.scales**2, axes)

    np.testing.assert_allclose(covariances(turned), turn @ covariances(known) @ turn.T, atol=1e-6)
    directions = np.random.default_rng(0).normal(size=(9, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)

    def colors(gaussians, directions):
        return np.einsum("kd,nkc->dnc", np.stack(harmonic_basis(*directions.T, 16)), gaussians.sh)

    np.testing.assert_allclose(
        colors(turned, directions @ turn.T), colors(known, directions), atol=1e-5
    )
    assert_same(axes_of.to_world(turned, axes), known, sh=1e-5)


def _rotate(quats, vector):
    w, xyz = quats[:, :1] / np.linalg.norm(quats, axis=-1, keepdims=True), quats[:, 1:]
    xyz = xyz / np.linalg.norm(quats, axis=-1, keepdims=True)
    across = np.cross(xyz, vector)
    return vector + 2 * (w * across + np.cross(xyz, across))


def header(**changes):
    """A header of a PLY of Gaussians that is sound but for some lines."""
    lines = {
        "magic": "ply",
        "format": "format binary_little_endian 1.0",
        "element": "element vertex 1",
    }
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    lines |= {name: f"property float {name}" for name in names.split()}
    return "\n".join(x for x in [*(lines | changes).values(), "end_header\n"] if x)


BODY = struct.pack("<14f", *[0.0] * 10, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("head", "body", "told"),
    [
        (header(magic="PLY"), BODY, "is no PLY"),
        (header().replace("end_header", "end"), BODY, "is no PLY"),
        (header(format="format ascii 1.0"), BODY, "is ascii; export it as a binary PLY"),
        (header(format=""), BODY, "no format"),
        (header(element="element vertex -1"), BODY, "header line"),
        (header(element="element vertex 99999999999999999999999"), BODY, "header line"),
        (header(element="element vertex 999999999999999999"), BODY, "is truncated"),
        (header(element="element vertex 2"), BODY, "is truncated: its header says 2"),
        (header(element="element vertex 0"), BODY, "holds no Gaussians"),
        (header(element="element chunk 9\nproperty float a\nelement vertex 1"), BODY, "SuperSplat"),
        (
            header(element="element face 1\nproperty list uchar int i\nelement vertex 1"),
            BODY,
            "a list",
        ),
        (
            header(element="element other 999999999\nproperty double a\nelement vertex 1"),
            BODY,
            "truncated",
        ),
        (header(rot_3=""), BODY, "lacks rot_3"),
        (header(y="property float x"), BODY, "two properties of one name"),
        (header(y="property vec3 y"), BODY, "header line"),
        (header(more="property float f_rest_0"), BODY + bytes(4), "1 properties f_rest"),
        (header(), BODY[:-4], "is truncated"),
        (header(), BODY[:-4] + struct.pack("<f", np.nan), "of the quats are not finite"),
        (header(), BODY[:-16] + bytes(16), "which is none"),
        (header(), BODY[:28] + struct.pack("<f", 1e9) + BODY[32:], "of the scales are not finite"),
    ],
)
def test_a_bad_ply_is_told(tmp_path, head, body, told):
    path = tmp_path / "a.ply"
    path.write_bytes(head.encode() + body)
    with pytest.raises(ValueError, match=told) as error:
        splats.read(path)
    assert str(path) in str(error.value)


def spz(version=3, count=1, degree=0, bits=12, flags=0, body=None, magic=b"NGSP"):
    """A .spz, sound but for what is said."""
    body = bytes(9 + 1 + 3 + 3 + 4) if body is None else body
    return gzip.compress(
        struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, 0) + body
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"NGSP" + bytes(28), "version 4 or later"),
        (b"hello", "no .spz of version 1 to 3"),
        (spz(magic=b"PGSN"), "does not begin with NGSP"),
        (gzip.compress(b"NGSP"), "does not begin with NGSP"),
        (spz(version=4), "version 4"),
        (spz(degree=4), "degree 4"),
        (spz(bits=24), "24 fractional bits"),
        (spz(count=0), "says 0 Gaussians"),
        (spz(count=2**32 - 1), "cannot hold"),
        (spz(count=2), "is truncated"),
        (spz()[:-9], "is truncated|damaged"),
        (spz()[:-8] + bytes(8), "damaged"),
        (spz(body=bytes(25)), "does not end with the last array"),
        (spz(version=1, body=struct.pack("<3e", np.inf, 0, 0) + bytes(10)), "not finite"),
    ],
)
def test_a_bad_spz_is_told(tmp_path, data, told):
    path = tmp_path / "a.spz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=told) as error:
        splats.read(path)
    assert str(path) in str(error.value)


def test_records_of_extensions_are_skipped(tmp_path):
    (tmp_path / "a.spz").write_bytes(spz(flags=2, body=bytes(20) + b"a record"))
    assert splats.read(tmp_path / "a.spz").means.shape == (1, 3)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "has 0 bytes"),
        (bytes(33), "has 33 bytes"),
        (struct.pack("<6f8B", np.nan, *[1] * 5, *[200] * 8), "not finite"),
        (struct.pack("<6f8B", *[1] * 5, -1, *[200] * 8), "scales below 0"),
    ],
)
def test_a_bad_splat_is_told(tmp_path, data, told):
    (tmp_path / "a.splat").write_bytes(data)
    with pytest.raises(ValueError, match=told):
        splats.read(tmp_path / "a.splat")


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".spz", ".glb"])
def test_what_is_no_scene_is_not_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ValueError, match="no Gaussians to write"):
        splats.write(path, many(n=0))
    with pytest.raises(ValueError, match="not finite"):
        splats.write(path, one(scales=[[1.0, np.inf, 1]]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no format of Gaussians"):
        splats.write(tmp_path / "a.obj", one())
    with pytest.raises(ValueError, match="no format of Gaussians"):
        splats.read(tmp_path / "a.obj")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound file of each format that is read."""
    folder = tmp_path_factory.mktemp("splats")
    for suffix in (".ply", ".splat", ".spz"):
        splats.write(folder / f"a{suffix}", many(1, 3))
    return folder


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([".ply", ".splat", ".spz"]), st.floats(0, 1), st.integers(0, 255), st.booleans()
)
def test_a_damaged_file_is_read_or_told(files, suffix, where, byte, cut):
    data = bytearray((files / f"a{suffix}").read_bytes())
    place = int(where * (len(data) - 1))
    damaged = (
        bytes(data[:place])
        if cut
        else bytes(data[:place]) + bytes([byte]) + bytes(data[place + 1 :])
    )
    path = files / f"damaged{suffix}"
    path.write_bytes(damaged)
    try:
        found, told = splats.read(path), None
    except ValueError as error:
        found, told = None, str(error)
    assert told is None or str(path) in told
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
