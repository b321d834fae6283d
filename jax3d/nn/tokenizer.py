"""CLIP's byte-pair tokenizer from the files of a checkpoint folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BytePairs

from jax3d.weights import MOST_JSON, WeightsError, first_line, read_config, shown

_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_START, _END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer(NamedTuple):
    """How a text tower reads texts."""

    ids: Callable[[Sequence[str]], Int[np.ndarray, "b l"]]
    """Texts to token ids, padded and cut to the tower's length"""
    count: Callable[[str], int]
    """Tokens of a whole text, without start and end"""
    room: int
    """Tokens that fit between start and end"""


class _Files(NamedTuple):
    """What a tokenizer folder says."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]
    """Whole tokens beyond the merges: the start, the end, and what textual inversion taught"""


def load(
    folder: str | Path, length: int = 77, pad: str | None = None, words: int | None = None
) -> Tokenizer:
    """The tokenizer of a `tokenizer/` folder.

    Text is mended by ftfy (mojibake, curly quotes, HTML entities), lower-cased and split as the
    towers' authors did. What does not fit keeps its end token. Added tokens, such as textual
    inversion's, are matched before any of that, as they are written.

    Args:
      folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`; optionally
        `added_tokens.json`, `tokenizer_config.json` and `special_tokens_map.json`, of which added
        tokens and the padding token are read.
      length: tokens a text, with its start and end.
      pad: the padding token, if it is not to be read from the folder.
      words: rows of the tower's token table; None does not hold ids against it.

    Raises:
      WeightsError: a file is missing or damaged, or a token has no row in the tower's table.
    """
    folder = Path(folder)
    files = _read(folder)
    known = files.vocab | files.added
    pad = _pad_token(folder) if pad is None else pad
    if lost := [token for token in (_START, _END, pad) if token not in known]:
        raise WeightsError(f"{folder}: the vocabulary lacks {', '.join(map(shown, lost))}")
    if words is not None and (beyond := [t for t, i in known.items() if i >= words]):
        raise WeightsError(
            f"{folder}: {len(beyond)} tokens, {shown(beyond[0])} among them, have no row in the "
            f"text encoder's table of {words}: tokenizer and text encoder are of different models"
        )
    try:
        bpe = _byte_pairs(files)
    except Exception as error:  # the library raises bare exceptions
        raise WeightsError(f"{folder}: no byte-pair tokenizer ({first_line(error)})") from error
    start, end, pad_id = known[_START], known[_END], known[pad]

    def inside(text: str) -> list[int]:
        return bpe.encode(ftfy.fix_text(text), add_special_tokens=False).ids

    def ids(texts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        rows = np.full((len(texts), length), pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            tokens = [start, *inside(text)[: length - 2], end]
            row[: len(tokens)] = tokens
        return rows

    return Tokenizer(ids, lambda text: len(inside(text)), length - 2)


def _read(folder: Path) -> _Files:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_config(folder / "vocab.json")
        merges = _merges_of_text(folder / "merges.txt")
        added: Any = {}
    elif (folder / "tokenizer.json").is_file():
        vocab, merges, added = _of_one_file(folder / "tokenizer.json")
    else:
        raise WeightsError(
            f"{folder}: not the folder of a CLIP tokenizer, which has vocab.json and merges.txt, "
            "or tokenizer.json"
        )
    if (folder / "added_tokens.json").is_file():
        added = added | read_config(folder / "added_tokens.json")
    added = added | _decoded(_optional(folder / "tokenizer_config.json"), folder)
    for token, number in (vocab | added).items():
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise WeightsError(f"{folder}: the id of token {shown(token)} is {shown(number)}")
    # What the vocabulary has already is no word of its own: SD 2 lists "!", its padding, here.
    new = {token: number for token, number in added.items() if token not in vocab}
    ends = {token: vocab[token] for token in (_START, _END) if token in vocab}
    return _Files(vocab, merges, ends | new)


def _merges_of_text(path: Path) -> list[tuple[str, str]]:
    if path.stat().st_size > MOST_JSON:
        raise WeightsError(f"{path}: {path.stat().st_size} bytes; at most {MOST_JSON} are read")
    try:
        lines = path.read_text("utf-8").split("\n")
    except ValueError as error:
        raise WeightsError(f"{path}: no UTF-8 text ({error})") from error
    # Merges of "#" itself begin like the first line, a comment.
    pairs = (line.split() for line in lines if not line.startswith("#version"))
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _of_one_file(path: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges (each a pair or one string) and added tokens of a `tokenizer.json`."""
    try:
        content = read_config(path)
        model = content["model"]
        if model.get("type", "BPE") != "BPE":
            raise WeightsError(f"{path}: a {shown(model['type'])} tokenizer; CLIP's is a BPE")
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        merges = [(str(left), str(right)) for left, right in pairs]
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        return dict(model["vocab"]), merges, added
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: no byte-pair tokenizer ({first_line(error)})") from error


def _decoded(config: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The added tokens that a `tokenizer_config.json` lists by id."""
    try:
        table = config.get("added_tokens_decoder") or {}
        return {token["content"]: int(number) for number, token in table.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{folder / 'tokenizer_config.json'}: added_tokens_decoder ({first_line(error)})"
        ) from error


def _byte_pairs(files: _Files) -> BytePairs:
    bpe = BytePairs(
        models.BPE(
            files.vocab | files.added,
            files.merges,
            unk_token=_END,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in files.added])
    return bpe


def _optional(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}


def _pad_token(folder: Path) -> str:
    """The padding token, by default the end token (SD 1; SD 2 pads with `!`, id 0)."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _optional(folder / name).get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if not isinstance(token, str):
                raise WeightsError(f"{folder / name}: the pad_token is {shown(token)}")
            return token
    return _END
