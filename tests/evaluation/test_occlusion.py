"""Occlusion: words as people see them, removals within a budget, and contributions that the deletion test confirms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from goemotions.data.dataset import load_dataset
from goemotions.evaluation import occlusion
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder
from tests.evaluation.test_robustness import TEXTS


@pytest.fixture(scope="module")
def engine(model_folder: Path, onnx_folder: Path) -> Engine:
    return engines.load("openvino-int8", onnx_folder, TextEncoder.load(model_folder), threads=1)


def words_of(text: str) -> list[str]:
    return [match[0] for match in occlusion.WORD.finditer(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't, really!", ["I", "don't", ",", "really", "!"]),
        ("well-known [NAME]'s", ["well-known", "[NAME]", "'", "s"]),
        ("good\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}day", ["good", "\U0001f44d\U0001f3fd", "day"]),
        ("\u4eca\u5929 go", ["\u4eca", "\u5929", "go"]),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0645\u0631\u061f",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0645\u0631", "\u061f"],
        ),
        (":) ... ?!", [":)", "...", "?!"]),
        # Thai, Lao, Burmese and Khmer: letters with their signs, and with the vowels that are written before them.
        ("\u0e09\u0e31\u0e19\u0e40\u0e01\u0e48\u0e07!", ["\u0e09\u0e31", "\u0e19", "\u0e40\u0e01\u0e48", "\u0e07", "!"]),
        ("\u0ec2\u0e8a\u0e81\u0e94\u0eb5", ["\u0ec2\u0e8a", "\u0e81", "\u0e94\u0eb5"]),
        ("\u1019\u1004\u103a\u1039\u1002\u101c\u102c", ["\u1019", "\u1004\u103a\u1039\u1002", "\u101c\u102c"]),
        ("\u1781\u17d2\u1789\u17bb\u17c6 ok", ["\u1781\u17d2\u1789\u17bb\u17c6", "ok"]),
        # Voiced syllables in two characters, as file systems have them, and of half width; a variant of a Chinese character.
        ("\u304b\u3099\u304d\u3099", ["\u304b\u3099", "\u304d\u3099"]),
        ("\uff76\uff9e\uff77!", ["\uff76\uff9e", "\uff77", "!"]),
        ("\u845b\U000e0100\u57ce", ["\u845b\U000e0100", "\u57ce"]),
        # Tibetan and Amharic, with their points between syllables and words.
        ("\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51", ["\u0f56\u0f7c\u0f51", "\u0f0b", "\u0f66\u0f90\u0f51"]),
        ("\u12a0\u12ed\u1361\u12c8\u12f5", ["\u12a0\u12ed", "\u1361", "\u12c8\u12f5"]),
        (" \n", []),
    ],
)
def test_words_are_those_that_people_see(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_the_words_are_all_characters_but_the_blanks(text: str) -> None:
    assert "".join(words_of(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "start", "end", "rest"),
    [
        ("a lake, b", 1, 6, "a, b"),
        ("lake, b", 0, 4, ", b"),
        ("a lake", 1, 6, "a"),
        ("sea,lake", 3, 4, "sea lake"),
        ("lake", 0, 4, ""),
        ("\u4eca\u5929\u597d", 1, 2, "\u4eca\u597d"),
        ("go\u4ecaon", 2, 3, "go on"),
    ],
)
def test_what_is_left_reads_like_a_text(text: str, start: int, end: int, rest: str) -> None:
    assert occlusion._without(text, start, end) == rest


def test_a_text_with_few_words_loses_each_alone(engine: Engine) -> None:
    text = "the lake, quiet"
    occluded = occlusion.occlude(engine.encoder, text)
    assert occluded.texts == ["lake, quiet", "the, quiet", "the lake quiet", "the lake,"]
    probabilities, _ = engines.score(engine, [text, *occluded.texts])
    (contributions,) = occlusion.contributions([occluded], probabilities)
    assert contributions == pytest.approx(probabilities[0] - probabilities[1:], abs=1e-6)


def test_a_long_text_has_as_many_removals_as_allowed_and_merges_its_shortest_words(engine: Engine) -> None:
    text = "a harbour of it, to balloon or a sparrow, by one storm"
    occluded = occlusion.occlude(engine.encoder, text, removals=7)
    groups = [word["group"] for word in occluded.words]
    assert groups == sorted(groups)
    assert set(groups) == set(range(7)) == set(range(len(occluded.texts)))
    cues = [word["group"] for word in occluded.words if word["text"] in ("harbour", "balloon", "sparrow", "storm")]
    assert len(set(cues)) == 4
    probabilities, _ = engines.score(engine, [text, *occluded.texts])
    (contributions,) = occlusion.contributions([occluded], probabilities)
    sums = [contributions[np.array(groups) == group].sum(axis=0) for group in range(7)]
    assert np.array(sums) == pytest.approx(probabilities[0] - probabilities[1:], abs=1e-6)


def test_only_words_that_the_model_reads_are_explained(engine: Engine) -> None:
    text = "storm " * 500
    occluded = occlusion.occlude(engine.encoder, text)
    read = engine.encoder.max_length - 2
    assert len(occluded.words) == read
    assert occluded.words[-1]["end"] == engine.encoder.characters_read(text) == len("storm ") * read - 1
    assert engine.encoder.characters_read("storm") == 5


def test_a_blank_text_has_no_words(engine: Engine) -> None:
    assert occlusion.occlude(engine.encoder, " \n").texts == []


def test_removing_the_highest_words_lowers_the_score_faster_than_random_ones(engine: Engine, dataset: Path) -> None:
    texts = load_dataset(dataset, ["validation"])[0]["validation"]["text"][:60]
    occluded = [occlusion.occlude(engine.encoder, text) for text in texts]
    probabilities, _ = engines.score(engine, occlusion.to_score(texts, occluded))
    best = probabilities[: len(texts)].argmax(axis=1)
    contributions = occlusion.contributions(occluded, probabilities)
    words, generator = [one.words for one in occluded], np.random.default_rng(0)
    ranked = [np.argsort(-values[:, label]) for values, label in zip(contributions, best, strict=True)]
    shuffled = [generator.permutation(len(own)) for own in words]
    falls, random = (occlusion.deletion(engine, texts, words, orders, list(best)) for orders in (ranked, shuffled))
    assert (falls.mean(axis=0)[:3] > random.mean(axis=0)[:3]).all()
    assert falls.mean() > 1.5 * random.mean() > 0
