"""The answers of two versions to the same texts: how often they agree, and the quality that their scores let expect."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import defaults, outages, strict_json
from goemotions.errors import DataError, MonitoringUnavailable
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics.expected import expected_quality
from goemotions.metrics.thresholds import Thresholds
from goemotions.monitoring import http

BATCH = 20
TIMEOUT_SECONDS = 20


class Rejected(MonitoringUnavailable):
    """A server rejected texts, or answered without labels and probabilities, and would again."""


@dataclass(frozen=True)
class Answers:
    """What one version answered to n texts: chosen labels, bool [n, labels], and scores, float [n, labels]."""

    chosen: np.ndarray
    scores: np.ndarray

    def expected_f1(self) -> np.ndarray:
        """The F1 of each text that its scores let expect, float [n]: twice the chosen labels that are expected to be right, divided by
        the chosen ones and the expected true ones."""
        hits, every = (self.scores * self.chosen).sum(axis=1), self.chosen.sum(axis=1) + self.scores.sum(axis=1)
        result: np.ndarray = np.divide(2 * hits, every, out=np.zeros(len(hits)), where=every > 0)
        return result


@dataclass
class Quality:
    """Sums over answers from which the expected macro F1 follows, float [labels] each."""

    predicted: np.ndarray = field(default_factory=lambda: np.zeros(1))
    predicted_sum: np.ndarray = field(default_factory=lambda: np.zeros(1))
    total_sum: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, answers: Answers) -> None:
        self.predicted = self.predicted + answers.chosen.sum(axis=0)
        self.predicted_sum = self.predicted_sum + (answers.scores * answers.chosen).sum(axis=0)
        self.total_sum = self.total_sum + answers.scores.sum(axis=0)

    @property
    def f1_macro(self) -> float:
        return float(expected_quality(self.predicted, self.predicted_sum, self.total_sum).f1.mean())


@dataclass(frozen=True)
class Expected:
    """How a challenger's answers differ from the champion's on the validation rows that both were scored on.

    Attributes:
        labels: names, in the order of the counts.
        rows: the number of rows.
        different: rows to which the two give other labels.
        champion, challenger: rows with each label.
        thresholds, k: of the challenger, as ``Thresholds`` has them; no thresholds in a state of before.
    """

    labels: tuple[str, ...]
    rows: int
    different: int
    champion: tuple[int, ...]
    challenger: tuple[int, ...]
    thresholds: tuple[float, ...] = ()
    k: int | None = None

    @classmethod
    def of(cls, challenger: CandidateScores, champion: CandidateScores) -> Expected:
        ours, theirs = (one.thresholds.apply(one.validation.probabilities) for one in (challenger, champion))
        before, now = (tuple(int(count) for count in chosen.sum(axis=0)) for chosen in (theirs, ours))
        different, fitted = int((ours != theirs).any(axis=1).sum()), challenger.thresholds
        return cls(challenger.validation.names, len(ours), different, before, now, fitted.values, fitted.k)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Expected:
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in content.items()}
        return cls(**values)

    @property
    def disagreement(self) -> float:
        """The share of texts with other labels, with a margin of two standard errors for the few rows."""
        share = (self.different + 1) / (self.rows + 2)
        return min(0.95, share + 2 * float(np.sqrt(share * (1 - share) / (self.rows + 2))))

    def off_thresholds(self, answers: Answers) -> int:
        """The number of the challenger's answers whose labels are not those that its thresholds choose by the scores."""
        if not self.thresholds:
            return 0
        due = Thresholds("", self.thresholds, self.k).apply(answers.scores.astype(np.float32))
        return int((answers.chosen != due).any(axis=1).sum())

    def odds(self) -> tuple[np.ndarray, np.ndarray]:
        """Per label, the odds of it in the challenger's answers relative to the champion's, float [labels], and the factor by which
        they may be off because the rows are few, float [labels]: two standard errors of the logarithm (Woolf 1955)."""
        ours, theirs = (np.asarray(counts) + 0.5 for counts in (self.challenger, self.champion))
        others, their_others = self.rows + 1 - ours, self.rows + 1 - theirs
        error = np.sqrt(1 / ours + 1 / others + 1 / theirs + 1 / their_others)
        return ours / others / (theirs / their_others), np.exp(2 * error)


def read_texts(path: Path | None = None) -> list[str]:
    """The texts of a file, one per line; without one, those of the sample.

    Raises:
        DataError: the file has none, or is no text.
    """
    if path is None:
        folder = resources.files("goemotions.data") / "sample"
        rows = "".join((folder / f"{split}.tsv").read_text(encoding="utf-8") for split in ("dev", "test"))
        return [line.split("\t")[0] for line in rows.splitlines()]
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as texts, one per line: {error}") from error
    if not texts:
        raise DataError(f"{path} has no text: write one per line")
    return texts


def request(address: str, model_name: str, texts: Sequence[str], labels: Sequence[str]) -> Answers:
    """The answers of a server.

    Raises:
        Rejected: its status says that the request is not accepted, or its answers have other labels or no probabilities.
        MonitoringUnavailable: it does not respond, or fails.
    """
    body = json.dumps({"instances": list(texts), "parameters": {"all_scores": True}}).encode()
    url = f"{address.rstrip('/')}/v1/models/{model_name}:predict"
    headers = {"Content-Type": "application/json", defaults.COPY_HEADER: defaults.COPY_OF_ROLLOUT}
    try:
        predictions: list[Any] = strict_json.parse(http.get(url, body, headers, TIMEOUT_SECONDS), "it")["predictions"]
        chosen = np.array([[label in one["labels"] for label in labels] for one in predictions], dtype=bool)
        scores = np.array([[one["scores"][label] for label in labels] for one in predictions], dtype=float)
    except MonitoringUnavailable as error:
        status = error.__cause__.code if isinstance(error.__cause__, urllib.error.HTTPError) else 0
        raise (Rejected if outages.is_refusal(status) else MonitoringUnavailable)(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{url} answered something else: {type(error).__name__}: {error}") from error
    if chosen.shape != (len(texts), len(labels)) or not ((scores >= 0) & (scores <= 1)).all():
        raise Rejected(f"{url} answered {len(chosen)} of {len(texts)} texts, or without a probability for each label")
    return Answers(chosen, scores)
