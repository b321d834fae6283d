"""CLIP's byte-pair tokenizer from the files of a checkpoint folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ftfy
import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

Tokenize = Callable[[Sequence[str]], np.ndarray]
"""Texts to token ids `[b, l]`, padded and cut to the tower's length."""


def load(folder: str | Path, length: int = 77, pad: str | None = None) -> Tokenize:
    """The tokenizer of a `tokenizer/` folder.

    Text is mended by ftfy (mojibake, curly quotes, HTML entities), lower-cased and split as the
    towers' authors did. What does not fit keeps its end token.

    Args:
      folder: holds `vocab.json` and `merges.txt`, and optionally `tokenizer_config.json` and
        `special_tokens_map.json`, of which the padding token is read.
      length: tokens a text, with its start and end.
      pad: the padding token, if it is not to be read from the folder.

    Raises:
      ValueError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: not the folder of a CLIP tokenizer, vocab.json and merges.txt ({error})"
        ) from error
    # Merges of "#" itself begin like the first line, a comment.
    pairs = (line.split() for line in lines if not line.startswith("#version"))
    merges = [tuple(pair) for pair in pairs if len(pair) == 2]
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    pad_id = vocab[_pad_token(folder) if pad is None else pad]
    bpe = _byte_pairs(vocab, merges)

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), length), pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = bpe.encode(ftfy.fix_text(text), add_special_tokens=False).ids
            ids = [start, *ids[: length - 2], end]
            row[: len(ids)] = ids
        return rows

    return tokenize


def _byte_pairs(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    bpe = Tokenizer(
        models.BPE(
            vocab,
            merges,
            unk_token="<|endoftext|>",
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
    bpe.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return bpe


def _pad_token(folder: Path) -> str:
    """The padding token, by default the end token (SD 1; SD 2 pads with `!`, id 0)."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = json.loads((folder / name).read_text("utf-8")).get("pad_token")
            if token is not None:
                return token["content"] if isinstance(token, dict) else token
    return "<|endoftext|>"
