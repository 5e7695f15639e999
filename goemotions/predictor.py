"""The predictor: a bundle and its engine, texts in, labels out. The server, MLflow and the command line all answer through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from goemotions import bundle, engines
from goemotions.bundle import Bundle
from goemotions.engines import Engine
from goemotions.errors import RequestError

Threshold = float | Literal["tuned"]


@dataclass(frozen=True)
class Options:
    """What a caller may ask for: at most ``top_k`` labels, over a threshold of their own, all scores."""

    top_k: int | None = None
    threshold: Threshold = "tuned"
    all_scores: bool = False

    @classmethod
    def of(cls, parameters: Any) -> Options:
        """Checks the ``parameters`` of a request.

        Raises:
            RequestError: it is no object, or a field has the wrong name, type or range.
        """
        if parameters is None:
            return cls()
        if not isinstance(parameters, dict):
            raise RequestError('"parameters" must be an object')
        unknown = sorted(set(parameters) - {"top_k", "threshold", "all_scores"})
        if unknown:
            raise RequestError(f'"parameters" has no field {unknown[0]!r}: it has top_k, threshold and all_scores')
        options = cls(**parameters)
        if options.top_k is not None and (type(options.top_k) is not int or options.top_k < 1):
            raise RequestError('"top_k" must be a whole number of at least 1')
        value = options.threshold
        is_share = isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= 1
        if not is_share and value != "tuned":
            raise RequestError('"threshold" must be "tuned" or a number from 0 to 1')
        if type(options.all_scores) is not bool:
            raise RequestError('"all_scores" must be true or false')
        return options


class Predictor:
    """Answers texts with labels, best first, and their probabilities."""

    def __init__(self, opened: Bundle, engine: Engine) -> None:
        self.bundle = opened
        self.engine = engine

    @classmethod
    def load(cls, folder: Path, *, engine: str = "", threads: int | None = None) -> Predictor:
        """Verifies the bundle in a folder and starts its engine, or the one named instead."""
        opened = bundle.load(folder)
        name = engine or opened.facts["engine"]
        return cls(opened, engines.load(name, folder, opened.encoder, threads=threads))

    def predict(self, texts: Sequence[str], options: Options | None = None) -> list[dict[str, Any]]:
        """One answer a text, in order: ``labels``, ``scores`` of those (or of all labels), and ``truncated``."""
        options = options or Options()
        probabilities, truncated = engines.score(self.engine, texts)
        if options.threshold == "tuned":
            predicted = self.bundle.thresholds.apply(probabilities)
        else:
            predicted = probabilities >= options.threshold
        return [
            self._answer(row, chosen, bool(cut), options)
            for row, chosen, cut in zip(probabilities, predicted, truncated, strict=True)
        ]

    def _answer(self, row: np.ndarray, chosen: np.ndarray, truncated: bool, options: Options) -> dict[str, Any]:
        names = self.bundle.taxonomy.names
        ranked = np.argsort(-row, kind="stable")
        labels = [int(i) for i in ranked if chosen[i]][: options.top_k]
        scored = ranked if options.all_scores else labels
        return {
            "labels": [names[i] for i in labels],
            "scores": {names[i]: float(row[i]) for i in scored},
            "truncated": truncated,
        }


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
