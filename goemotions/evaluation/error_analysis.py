"""Error analysis from labels bool, probabilities float32 and decisions bool, each [n, labels]; it does not read the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from scipy import sparse

from goemotions.metrics import classification
from goemotions.metrics.classification import LabelMetrics

# The lowest number of words of each bucket after the first.
LENGTHS = (6, 11, 16, 21)
CORRELATED: tuple[Literal["f1", "auc"], ...] = ("f1", "auc")


class Confusion(TypedDict):
    """Rows with ``label`` that were taken for another one: their count, and their share of the rows that have the label."""

    label: str
    taken_for: str
    count: int
    share: float


class LikelyLabelError(TypedDict):
    """A text-label pair whose annotation is likely wrong.

    Attributes:
        kind: ``superfluous`` if the text has the label, ``missing`` if not.
        probability: of the label.
        margin: how far below its mean the probability of the annotation is; negative only for a label whose mean probability is
            higher in rows without it.
    """

    id: str
    label: str
    kind: Literal["superfluous", "missing"]
    probability: float
    margin: float


class LabelCountRow(TypedDict):
    """Metrics of the texts with a number of labels; ``exact_match`` is a share, ``predicted`` the mean labels per text."""

    labels: str
    rows: int
    f1_micro: float
    auc_micro: float
    exact_match: float
    predicted: float


class LengthRow(TypedDict):
    """Metrics of the texts with a number of words; ``f1_macro`` is over the labels that occur among them."""

    words: str
    rows: int
    auc_micro: float
    f1_micro: float
    f1_macro: float


def confused(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray, most: int = 15) -> list[Confusion]:
    """The label pairs that are most often confused, the most frequent first.

    A row counts for (label, taken_for) if it has the label, which was missed, and does not have ``taken_for``, which was predicted.
    A row with several of both counts for each pair, so the shares of a label may add up to more than 1.
    """
    # Few decisions are wrong: a dense product would take a step for every row and pair of labels.
    missed, wrong = (sparse.csr_array(mask.astype(np.int64)) for mask in (labels & ~predicted, predicted & ~labels))
    counts = (missed.T @ wrong).toarray()
    shares = counts / np.maximum(labels.sum(axis=0), 1)[:, None]
    order = np.lexsort((-shares.ravel(), -counts.ravel()))[:most]
    return [
        {"label": names[a], "taken_for": names[b], "count": int(counts[a, b]), "share": float(shares[a, b])}
        for a, b in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[a, b]
    ]


def likely_label_errors(
    names: Sequence[str], ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray
) -> list[LikelyLabelError]:
    """The text-label pairs whose annotation is likely wrong, most likely first, by confident learning with each label against the rest.

    A label is confidently present if p reaches its mean over the rows that have the label, and confidently absent if 1 - p
    reaches its mean over the rows that do not; if both hold, the more probable one is taken (Northcutt et al. 2021,
    "Confident Learning", section 3.1). A pair is a likely error if its annotation is confidently contradicted.

    Pairs are ranked by how far the probability of their annotation is below its mean over the pairs annotated the same: the
    self-confidence adjusted by class of Kuan and Mueller 2022, "Model-agnostic label quality scoring to detect real-world
    label errors". Without the adjustment, rare or vague labels, whose p is near 0 for every text, would fill the top, and every
    pair of a rare label above its low mean would look as certain as one with p near 1. The cost: a superfluous label that the
    model rarely predicts ranks low, so that missing labels come first.

    The probabilities must come from a model that was not trained on these rows. If all rows or none have a label, one of its
    two means is undefined, and no error of that kind is reported.
    """
    present, absent = probabilities.astype(float), 1 - probabilities.astype(float)
    mean_present, mean_absent = _mean_where(present, labels), _mean_where(absent, ~labels)
    is_present, is_absent = present >= mean_present, absent >= mean_absent
    superfluous = labels & is_absent & ~(is_present & (present > absent))
    missing = ~labels & is_present & ~(is_absent & (present <= absent))
    margin = np.where(labels, mean_present - present, mean_absent - absent)

    row, column = np.nonzero(superfluous | missing)
    order = np.lexsort((column, np.asarray(ids, dtype=str)[row], -margin[row, column]))
    return [
        {
            "id": ids[i],
            "label": names[j],
            "kind": "superfluous" if labels[i, j] else "missing",
            "probability": float(present[i, j]),
            "margin": float(margin[i, j]),
        }
        for i, j in zip(row[order], column[order], strict=True)
    ]


def by_label_count(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> list[LabelCountRow]:
    """One row for the texts with 1, with 2, and with 3 or more labels (with 0 too, if they were kept); none for an empty bucket."""
    buckets = np.minimum(labels.sum(axis=1), 3)
    return [
        {
            "labels": "3+" if bucket == 3 else str(bucket),
            "rows": int(inside.sum()),
            "f1_micro": classification.decisions(labels[inside], predicted[inside])["f1_micro"],
            "auc_micro": classification.ranking(labels[inside], probabilities[inside])["auc_micro"],
            "exact_match": float((labels[inside] == predicted[inside]).all(axis=1).mean()),
            "predicted": float(predicted[inside].sum(axis=1).mean()),
        }
        for bucket in np.unique(buckets)
        for inside in [buckets == bucket]
    ]


def by_length(lengths: np.ndarray, labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> list[LengthRow]:
    """One row for the texts of 1-5, 6-10, 11-15, 16-20, and 21 or more words, ``lengths``, int [n]; none for an empty bucket."""
    starts = (1, *LENGTHS)
    titles = [f"{start}-{following - 1}" for start, following in zip(starts, LENGTHS, strict=False)] + [f"{starts[-1]}+"]
    buckets = np.searchsorted(LENGTHS, lengths, side="right")
    result: list[LengthRow] = []
    for bucket in np.unique(buckets):
        inside = buckets == bucket
        given, decided = labels[inside], predicted[inside]
        occurs = given.any(axis=0)
        result.append(
            {
                "words": titles[bucket],
                "rows": int(inside.sum()),
                "auc_micro": classification.ranking(given, probabilities[inside])["auc_micro"],
                "f1_micro": classification.decisions(given, decided)["f1_micro"],
                "f1_macro": classification.macro_f1(given[:, occurs], decided[:, occurs]) if occurs.any() else 0.0,
            }
        )
    return result


def support_correlation(rows: Sequence[LabelMetrics], counts: Sequence[int]) -> dict[str, float | None]:
    """Spearman's rank correlation, over the labels, of their number of training rows with F1 and with ROC AUC.

    Returns:
        f1_rho, f1_p, auc_rho and auc_p; None for fewer than three labels, or if all have the same count or the same metric.
    """
    # It takes a second, which only the report needs.
    from scipy.stats import spearmanr

    result: dict[str, float | None] = {}
    for metric in CORRELATED:
        pairs = [(count, row[metric]) for count, row in zip(counts, rows, strict=True) if row[metric] is not None]
        varies = len(pairs) > 2 and all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
        rho, p = map(float, spearmanr(pairs)) if varies else (None, None)
        result |= {f"{metric}_rho": rho, f"{metric}_p": p}
    return result


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of each column over the mask, float [labels]; infinite if the mask is empty there."""
    # Summed in sorted order, so that rounding, and with it the result, does not depend on the order of the rows.
    total, count = np.sort(np.where(mask, values, 0), axis=0).sum(axis=0), mask.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)
