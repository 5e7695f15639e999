"""The counters of the traffic."""

import dataclasses
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY

from goemotions.data.taxonomy import Taxonomy
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.tokenizer import Encoding
from goemotions.registry import bundle as bundles
from goemotions.serving.traffic.counters import LABELS_WITH_HISTOGRAM, TrafficCounters


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"version": "many", **labels})


def test_only_the_first_labels_of_a_long_list_have_a_histogram(bundle: Path) -> None:
    names = tuple(f"label-{number}" for number in range(LABELS_WITH_HISTOGRAM + 1))
    loaded = bundles.load(bundle)
    long = dataclasses.replace(
        loaded, taxonomy=Taxonomy(names), thresholds=Thresholds("global-0.5", (0.5,) * len(names)), reference=None
    )
    counters = TrafficCounters(long, "many")
    for _ in range(2):
        counters.add(["lake", "storm"], [Encoding([1, 2, 3], False)] * 2, np.full((2, len(names)), 3.0, dtype=np.float32))
    assert sample("goemotions_scored_texts_total") == 0
    counters.flush()
    counters.flush()
    assert sample("goemotions_scored_texts_total") == 4
    first, last = names[-2:]
    assert sample("goemotions_predictions_total", label=first) == sample("goemotions_predictions_total", label=last) == 4
    assert sample("goemotions_score_bins_total", label=first, bin="inf") == 4
    assert sample("goemotions_score_bins_total", label=last, bin="inf") is None
    assert sample("goemotions_reference_texts") is None
