"""The models: the overview, each one's configuration and figures, how they compare, and which to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from goemotions.data.dataset import DatasetInfo
from goemotions.evaluation.selection import latency_limit
from goemotions.metrics import bootstrap
from goemotions.models import profiles
from goemotions.registry.bundle import Variant
from goemotions.registry.registration import RegisteredVersion
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.reference import OFFICIAL, PREVIOUS, PUBLISHED
from goemotions.report.result import HEADLINE, Result, best, ranged, signed, source_name

METRICS = (*HEADLINE, "precision_macro", "recall_macro", "precision_micro", "recall_micro", "labels_per_row")
NAMES = {"auc_micro": "AUC micro", "auc_macro": "AUC macro", "f1_macro": "F1 macro", "f1_micro": "F1 micro"}
# A change of a loss or of an AUC that is more than the noise of an epoch.
NOTABLE_LOSS, NOTABLE_AUC = 0.01, 0.001
BALANCED = 0.05
OTHERS = (
    "The previous system is the one that this workflow replaces: ten epochs on one A100. Of the published figures the first is of the "
    "data set's paper; the others are single reports, whose training and hardware differ: bearings, not a ranking."
)


def overview(info: DatasetInfo, results: list[Result]) -> Section:
    winner = best(results)
    counts = ", ".join(f"{count:,} {split}" for split, count in info["rows"].items())
    expected = winner.strategy["f1_macro_cross_fitted"]
    return Section(
        "Overview",
        (
            f"Data: {source_name(info['source'])} ({counts} rows, {len(info['labels'])} labels), digest {info['digest'][:12]}.",
            f"Best on validation: {winner.title}. Epochs, scalings, thresholds and winners are chosen on validation alone, by "
            "steps that are not given the test split. Intervals are 95%, from a bootstrap over the test rows.",
            f"Macro F1 on test is {winner.figures['test/f1_macro']:.4f} where validation, cross-fitted, promised {expected:.4f}.",
        ),
        (
            Table(
                ("test split", *NAMES.values()),
                [[result.title, *(ranged(result.resampled[name]) for name in NAMES)] for result in results],
            ),
        ),
    )


def versions(registered: Mapping[Variant, RegisteredVersion]) -> Section:
    rows = [
        [variant, found["profile"], found["version"], found["alias"], found["source"]] for variant, found in registered.items()
    ]
    reasons = [
        f"{variant}: not promoted, since {', '.join(found['gate']['reasons'])}."
        for variant, found in registered.items()
        if found["gate"] and not found["gate"]["passes"]
    ]
    return Section("Registered versions", reasons, (Table(("variant", "profile", "version", "alias", "bundle"), rows),))


def each(results: list[Result], digest: str, registered: Mapping[Variant, RegisteredVersion] | None = None) -> list[Section]:
    """A section a profile that was trained, and one on those that were not; of what was ``registered`` the MLflow run is told."""
    runs = {found["profile"]: str(found["run_id"]) for found in (registered or {}).values()}
    profiles = list(dict.fromkeys(result.profile for result in results))
    sections = [_model([result for result in results if result.profile == name], runs.get(name)) for name in profiles]
    missing = [name for name in PREVIOUS if name not in profiles] if digest == OFFICIAL else []
    if missing:
        sections.append(
            Section(
                ", ".join(missing),
                ("Not trained in this run. What the system before this one reached stands in the comparison.",),
                level=3,
            )
        )
    return [Section("Models"), *sections]


def _model(results: list[Result], run: str | None) -> Section:
    training = results[0].training
    settings = training["profile"]
    columns = [(split, at) for split in ("validation", "test") for at in ("", "at_0.5/")]
    rows: list[list[Cell]] = [
        [f"{result.engine}: {name}", *(result.figures[f"{split}/{at}{name}"] for split, at in columns)]
        for result in results
        for name in METRICS
    ]
    history = training["history"]
    facts = {
        "parameters": training["parameters"],
        "weights": source_name(training["weights"]),
        "epochs": f"{len(history)}, the best is {training['best_epoch']}",
        "duration": f"{training['seconds']:.0f} s, teachers included"
        if training["teachers"]
        else f"{training['seconds']:.0f} s",
        "hardware": training["hardware"],
        "precision": training["precision"],
        "peak memory": f"{training['peak_memory_bytes'] / 2**20:,.0f} MiB",
        **({"peak GPU memory": f"{gpu / 2**20:,.0f} MiB"} if (gpu := training["peak_gpu_memory_bytes"]) else {}),
        "seed": training["seed"],
        "torch": training["torch"],
        **({"MLflow run": run} if run else {}),
    }
    return Section(
        results[0].profile,
        observations(results[0]),
        (
            Table(("training", "value"), [[name, str(value)] for name, value in facts.items()]),
            Table(("hyperparameter", "value"), [[name, _setting(settings[name])] for name in profiles.HYPERPARAMETERS]),
            Table(("epoch", *EPOCH), [[f"{row['epoch']:.0f}", *(row[key] for key in EPOCH.values())] for row in history]),
            Table(("metric", "validation, tuned", "validation at 0.5", "test, tuned", "test at 0.5"), rows),
        ),
        _curves(results[0].profile, history),
        level=3,
    )


EPOCH = {
    "train loss": "train/loss",
    "validation loss": "validation/loss",
    "AUC micro": "validation/auc_micro",
    "AUC macro": "validation/auc_macro",
}


def _curves(profile: str, history: list[dict[str, float]]) -> list[Figure]:
    if len(history) < 2:
        return []
    rows = [{"epoch": row["epoch"], "value": row[EPOCH[name]], "series": name} for row in history for name in list(EPOCH)[:2]]
    chart = figures.training_curves(rows, "mean loss a label")
    return [Figure(f"training-{profile}", f"Loss of {profile} over the epochs", chart)]


def _setting(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def observations(result: Result) -> list[str]:
    """What follows from the figures: how far training went, how it decides, how far its probabilities can be taken at their word."""
    figures, training = result.figures, result.training
    given, predicted = result.validation.labels.sum(axis=1).mean(), figures["validation/labels_per_row"]
    tendency = (
        "conservative"
        if predicted < given * (1 - BALANCED)
        else "generous"
        if predicted > given * (1 + BALANCED)
        else "balanced"
    )
    highest = result.test.probabilities.max(axis=0)
    silent = [name for name, probability in zip(result.test.names, highest, strict=True) if probability < 0.5]
    chosen = next(row for row in training["calibration"]["comparison"] if row["method"] == result.calibrator.method)
    before = training["calibration"]["comparison"][0]
    return [
        f"Training: {_progress(training)}",
        f"Decisions at the tuned thresholds are {tendency}: {predicted:.2f} labels a text on validation, where the raters gave "
        f"{given:.2f}; precision {figures['validation/precision_micro']:.3f}, recall {figures['validation/recall_micro']:.3f} (micro).",
        f"At 0.5 recall is {figures['validation/at_0.5/recall_micro']:.3f}"
        + (f", and never predicted on test: {', '.join(silent)}." if silent else ", and every label is predicted on test."),
        f"Scaling of the logits: {result.calibrator.method}; cross-fitted calibration error {before['calibration_error']:.4f} before, "
        f"{chosen['calibration_error']:.4f} after.",
    ]


def _progress(training: dict[str, Any]) -> str:
    history, number = training["history"], training["best_epoch"]
    last = history[-1]
    if len(history) == 1:
        return "one epoch, which shows neither over- nor underfitting."
    start = f"the best epoch is {number} of {len(history)}"
    lowest = min(history, key=lambda row: row["validation/loss"])
    if last["validation/loss"] > lowest["validation/loss"] * (1 + NOTABLE_LOSS):
        rise = f"{lowest['validation/loss']:.4f} after epoch {lowest['epoch']:.0f} to {last['validation/loss']:.4f}"
        return f"{start}; it overfits: validation loss rises from {rise}."
    if number == len(history):
        gain = last["validation/auc_micro"] - history[-2]["validation/auc_micro"]
        if gain > NOTABLE_AUC:
            return (
                f"{start} and brought {gain:+.4f} AUC micro: it ends while still improving; more epochs may help, or overfit."
            )
    return f"{start}; validation loss ends at {last['validation/loss']:.4f}, with no sign of over- or underfitting."


def comparison(results: list[Result]) -> Table:
    """A row for each model and engine: the figures on test, thresholds fitted on validation."""
    rows: list[list[Cell]] = [
        [
            result.title,
            *(result.figures[f"test/{name}"] for name in NAMES),
            result.figures["test/at_0.5/f1_macro"],
            result.figures["test/at_0.5/f1_micro"],
            _cost(result, "latency_ms_p95"),
        ]
        for result in results
    ]
    return Table(("model (engine)", *NAMES.values(), "F1 macro at 0.5", "F1 micro at 0.5", "p95 ms"), rows)


def compared(results: list[Result], digest: str, budget: float) -> Section:
    winner, tables = best(results), [comparison(results), _cost_table(results)]
    others = [result for result in results if result is not winner]
    if others:
        tables.insert(1, _differences(winner, others))
    if digest == OFFICIAL:
        tables += [_previous(winner, {result.profile for result in results}), _published()]
    rows = [
        {
            "model": result.title,
            "auc_micro": result.figures["test/auc_micro"],
            "latency_ms": _cost(result, "latency_ms_p95"),
            "bytes": _cost(result, "bytes"),
        }
        for result in results
    ]
    chart = figures.latency_tradeoff(rows)
    return Section(
        "Model comparison",
        (
            "Test split. Thresholds are fitted on validation. Latency: one text of 20 tokens, 95th percentile; torch on two threads, "
            "the ONNX engines on one.",
            *_recommendation(results, budget),
            *((OTHERS,) if digest == OFFICIAL else ()),
        ),
        tables,
        (Figure("accuracy-latency", "AUC against latency; the area of a dot is the size of the model", chart),),
    )


def _cost(result: Result, name: str) -> float:
    return float(result.export[result.engine][name])


def _differences(winner: Result, others: list[Result]) -> Table:
    rows: list[list[Cell]] = []
    for other in others:
        for name, label in NAMES.items():
            ours, theirs = winner.resampled[name], other.resampled[name]
            low, high = bootstrap.interval(theirs - ours)
            verdict = "no clear difference" if low <= 0 <= high else "worse" if high < 0 else "better"
            change = (theirs[0] - ours[0]) / ours[0]
            interval = f"{signed(low)} to {signed(high)}"
            rows.append([f"{other.title}: {label}", signed(theirs[0] - ours[0]), f"{change:+.2%}", interval, verdict])
    return Table((f"against {winner.title}", "difference", "relative", "95% interval (paired)", "verdict"), rows)


def _cost_table(results: list[Result]) -> Table:
    rows: list[list[Cell]] = []
    for result in results:
        p50 = _cost(result, "latency_ms_p50")
        size = round(_cost(result, "bytes") / 2**20)
        # A million texts, one at a time: p50 in ms is that many thousands of seconds.
        rows.append(
            [result.title, result.training["parameters"], size, p50, _cost(result, "latency_ms_p95"), f"{p50 / 3.6:.1f} h"]
        )
    return Table(("cost", "parameters", "MiB", "p50 ms", "p95 ms", "a million texts, one by one"), rows)


def _previous(winner: Result, run: set[str]) -> Table:
    rows: list[list[Cell]] = []
    for model, reference in PREVIOUS.items():
        rows.append([f"{model}, previous system", *(reference[name] for name in NAMES), reference["seconds"]])
        if model not in run:
            rows.append([f"{model}, this system", *["not run"] * 5])
    ours = [winner.figures["test/auc_micro"], winner.figures["test/auc_macro"]]
    at_half = [winner.figures["test/at_0.5/f1_macro"], winner.figures["test/at_0.5/f1_micro"]]
    rows.append([f"{winner.title}, this system", *ours, *at_half, round(winner.training["seconds"])])
    return Table(("thresholds at 0.5", *NAMES.values(), "training s"), rows)


def _published() -> Table:
    return Table(
        ("published, test split", *NAMES.values()), [[row["model"], *(row.get(name) for name in NAMES)] for row in PUBLISHED]
    )


def _recommendation(results: list[Result], budget: float) -> list[str]:
    lines = []
    for variant in dict.fromkeys(result.variant for result in results):
        limit = latency_limit(variant, budget)
        winner = best([result for result in results if result.variant == variant], limit)
        reason = (
            "the best on validation"
            if limit is None
            else f"the best on validation of those within {limit:g} ms"
            if winner.scores.latency_ms <= limit
            else f"the fastest, since none is within {limit:g} ms"
        )
        values = winner.figures
        lines.append(
            f"For {variant}, take {winner.title}: {reason}, AUC micro {values['validation/auc_micro']:.4f} there "
            f"and {values['test/auc_micro']:.4f} on test, p95 {winner.scores.latency_ms:.1f} ms, "
            f"{_cost(winner, 'bytes') / 2**20:.0f} MiB."
        )
    return lines


def seeds(rows: list[dict[str, str]]) -> Section | None:
    """Mean and spread over seeds, from the measurements of ``benchmarks/ablations`` with ``--final``."""
    table: list[list[Cell]] = []
    for recipe in dict.fromkeys(row["row"] for row in rows):
        found = [row for row in rows if row["row"] == recipe]
        numbers = ", ".join(row["seed"] for row in found)
        for name in [key for key in found[0] if key.startswith(("validation/", "test/"))] if len(found) > 1 else []:
            values = np.array([float(row[name]) for row in found])
            spread = [float(value) for value in (values.mean(), values.std(ddof=1), values.min(), values.max())]
            table.append([f"{recipe}: {name}", numbers, *spread])
    if not table:
        return None
    return Section(
        "Results over seeds",
        (
            "Rows of the ablation table, trained with other seeds; each has thresholds and a scaling of its own, fitted on validation.",
        ),
        (Table(("over seeds", "seeds", "mean", "standard deviation", "lowest", "highest"), table),),
    )
