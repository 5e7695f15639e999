"""The predictor: texts to labels with a bundle and an engine. The server, MLflow and the command line all use it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from goemotions import defaults
from goemotions.errors import DataError, ModelError
from goemotions.models import engines
from goemotions.models.engine_names import WEIGHTS, canonical_name
from goemotions.models.engines import Engine
from goemotions.prediction import explanation
from goemotions.prediction.explanation import Explanation
from goemotions.prediction.texts import as_texts
from goemotions.registry import bundle, mlflow_model
from goemotions.registry.bundle import Bundle

Threshold = float | Literal["tuned"]


@dataclass(frozen=True)
class Options:
    """Options of a request: the ``top_k`` best labels, the tuned thresholds or one of the caller's, the scores of all labels."""

    top_k: int | None = None
    threshold: Threshold = "tuned"
    all_scores: bool = False


class Prediction(TypedDict):
    """The prediction for one text, as it is sent to callers.

    ``labels`` has the chosen labels, best first. ``scores`` has the probabilities of these labels; with ``top_k``, those of the k best,
    chosen or not; with ``all_scores``, those of all labels. ``truncated`` says whether the text was too long and its end was ignored.
    """

    labels: list[str]
    scores: dict[str, float]
    truncated: bool


class Predictor:
    """A bundle and the engine that runs its model."""

    def __init__(self, loaded: Bundle, engine: Engine) -> None:
        self.bundle = loaded
        self.engine = engine

    @classmethod
    def load(cls, folder: Path, *, engine: str = "", threads: int | None = None, is_verified: bool = False) -> Predictor:
        """Verifies the bundle in a folder and loads an engine: ``engine``, or the one that suits bundle and hardware if it is empty.

        Args:
            folder, engine: the bundle, and the name of an engine whose weights it holds.
            threads: CPU threads of the engine; by default one per core.
            is_verified: every file has been compared with the manifest already, as by ``references.as_folder``.

        Raises:
            IntegrityError: a file is missing or differs from the manifest.
            ModelError: the folder is not a bundle, or the engine cannot be loaded.
        """
        loaded = bundle.load(folder, is_verified=is_verified)
        return cls(loaded, loaded.load_engine(_engine_name(loaded, engine), threads=threads))

    def predict(self, texts: Sequence[str], options: Options | None = None) -> list[Prediction]:
        """One prediction per text, in order."""
        probabilities, truncated = engines.score(self.engine, texts)
        return self.predictions(probabilities, truncated, options or Options())

    def explain(
        self, texts: Sequence[str], options: Options | None = None, removals: int = defaults.REMOVALS
    ) -> list[Explanation]:
        """One explanation per text, in order: what each word contributes to each chosen label.

        With more ``removals`` per text, fewer words of a long text share one, and it takes longer.
        """
        return explanation.explain(self, texts, options or Options(), removals)[1]

    def choose(self, probabilities: np.ndarray, options: Options) -> np.ndarray:
        """Which labels reach their thresholds, bool [n, labels], for probabilities, float32 [n, labels]."""
        if options.threshold == "tuned":
            return self.bundle.thresholds.apply(probabilities)
        chosen: np.ndarray = probabilities >= options.threshold
        return chosen

    def predictions(self, probabilities: np.ndarray, truncated: np.ndarray, options: Options) -> list[Prediction]:
        """The predictions for n texts from their probabilities, float32 [n, labels], and whether each was truncated, bool [n]."""
        names, chosen = self.bundle.taxonomy.names, self.choose(probabilities, options)
        result: list[Prediction] = []
        for row, over, cut in zip(probabilities.tolist(), chosen.tolist(), truncated.tolist(), strict=True):
            candidates: Iterable[int] = range(len(row))
            if options.top_k is None and not options.all_scores:
                candidates = itertools.compress(candidates, over)
            ranked = sorted(candidates, key=row.__getitem__, reverse=True)
            best = ranked[: options.top_k]
            labels = [position for position in best if over[position]]
            scored = ranked if options.all_scores else best
            result.append(
                {
                    "labels": [names[position] for position in labels],
                    "scores": {names[position]: row[position] for position in scored},
                    "truncated": cut,
                }
            )
        return result


def _engine_name(loaded: Bundle, requested: str) -> str:
    """The engine to load: the requested one, or the one that suits the hardware if the bundle holds its weights, or its own."""
    own = canonical_name(loaded.metadata.engine)
    if not requested:
        suited = engines.suited(own)
        return suited if loaded.has_engine(suited) else own
    if requested in WEIGHTS and not loaded.has_engine(requested):
        raise ModelError(
            f"{loaded.folder} holds no {WEIGHTS[requested]}, which the engine {requested} reads: use {own}, or the bundle of the "
            "other variant"
        )
    return requested


class PyfuncModel:
    """What ``mlflow.pyfunc.load_model`` returns for a version: ``predict`` takes texts in every form of ``as_texts``."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[Prediction]:
        """One prediction per text; ``params`` are those of ``Options``, None for its defaults.

        Raises:
            DataError: the input is no text, or a parameter has an unknown name or value.
        """
        try:
            texts, options = as_texts(model_input), _options(params or {})
        except DataError as error:
            raise mlflow_model.refusal(error) from error
        return self._predictor.predict(texts, options)


def _options(params: Mapping[str, Any]) -> Options:
    known = {field.name for field in fields(Options)}
    if unknown := sorted(set(params) - known):
        raise DataError(f"parameter {unknown[0]!r} is unknown: known are {', '.join(sorted(known))}")
    given = {name: value for name, value in params.items() if value is not None}
    top_k, threshold = given.get("top_k", 1), given.get("threshold", "tuned")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise DataError(f"parameter top_k={top_k!r}: must be a whole number from 1")
    if threshold != "tuned" and (
        isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1
    ):
        raise DataError(f'parameter threshold={threshold!r}: must be "tuned" or a number from 0 to 1')
    if not isinstance(given.get("all_scores", False), bool):
        raise DataError(f"parameter all_scores={given['all_scores']!r}: must be true or false")
    return Options(**given)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Called by MLflow: the bundle's MLmodel names this module as ``loader_module``, so that no pickle is needed."""
    return PyfuncModel(Predictor.load(Path(path)))
