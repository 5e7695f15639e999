"""The only reader of ``tokenizer.json``, with bounds on what it makes of a text.

The file is a small program: a normalizer may replace each character by a megabyte, and the next one may do so again. Where memory is
refused, Rust ends the process, so that nothing could be caught at the first text.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from goemotions.errors import ModelError

# That of the largest known vocabularies has half of it.
MOST_BYTES = 2**26
# Normalizers and pre-tokenizers together; published tokenizers have up to ten.
MOST_PARTS = 64
# By how much they may lengthen a text. Unicode's own forms make 18 characters of one, and some replacements follow.
MOST_GROWTH = 100
# WordPiece tries each part of a word against the vocabulary, so that its time grows with the square of this; BERT has 100.
MOST_WORD_CHARACTERS = 256
# Of a token, and of what is put before or after parts of a word: each unknown character of a text may get a copy.
MOST_TOKEN_CHARACTERS = 1000
# That each text gets.
MOST_SPECIAL_TOKENS = 100
# Beside the vocabulary; the largest known number is some thousands.
MOST_ADDED_TOKENS = 50_000


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json``; its padding and truncation are ignored.

    Raises:
        ModelError: it is missing, damaged or too large, or would need much more time or memory than texts need.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _refused(path, f"has more than {MOST_BYTES >> 20} MiB")
        tokenizer = Tokenizer.from_file(str(path))
        if excess := _excess(tokenizer):
            raise _refused(path, excess)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Some damages show only here: also that the token of unknown characters, such as this Ugaritic one, is missing.
        tokenizer.encode("a text \U00010380")
    except BaseException as error:
        # What panics in Rust is none of Python's exceptions.
        if isinstance(error, KeyboardInterrupt | SystemExit | ModelError):
            raise
        raise ModelError(f"{path} is missing or damaged: download or train the model again") from error
    return tokenizer


def _refused(path: Path, excess: str) -> ModelError:
    return ModelError(f"{path} {excess}, and is not used: check who wrote it")


def _excess(tokenizer: Tokenizer) -> str:
    """What would take too much time or memory; empty if nothing would."""
    parts = [*_parts(tokenizer.normalizer), *_parts(tokenizer.pre_tokenizer)]
    if len(parts) > MOST_PARTS:
        return f"has {len(parts):,} normalizers and pre-tokenizers, of at most {MOST_PARTS}"
    if math.prod(map(_growth, parts)) > MOST_GROWTH:
        return f"may make a text more than {MOST_GROWTH} times as long (normalizer and pre_tokenizer)"
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=True)
    affixes = [getattr(model, name, None) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")]
    sizes = {
        "max_input_chars_per_word": (getattr(model, "max_input_chars_per_word", 0), MOST_WORD_CHARACTERS),
        "characters in a token": (max(map(len, (*vocabulary, *affixes))), MOST_TOKEN_CHARACTERS),
        "special tokens per text": (tokenizer.num_special_tokens_to_add(False), MOST_SPECIAL_TOKENS),
        "added_tokens": (len(tokenizer.get_added_tokens_decoder()), MOST_ADDED_TOKENS),
    }
    return next((f"has {size:,} {name}, of at most {most:,}" for name, (size, most) in sizes.items() if size > most), "")


def _parts(component: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as Rust has understood them, those of sequences one by one."""
    left, parts = [] if component is None else [json.loads(component.__getstate__())], []
    while left:
        part = left.pop()
        if part["type"] == "Sequence":
            left += part.get("normalizers", part.get("pretokenizers", []))
        parts.append(part)
    return parts


def _growth(part: dict[str, Any]) -> float:
    """How many characters a part makes of one at most, beyond what Unicode's own forms do."""
    if part["type"] == "Replace":
        pattern, content = part["pattern"].get("String"), part["content"]
        # A regular expression may match between two characters, too.
        return max(1, len(content) / len(pattern)) if pattern else 1 + len(content)
    if part["type"] == "Prepend":
        return 1 + len(part["prepend"])
    if part["type"] == "Metaspace":
        # It puts a character before each piece.
        return 2
    if part["type"] == "ByteLevel":
        return 4
    if part["type"] == "Precompiled":
        # SentencePiece's map: the size of a trie, the trie, and the replacements, each ended by a NUL.
        stored = base64.b64decode(part["precompiled_charsmap"])
        replacements = stored[4 + int.from_bytes(stored[:4], "little") :].split(b"\0")
        return max(1, *(len(one.decode(errors="replace")) for one in replacements))
    return 1
