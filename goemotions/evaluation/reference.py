"""The reference of a model: the traffic of validation, and the F1 that was measured there. What a server scores is compared with it.

``evaluate`` writes it with the predictions at 0.5, and a bundle has it with those at the tuned thresholds. The probabilities are in the
stored Predictions, so that only the features of the texts are taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from goemotions import strict_json
from goemotions.errors import DataError
from goemotions.evaluation.traffic import Traffic
from goemotions.metrics import classification
from goemotions.metrics.thresholds import Thresholds

if TYPE_CHECKING:
    # It needs pyarrow, which reading a reference does not.
    from goemotions.evaluation.predictions import Predictions

FILE = "reference.json"


@dataclass(frozen=True)
class Reference:
    """The traffic of validation, the measured F1 per label, and what both are of.

    Attributes:
        f1: measured, in the order of the traffic's labels; of cross-fitted decisions, as models are compared.
        strategy: the thresholds at which labels are predicted.
        engine, digest: what computed the probabilities, and the data's digest.
    """

    traffic: Traffic
    f1: tuple[float, ...]
    strategy: str
    engine: str
    digest: str

    @classmethod
    def of(cls, predictions: Predictions, fitted: Thresholds, features: Mapping[str, np.ndarray]) -> Reference:
        """From a scored validation split, thresholds, and features of its texts as ``traffic.count_features`` returns them."""
        # A server, which reads references, compares no models.
        from goemotions.evaluation.selection import CandidateScores

        # Thresholds look better on the rows that they were fitted on than they are.
        labels, predicted = predictions.labels, CandidateScores("", predictions, fitted).decisions
        f1 = classification.f1_score((labels * predicted).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0))
        counted = Traffic.of(predictions.names, predictions.probabilities, fitted, features)
        return cls(counted, tuple(f1.tolist()), fitted.strategy, predictions.engine, predictions.digest)

    def write(self, path: Path) -> None:
        names = ("strategy", "engine", "digest")
        content = {name: getattr(self, name) for name in names}
        content |= {"f1": dict(zip(self.traffic.names, self.f1, strict=True)), "traffic": self.traffic.to_json()}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


class Content(TypedDict):
    """The content of ``reference.json``."""

    traffic: dict[str, Any]
    f1: dict[str, float]
    strategy: str
    engine: str
    digest: str


def parse(stored: bytes, what: str = FILE) -> Reference:
    """The reference in the content of its file, which an error calls ``what``.

    Raises:
        DataError: it is damaged.
    """
    try:
        content: dict[str, Any] = strict_json.parse(stored, what)
        strict_json.require(content, Content, what)
        counted = Traffic.from_json(content["traffic"])
        if counted.rows < 1:
            raise DataError("it has no texts")
        f1 = tuple(float(content["f1"][name]) for name in counted.names)
        if not all(0 <= one <= 1 for one in f1):
            raise DataError("an F1 is none")
        return Reference(counted, f1, content["strategy"], content["engine"], content["digest"])
    except (ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{what} is damaged: register the model again") from error


def read_features(validation: Path) -> Mapping[str, np.ndarray]:
    """The features of the texts of a scored validation split; none if it was scored before they were counted."""
    path = validation / FILE
    return parse(strict_json.read_bytes(path), str(path)).traffic.features if path.is_file() else {}
