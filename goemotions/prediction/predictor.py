"""The predictor: a bundle and its engine, texts in, labels out. The server, MLflow and the command line all answer through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from goemotions.metrics.probabilities import is_top_k, rank_labels
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.registry import bundle
from goemotions.registry.bundle import Bundle

Threshold = float | Literal["tuned"]


@dataclass(frozen=True)
class Options:
    """What a caller may ask for: at most ``top_k`` labels, over a threshold of their own, all scores."""

    top_k: int | None = None
    threshold: Threshold = "tuned"
    all_scores: bool = False


class Predictor:
    """Answers texts with labels, best first, and their probabilities."""

    def __init__(self, opened: Bundle, engine: Engine) -> None:
        self.bundle = opened
        self.engine = engine

    @classmethod
    def load(cls, folder: Path, *, engine: str = "", threads: int | None = None) -> Predictor:
        """Verifies the bundle in a folder and starts an engine: the one that suits the hardware, or the one named instead."""
        opened = bundle.load(folder)
        name = engine or engines.suited(opened.metadata.engine)
        return cls(opened, engines.load(name, folder, opened.encoder, threads=threads))

    def predict(self, texts: Sequence[str], options: Options | None = None) -> list[dict[str, Any]]:
        """One answer a text, in order: ``labels``, ``scores`` of those (or of all labels), and ``truncated``."""
        probabilities, truncated = engines.score(self.engine, texts)
        return self.predictions(probabilities, truncated, options or Options())

    def choose(self, probabilities: np.ndarray, options: Options) -> np.ndarray:
        """Which labels an answer holds, bool [n, labels], for probabilities, float32 [n, labels]."""
        if options.threshold == "tuned":
            chosen = self.bundle.thresholds.apply(probabilities)
        else:
            chosen = probabilities >= options.threshold
        if options.top_k is None or options.top_k >= chosen.shape[1]:
            return chosen
        limited: np.ndarray = chosen & is_top_k(np.where(chosen, probabilities, -1), options.top_k)
        return limited

    def predictions(self, probabilities: np.ndarray, truncated: np.ndarray, options: Options) -> list[dict[str, Any]]:
        """The predictions for n texts from their probabilities, float32 [n, labels], and whether each was truncated, bool [n]."""
        names, chosen = self.bundle.taxonomy.names, self.choose(probabilities, options)
        result = []
        for row, over, ranked, cut in zip(
            probabilities.tolist(), chosen.tolist(), rank_labels(probabilities).tolist(), truncated.tolist(), strict=True
        ):
            labels = [position for position in ranked if over[position]]
            scored = ranked if options.all_scores else labels
            result.append(
                {
                    "labels": [names[position] for position in labels],
                    "scores": {names[position]: row[position] for position in scored},
                    "truncated": cut,
                }
            )
        return result


class PyfuncModel:
    """What ``mlflow.pyfunc.load_model`` returns for a version: ``predict`` takes texts, or a frame with a column ``text``."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any) -> list[dict[str, Any]]:
        texts = model_input["text"] if hasattr(model_input, "columns") else model_input
        return self._predictor.predict([str(text) for text in texts])


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's hook: named as ``loader_module`` in the bundle's MLmodel, so that no pickle is needed."""
    return PyfuncModel(Predictor.load(Path(path)))
