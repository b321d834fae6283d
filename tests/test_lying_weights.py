"""Weight files that lie: each costs one line, and nothing of the size that they claim."""

import json
import pickle
import resource
import struct
import zipfile

import msgpack
import numpy as np
import pytest
from checkpoints import torch_tensor, write_torch
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jax3d import weights
from jax3d.weights import WeightsError

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _little_memory():
    """Whatever a file claims, reading it takes less than a quarter of a GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (GIB >> 12)


def refuse(path, match="."):
    """Asserts that a file is refused by one line with its name."""
    with pytest.raises(WeightsError, match=match) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "negative offsets": {"a": entry(offsets=(-8, 0))},
    "reversed offsets": {"a": entry(offsets=(8, 0))},
    "offsets beyond the file": {"a": entry(shape=(4,), offsets=(0, 16))},
    "offsets of a terabyte": {"a": entry(shape=(1 << 38,), offsets=(0, 1 << 40))},
    "overlap": {"a": entry(), "b": entry()},
    "a hole": {"a": entry("U8", (2,), (0, 2)), "b": entry("U8", (2,), (6, 8))},
    "bytes left over": {"a": entry("U8", (2,), (0, 2))},
    "a shape of other size": {"a": entry(shape=(3,))},
    "a negative side": {"a": entry(shape=(-2,))},
    "sides that overflow": {"a": entry(shape=(1 << 62, 1 << 62))},
    "no elements of an impossible shape": {
        "a": entry(),
        "b": entry(shape=(0, (1 << 64) - 1), offsets=(8, 8)),
    },
    "a broken side": {"a": entry(shape=(2.5,))},
    "a side in words": {"a": entry(shape=("2",))},
    "a true side": {"a": entry("U8", (True,), (0, 8))},
    "a shape that is no list": {"a": entry(shape=8)},
    "an unknown type": {"a": entry("F31")},
    "an eight-bit float": {"a": entry("F8_E4M3", (8,))},
    "a numbered type": {"a": entry(7)},
    "three offsets": {"a": entry(offsets=(0, 4, 8))},
    "offsets in words": {"a": entry(offsets=("0", "8"))},
    "broken offsets": {"a": entry(offsets=(0.0, 8.0))},
    "an entry that is a list": {"a": [1, 2]},
    "an entry that is null": {"a": None},
    "nothing in an entry": {"a": {}},
    "metadata that is no object": {"__metadata__": 3, "a": entry()},
    "a list": [1, 2],
    "null": None,
    "a word": "weights",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_lying_safetensors_headers(tmp_path, header):
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refuse(path)


@pytest.mark.parametrize("content", [
    b"",
    struct.pack("<Q", 0),
    struct.pack("<Q", 3 * GIB) + b"{}",
    struct.pack("<Q", (1 << 64) - 1) + b"{}",
    struct.pack("<Q", 100_000) + b"[" * 100_000,
    struct.pack("<Q", 600_000) + b'{"a":' * 100_000 + b"1" + b"}" * 99_999,
    struct.pack("<Q", 4) + b"\xff\xfe{}",
    struct.pack("<Q", 30) + b"9" * 30,
], ids=lambda content: f"{len(content)} bytes")  # fmt: skip
def test_no_safetensors_header(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refuse(path)


def test_a_header_of_three_gibibytes(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3 * GIB))
        file.truncate(3 * GIB + 100)
    refuse(path, "header too large")


@pytest.mark.parametrize(("index", "match"), [
    ({"weight_map": {"a": "../secret.safetensors"}}, "beside the index"),
    ({"weight_map": {"a": "/etc/passwd"}}, "beside the index"),
    ({"weight_map": {"a": "sub/shard.safetensors"}}, "beside the index"),
    ({"weight_map": {"a": "..\\shard.safetensors"}}, "beside the index"),
    ({"weight_map": {"a": "model.safetensors.index.json"}}, "beside the index"),
    ({"weight_map": {"a": "\ud800.safetensors"}}, "beside the index"),
    ({"weight_map": {"a": ""}}, "beside the index"),
    ({"weight_map": {"a": 7}}, "beside the index"),
    ({"weight_map": {"a": ["x.safetensors"]}}, "beside the index"),
    ({"weight_map": {"a": None}}, "beside the index"),
    ({"weight_map": {}}, "no weight_map"),
    ({"weight_map": [["a", "x.safetensors"]]}, "no weight_map"),
    ({"weight_map": None}, "no weight_map"),
    ({}, "no weight_map"),
    ([], "not a JSON object"),
    (3, "not a JSON object"),
])  # fmt: skip
def test_lying_indices_of_shards(tmp_path, index, match):
    save_file({"a": np.zeros(2)}, tmp_path.parent / "secret.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    refuse(path, match)


@pytest.mark.parametrize(("content", "match"), [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    (b'{"a": 1' + b"0" * 10_000 + b"}", "not JSON"),
    ('{"a": 1}'.encode("utf-16"), "not JSON"),
    (b"", "not JSON"),
    (b"{} {}", "not JSON"),
    (b"[1]", "holds a list"),
    (b"null", "holds a NoneType"),
])  # fmt: skip
def test_lying_json(tmp_path, content, match):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=match) as caught:
        weights.read_config(path)
    assert str(path) in str(caught.value)


def test_a_json_file_of_gibibytes(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(3 * GIB)
    with pytest.raises(WeightsError, match="3221225472 bytes"):
        weights.read_config(path)


ARRAY = np.zeros(4, np.float32)


def torch_file(path, **content):
    write_torch(path, content, {"0": ARRAY})


def lying_pickle(path, code):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)


@pytest.mark.parametrize(("write", "match"), [
    (lambda p: torch_file(p, a=torch_tensor("0", np.broadcast_to(ARRAY[:1], (1 << 40,)),
                                            strides=(0,))), "outside of its storage"),
    (lambda p: torch_file(p, **{str(i): torch_tensor("0", np.zeros((1 << 20,), "f4"),
                                                     strides=(0,)) for i in range(3)}), "outside"),
    (lambda p: torch_file(p, a=torch_tensor("0", ARRAY, strides=(-1,))), "outside"),
    (lambda p: torch_file(p, a=torch_tensor("0", ARRAY, offset=-1)), "outside"),
    (lambda p: torch_file(p, a=torch_tensor("0", ARRAY, "DoubleStorage")), "outside"),
    (lambda p: torch_file(p, a=torch_tensor("0", ARRAY, offset="x")), "damaged pickle"),
    (lambda p: torch_file(p, a=torch_tensor("9", ARRAY)), "damaged pickle"),
    (lambda p: torch_file(p, **{str(i): torch_tensor("0", ARRAY) for i in range(9999)}),
     "30000 are read"),
    (lambda p: lying_pickle(p, b"\x80\x02Nr\xff\xff\xff\x7f."), "LONG_BINPUT"),
    (lambda p: lying_pickle(p, b"\x80\x02}" + b")" + b"\x85" * 40_000 + b"Ns."), "tuples"),
    (lambda p: lying_pickle(p, b"\x80\x02]" + b"]" * 200_000 + b"a" * 200_000 + b"."), "a list"),
    (lambda p: lying_pickle(p, b"\x80\x05\x8e" + struct.pack("<Q", 1 << 60) + b"."), "damaged"),
    (lambda p: lying_pickle(p, b""), "damaged pickle"),
    (lambda p: lying_pickle(p, pickle.dumps(3)), "holds a int"),
])  # fmt: skip
def test_lying_torch_files(tmp_path, write, match):
    path = tmp_path / "model.ckpt"
    write(path)
    refuse(path, match)


def test_a_storage_that_all_share_is_a_trap(tmp_path):
    path = tmp_path / "model.ckpt"
    big = np.zeros(100_000, np.float32)
    write_torch(path, {str(i): torch_tensor("0", big) for i in range(3)}, {"0": big})
    refuse(path, "more than twice the size of the file")
    write_torch(path, {"a": torch_tensor("0", big), "tied": torch_tensor("0", big)}, {"0": big})
    assert set(weights.load(path)) == {"a", "tied"}


def test_a_packed_pickle_is_not_unpacked(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(GIB >> 3))
    refuse(path, "compressed")


@pytest.mark.parametrize("content", [
    b"",
    b"\xc1",
    msgpack.packb([1, 2]),
    msgpack.packb("weights"),
    msgpack.packb({"a": "words"}),
    msgpack.packb({"a": None}),
    msgpack.packb({1: {2: 3.0}}),
    msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1 << 40,), "float32", b"1234")))}),
    msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "O", b"12345678")))}),
    msgpack.packb({"a": msgpack.ExtType(1, b"\xff")}),
    b"\x81\xa1a" * 5000 + b"\x01",
    b"\xdd\xff\xff\xff\xff",
    serialization.msgpack_serialize({"a": np.zeros(100)})[:-1],
])  # fmt: skip
def test_lying_msgpack(tmp_path, content):
    path = tmp_path / "model.msgpack"
    path.write_bytes(content)
    refuse(path, "not a Flax msgpack|no numbers")


@pytest.mark.parametrize(("config", "name"), [
    ({"width": -1}, "width"),
    ({"width": 10**12}, "width"),
    ({"width": 10**5000}, "width"),
    ({"width": True}, "width"),
    ({"width": 4.0}, "width"),
    ({"width": "4"}, "width"),
    ({"width": None}, "width"),
    ({"width": [4]}, "width"),
    ({"rate": float("nan")}, "rate"),
    ({"rate": float("inf")}, "rate"),
    ({"rate": 10**400}, "rate"),
    ({"rate": False}, "rate"),
    ({"widths": [1, "2"]}, "widths"),
    ({"widths": [1, [2]]}, "widths"),
    ({"widths": [1] * 40}, "widths"),
    ({"widths": {"0": 1}}, "widths"),
    ({"kind": 3}, "kind"),
    ({"flag": 0}, "flag"),
])  # fmt: skip
def test_settings_of_another_kind(config, name):
    kinds = {"width": int, "rate": float, "widths": int | tuple[int, ...] | None, "kind": str}
    with pytest.raises(WeightsError, match=f"^{name} = .*: no .* that can be meant$") as caught:
        weights.checked(config, kinds | {"flag": bool})
    assert len(str(caught.value)) < 200


def test_settings_of_the_right_kind():
    kinds = {"width": int, "rate": float, "widths": int | tuple[int, ...] | None}
    config = {"width": 0, "rate": 1, "widths": [3, 4], "other": object()}
    assert weights.checked(config, kinds) == {"width": 0, "rate": 1, "widths": (3, 4)}
    assert weights.checked({"widths": None}, kinds) == {"widths": None}


# Files that are nearly right, by chance.

MANY = settings(max_examples=150, derandomize=True, deadline=None, database=None)
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=8)), min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def files(folder):
    flat = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
    save_file(flat, folder / "model.safetensors")
    torch = {"a": torch_tensor("0", flat["a"]), "b": torch_tensor("1", flat["b"], "HalfStorage")}
    write_torch(folder / "model.ckpt", torch, {"0": flat["a"], "1": flat["b"]})
    (folder / "model.msgpack").write_bytes(serialization.msgpack_serialize(flat))
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


def assert_read_or_refused(path):
    try:
        for array in weights.load(path).values():
            array.sum()
    except WeightsError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return files(tmp_path_factory.mktemp("originals"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of whatever the bytes say
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".msgpack"])
@MANY
@given(edits=EDITS, cut=st.none() | st.integers(0, 1000))
def test_changed_bytes(originals, tmp_path_factory, suffix, edits, cut):
    content = bytearray(originals[suffix])
    for place, new in edits:
        place %= len(content)
        content[place : place + len(new)] = new
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content[:cut])
    assert_read_or_refused(path)


@MANY
@given(name=st.text(max_size=5), value=JSON, field=st.sampled_from(["dtype", "shape", "offsets"]))
def test_changed_headers(tmp_path_factory, name, value, field):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    text = json.dumps({"a": entry(**{field: value}), name: value}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert_read_or_refused(path)


@MANY
@given(value=JSON)
def test_changed_indices(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors.index.json"
    for index in (value, {"weight_map": value}, {"weight_map": {"a": value}}):
        path.write_text(json.dumps(index))
        assert_read_or_refused(path)
