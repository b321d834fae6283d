"""The byte-pair tokenizer against transformers', with the real vocabulary."""

import gzip
import json

import numpy as np
import pytest
from checkpoints import GOLDEN, byte_symbols

from jax3d.nn import tokenizer

START, END = 49406, 49407


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    merges = gzip.decompress((GOLDEN / "clip_merges.txt.gz").read_bytes()).decode()
    (folder / "merges.txt").write_text(merges, "utf-8")
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols)]
    words += ["".join(line.split()) for line in merges.split("\n")[1:] if line.strip()]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == END + 1
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    return folder


def test_ids_are_those_of_transformers(folder):
    golden = json.loads((GOLDEN / "clip_tokens.json").read_text())
    ids = tokenizer.load(folder).ids(golden["strings"])
    for row, whole in zip(ids, golden["untruncated"], strict=True):
        kept = whole if len(whole) <= 77 else [*whole[:76], END]
        np.testing.assert_array_equal(row, [*kept, *[END] * (77 - len(kept))])


def test_odd_strings(folder):
    """Ids by transformers' tokenizer, the mended ones by OpenAI's cleaning before it."""
    expected = {
        "caf\u00e9 \u201cquotes\u201d": [15304, 257, 5808, 257],
        "&amp; x": [261, 343],
        "<|endoftext|> hi": [END, 1883],
        "#\u2026 2#@a x": [12834, 273, 35062, 320, 343],
        "12345 3D": [272, 273, 274, 275, 276, 274, 323],
    }
    ids = tokenizer.load(folder).ids(list(expected))
    for row, inside in zip(ids, expected.values(), strict=True):
        np.testing.assert_array_equal(row[: len(inside) + 2], [START, *inside, END])


def test_padding_is_what_the_folder_says(folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for written in ('{"pad_token": "!"}', '{"pad_token": {"content": "!"}}'):
        (tmp_path / "special_tokens_map.json").write_text(written)
        row = tokenizer.load(tmp_path, 5).ids(["hi"])[0]
        np.testing.assert_array_equal(row, [START, 1883, END, 0, 0])
    assert tokenizer.load(tmp_path, 5, pad="<|endoftext|>").ids(["hi"])[0][-1] == END


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt"):
        tokenizer.load(tmp_path)


def as_one_file(folder, target, pairs):
    """The same tokenizer as transformers 5 keeps it."""
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")[1:]
    merges = [line for line in lines if len(line.split()) == 2]
    vocab = json.loads((folder / "vocab.json").read_text())
    ends = [{"id": vocab[t], "content": t} for t in ("<|startoftext|>", "<|endoftext|>")]
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [m.split() for m in merges] if pairs else merges,
    }
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps({"added_tokens": ends, "model": model}))
    (target / "tokenizer_config.json").write_text('{"pad_token": "!"}')
    return target


@pytest.mark.parametrize("pairs", [True, False])
def test_a_folder_of_transformers_5(folder, tmp_path, pairs):
    golden = json.loads((GOLDEN / "clip_tokens.json").read_text())["strings"]
    whole = tokenizer.load(as_one_file(folder, tmp_path / "one", pairs))
    expected = tokenizer.load(folder, pad="!").ids(golden)
    np.testing.assert_array_equal(whole.ids(golden), expected)


@pytest.mark.parametrize(("name", "content"), [
    ("added_tokens.json", {"<cat-toy>": 49408, "<hat>": 49409}),
    ("tokenizer_config.json", {"added_tokens_decoder": {
        "49408": {"content": "<cat-toy>"}, "49409": {"content": "<hat>"}, "0": {"content": "!"}}}),
])  # fmt: skip
def test_added_tokens_of_textual_inversion(folder, tmp_path, name, content):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(json.dumps(content))
    reader = tokenizer.load(tmp_path, words=49410)
    plain = tokenizer.load(folder)
    a, hi = plain.ids(["a hi!"])[0][1:3]
    row = reader.ids(["a <cat-toy> hi! <hat>"])[0]
    bang = plain.ids(["hi!"])[0][2]
    np.testing.assert_array_equal(row[:7], [START, a, 49408, hi, bang, 49409, END])
    with pytest.raises(ValueError, match="'<hat>' among them, have no row"):
        tokenizer.load(tmp_path, words=49409)


def test_tokens_are_counted_before_the_cut(folder):
    reader = tokenizer.load(folder, 5)
    assert reader.room == 3
    assert [reader.count(text) for text in ("", "hi", "a red chair!", "hi " * 100)] == [
        0,
        1,
        4,
        100,
    ]
