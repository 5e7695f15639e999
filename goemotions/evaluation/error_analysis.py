"""Where a model errs: from labels bool, probabilities float32 and decisions bool, each [n, labels]; never from texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import spearmanr

from goemotions.metrics import classification

# First number of words of each bucket but the first.
LENGTHS = (6, 11, 16, 21)


def confused(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray, most: int = 15) -> list[dict[str, Any]]:
    """The label pairs most often taken for each other, the most frequent first.

    A row counts for (label, taken_for) where it has the label, which was missed, and ``taken_for`` was predicted, which it
    has not. A row with several of both counts for each pair, so the shares of a label may add up to more than 1.

    Returns:
        label, taken_for, count, and share: the count divided by the rows that have the label.
    """
    # Few cells are mistakes: a dense product would take a step for every row and pair of labels.
    missed, wrong = (sparse.csr_array(cells.astype(np.int64)) for cells in (labels & ~predicted, predicted & ~labels))
    counts = (missed.T @ wrong).toarray()
    shares = counts / np.maximum(labels.sum(axis=0), 1)[:, None]
    order = np.lexsort((-shares.ravel(), -counts.ravel()))[:most]
    return [
        {"label": names[a], "taken_for": names[b], "count": int(counts[a, b]), "share": float(shares[a, b])}
        for a, b in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[a, b]
    ]


def likely_label_errors(
    names: Sequence[str], ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, most: int = 50
) -> list[dict[str, Any]]:
    """The cells whose given label is most likely wrong, by confident learning with each label against the rest.

    A label is confidently there where p reaches its mean over the rows that have the label, and confidently not there where
    1 - p reaches its mean over those that have not; where both hold, the more probable one does (Northcutt et al. 2021,
    "Confident Learning", section 3.1). A cell is a likely error where its given label is confidently contradicted.

    They are ranked by how far the probability of what is given falls short of its mean over the cells given the same: the
    self-confidence adjusted by class of Kuan and Mueller 2022, "Model-agnostic label quality scoring to detect real-world
    label errors". Unadjusted, a rare or vague label, whose p is near 0 whatever the text, would fill the top; and every
    cell of a rare label above its low mean would look as sure as one with p near 1. The price: a superfluous label that the
    model seldom finds anyway ranks low, so that missing ones lead the list.

    The probabilities must come from a model that was not trained on these rows. A label that all rows or none have shows
    no error on the side that has no mean.

    Returns:
        id, label, kind (``superfluous``: given and likely wrong, ``missing``), probability of the label, and margin: that
        shortfall, below 0 only for a label whose mean probability is higher where it is not given.
    """
    there, absent = probabilities.astype(float), 1 - probabilities.astype(float)
    mean_there, mean_absent = _mean_where(there, labels), _mean_where(absent, ~labels)
    sure_there, sure_absent = there >= mean_there, absent >= mean_absent
    superfluous = labels & sure_absent & ~(sure_there & (there > absent))
    missing = ~labels & sure_there & ~(sure_absent & (there <= absent))
    margin = np.where(labels, mean_there - there, mean_absent - absent)

    row, column = np.nonzero(superfluous | missing)
    order = np.lexsort((column, np.asarray(ids, dtype=str)[row], -margin[row, column]))[:most]
    return [
        {
            "id": ids[i],
            "label": names[j],
            "kind": "superfluous" if labels[i, j] else "missing",
            "probability": float(there[i, j]),
            "margin": float(margin[i, j]),
        }
        for i, j in zip(row[order], column[order], strict=True)
    ]


def by_label_count(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """A row for the texts with 1, 2, and 3 or more labels (0 too, where they were kept); none for an empty bucket.

    Returns:
        labels (the bucket), rows, f1_micro, auc_micro, exact_match (share of the rows) and predicted (mean labels a row).
    """
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


def by_length(
    lengths: np.ndarray, labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """A row for the texts of 1-5, 6-10, 11-15, 16-20, and 21 or more words; none for an empty bucket.

    Args:
        lengths: words of each text, int [n].
        labels, predicted, probabilities: [n, labels].

    Returns:
        words (the bucket), rows, auc_micro, f1_micro, and f1_macro over the labels that a row of the bucket has.
    """
    starts = (1, *LENGTHS)
    titles = [f"{start}-{following - 1}" for start, following in zip(starts, LENGTHS, strict=False)] + [f"{starts[-1]}+"]
    buckets = np.searchsorted(LENGTHS, lengths, side="right")
    result = []
    for bucket in np.unique(buckets):
        inside = buckets == bucket
        truth, guess = labels[inside], predicted[inside]
        had = truth.any(axis=0)
        result.append(
            {
                "words": titles[bucket],
                "rows": int(inside.sum()),
                "auc_micro": classification.ranking(truth, probabilities[inside])["auc_micro"],
                "f1_micro": classification.decisions(truth, guess)["f1_micro"],
                "f1_macro": classification.macro_f1(truth[:, had], guess[:, had]) if had.any() else 0.0,
            }
        )
    return result


def support_correlation(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, float | None]:
    """Spearman's rank correlation, over the labels, of their rows in train with F1 and with ROC AUC.

    Args:
        rows: of ``metrics.per_label``.
        counts: rows in train of each label, in the same order.

    Returns:
        f1_rho, f1_p, auc_rho and auc_p; None with fewer than three labels, or where all have one count or one figure.
    """
    result: dict[str, float | None] = {}
    for figure in ("f1", "auc"):
        pairs = [(count, row[figure]) for count, row in zip(counts, rows, strict=True) if row[figure] is not None]
        varied = len(pairs) > 2 and all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
        rho, p = map(float, spearmanr(pairs)) if varied else (None, None)
        result |= {f"{figure}_rho": rho, f"{figure}_p": p}
    return result


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of each column over the cells of the mask, float [labels]; infinite where there is none."""
    # Summed in sorted order: in the order of the rows, shuffling them could move a cell across the mean by a rounding.
    total, count = np.sort(np.where(mask, values, 0), axis=0).sum(axis=0), mask.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)
