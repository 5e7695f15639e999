"""Explanations: how much each word of a text speaks for each chosen label, by occlusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from goemotions import defaults
from goemotions.evaluation import occlusion
from goemotions.evaluation.occlusion import Occlusion, Word
from goemotions.models import engines

if TYPE_CHECKING:
    from goemotions.prediction.predictor import Options, Prediction, Predictor


class Explanation(TypedDict):
    """The words of a text that the model reads, and per chosen label the contribution of each, from -1 to 1.

    The contributions of the words of a group add up to what the group contributes; each has the share of its weight.
    """

    words: list[Word]
    contributions: dict[str, list[float]]


def explain(
    predictor: Predictor, texts: Sequence[str], options: Options, removals: int = defaults.REMOVALS
) -> tuple[list[Prediction], list[Explanation]]:
    """Predictions for n texts, and the explanation of each; both in order. With more ``removals`` per text, fewer words share one."""
    occlusions = [occlusion.occlude(predictor.engine.encoder, text, removals) for text in texts]
    probabilities, truncated = engines.score(predictor.engine, occlusion.to_score(texts, occlusions))
    return describe(predictor, occlusions, probabilities, truncated, options)


def describe(
    predictor: Predictor, occlusions: Sequence[Occlusion], probabilities: np.ndarray, truncated: np.ndarray, options: Options
) -> tuple[list[Prediction], list[Explanation]]:
    """Predictions and explanations of n texts.

    ``probabilities``, float32 [n + removals, labels], and ``truncated``, bool, are those of the texts of ``occlusion.to_score``.
    """
    count = len(occlusions)
    predictions = predictor.predictions(probabilities[:count], truncated[:count], options)
    columns = {name: column for column, name in enumerate(predictor.bundle.taxonomy.names)}
    explanations: list[Explanation] = [
        {"words": one.words, "contributions": {label: values[:, columns[label]].tolist() for label in prediction["labels"]}}
        for one, prediction, values in zip(
            occlusions, predictions, occlusion.contributions(occlusions, probabilities), strict=True
        )
    ]
    return predictions, explanations
