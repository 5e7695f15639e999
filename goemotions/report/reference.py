"""Metrics of other systems on the test split of the official GoEmotions data. The report shows them for that data only."""

from __future__ import annotations

from dataclasses import dataclass

# Digest of the official splits, as `goemotions ingest` computes it.
OFFICIAL_DIGEST = "232d9ab6abe531d336b5c73429e4402b0affb39567b82a9ea0a0fb268f85f674"


@dataclass(frozen=True)
class Reference:
    """Metrics that another system reached; None where they are not known.

    Attributes:
        seconds: duration of its training, of ``epochs`` epochs.
        best_epoch: the epoch with its best validation metrics, from 1.
    """

    model: str
    auc_micro: float | None = None
    auc_macro: float | None = None
    f1_macro: float | None = None
    f1_micro: float | None = None
    seconds: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None


# The system that this workflow replaces: one A100, ten epochs, all thresholds 0.5.
PREVIOUS = (
    Reference("roberta-large", 0.9045, 0.8294, 0.1600, 0.4001, 7363, epochs=10, best_epoch=1),
    Reference("distilbert", 0.8800, 0.7443, 0.0904, 0.3516, 1113, epochs=10),
)

# Published metrics whose thresholds were not fitted on the test split. The first is that of the data set's paper (Demszky et al. 2020,
# "GoEmotions: A Dataset of Fine-Grained Emotions"); each of the others is a single report with its own training and hardware.
PUBLISHED = (
    Reference("BERT-base (Demszky et al. 2020)", f1_macro=0.46),
    Reference("TF-IDF with logistic regression", f1_macro=0.446),
    Reference("DistilBERT", f1_macro=0.518),
    Reference("RoBERTa-base", auc_micro=0.952, auc_macro=0.931),
    Reference("RoBERTa-large, best of three seeds", f1_macro=0.538),
)
