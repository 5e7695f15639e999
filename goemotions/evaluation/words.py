"""The words that speak for each label, from explanations of correct predictions, and the deletion test of those explanations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from goemotions.evaluation import occlusion
from goemotions.models import engines
from goemotions.models.engines import Engine

# Correct predictions that are explained per label, and those of all labels that the deletion test takes.
TEXTS_PER_LABEL, DELETION_TEXTS = 20, 100
# A word counts if so many of the explained texts have it, and it contributes so much.
LEAST_TEXTS = 3
LEAST_CONTRIBUTION = 0.005
MOST_WORDS = 6


class WordRow(TypedDict):
    """A word of correct predictions of a label: explained texts with it, and the mean of its contributions to the label."""

    label: str
    word: str
    texts: int
    contribution: float


class Words(NamedTuple):
    """The words of all labels, from so many texts; and of the deletion test the mean fall by contribution, and at random."""

    rows: list[WordRow]
    explained: int
    fall: float
    random_fall: float


def measure(
    engine: Engine, texts: Sequence[str], labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> Words | None:
    """Explains the first correct predictions of each label, from the given and the predicted labels, bool [n, labels].

    Returns:
        The words of each label, most telling first; None if no prediction is correct.
    """
    chosen = [
        (row, label) for label in range(len(names)) for row in np.flatnonzero((labels & predicted)[:, label])[:TEXTS_PER_LABEL]
    ]
    if not chosen:
        return None
    rows = sorted({int(row) for row, _ in chosen})
    own = [texts[row] for row in rows]
    occlusions = [occlusion.occlude(engine.encoder, text) for text in own]
    probabilities, _ = engines.score(engine, occlusion.to_score(own, occlusions))
    contributions = dict(zip(rows, occlusion.contributions(occlusions, probabilities), strict=True))
    words = {row: one.words for row, one in zip(rows, occlusions, strict=True)}
    result: list[WordRow] = []
    for label, name in enumerate(names):
        values: dict[str, list[float]] = defaultdict(list)
        for row in (row for row, of_label in chosen if of_label == label):
            of_text: dict[str, float] = defaultdict(float)
            for word, value in zip(words[row], contributions[row][:, label].tolist(), strict=True):
                of_text[word["text"].casefold()] += value
            for text, value in of_text.items():
                values[text].append(value)
        ranked = sorted(
            (WordRow(label=name, word=word, texts=len(one), contribution=float(np.mean(one))) for word, one in values.items()),
            key=lambda row: -row["contribution"],
        )
        result += [row for row in ranked if row["texts"] >= LEAST_TEXTS and row["contribution"] >= LEAST_CONTRIBUTION][
            :MOST_WORDS
        ]
    sample = [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))[:DELETION_TEXTS]]
    return Words(result, len(rows), *_deletion(engine, texts, sample, words, contributions))


def _deletion(
    engine: Engine,
    texts: Sequence[str],
    sample: Sequence[tuple[int, int]],
    words: dict[int, list[occlusion.Word]],
    contributions: dict[int, np.ndarray],
) -> tuple[float, float]:
    """The mean fall of the labels' probabilities over the first words in the order of the contributions, and in a random one."""
    generator = np.random.default_rng(0)
    given = [texts[row] for row, _ in sample], [words[row] for row, _ in sample]
    ranked = [np.argsort(-contributions[row][:, label]) for row, label in sample]
    shuffled = [generator.permutation(len(words[row])) for row, _ in sample]
    columns = [label for _, label in sample]
    fall, random_fall = (float(occlusion.deletion(engine, *given, orders, columns).mean()) for orders in (ranked, shuffled))
    return fall, random_fall
