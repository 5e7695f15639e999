"""The report's charts, from plain rows and arrays; colours, fonts and legends are those of ``vega.CONFIG``.

A chart takes the width of its container. Series are switched by a click on the legend. A row may hold more than the
keys named here: what it holds is shown when the pointer is on its mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from goemotions.metrics.classification import counts_by_threshold
from goemotions.report.vega import PALETTE, Chart

Rows = Sequence[Mapping[str, Any]]

GREY = "#8a94a8"
CURVE_POINTS = 60
MAX_BINS = 30
HEIGHT = 320
# Pixels of the smallest chart, for names beside points.
NARROW = 250
# Pixels a label, where each has a line of its own.
LINE = 18


def class_distribution(counts: Mapping[str, Mapping[str, int]]) -> Chart:
    """Texts of each label: split -> label -> count, most frequent in the first split on top."""
    first = next(iter(counts.values()))
    rows = [
        {"label": label, "split": split, "texts": count} for split, found in counts.items() for label, count in found.items()
    ]
    return _sized(
        _chart(rows)
        .mark_bar()
        .encode(
            x=alt.X(
                "texts:Q",
                title="texts (log)",
                **_logarithmic([count for found in counts.values() for count in found.values()], zero=True),
            ),
            y=_lines("label", sorted(first, key=first.__getitem__, reverse=True)),
            yOffset=alt.YOffset("split:N", sort=list(counts)),
            color=_color("split", list(counts)),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("split")),
        (LINE + 6) * len(first),
    )


def cooccurrence(names: Sequence[str], together: np.ndarray) -> Chart:
    """How often a text with the row's label has the column's too; together: texts with both, int [labels, labels]."""
    rows = [
        {"row": a, "column": b, "share": both / together[i, i], "texts with both": both, "texts with row": together[i, i]}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j and (both := together[i, j])
    ]
    everything = alt.Scale(domain=list(names))
    # Vega numbers gradients through the life of a process: symbols keep the file the same each time.
    legend = alt.Legend(title="share of the row's texts", type="symbol", symbolType="square", format="%")
    return _sized(
        _chart(rows)
        .mark_rect()
        .encode(
            x=alt.X(
                "column:N",
                scale=everything,
                title="also has",
                axis=alt.Axis(labelAngle=-90, labelOverlap=False, labelFontSize=alt.ExprRef(f"min(12, width / {len(names)})")),
            ),
            y=alt.Y("row:N", scale=everything, title=None, axis=alt.Axis(labelOverlap=False)),
            color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domainMin=0), legend=legend),
            tooltip=_tooltip(rows),
        ),
        (LINE - 2) * len(names),
    )


def lengths(words_by_split: Mapping[str, Sequence[int]]) -> Chart:
    """Histogram of the words in a text, as a share of each split."""
    longest = int(np.percentile(np.concatenate([np.asarray(words) for words in words_by_split.values()]), 99.5)) + 1
    width = math.ceil(longest / MAX_BINS)
    edges = np.arange(0, longest + width, width)
    rows = []
    for split, words in words_by_split.items():
        counts = np.histogram(np.minimum(words, edges[-1]), edges)[0]
        for start, count in zip(edges, counts, strict=False):
            shown = str(start) if width == 1 else f"{start} to {start + width - 1}"
            rows.append(
                {"middle": start + (width - 1) / 2, "words": shown, "split": split, "share": count / len(words), "texts": count}
            )
    return _sized(
        _chart(rows)
        .mark_line(interpolate="step", point={"size": 12})
        .encode(
            x=alt.X("middle:Q", title="words in a text (the last bin holds the longer ones too)"),
            y=alt.Y("share:Q", title="share of the split's texts", axis=alt.Axis(format="%")),
            color=_color("split", list(words_by_split)),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows, without=("middle",)),
        )
        .add_params(_toggle("split")),
        HEIGHT,
    )


def per_label_f1(rows: Rows) -> Chart:
    """F1 of each label, best mean of the models on top; rows of label, support, f1 and model."""
    return _dots(rows, "f1", "F1")


def label_thresholds(rows: Rows) -> Chart:
    """Threshold of each label, highest on top; rows of label, threshold and model."""
    dots = _dots(rows, "threshold", "threshold")
    half = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=alt.datum(0.5))
    return _sized(alt.layer(half, dots), dots.height)


def _dots(rows: Rows, key: str, title: str) -> Chart:
    """A line a label, a dot a model on it."""
    models = _distinct(rows, "model")
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["label"], []).append(row[key])
    return _sized(
        _chart(rows)
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X(f"{key}:Q", title=title, scale=alt.Scale(domain=[0, 1])),
            y=_lines("label", sorted(values, key=lambda label: -float(np.mean(values[label]))), grid=True),
            color=_color("model", models),
            shape=alt.Shape("model:N", scale=alt.Scale(domain=models), title=None),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("model")),
        LINE * len(values),
    )


def f1_against_support(rows: Rows) -> Chart:
    """F1 of each label over its positives; rows of label, support, f1 and model. The first model's extremes are named."""
    models = _distinct(rows, "model")
    ranked = sorted((row for row in rows if row["model"] == models[0]), key=lambda row: float(row["f1"]))
    extremes = list({row["label"]: row for row in ranked[:3] + ranked[-3:]}.values())
    offsets = _offsets(
        [math.log1p(row["support"]) for row in extremes], [row["f1"] for row in extremes], _all(extremes, "label")
    )
    x = alt.X("support:Q", title="positives (log)", **_logarithmic([row["support"] for row in rows]))
    y = alt.Y("f1:Q", title="F1", scale=alt.Scale(domain=[0, 1]))
    dots = (
        _chart(rows)
        .mark_point(filled=True, size=60)
        .encode(
            x=x,
            y=y,
            color=_color("model", models),
            shape=alt.Shape("model:N", scale=alt.Scale(domain=models), title=None),
            opacity=_shown_if_chosen(0.75),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("model"))
    )
    named = (
        _chart([{**row, "dy": dy} for row, dy in zip(extremes, offsets, strict=True)])
        .mark_text(dy=alt.ExprRef("datum.dy"))
        .encode(x=x, y=y, text="label:N")
    )
    return _sized(alt.layer(dots, named), HEIGHT)


def threshold_curves(rows: Rows) -> Chart:
    """Metrics over one threshold for all labels; rows of threshold, value, metric and average (macro or micro)."""
    metrics, averages = _distinct(rows, "metric"), _distinct(rows, "average")
    return _sized(
        _chart(rows)
        .mark_line(point={"size": 20})
        .encode(
            x=alt.X("threshold:Q", title="threshold", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("value:Q", title="score", scale=alt.Scale(domain=[0, 1])),
            color=_color("metric", metrics),
            strokeDash=alt.StrokeDash("average:N", sort=averages, title=None, legend=alt.Legend(symbolType="stroke")),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("metric")),
        HEIGHT,
    )


def label_coverage(rows: Rows, labels: int) -> Chart:
    """How many of all labels are ever predicted; rows of strategy, labels_ever_predicted and labels_per_row."""
    x = alt.X("labels_ever_predicted:Q", title=f"labels ever predicted, of {labels}", scale=alt.Scale(domain=[0, labels]))
    y = _lines("strategy", _distinct(rows, "strategy"))
    bars = _chart(rows).mark_bar(color=PALETTE[-1]).encode(x=x, y=y, tooltip=_tooltip(rows))
    shown = [{**row, "shown": f"{row['labels_per_row']:.2f} labels a text"} for row in rows]
    text = _chart(shown).mark_text(align="left", dx=6).encode(x=alt.datum(0), y=y, text="shown:N")
    return _sized(alt.layer(bars, text), (LINE + 10) * len(rows))


def precision_recall(names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray) -> Chart:
    """Precision over recall: all cells together, and each label, one of them chosen; arrays [n, labels]."""
    known = [name for name, found in zip(names, labels.sum(axis=0), strict=True) if found]
    micro = [{"label": "all", **point} for point in _curve(labels.ravel(), probabilities.ravel())]
    curves = [
        {"label": name, **point}
        for i, name in enumerate(names)
        if name in known
        for point in _curve(labels[:, i], probabilities[:, i])
    ]
    chosen = alt.param(
        name="label", value=None, bind=alt.binding_select(options=[None, *known], labels=["none", *known], name="label")
    )
    x = alt.X("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("precision:Q", title="precision", scale=alt.Scale(domain=[0, 1]))
    series = {"all labels (micro)": PALETTE[0], "chosen label": PALETTE[1], "each label": GREY}
    scale = alt.Scale(domain=list(series), range=list(series.values()))

    def lines(rows: Rows, name: str, width: float) -> alt.Chart:
        color = alt.Color("series:N", scale=scale, title=None)
        layer: alt.Chart = _chart(rows).transform_calculate(series=f"'{name}'").mark_line(strokeWidth=width)
        return layer.encode(x=x, y=y, color=color, detail="label:N", tooltip=_tooltip(rows))  # type: ignore[no-any-return]

    one = lines(curves, "chosen label", 3).transform_filter("datum.label === label")
    layers = alt.layer(lines(curves, "each label", 0.7), one, lines(micro, "all labels (micro)", 4))
    return _sized(layers.add_params(chosen), HEIGHT + 40)


def _curve(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """At most CURVE_POINTS points of the precision-recall curve, evenly spread over recall; arrays [n]."""
    thresholds, hits, predicted = counts_by_threshold(labels, probabilities)
    precision, recall = hits / predicted, hits / max(hits[-1], 1)
    wanted = np.unique(np.searchsorted(recall, np.linspace(recall[0], recall[-1], CURVE_POINTS)))
    return [{"recall": recall[i], "precision": precision[i], "threshold": thresholds[i]} for i in wanted]


def reliability(rows: Rows) -> Chart:
    """Observed share over predicted probability; rows of probability, observed, count and series."""
    ends = alt.Chart(alt.InlineData(values=[{"at": 0}, {"at": 1}]))
    x = alt.X("probability:Q", title="predicted probability", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("observed:Q", title="observed share", scale=alt.Scale(domain=[0, 1]))
    series = _distinct(rows, "series")
    lines = (
        _chart(rows)
        .mark_line(point={"size": 50})
        .encode(x=x, y=y, color=_color("series", series), opacity=_shown_if_chosen(), tooltip=_tooltip(rows))
        .add_params(_toggle("series"))
    )
    diagonal = ends.mark_line(color=GREY, strokeDash=[4, 4], strokeWidth=1).encode(x="at:Q", y="at:Q")
    return _sized(alt.layer(diagonal, lines), HEIGHT + 40)


def latency_tradeoff(rows: Rows) -> Chart:
    """AUC over latency; rows of model, auc_micro, latency_ms and bytes, which gives a dot its area."""
    latencies, sizes = _all(rows, "latency_ms"), [row["bytes"] / 1e6 for row in rows]
    low, high = min(latencies) / 1.3, max(latencies) * 1.3
    places = [math.log(latency / low) / math.log(high / low) for latency in latencies]
    scores = np.asarray(_all(rows, "auc_micro"))
    offsets = _offsets(places, (scores - scores.min()) / max(np.ptp(scores), 1e-9), _all(rows, "model"))
    shown = [
        {**row, "MB": size, "dy": dy, "align": "left" if place < 0.25 else "right" if place > 0.75 else "center"}
        for row, size, dy, place in zip(rows, sizes, offsets, places, strict=True)
    ]
    x = alt.X(
        "latency_ms:Q",
        title="latency in ms (log)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_steps(low, high), format="~r"),
    )
    y = alt.Y("auc_micro:Q", title="AUC micro", scale=alt.Scale(zero=False, padding=40), axis=alt.Axis(format="~r"))
    legend = alt.Legend(values=_steps(min(sizes) / 1.6, max(sizes) * 1.6)[-4:], format="~r", title="MB")
    size = alt.Size("MB:Q", scale=alt.Scale(domainMin=0, range=[20, 500]), legend=legend)
    dots = _chart(shown).mark_point(filled=True, opacity=1, color=PALETTE[0])
    names = _chart(shown).mark_text(align=alt.ExprRef("datum.align"), dy=alt.ExprRef("datum.dy"))
    layers = alt.layer(
        dots.encode(x=x, y=y, size=size, tooltip=_tooltip(shown, without=("bytes", "align", "dy"))),
        names.encode(x=x, y=y, text="model:N"),
    )
    return _sized(layers, HEIGHT)


def training_curves(rows: Rows, title: str) -> Chart:
    """A value over the epochs; rows of epoch, value and series; ``title`` names the value."""
    epochs = sorted({row["epoch"] for row in rows})
    return _sized(
        _chart(rows)
        .mark_line(point={"size": 40})
        .encode(
            x=alt.X(
                "epoch:Q",
                title="epoch",
                axis=alt.Axis(values=epochs, format="d"),
                scale=alt.Scale(domain=[epochs[0], epochs[-1]]),
            ),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=_color("series", _distinct(rows, "series")),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("series")),
        HEIGHT,
    )


def label_count_effect(rows: Rows) -> Chart:
    """Scores by the number of labels a text has; rows of bucket, value and metric, buckets in their order."""
    return _buckets(rows, "labels of the text")


def length_effect(rows: Rows) -> Chart:
    """Scores by the number of words a text has; rows of bucket, value and metric, buckets in their order."""
    return _buckets(rows, "words in the text")


def _buckets(rows: Rows, title: str) -> Chart:
    metrics = _distinct(rows, "metric")
    return _sized(
        _chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("bucket:N", sort=_distinct(rows, "bucket"), title=title, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("metric:N", sort=metrics),
            y=alt.Y("value:Q", title="score", scale=alt.Scale(domain=[0, 1])),
            color=_color("metric", metrics),
            opacity=_shown_if_chosen(),
            tooltip=_tooltip(rows),
        )
        .add_params(_toggle("metric")),
        HEIGHT - 60,
    )


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[{key: _plain(value) for key, value in row.items()} for row in rows]))


def _sized(chart: Any, height: int) -> Chart:
    """A chart as wide as its container, and so many pixels high."""
    sized: Chart = chart.properties(width="container", height=height)
    return sized


def _plain(value: Any) -> Any:
    """A value for JSON, which knows neither NumPy's numbers nor NaN; five significant digits keep the page small."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _all(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def _distinct(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(_all(rows, key)))


def _color(key: str, order: Sequence[str]) -> alt.Color:
    # The order as a domain: with `sort`, Vega-Lite would not join the legends of colour and shape.
    return alt.Color(f"{key}:N", scale=alt.Scale(domain=list(order)), title=None)


def _lines(key: str, order: Sequence[str], grid: bool = False) -> alt.Y:
    return alt.Y(f"{key}:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, grid=grid, ticks=False))


def _toggle(key: str) -> alt.Parameter:
    # With names of its own: Altair would count on from the chart before.
    return alt.selection_point(name="chosen", fields=[key], bind="legend")


def _shown_if_chosen(opacity: float = 1) -> Any:
    return alt.condition({"param": "chosen"}, alt.value(opacity), alt.value(0.08))


def _tooltip(rows: Rows, without: Sequence[str] = ()) -> list[alt.Tooltip]:
    """Every key of the rows, numbers without trailing zeros."""
    numeric = {key: isinstance(value, int | float | np.number) for row in rows for key, value in row.items()}
    return [
        alt.Tooltip(f"{key}:Q", title=key.replace("_", " "), format=",~r") if number else alt.Tooltip(f"{key}:N")
        for key, number in numeric.items()
        if key not in without
    ]


def _logarithmic(counts: Sequence[int], zero: bool = False) -> dict[str, Any]:
    """Scale and axis for counts: logarithmic, or symlog where it must hold 0; symlog has only linear ticks of its own."""
    zero = zero or min(counts, default=0) == 0
    powers = [10**power for power in range(len(str(max(counts, default=1))) + 1)]
    axis = alt.Axis(values=[0, *powers] if zero else powers, format=",d")
    scale = alt.Scale(type="symlog") if zero else alt.Scale(type="log", nice=False, padding=10)
    return {"scale": scale, "axis": axis}


def _steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for step in (1, 2, 5) if low <= (value := step * 10.0**power) <= high]


def _offsets(x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> list[int]:
    """Pixels from each point, given as shares of the chart, down to its name.

    On a chart as small as on a phone, a name lies neither on another nor on a point, as long as there is room.
    """
    across, down = np.asarray(x) * NARROW, -np.asarray(y) * NARROW
    taken = [(middle, at, 6.0) for middle, at in zip(across, down, strict=True)]
    offsets = [-18] * len(names)
    for i in np.argsort(across, kind="stable"):
        # A letter is about 6.6 pixels wide.
        half = 3.3 * len(names[i])
        middle = min(max(across[i], half), NARROW - half)
        for dy in (-18, 18, -31, 31, -44, 44):
            if all(abs(middle - m) > half + h or abs(down[i] + dy - at) > 13 for m, at, h in taken):
                offsets[i] = dy
                break
        taken.append((middle, down[i] + offsets[i], half))
    return offsets
