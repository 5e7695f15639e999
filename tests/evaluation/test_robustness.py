"""Robustness: each perturbation does what its name says, and only changed texts are scored again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.evaluation import robustness
from goemotions.evaluation.robustness import PERTURBATIONS
from goemotions.metrics import classification, cross_fitting, strategies
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder

bounded = settings(max_examples=100, deadline=None)

# Any text, lone surrogates too, and texts with many of the pieces that the perturbations change.
PIECES = [
    "[NAME]",
    "[RELIGION]",
    "Anna",
    "met",
    "old",
    "Harbour",
    "!",
    ", ",
    ". ",
    " ",
    "'",
    "\u2764\ufe0f",
    "\N{GRINNING FACE}",
]
TEXTS = st.one_of(
    st.text(st.characters()), st.lists(st.sampled_from(PIECES)).map(" ".join), st.lists(st.sampled_from(PIECES)).map("".join)
)


class Counting:
    """An engine that counts the texts it scores."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.encoder, self.engine, self.texts = engine.name, engine.encoder, engine, 0
        self.workers, self.batch_tokens, self.computation = engine.workers, engine.batch_tokens, engine.computation

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.texts += len(ids)
        return self.engine.logits(ids, mask)


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return engines.load("torch", model_folder, TextEncoder.load(model_folder))


@pytest.fixture(scope="module")
def split(dataset: Path) -> tuple[list[str], np.ndarray]:
    """Texts and labels of the validation split; every fourth text with a capital, an emoji and a full stop."""
    splits, info = load_dataset(dataset, ["validation"])
    rows = splits["validation"]
    texts = [f"We \N{GRINNING FACE} {text}." if i % 4 == 0 else text for i, text in enumerate(rows["text"][:])]
    return texts, taxonomy_of(info).multi_hot(rows["labels"][:])


def perturbed(name: str, text: str, seed: int = 0) -> str:
    return PERTURBATIONS[name](text, random.Random(seed))


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(text=TEXTS, seed=st.integers())
@bounded
def test_a_perturbation_accepts_any_text_and_is_determined_by_its_seed(name: str, text: str, seed: int) -> None:
    changed = perturbed(name, text, seed)
    assert isinstance(changed, str)
    assert changed == perturbed(name, text, seed)
    assert changed.strip() or not text.strip()


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(text=TEXTS)
@bounded
def test_placeholders_are_kept(name: str, text: str) -> None:
    for placeholder in ("[NAME]", "[RELIGION]"):
        assert perturbed(name, text).count(placeholder) >= text.count(placeholder)


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name != "typos"])
@given(text=TEXTS)
@bounded
def test_all_but_typos_change_nothing_the_second_time(name: str, text: str) -> None:
    once = perturbed(name, text)
    assert perturbed(name, once) == once


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("upper case", "We met [NAME].", "WE MET [NAME]."),
        ("lower case", "We MET [NAME].", "we met [NAME]."),
        ("without emoji", "So glad \N{GRINNING FACE}\N{GRINNING FACE}", "So glad"),
        ("without emoji", "Fine\N{THUMBS UP SIGN}\U0001f3fd then", "Fine then"),
        ("without emoji", "A \U0001f469\u200d\U0001f680 flew", "A flew"),
        ("without emoji", "Love \u2764\ufe0f it, 1\ufe0f\u20e3 and \U0001f1eb\U0001f1ee!", "Love it, and !"),
        ("without emoji", "\N{GRINNING FACE} \u2764\ufe0f", "\N{GRINNING FACE} \u2764\ufe0f"),
        ("without emoji", "Two  blanks, \u20ac5 \u00a9 1 + 1 = 2 ", "Two  blanks, \u20ac5 \u00a9 1 + 1 = 2 "),
        ("masked names", "Anna met Bert. Carl left", "Anna met [NAME]. Carl left"),
        ("masked names", "No, Anna, I saw NASA and New York today", "No, [NAME], I saw NASA and [NAME] [NAME] today"),
        ("masked names", "[NAME] Smith met [NAME]", "[NAME] [NAME] met [NAME]"),
        ("without punctuation", "Don't go, [NAME]\u2019s here (maybe)...", "Dont go [NAME]s here maybe"),
        ("without punctuation", "well-known", "well known"),
        ("without punctuation", "?!", "?!"),
    ],
)
def test_a_perturbation_does_what_its_name_says(name: str, text: str, expected: str) -> None:
    assert perturbed(name, text) == expected


def test_about_one_long_word_in_ten_gets_one_typo() -> None:
    words = ["harbour", "sparrow", "the", "lantern", "to", "winter", "quickly"] * 400
    typed = perturbed("typos", " ".join(words)).split(" ")
    mistyped = [(word, other) for word, other in zip(words, typed, strict=True) if word != other]
    assert {word for word, _ in mistyped} == {word for word in words if len(word) > 3}
    assert 0.07 < len(mistyped) / sum(len(word) > 3 for word in words) < 0.13
    assert {len(other) - len(word) for word, other in mistyped} == {-1, 0, 1}
    assert all(sorted(word) == sorted(other) for word, other in mistyped if len(word) == len(other))
    assert all(set(word) == set(other) for word, other in mistyped if len(other) > len(word))


def test_only_changed_texts_are_scored_again(engine: Engine, split: tuple[list[str], np.ndarray]) -> None:
    texts, labels = split
    counting = Counting(engine)
    written, _ = engines.score(engine, texts)
    fitted, _ = cross_fitting.choose(labels, written)
    before = labels.copy()
    rows = robustness.measure(counting, texts, labels, fitted)
    by_name = {row["perturbation"]: row for row in rows}
    assert list(by_name) == [robustness.AS_WRITTEN, *PERTURBATIONS]
    assert counting.texts == len(texts) + sum(row["changed"] for row in rows)
    assert (labels == before).all()
    assert rows == robustness.measure(engine, texts, labels, fitted)

    decisions = classification.decisions(labels, fitted.apply(written))
    expected = classification.ranking(labels, written) | {name: decisions[name] for name in ("f1_micro", "f1_macro")}
    assert by_name[robustness.AS_WRITTEN].items() >= {**expected, "changed": 0, "flips": 0, "shift": 0}.items()


def test_only_changes_that_the_tokenizer_sees_change_decisions(engine: Engine, split: tuple[list[str], np.ndarray]) -> None:
    """The tiny tokenizer converts to lower case; an emoji and a full stop are unknown words for it."""
    texts, labels = split
    rows = robustness.measure(engine, texts, labels, strategies.fixed(SortedScores.of(labels, labels)))
    by_name = {row["perturbation"]: row for row in rows}
    assert by_name["upper case"]["changed"] == len(texts)
    assert by_name["upper case"]["flips"] == 0
    assert by_name["upper case"]["shift"] < 1e-6
    assert (
        by_name["lower case"]["changed"]
        == by_name["without emoji"]["changed"]
        == by_name["without punctuation"]["changed"]
        == 20
    )
    assert by_name["without emoji"]["shift"] > 1e-4
    assert by_name["masked names"] == {**by_name[robustness.AS_WRITTEN], "perturbation": "masked names"}


def test_misspelled_texts_are_ranked_worse(engine: Engine, split: tuple[list[str], np.ndarray]) -> None:
    texts, labels = split
    rows = robustness.measure(engine, texts, labels, strategies.fixed(SortedScores.of(labels, labels)))
    by_name = {row["perturbation"]: row for row in rows}
    assert 0 < by_name["typos"]["changed"] < len(texts)
    assert by_name["typos"]["auc_micro"] < by_name[robustness.AS_WRITTEN]["auc_micro"]
