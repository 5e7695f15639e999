"""The report's charts, from plain rows and arrays; colours, fonts and legends are those of ``vega.CONFIG``.

A chart takes the width of its container. A click on the legend shows one series only. A docstring names the keys that rows need; they
may have others: the tooltip of a mark shows all values of its row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from goemotions.metrics.classification import counts_by_threshold
from goemotions.report.vega import AXIS_COLOR, PALETTE, Chart

Rows = Sequence[Mapping[str, Any]]

CURVE_POINTS = 60
MAX_BINS = 30
# In pixels: the height of a chart, and the height per label if each label has its own line.
HEIGHT, LINE_HEIGHT = 320, 18
# In pixels, for the names beside points: the width of a chart on a phone, and half the width and the height of a letter.
NARROW, HALF_LETTER, TEXT_HEIGHT = 250, 3.3, 13


def class_distribution(counts: Mapping[str, Mapping[str, int]]) -> Chart:
    """Texts per label and split, from counts by split and label; the most frequent label of the first split on top."""
    first = next(iter(counts.values()))
    rows = [
        {"label": label, "split": split, "texts": count} for split, labels in counts.items() for label, count in labels.items()
    ]
    return _sized(
        _chart(rows)
        .mark_bar()
        .encode(
            x=alt.X(
                "texts:Q",
                title="texts (log)",
                **_logarithmic(_column(rows, "texts"), zero=True),
            ),
            y=_category_axis("label", sorted(first, key=first.__getitem__, reverse=True)),
            yOffset=alt.YOffset("split:N", sort=list(counts)),
            color=_color("split", list(counts)),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("split")),
        (LINE_HEIGHT + 6) * len(first),
    )


def cooccurrence(names: Sequence[str], together: np.ndarray) -> Chart:
    """Share of the texts with the row's label that also have the column's; ``together``: texts with both, int [labels, labels]."""
    rows = [
        {"row": a, "column": b, "share": both / together[i, i], "texts with both": both, "texts with row": together[i, i]}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j and (both := together[i, j])
    ]
    all_labels = alt.Scale(domain=list(names))
    # The default legend is a gradient, which Vega numbers per process: with symbols, the same data gives the same file.
    legend = alt.Legend(title="share of the row's texts", type="symbol", symbolType="square", format="%")
    return _sized(
        _chart(rows)
        .mark_rect()
        .encode(
            x=alt.X(
                "column:N",
                scale=all_labels,
                title="also has",
                axis=alt.Axis(labelAngle=-90, labelOverlap=False, labelFontSize=alt.ExprRef(f"min(12, width / {len(names)})")),
            ),
            y=alt.Y("row:N", scale=all_labels, title=None, axis=alt.Axis(labelOverlap=False)),
            color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domainMin=0), legend=legend),
            tooltip=_tooltip(rows),
        ),
        (LINE_HEIGHT - 2) * len(names),
    )


def lengths(words_by_split: Mapping[str, Sequence[int] | np.ndarray]) -> Chart:
    """Histogram of the words per text, as a share of each split; texts above the 99.5th percentile are in the last bin."""
    longest = int(np.percentile(np.concatenate([np.asarray(words) for words in words_by_split.values()]), 99.5)) + 1
    width = math.ceil(longest / MAX_BINS)
    edges = np.arange(0, longest + width, width)
    rows = []
    for split, words in words_by_split.items():
        counts = np.histogram(np.minimum(words, edges[-1]), edges)[0]
        for start, count in zip(edges, counts, strict=False):
            last = start + width - 1
            bin_title = str(start) if width == 1 else f"{start} to {last}"
            rows.append(
                {"middle": (start + last) / 2, "words": bin_title, "split": split, "share": count / len(words), "texts": count}
            )
    return _sized(
        _chart(rows)
        .mark_line(interpolate="step", point={"size": 12})
        .encode(
            x=alt.X("middle:Q", title="words per text (the last bin includes longer texts)"),
            y=alt.Y("share:Q", title="share of the split's texts", axis=alt.Axis(format="%")),
            color=_color("split", list(words_by_split)),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows, without=("middle",)),
        )
        .add_params(_legend_selection("split")),
        HEIGHT,
    )


def per_label_f1(rows: Rows) -> Chart:
    """F1 per label, the best mean over the models on top; rows of label, f1 and model."""
    return _dot_plot(rows, "f1", "F1")


def label_thresholds(rows: Rows) -> Chart:
    """Threshold per label, the highest mean over the models on top; rows of label, threshold and model."""
    dots = _dot_plot(rows, "threshold", "threshold")
    half = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=AXIS_COLOR, strokeDash=[4, 4]).encode(x=alt.datum(0.5))
    return _sized(alt.layer(half, dots), dots.height)


def _dot_plot(rows: Rows, key: str, title: str) -> Chart:
    """One line per label, with one mark per model."""
    models = _distinct(rows, "model")
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["label"], []).append(row[key])
    return _sized(
        _chart(rows)
        .mark_point(size=70)
        .encode(
            x=alt.X(f"{key}:Q", title=title, scale=alt.Scale(domain=[0, 1])),
            y=_category_axis("label", sorted(values, key=lambda label: -float(np.mean(values[label]))), grid=True),
            color=_color("model", models),
            shape=alt.Shape("model:N", scale=alt.Scale(domain=models), title=None),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("model")),
        LINE_HEIGHT * len(values),
    )


def f1_against_support(rows: Rows) -> Chart:
    """F1 per label by its positives; rows of label, support, f1 and model. The three best and worst of the first model are named."""
    models, supports = _distinct(rows, "model"), _column(rows, "support")
    by_f1 = sorted((row for row in rows if row["model"] == models[0]), key=lambda row: float(row["f1"]))
    extremes = list({row["label"]: row for row in by_f1[:3] + by_f1[-3:]}.values())
    places = _shares(np.log1p(_column(extremes, "support")), np.log1p(supports))
    named = _with_name_places(extremes, places, np.array(_column(extremes, "f1")), "label")
    x = alt.X("support:Q", title="positives (log)", **_logarithmic(supports))
    y = alt.Y("f1:Q", title="F1", scale=alt.Scale(domain=[0, 1]))
    dots = (
        _chart(rows)
        .mark_point(size=60)
        .encode(
            x=x,
            y=y,
            color=_color("model", models),
            shape=alt.Shape("model:N", scale=alt.Scale(domain=models), title=None),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("model"))
    )
    return _sized(alt.layer(dots, _names(named).encode(x=x, y=y, text="label:N")), HEIGHT)


def threshold_curves(rows: Rows) -> Chart:
    """Metrics by one threshold for all labels; rows of threshold, value, metric and average (macro or micro)."""
    metrics, averages = _distinct(rows, "metric"), _distinct(rows, "average")
    return _sized(
        _chart(rows)
        .mark_line(point={"size": 20})
        .encode(
            x=alt.X("threshold:Q", title="threshold", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("value:Q", title="score", scale=alt.Scale(domain=[0, 1])),
            color=_color("metric", metrics),
            strokeDash=alt.StrokeDash("average:N", sort=averages, title=None, legend=alt.Legend(symbolType="stroke")),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("metric")),
        HEIGHT,
    )


def label_coverage(rows: Rows, labels: int) -> Chart:
    """Labels that are ever predicted, of so many; rows of strategy, labels_ever_predicted and labels_per_row."""
    x = alt.X("labels_ever_predicted:Q", title=f"labels ever predicted, of {labels}", scale=alt.Scale(domain=[0, labels]))
    y = _category_axis("strategy", _distinct(rows, "strategy"))
    bars = _chart(rows).mark_bar(color=PALETTE[-1]).encode(x=x, y=y, tooltip=_tooltip(rows))
    notes = [{**row, "note": f"{row['labels_per_row']:.2f} labels per text"} for row in rows]
    text = _chart(notes).mark_text(align="left", dx=6).encode(x=alt.datum(0), y=y, text="note:N")
    return _sized(alt.layer(bars, text), (LINE_HEIGHT + 10) * len(rows))


def precision_recall(names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray) -> Chart:
    """Precision by recall, of all labels together (micro) and per label, with a choice of one to highlight; arrays [n, labels]."""
    with_positives = [name for name, positives in zip(names, labels.sum(axis=0), strict=True) if positives]
    micro = [{"label": "all", **point} for point in _curve(labels.ravel(), probabilities.ravel())]
    curves = [
        {"label": name, **point}
        for i, name in enumerate(names)
        if name in with_positives
        for point in _curve(labels[:, i], probabilities[:, i])
    ]
    choices = alt.binding_select(options=[None, *with_positives], labels=["none", *with_positives], name="label")
    chosen = alt.param(name="label", value=None, bind=choices)
    x = alt.X("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("precision:Q", title="precision", scale=alt.Scale(domain=[0, 1]))
    series = {"all labels (micro)": PALETTE[0], "chosen label": PALETTE[1], "each label": AXIS_COLOR}
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
    kept = np.unique(np.searchsorted(recall, np.linspace(recall[0], recall[-1], CURVE_POINTS)))
    return [{"recall": recall[i], "precision": precision[i], "threshold": thresholds[i]} for i in kept]


def reliability(rows: Rows) -> Chart:
    """Observed share by predicted probability; rows of probability, observed, count and series."""
    ends = alt.Chart(alt.InlineData(values=[{"at": 0}, {"at": 1}]))
    x = alt.X("probability:Q", title="predicted probability", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("observed:Q", title="observed share", scale=alt.Scale(domain=[0, 1]))
    series = _distinct(rows, "series")
    lines = (
        _chart(rows)
        .mark_line(point={"size": 50})
        .encode(x=x, y=y, color=_color("series", series), opacity=_selected_opacity(), tooltip=_tooltip(rows))
        .add_params(_legend_selection("series"))
    )
    diagonal = ends.mark_line(color=AXIS_COLOR, strokeDash=[4, 4], strokeWidth=1).encode(x="at:Q", y="at:Q")
    return _sized(alt.layer(diagonal, lines), HEIGHT + 40)


def latency_tradeoff(rows: Rows) -> Chart:
    """AUC by latency; rows of model, auc_micro, latency_ms, and bytes, which is the area of a dot."""
    latencies, scores = _column(rows, "latency_ms"), _column(rows, "auc_micro")
    low, high = min(latencies) / 1.3, max(latencies) * 1.3
    named = _with_name_places(rows, _shares(np.log(latencies), np.log([low, high])), _shares(scores, scores), "model")
    points = [{**row, "MB": row["bytes"] / 1e6} for row in named]
    sizes = _column(points, "MB")
    x = alt.X(
        "latency_ms:Q",
        title="latency in ms (log)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_log_ticks(low, high), format="~r"),
    )
    y = alt.Y("auc_micro:Q", title="AUC micro", scale=alt.Scale(zero=False, padding=40), axis=alt.Axis(format="~r"))
    legend = alt.Legend(values=_log_ticks(min(sizes) / 1.6, max(sizes) * 1.6)[-4:], format="~r", title="MB")
    size = alt.Size("MB:Q", scale=alt.Scale(domainMin=0, range=[20, 500]), legend=legend)
    dots = _chart(points).mark_point(filled=True, opacity=1, color=PALETTE[0])
    tooltip = _tooltip(points, without=("bytes", "align", "dy"))
    return _sized(
        alt.layer(dots.encode(x=x, y=y, size=size, tooltip=tooltip), _names(points).encode(x=x, y=y, text="model:N")), HEIGHT
    )


def training_curves(rows: Rows, title: str) -> Chart:
    """A value per epoch; rows of epoch, value and series; ``title`` names the value."""
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
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("series")),
        HEIGHT,
    )


def metrics_by_bucket(rows: Rows, title: str) -> Chart:
    """Metrics per bucket of texts; rows of bucket, value and metric, buckets in their order; ``title`` names the buckets."""
    metrics = _distinct(rows, "metric")
    return _sized(
        _chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("bucket:N", sort=_distinct(rows, "bucket"), title=title, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("metric:N", sort=metrics),
            y=alt.Y("value:Q", title="score", scale=alt.Scale(domain=[0, 1])),
            color=_color("metric", metrics),
            opacity=_selected_opacity(),
            tooltip=_tooltip(rows),
        )
        .add_params(_legend_selection("metric")),
        HEIGHT - 60,
    )


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[{key: _json_value(value) for key, value in row.items()} for row in rows]))


def _json_value(value: Any) -> Any:
    """A value that JSON can hold: no NumPy numbers, no NaN. Five significant digits keep the page small."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _sized(chart: Any, height: int) -> Chart:
    """The chart with the width of its container and a height in pixels."""
    sized: Chart = chart.properties(width="container", height=height)
    return sized


def _column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def _distinct(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(_column(rows, key)))


def _color(key: str, order: Sequence[str]) -> alt.Color:
    # With `sort` in place of the domain, Vega-Lite would not merge the legends of colour and shape.
    return alt.Color(f"{key}:N", scale=alt.Scale(domain=list(order)), title=None)


def _category_axis(key: str, order: Sequence[str], grid: bool = False) -> alt.Y:
    return alt.Y(f"{key}:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, grid=grid, ticks=False))


def _legend_selection(key: str) -> alt.Parameter:
    # Without a name, Altair numbers the parameters of all charts in a process.
    return alt.selection_point(name="chosen", fields=[key], bind="legend")


def _selected_opacity() -> Any:
    return alt.condition({"param": "chosen"}, alt.value(1), alt.value(0.08))


def _tooltip(rows: Rows, without: Sequence[str] = ()) -> list[alt.Tooltip]:
    """Every key of the rows, numbers without trailing zeros."""
    is_number = {key: isinstance(value, int | float | np.number) for row in rows for key, value in row.items()}
    return [
        alt.Tooltip(f"{key}:Q", title=key.replace("_", " "), format=",~r") if number else alt.Tooltip(f"{key}:N")
        for key, number in is_number.items()
        if key not in without
    ]


def _logarithmic(counts: Sequence[int], zero: bool = False) -> dict[str, Any]:
    """Scale and axis for counts: logarithmic, or symlog if the scale includes 0."""
    low, high = min(counts, default=0), max(counts, default=1)
    powers = [10**power for power in range(len(str(high)) + 1)]
    if zero or low == 0:
        # The default ticks of a symlog scale are linear.
        return {"scale": alt.Scale(type="symlog"), "axis": alt.Axis(values=[0, *powers], format=",d")}
    ticks: Any = [power for power in powers if low <= power <= high]
    if len(ticks) < 2:
        ticks = _log_ticks(low, high)
    axis = alt.Axis(values=ticks if len(ticks) > 1 else alt.Undefined, format=",d")
    return {"scale": alt.Scale(type="log", nice=False, padding=10), "axis": axis}


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for step in (1, 2, 5) if low <= (value := step * 10.0**power) <= high]


def _shares(values: Any, domain: Any) -> np.ndarray:
    """Where values lie on an axis from the least to the greatest value of the domain, from 0 to 1, float [n]."""
    low, high = np.min(domain), np.max(domain)
    shares: np.ndarray = (np.asarray(values, dtype=float) - low) / max(high - low, 1e-9)
    return shares


def _names(rows: Rows) -> alt.Chart:
    """Names beside points, where ``_with_name_places`` put them."""
    names: alt.Chart = _chart(rows).mark_text(align=alt.ExprRef("datum.align"), dy=alt.ExprRef("datum.dy"))
    return names


def _with_name_places(rows: Rows, x: np.ndarray, y: np.ndarray, key: str) -> list[dict[str, Any]]:
    """The rows with the place of the name beside each point: ``align`` with the point, and ``dy``, pixels down from it.

    On a chart as small as on a phone, no name covers another name or a point, as long as there is room.

    Args:
        rows: one per point, with the name under ``key``.
        x: the points' places on the axis, from 0 to 1, float [n].
        y: the same, upwards.
    """
    across, down = x * NARROW, -y * NARROW
    occupied = [(center, middle, 2 * HALF_LETTER) for center, middle in zip(across, down, strict=True)]
    aligns = ["left" if at < 0.25 else "right" if at > 0.75 else "center" for at in x]
    placed = [{**row, "align": align, "dy": -18} for row, align in zip(rows, aligns, strict=True)]
    for i in np.argsort(across, kind="stable"):
        half = HALF_LETTER * len(placed[i][key])
        center = min(max(across[i], half), NARROW - half)
        for dy in (-18, 18, -31, 31, -44, 44):
            if all(abs(center - c) > half + h or abs(down[i] + dy - m) > TEXT_HEIGHT for c, m, h in occupied):
                placed[i]["dy"] = dy
                break
        occupied.append((center, down[i] + placed[i]["dy"], half))
    return placed
