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
from goemotions.report.name_places import NAME_PLACES, on_axis, with_places
from goemotions.report.vega import AXIS_COLOR, PALETTE, Chart

Rows = Sequence[Mapping[str, Any]]

CURVE_POINTS = 60
MAX_BINS = 30
# In pixels: the height of a chart, and the height per label if each label has its own line.
HEIGHT, LINE_HEIGHT = 320, 18
ZERO_TO_ONE = alt.Scale(domain=[0, 1])
# Properties of the marks of auxiliary lines.
DASHED: dict[str, Any] = {"color": AXIS_COLOR, "strokeDash": [4, 4]}


def class_distribution(counts: Mapping[str, Mapping[str, int]]) -> Chart:
    """Texts per label and split, from counts by split and label; the most frequent label of the first split on top."""
    first = next(iter(counts.values()))
    rows = [
        {"label": label, "split": split, "texts": count} for split, labels in counts.items() for label, count in labels.items()
    ]
    x = alt.X("texts:Q", title="texts (log)", **_logarithmic(_column(rows, "texts"), zero=True))
    y = _category_axis("label", sorted(first, key=first.__getitem__, reverse=True))
    offset = alt.YOffset("split:N", sort=list(counts))
    return _series(rows, "split", alt.MarkDef("bar"), x=x, y=y, height=(LINE_HEIGHT + 6) * len(first), yOffset=offset)


def cooccurrence(names: Sequence[str], together: np.ndarray) -> Chart:
    """Share of the texts with the row's label that also have the column's; ``together``: texts with both, int [labels, labels]."""
    rows = [
        {"row": a, "column": b, "share": both / together[i, i], "texts with both": both, "texts with row": together[i, i]}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j and (both := together[i, j])
    ]
    all_labels = alt.Scale(domain=list(names))
    font_size = alt.ExprRef(f"min(12, width / {len(names)})")
    x_axis = alt.Axis(labelAngle=-90, labelOverlap=False, labelFontSize=font_size)
    # The default legend is a gradient, which Vega numbers per process: with symbols, the same data gives the same file.
    legend = alt.Legend(title="share of the row's texts", type="symbol", symbolType="square", format="%")
    return _marks(rows, alt.MarkDef("rect"), height=(LINE_HEIGHT - 2) * len(names)).encode(
        x=alt.X("column:N", scale=all_labels, title="also has", axis=x_axis),
        y=alt.Y("row:N", scale=all_labels, title=None, axis=alt.Axis(labelOverlap=False)),
        color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domainMin=0), legend=legend),
    )


def lengths(words_by_split: Mapping[str, Sequence[int] | np.ndarray]) -> Chart:
    """Histogram of the words per text, as a share of each split; texts above the 99.5th percentile are in the last bin."""
    longest = int(np.percentile(np.concatenate([np.asarray(words) for words in words_by_split.values()]), 99.5)) + 1
    width = math.ceil(longest / MAX_BINS)
    edges = np.arange(0, longest + width, width)
    titles = [str(start) if width == 1 else f"{start} to {start + width - 1}" for start in edges[:-1]]
    rows = [
        {"middle": start + (width - 1) / 2, "words": title, "split": split, "share": count / len(words), "texts": count}
        for split, words in words_by_split.items()
        for start, title, count in zip(edges, titles, np.histogram(np.minimum(words, edges[-1]), edges)[0], strict=False)
    ]
    x = alt.X("middle:Q", title="words per text (the last bin includes longer texts)")
    y = alt.Y("share:Q", title="share of the split's texts", axis=alt.Axis(format="%"))
    return _series(rows, "split", alt.MarkDef("line", interpolate="step", point={"size": 12}), x=x, y=y, hidden=("middle",))


def per_label_f1(rows: Rows) -> Chart:
    """F1 per label, the best mean over the models on top; rows of label, f1, model and engine."""
    return _dots_per_label(rows, "f1", "F1")


def label_thresholds(rows: Rows) -> Chart:
    """Threshold per label, the highest mean over the models on top; rows of label, threshold, model and engine."""
    half = _chart([{}], alt.MarkDef("rule", **DASHED)).encode(x=alt.datum(0.5))
    return _layers(half, _dots_per_label(rows, "threshold", "threshold"))


def _dots_per_label(rows: Rows, key: str, title: str) -> alt.Chart:
    """One line per label, with one mark per model and engine."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["label"], []).append(row[key])
    y = _category_axis("label", sorted(values, key=lambda label: -float(np.mean(values[label]))), grid=True)
    return _dots(rows, alt.X(f"{key}:Q", title=title, scale=ZERO_TO_ONE), y, size=70, height=LINE_HEIGHT * len(values))


def f1_against_support(rows: Rows) -> Chart:
    """F1 per label by its positives; rows of label, support, f1, model, engine. The first model's three best and worst are named."""
    first, supports = rows[0]["model"], _column(rows, "support")
    by_f1 = sorted((row for row in rows if row["model"] == first), key=lambda row: float(row["f1"]))
    extremes = list({row["label"]: row for row in by_f1[:3] + by_f1[-3:]}.values())
    places = on_axis(np.log1p(_column(extremes, "support")), np.log1p(supports))
    named = with_places(extremes, places, np.array(_column(extremes, "f1")), "label")
    x = alt.X("support:Q", title="positives (log)", **_logarithmic(supports))
    y = alt.Y("f1:Q", title="F1", scale=ZERO_TO_ONE)
    return _layers(_dots(rows, x, y, size=60, height=HEIGHT), _names(named, x, y, "label"))


def threshold_curves(rows: Rows) -> Chart:
    """Metrics by one threshold for all labels; rows of threshold, value, metric and average (macro or micro)."""
    x = alt.X("threshold:Q", title="threshold", scale=ZERO_TO_ONE)
    y = alt.Y("value:Q", title="score", scale=ZERO_TO_ONE)
    legend = alt.Legend(symbolType="stroke")
    dash = alt.StrokeDash("average:N", sort=_distinct(rows, "average"), title=None, legend=legend)
    return _series(rows, "metric", alt.MarkDef("line", point={"size": 20}), x=x, y=y, strokeDash=dash)


def label_coverage(rows: Rows, labels: int) -> Chart:
    """Labels that are ever predicted, of so many; rows of strategy, labels_ever_predicted and labels_per_row."""
    x = alt.X("labels_ever_predicted:Q", title=f"labels ever predicted, of {labels}", scale=alt.Scale(domain=[0, labels]))
    y = _category_axis("strategy", _distinct(rows, "strategy"))
    mark = alt.MarkDef("bar", color=PALETTE[-1])
    bars = _marks(rows, mark, height=(LINE_HEIGHT + 10) * len(rows)).encode(x=x, y=y)
    notes = [{**row, "note": f"{row['labels_per_row']:.2f} labels per text"} for row in rows]
    text = _chart(notes, alt.MarkDef("text", align="left", dx=6)).encode(x=alt.datum(0), y=y, text="note:N")
    return _layers(bars, text)


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
    x = alt.X("recall:Q", title="recall", scale=ZERO_TO_ONE)
    y = alt.Y("precision:Q", title="precision", scale=ZERO_TO_ONE)
    series = {"all labels (micro)": PALETTE[0], "chosen label": PALETTE[1], "each label": AXIS_COLOR}
    scale = alt.Scale(domain=list(series), range=list(series.values()))

    def lines(rows: Rows, name: str, width: float) -> alt.Chart:
        color = alt.Color("series:N", scale=scale, title=None)
        layer = _marks(rows, alt.MarkDef("line", strokeWidth=width), height=HEIGHT + 40)
        return layer.transform_calculate(series=f"'{name}'").encode(x=x, y=y, color=color, detail="label:N")

    one = lines(curves, "chosen label", 3).transform_filter("datum.label === label")
    return _layers(lines(curves, "each label", 0.7), one, lines(micro, "all labels (micro)", 4)).add_params(chosen)


def _curve(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """At most CURVE_POINTS points of the precision-recall curve, evenly spread over recall; arrays [n]."""
    thresholds, hits, predicted = counts_by_threshold(labels, probabilities)
    precision, recall = hits / predicted, hits / max(hits[-1], 1)
    kept = np.unique(np.searchsorted(recall, np.linspace(recall[0], recall[-1], CURVE_POINTS)))
    return [{"recall": recall[i], "precision": precision[i], "threshold": thresholds[i]} for i in kept]


def reliability(rows: Rows) -> Chart:
    """Observed share by predicted probability; rows of probability, observed, count and series."""
    x = alt.X("probability:Q", title="predicted probability", scale=ZERO_TO_ONE)
    y = alt.Y("observed:Q", title="observed share", scale=ZERO_TO_ONE)
    diagonal = _chart([{"at": 0}, {"at": 1}], alt.MarkDef("line", strokeWidth=1, **DASHED)).encode(x="at:Q", y="at:Q")
    return _layers(diagonal, _series(rows, "series", alt.MarkDef("line", point={"size": 50}), x=x, y=y, height=HEIGHT + 40))


def latency_tradeoff(rows: Rows) -> Chart:
    """Macro F1 with its interval by latency; rows of model, engine, f1_macro, low, high, latency_ms, and bytes, the area of a dot."""
    latencies, scores = _column(rows, "latency_ms"), _column(rows, "f1_macro")
    domain = [*_column(rows, "low"), *_column(rows, "high")]
    low, high = min(latencies) / 1.3, max(latencies) * 1.3
    named = with_places(rows, on_axis(np.log(latencies), np.log([low, high])), on_axis(scores, domain), "model")
    points = [{**row, "MiB": row["bytes"] / 2**20} for row in named]
    sizes = _column(points, "MiB")
    x = alt.X(
        "latency_ms:Q",
        title="latency in ms (log)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=_log_ticks(low, high), format="~r"),
    )
    y = alt.Y("f1_macro:Q", title="macro F1", scale=alt.Scale(zero=False, padding=40), axis=alt.Axis(format="~r"))
    legend = alt.Legend(values=_log_ticks(min(sizes) / 1.6, max(sizes) * 1.6)[-4:], format="~r", title="MiB")
    size = alt.Size("MiB:Q", scale=alt.Scale(domainMin=0, range=[20, 500]), legend=legend)
    mark = alt.MarkDef("point", filled=True, opacity=1, color=PALETTE[0])
    dots = _marks(points, mark, hidden=("bytes", *NAME_PLACES[0])).encode(x=x, y=y, size=size, shape=_engine_shape(rows))
    interval = _chart(points, alt.MarkDef("rule", color=AXIS_COLOR)).encode(
        x=x, y=alt.Y("low:Q", title="macro F1"), y2="high:Q"
    )
    return _layers(interval, dots, _names(points, x, y, "model"))


def training_curves(rows: Rows, title: str) -> Chart:
    """A value per epoch; rows of epoch, value and series; ``title`` names the value."""
    epochs = sorted({row["epoch"] for row in rows})
    x_axis, x_scale = alt.Axis(values=epochs, format="d"), alt.Scale(domain=[epochs[0], epochs[-1]])
    x = alt.X("epoch:Q", title="epoch", axis=x_axis, scale=x_scale)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    return _series(rows, "series", alt.MarkDef("line", point={"size": 40}), x=x, y=y)


def metrics_by_bucket(rows: Rows, title: str) -> Chart:
    """Metrics per bucket of texts; rows of bucket, value and metric, buckets in their order; ``title`` names the buckets."""
    x = alt.X("bucket:N", sort=_distinct(rows, "bucket"), title=title, axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title="score", scale=ZERO_TO_ONE)
    offset = alt.XOffset("metric:N", sort=_distinct(rows, "metric"))
    return _series(rows, "metric", alt.MarkDef("bar"), x=x, y=y, height=HEIGHT - 60, xOffset=offset)


def _chart(rows: Rows, mark: alt.MarkDef) -> alt.Chart:
    values = [{key: _json_value(value) for key, value in row.items()} for row in rows]
    return alt.Chart(alt.InlineData(values=values), mark=mark)


def _marks(rows: Rows, mark: alt.MarkDef, *, height: int = HEIGHT, hidden: Sequence[str] = ()) -> alt.Chart:
    """Marks as wide as the container; tooltips show every key that is not hidden, numbers without trailing zeros."""
    is_number = {key: isinstance(value, int | float | np.number) for row in rows for key, value in row.items()}
    tooltip = [
        alt.Tooltip(f"{key}:Q", title=key.replace("_", " "), format=",~r") if number else alt.Tooltip(f"{key}:N")
        for key, number in is_number.items()
        if key not in hidden
    ]
    return _chart(rows, mark).encode(tooltip=tooltip).properties(width="container", height=height)


def _series(
    rows: Rows, key: str, mark: alt.MarkDef, *, height: int = HEIGHT, hidden: Sequence[str] = (), **channels: Any
) -> alt.Chart:
    """Marks coloured by the values of a key, in their order in the rows; a click on the legend shows one value only."""
    color = alt.Color(f"{key}:N", scale=alt.Scale(domain=_distinct(rows, key)), title=None)
    # Without a name, Altair numbers the parameters of all charts in a process.
    selection = alt.selection_point(name="chosen", fields=[key], bind="legend")
    opacity = alt.condition({"param": "chosen"}, alt.value(1), alt.value(0.08))
    marks = _marks(rows, mark, height=height, hidden=hidden)
    return marks.encode(color=color, opacity=opacity, **channels).add_params(selection)


def _dots(rows: Rows, x: alt.X, y: alt.Y, size: int, height: int) -> alt.Chart:
    """A point per row, with a colour per model and a shape per engine."""
    return _series(rows, "model", alt.MarkDef("point", size=size), x=x, y=y, height=height, shape=_engine_shape(rows))


def _engine_shape(rows: Rows) -> alt.Shape:
    # Beside another legend it would not fit on a phone.
    legend = alt.Legend(orient="bottom")
    return alt.Shape("engine:N", scale=alt.Scale(domain=_distinct(rows, "engine")), title=None, legend=legend)


def _json_value(value: Any) -> Any:
    """A value that JSON can hold: no NumPy numbers, no NaN. Five significant digits keep the page small."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _layers(*charts: alt.Chart) -> alt.LayerChart:
    """Charts on common axes, the last on top; the size is that of the marks among them."""
    return alt.LayerChart(layer=list(charts))


def _column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def _distinct(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(_column(rows, key)))


def _category_axis(key: str, order: Sequence[str], grid: bool = False) -> alt.Y:
    return alt.Y(f"{key}:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, grid=grid, ticks=False))


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
    """1, 2 and 5 times the powers of ten between two positive numbers, or up to 9 times if these are fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), range(1, 10)):
        ticks = [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]
        if len(ticks) > 1:
            break
    return ticks


def _names(rows: Rows, x: alt.X, y: alt.Y, key: str) -> alt.Chart:
    """Names beside points, where ``name_places`` put them."""
    align, dx, dy = (alt.ExprRef(f"datum.{name}") for name in ("align", "dx", "dy"))
    mark = alt.MarkDef("text", baseline="middle", align=align, dx=dx, dy=dy)
    return _chart(rows, mark).encode(x=x, y=y, text=f"{key}:N")
