"""Tokenization, the same in training, evaluation and serving.

The Rust tokenizer reads ``tokenizer.json``, so that a server needs neither transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from goemotions import strict_json
from goemotions.data.text import clean
from goemotions.errors import ModelError
from goemotions.models.records import TRAINING_FILE, read_json
from goemotions.models.tokenizer_file import read_tokenizer

# Longer texts are cut before tokenization: a text of 10 MB would take seconds and hundreds of MB.
CHARACTERS_PER_TOKEN = 64
# What tokenizers call the token of characters that their vocabulary lacks; those of bytes have it and never use it.
UNKNOWN_TOKENS = ("[UNK]", "<unk>")
# Positions are counted from the pad id, so there are as many fewer of them, and a wrong pad id shifts them.
POSITIONS_AFTER_PAD = ("camembert", "mpnet", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Encoding:
    """Token ids of one text, special tokens included, and whether the text was truncated."""

    ids: list[int]
    truncated: bool


class TextEncoder:
    """The tokenizer of a model: texts to at most ``max_length`` token ids, and batches with padding.

    Not a network: that is the ``Encoder`` of a profile. ``special_tokens`` is the number that each text gets, ``unknown_id`` the token
    of characters that the vocabulary lacks, or None.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, pad_id: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        if getattr(tokenizer.model, "dropout", None):
            # Merges would be left out at random, and a text would have other tokens each time.
            tokenizer.model.dropout = None
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id = pad_id
        self.special_tokens = int(tokenizer.num_special_tokens_to_add(False))
        known = [tokenizer.token_to_id(token) for token in UNKNOWN_TOKENS]
        self.unknown_id: int | None = next((number for number in known if number is not None), None)

    @property
    def largest_id(self) -> int:
        """The largest id that a batch can have."""
        return max(self.pad_id, *self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def max_characters(self) -> int:
        """Characters of a text that are read at most."""
        return self.max_length * CHARACTERS_PER_TOKEN

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Loads the tokenizer of a Model folder or a bundle, with the maximum length that the model was trained with.

        Raises:
            ModelError: a file is missing or damaged.
        """
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        padding = read_json(folder / "config.json").get("pad_token_id") or 0
        length = read_json(folder / TRAINING_FILE, "max_length")["max_length"]
        try:
            strict_json.require([padding, length], list[int], f"{folder}: pad_token_id or max_length")
            if padding < 0 or length <= tokenizer.num_special_tokens_to_add(False):
                raise ValueError("out of range")
            return cls(tokenizer, length, padding)
        except (ValueError, OverflowError) as error:
            raise ModelError(
                f"{folder} has a pad_token_id or max_length that is no such number: train the model again"
            ) from error

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Raises:
        ModelError: the tokenizer fails on a text.
        """
        limit = self.max_characters
        with _failures_named():
            encoded = self._tokenizer.encode_batch_fast([clean(text[:limit]) for text in texts])
        # Without special tokens, an empty text would have no token, and no network reads none.
        return [
            Encoding(item.ids or [self.pad_id], bool(item.overflowing) or len(text) > limit)
            for item, text in zip(encoded, texts, strict=True)
        ]

    def characters_read(self, text: str) -> int:
        """Returns how many characters of a text the model reads; what follows them is truncated."""
        text = text[: self.max_length * CHARACTERS_PER_TOKEN]
        with _failures_named():
            encoded = self._tokenizer.encode(clean(text))
        return max((end for _, end in encoded.offsets), default=0) if encoded.overflowing else len(text)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Pads n rows to the longest: ids and attention mask, int64 [n, longest]."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = row
            mask[position, : len(row)] = 1
        return ids, mask


@contextmanager
def _failures_named() -> Iterator[None]:
    """Raises what fails in Rust, such as a regular expression of ``tokenizer.json`` that backtracks too often, as a ModelError."""
    try:
        yield
    except BaseException as error:
        # A panic is none of Python's exceptions, and an error has no class of its own.
        if isinstance(error, Exception | KeyboardInterrupt | SystemExit | GeneratorExit) and type(error) is not Exception:
            raise
        raise ModelError(f"the tokenizer fails on a text ({error!s:.200}): give another tokenizer.json") from error


def positions(config: dict[str, Any], pad_id: int) -> int | None:
    """Returns how many tokens of a text a model reads at most by its ``config.json``; None if that does not say."""
    stored, model_type = config.get("max_position_embeddings"), str(config.get("model_type")).removesuffix("-mean-pooled")
    if not isinstance(stored, int):
        return None
    return stored - pad_id - 1 if model_type in POSITIONS_AFTER_PAD else stored


def by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Returns the positions in batches of falling length, of at most ``tokens`` tokens with padding, or of one text."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    batches = []
    while order:
        size = batch_size(len(order), lengths[order[0]], tokens)
        batches.append(order[:size])
        del order[:size]
    return batches


def batch_size(available: int, longest: int, tokens: int) -> int:
    """Returns the number of texts of a batch: a power of two, because an engine compiles kernels for each size and length."""
    return 1 << (max(1, min(available, tokens // longest)).bit_length() - 1)
