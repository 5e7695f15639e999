"""Traffic: counts over the texts that a model scored, and over what it predicted for them.

The same counts are made of validation (the reference that a bundle carries), of what a server scores, and of batch outputs, so that
they can be compared. They hold no text, and are as large for a million texts as for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypedDict

import numpy as np

from goemotions import strict_json
from goemotions.data.text import SCRIPTS, count_words, script
from goemotions.errors import DataError
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.tokenizer import Encoding, TextEncoder

# Upper bounds of bins; the last bin has none.
SCORE_EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
TOKEN_EDGES = (4, 8, 12, 16, 20, 24, 32, 48, 64, 128, 256)
TOKENS_PER_WORD_EDGES = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 3.0)
UNKNOWN_SHARE_EDGES = (0.0, 0.05, 0.2)


def _names(edges: Sequence[float]) -> tuple[str, ...]:
    return (*(f"{edge:g}" for edge in edges), "inf")


SCORE_BINS = _names(SCORE_EDGES)
# What is counted of each text, and the names of its bins. Tokens per word rise with misspelt words and with words of other languages.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "tokens": _names(TOKEN_EDGES),
    "tokens_per_word": _names(TOKENS_PER_WORD_EDGES),
    "unknown_tokens": _names(UNKNOWN_SHARE_EDGES),
    "script": SCRIPTS,
    "truncated": ("no", "yes"),
}
SCRIPT_NUMBERS = {name: number for number, name in enumerate(SCRIPTS)}


class LabelCounts(TypedDict):
    """The counts of a label, as they are stored."""

    predicted: int
    predicted_sum: float
    total_sum: float
    scores: dict[str, int]


class Content(TypedDict):
    """The counts as they are stored, with the names of labels and bins."""

    rows: int
    labels: dict[str, LabelCounts]
    features: dict[str, dict[str, int]]


# Of one text: tokens, words, unknown tokens, the number of its script, and whether it was truncated.
Measured = tuple[int, int, int, int, bool]


@dataclass(frozen=True)
class Traffic:
    """Counts over texts.

    Attributes:
        rows: the number of texts.
        predicted: how many of them have each label at the tuned thresholds, int [labels].
        predicted_sum: the sum of the label's probabilities over these, float [labels].
        total_sum: the sum of its probabilities over all texts, float [labels].
        scores: the number of texts per label and bin of its probability, int [labels, bins]; zeros if they were not counted.
        features: per name of ``FEATURES`` the number of texts per bin, int [bins]; one that was not counted is left out.
    """

    names: tuple[str, ...]
    rows: int
    predicted: np.ndarray
    predicted_sum: np.ndarray
    total_sum: np.ndarray
    scores: np.ndarray
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        probabilities: np.ndarray,
        thresholds: Thresholds,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> Traffic:
        """The counts for probabilities, float [n, labels], at thresholds; ``features`` as ``count_features`` returns them."""
        predicted = thresholds.apply(probabilities)
        width, bins = len(names), len(SCORE_BINS)
        numbers = np.searchsorted(np.asarray(SCORE_EDGES, dtype=probabilities.dtype), probabilities) + bins * np.arange(width)
        return cls(
            names,
            len(probabilities),
            predicted.sum(axis=0),
            (probabilities * predicted).sum(axis=0, dtype=float),
            probabilities.sum(axis=0, dtype=float),
            np.bincount(numbers.ravel(), minlength=width * bins).reshape(width, bins),
            features or {},
        )

    @classmethod
    def empty(cls, names: tuple[str, ...]) -> Traffic:
        """The counts over no texts."""
        features = {name: np.zeros(len(bins), dtype=int) for name, bins in FEATURES.items()}
        return cls.of(names, np.zeros((0, len(names))), Thresholds("none", (1.0,) * len(names)), features)

    def __add__(self, other: Traffic) -> Traffic:
        """The counts over the texts of both; a feature that one of them lacks is left out."""
        return Traffic(
            self.names,
            self.rows + other.rows,
            self.predicted + other.predicted,
            self.predicted_sum + other.predicted_sum,
            self.total_sum + other.total_sum,
            self.scores + other.scores,
            {name: counts + other.features[name] for name, counts in self.features.items() if name in other.features},
        )

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON types, with the names of labels and bins."""
        rows = zip(self.predicted.tolist(), self.predicted_sum.tolist(), self.total_sum.tolist(), self.scores, strict=True)
        fields = ("predicted", "predicted_sum", "total_sum", "scores")
        labels = [(predicted, *sums, _by_bin(SCORE_BINS, scores)) for predicted, *sums, scores in rows]
        return {
            "rows": self.rows,
            "labels": {name: dict(zip(fields, row, strict=True)) for name, row in zip(self.names, labels, strict=True)},
            "features": {name: _by_bin(FEATURES[name], counts) for name, counts in self.features.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Traffic:
        """The counts that ``to_json`` returned; those with other bins than today's count as not counted.

        Raises:
            DataError: the content has another form.
        """
        try:
            strict_json.require(content, Content, "the counts")
            rows, labels = content["rows"], content["labels"]
            kinds = {"predicted": int, "predicted_sum": float, "total_sum": float}
            columns: dict[str, np.ndarray] = {
                name: np.array([row[name] for row in labels.values()], dtype=kind) for name, kind in kinds.items()
            }
            scores = [_counts(SCORE_BINS, row["scores"]) for row in labels.values()]
            features = {name: _counts(bins, content["features"].get(name, {})) for name, bins in FEATURES.items()}
            counts = chain(columns.values(), (one for one in (*scores, *features.values()) if one is not None))
            # The sums may be off by their rounding.
            if not all(((one >= 0) & (one <= rows + 0.01)).all() for one in counts):
                raise ValueError("there are fewer than none, or more than all of its texts")
            return cls(
                tuple(labels),
                rows,
                **columns,
                scores=np.array([np.zeros(len(SCORE_BINS), dtype=int) if row is None else row for row in scores]),
                features={name: counts for name, counts in features.items() if counts is not None},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError("the counts of a reference are damaged: register the model again") from error


def _by_bin(bins: Sequence[str], counts: np.ndarray) -> dict[str, int]:
    return dict(zip(bins, counts.tolist(), strict=False))


def _counts(bins: Sequence[str], by_bin: Mapping[str, int]) -> np.ndarray | None:
    return np.array(list(by_bin.values()), dtype=int) if tuple(by_bin) == tuple(bins) else None


def measure(encoder: TextEncoder, texts: Sequence[str], encodings: Sequence[Encoding]) -> list[Measured]:
    """What is counted of each text."""
    unknown = encoder.unknown_id
    measured = []
    for text, encoding in zip(texts, encodings, strict=True):
        read = text[: encoder.max_characters]
        absent = encoding.ids.count(unknown) if unknown is not None else 0
        measured.append((len(encoding.ids), count_words(read), absent, SCRIPT_NUMBERS[script(read)], encoding.truncated))
    return measured


def count_features(measured: Sequence[Measured], special_tokens: int) -> dict[str, np.ndarray]:
    """The number of texts per bin of each of ``FEATURES``, int [bins].

    Args:
        measured: as ``measure`` returns it.
        special_tokens: the number of tokens that the tokenizer adds to each text; they do not count as tokens of a word.
    """
    tokens, words, unknown, scripts, truncated = np.array(measured, dtype=int).reshape(-1, 5).T
    own = np.maximum(tokens - special_tokens, 1)
    return {
        "tokens": _histogram(tokens, TOKEN_EDGES),
        "tokens_per_word": _histogram(own / np.maximum(words, 1), TOKENS_PER_WORD_EDGES),
        "unknown_tokens": _histogram(unknown / own, UNKNOWN_SHARE_EDGES),
        "script": np.bincount(scripts, minlength=len(SCRIPTS)),
        "truncated": np.bincount(truncated, minlength=2),
    }


def features_of(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The number of texts per bin of each of ``FEATURES``, int [bins], for texts that were not tokenized yet."""
    return count_features(measure(encoder, texts, encoder.encode(texts)), encoder.special_tokens)


def _histogram(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
