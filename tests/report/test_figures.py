"""The charts: each can be drawn, names what it shows, and has the values it was given."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from goemotions.report import figures, name_places
from goemotions.report.document import Figure, Section, to_html, write_figures

NAMES = ("joy", "grief <&>", "a|b.c[d]")
RNG = np.random.default_rng(0)
PROBABILITIES = RNG.random((200, 3)).astype(np.float32)
LABELS = RNG.random((200, 3)) < PROBABILITIES
MODELS, ENGINES = ("minilm", "minilm-3l"), ("torch", "openvino-int8")

PER_LABEL = [
    {"label": name, "support": 10 * i, "f1": 0.2 * i, "threshold": 0.3, "model": model, "engine": engine}
    for model in MODELS
    for engine in ENGINES
    for i, name in enumerate(NAMES)
]
CURVES = [
    {"threshold": 0.1 * i, "value": 0.5, "metric": metric, "average": average}
    for i in range(1, 10)
    for metric in ("F1", "precision")
    for average in ("macro", "micro")
]
COVERAGE = [{"strategy": name, "labels_ever_predicted": 2, "labels_per_row": 1.25} for name in ("global-0.5", "top-k")]
BINS = [{"probability": 0.1 * i, "observed": 0.1 * i, "count": 5, "series": s} for i in range(10) for s in ("before", "after")]
LATENCY = [
    {"model": model, "engine": engine, "f1_macro": 0.5, "low": 0.45, "high": 0.54, "latency_ms": 3.0, "bytes": 9e7}
    for model, engine in zip(MODELS, ENGINES, strict=True)
]
EPOCHS = [{"epoch": epoch, "value": 1 / epoch, "series": model} for epoch in (1, 2) for model in MODELS]
BUCKETS = [{"bucket": bucket, "value": 0.5, "metric": "micro F1"} for bucket in ("1", "2", "3 or more")]

CHARTS: dict[str, tuple[Callable[[], figures.Chart], tuple[str, ...]]] = {
    "class-distribution": (
        lambda: figures.class_distribution({"train": dict.fromkeys(NAMES, 900), "test": dict.fromkeys(NAMES, 0)}),
        (*NAMES, "train", "test", "texts (log)"),
    ),
    "cooccurrence": (lambda: figures.cooccurrence(NAMES, LABELS.T.astype(int) @ LABELS), (*NAMES, "also has")),
    "lengths": (lambda: figures.lengths({"train": [1, 5, 90], "test": [3]}), ("train", "test", "share of the split's texts")),
    "per-label-f1": (lambda: figures.per_label_f1(PER_LABEL), (*NAMES, *MODELS, *ENGINES, "F1")),
    "label-thresholds": (lambda: figures.label_thresholds(PER_LABEL), (*NAMES, *MODELS, *ENGINES, "threshold")),
    "f1-against-support": (lambda: figures.f1_against_support(PER_LABEL), (*NAMES, *MODELS, *ENGINES, "positives (log)", "F1")),
    "threshold-curves": (lambda: figures.threshold_curves(CURVES), ("F1", "precision", "macro", "micro", "threshold", "score")),
    "label-coverage": (
        lambda: figures.label_coverage(COVERAGE, 3),
        ("global-0.5", "top-k", "1.25 labels per text", "labels ever predicted, of 3"),
    ),
    "precision-recall": (
        lambda: figures.precision_recall(NAMES, LABELS, PROBABILITIES),
        ("precision", "recall", "all labels (micro)"),
    ),
    "reliability": (lambda: figures.reliability(BINS), ("before", "after", "predicted probability", "observed share")),
    "latency": (lambda: figures.latency_tradeoff(LATENCY), (*MODELS, *ENGINES, "latency in ms (log)", "macro F1", "MiB")),
    "training": (lambda: figures.training_curves(EPOCHS, "loss"), (*MODELS, "epoch", "loss")),
    "buckets": (
        lambda: figures.metrics_by_bucket(BUCKETS, "labels of the text"),
        ("1", "2", "3 or more", "micro F1", "labels of the text"),
    ),
}


def values(chart: figures.Chart) -> list[dict[str, Any]]:
    """All rows of a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


@pytest.mark.parametrize("name", CHARTS)
def test_the_svg_names_what_it_shows(name: str, tmp_path: Path) -> None:
    draw, texts = CHARTS[name]
    (path,) = write_figures([Section("s", figures=[Figure(name, "caption", draw())])], tmp_path)
    svg = html.unescape(path.read_text(encoding="utf-8"))
    assert [text for text in texts if f">{text}</text>" not in svg] == []


def test_drawing_again_gives_the_same_files(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        write_figures(
            [Section("s", figures=[Figure(name, "", draw()) for name, (draw, _) in CHARTS.items()])], tmp_path / folder
        )
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second


def test_a_page_of_all_charts_stays_small() -> None:
    page = to_html("t", [Section("s", figures=[Figure(name, "", draw()) for name, (draw, _) in CHARTS.items()])])
    assert len(page) < 1_500_000


def test_labels_are_sorted_by_their_count_in_train() -> None:
    chart = figures.class_distribution({"train": {"a": 1, "b": 3, "c": 2}, "test": {"a": 9, "b": 0, "c": 0}})
    assert chart.to_dict()["encoding"]["y"]["sort"] == ["b", "c", "a"]


def test_the_share_is_of_the_texts_with_the_label_of_the_row() -> None:
    together = np.array([[4, 1], [1, 1]])
    shares = {(row["row"], row["column"]): row["share"] for row in values(figures.cooccurrence(["a", "b"], together))}
    assert shares == {("a", "b"): 0.25, ("b", "a"): 1.0}


def test_the_lengths_of_a_split_add_up() -> None:
    words = {"train": [1, 2, 2, 30, 500], "test": [7]}
    for split, lengths in words.items():
        rows = [row for row in values(figures.lengths(words)) if row["split"] == split]
        assert sum(row["texts"] for row in rows) == len(lengths)
        assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)


def test_the_points_lie_on_the_curve_of_scikit_learn() -> None:
    points = [row for row in values(figures.precision_recall(NAMES, LABELS, PROBABILITIES)) if row["label"] == "joy"]
    precision, recall, _ = precision_recall_curve(LABELS[:, 0], PROBABILITIES[:, 0])
    assert 2 <= len(points) <= figures.CURVE_POINTS
    for row in points:
        assert np.hypot(recall - row["recall"], precision - row["precision"]).min() < 1e-4
    assert points[-1]["recall"] == 1


def test_a_label_without_a_positive_has_no_curve() -> None:
    labels = LABELS.copy()
    labels[:, 1] = False
    chart = figures.precision_recall(NAMES, labels, PROBABILITIES)
    assert {row["label"] for row in values(chart)} == {"all", NAMES[0], NAMES[2]}


def test_numpy_numbers_and_nan_become_json() -> None:
    rows = [
        {"epoch": np.int64(1), "value": np.float32(1 / 3), "series": "a"},
        {"epoch": 2, "value": float("nan"), "series": "a"},
    ]
    assert [row["value"] for row in values(figures.training_curves(rows, "loss"))] == [0.33333, None]


@pytest.mark.parametrize(("low", "high"), [(37, 45), (60, 140), (400, 12_000)])
def test_a_logarithmic_axis_has_ticks(low: int, high: int, tmp_path: Path) -> None:
    rows = [
        {"label": f"label {count}", "support": count, "f1": 0.5, "model": "minilm", "engine": "torch"} for count in (low, high)
    ]
    (path,) = write_figures([Section("s", figures=[Figure("support", "", figures.f1_against_support(rows))])], tmp_path)
    ticks = [int(text.replace(",", "")) for text in re.findall(r">(\d[\d,]*)</text>", path.read_text(encoding="utf-8"))]
    assert sum(low <= tick <= high for tick in ticks) >= 2


def test_names_beside_points_do_not_cover_each_other() -> None:
    rows = [{"name": name} for name in ("minilm", "minilm-3l", "distilbert")]
    placed = name_places.with_places(rows, np.array([0.5, 0.5, 0.52]), np.array([0.5, 0.5, 0.5]), "name")
    assert len({(row["align"], row["dy"]) for row in placed}) == 3


def test_a_name_is_within_the_chart_and_beside_its_point() -> None:
    """So that it does not cover the line of the interval through its point."""
    rows = [{"name": name} for name in ("mpnet", "minilm", "minilm-3l")]
    placed = name_places.with_places(rows, np.array([0.9, 0.4, 0.05]), np.array([0.9, 0.5, 0.4]), "name")
    assert [row["align"] for row in placed] == ["right", "left", "left"]
    assert all(row["dy"] == 0 and abs(row["dx"]) > 10 for row in placed)
