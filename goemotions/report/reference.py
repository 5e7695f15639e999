"""Figures of others on the official GoEmotions data, to stand beside ours. They are shown for that data alone."""

from __future__ import annotations

from typing import Any

# Digest of the official splits, as `goemotions ingest` computes it.
OFFICIAL = "232d9ab6abe531d336b5c73429e4402b0affb39567b82a9ea0a0fb268f85f674"

# The system that this one replaces: one A100, ten epochs, thresholds at 0.5; test split.
PREVIOUS: dict[str, dict[str, float]] = {
    "roberta-large": {"auc_micro": 0.9045, "auc_macro": 0.8294, "f1_macro": 0.1600, "f1_micro": 0.4001, "seconds": 7363},
    "distilbert": {"auc_micro": 0.8800, "auc_macro": 0.7443, "f1_macro": 0.0904, "f1_micro": 0.3516, "seconds": 1113},
}

# Published figures on the test split whose thresholds were not fitted on it. Of the first alone the paper is known; the others are
# single reports, each of its own training.
PUBLISHED: list[dict[str, Any]] = [
    {"model": "BERT-base (Demszky et al. 2020)", "f1_macro": 0.46},
    {"model": "TF-IDF with logistic regression", "f1_macro": 0.446},
    {"model": "DistilBERT", "f1_macro": 0.518},
    {"model": "RoBERTa-base", "auc_micro": 0.952, "auc_macro": 0.931},
    {"model": "RoBERTa-large, best of three seeds", "f1_macro": 0.538},
]
