"""The trained models: the overview, the registered versions, and configuration, training and metrics of each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goemotions.data.dataset import DatasetInfo
from goemotions.evaluation.limitations import listed
from goemotions.models import profiles
from goemotions.models.records import TrainingRecord
from goemotions.registry.bundle import SERVING, Variant
from goemotions.registry.registered_versions import RegisteredVersion
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.published import OFFICIAL_DIGEST, PREVIOUS
from goemotions.report.result import HEADLINE, Result, source_name, teacher_title, title_of, with_interval

METRICS = (*HEADLINE, "precision_macro", "recall_macro", "precision_micro", "recall_micro", "labels_per_row")
EPOCH_COLUMNS = {
    "train loss": "train/loss",
    "validation loss": "validation/loss",
    "micro AUC": "validation/auc_micro",
    "macro AUC": "validation/auc_macro",
}
# Larger changes of a loss (relative) or of an AUC are more than the noise between epochs.
NOTABLE_LOSS, NOTABLE_AUC = 0.01, 0.001
# A model that predicts more or fewer labels than there are, by more than this share, is generous or conservative.
BALANCED = 0.05


def overview(info: DatasetInfo, results: list[Result], winner: Result) -> Section:
    counts = ", ".join(f"{count:,} {split}" for split, count in info["rows"].items())
    expected = winner.thresholds_file.chosen.cross_fitted["f1_macro"]
    rows = [[result.title, *(with_interval(result.bootstrapped[name]) for name in HEADLINE)] for result in results]
    return Section(
        "Overview",
        (
            f"Data: {source_name(info['source'])} ({counts} rows, {len(info['labels'])} labels), digest {info['digest'][:12]}.",
            f"Best on validation: {winner.title}. Epochs, calibration, thresholds and winners are chosen on validation, by steps "
            "that cannot read the test split. Intervals are 95% intervals of a bootstrap over the test rows.",
            f"Macro F1 of {winner.title} is {winner.metrics['test/f1_macro']:.4f} on test and was {expected:.4f} on validation, "
            "cross-fitted.",
        ),
        (Table(("test split", *map(title_of, HEADLINE)), rows),),
    )


def registered_versions(registered: Mapping[Variant, RegisteredVersion]) -> Section:
    rows = [
        [variant, *(entry[key] for key in ("profile", "version", "alias", "source"))] for variant, entry in registered.items()
    ]
    sentences = []
    for variant, entry in registered.items():
        if selection := entry.get("selection"):
            sentences.append(f"{variant}: {entry['profile']} is {selection}.")
        if (gate := entry["gate"]) and not gate["passes"]:
            sentences.append(f"{variant}: not promoted, because {', '.join(gate['reasons'])}.")
        sentences += [f"{variant}: {note}." for note in (gate or {}).get("notes", ())]
    return Section("Registered versions", sentences, (Table(("variant", "profile", "version", "alias", "bundle"), rows),))


def artifacts(registered: Mapping[Variant, RegisteredVersion], model_name: str) -> Section:
    rows = [
        [f"{model_name} {entry['version']} ({variant})", *(entry[key] for key in ("profile", "run_id", "source"))]
        for variant, entry in registered.items()
    ]
    option = "" if model_name == "goemotions" else f" MODEL_NAME={model_name}"
    return Section(
        "Artifacts",
        (
            "Registered versions of this run. Each command downloads checkpoint, ONNX files, thresholds, predictions and metrics, and "
            "verifies every file.",
        ),
        (Table(("version", "profile", "MLflow run", "bundle"), rows),),
        code=[
            f"make download-model VERSION={entry['version']}{option}   # {entry['profile']}, {variant}"
            for variant, entry in registered.items()
        ],
    )


def sections(results: list[Result], digest: str, registered: Mapping[Variant, RegisteredVersion]) -> list[Section]:
    """One section per trained profile, with the MLflow run of those that were registered, and one on those that were not trained."""
    runs = {entry["profile"]: str(entry["run_id"]) for entry in registered.values()}
    by_profile: dict[str, list[Result]] = {}
    for result in results:
        by_profile.setdefault(result.profile, []).append(result)
    missing = (
        [reference.model for reference in PREVIOUS if reference.model not in by_profile] if digest == OFFICIAL_DIGEST else []
    )
    note = "Not trained in this run. The model comparison shows the metrics of the previous system."
    return [
        Section("Models"),
        *(_model(name, members, runs.get(name)) for name, members in by_profile.items()),
        *([Section(", ".join(missing), (note,), level=3)] if missing else []),
    ]


def _model(profile: str, results: list[Result], run: str | None) -> Section:
    training = results[0].training
    history = training.history
    epochs: list[list[Cell]] = [[f"{row['epoch']:.0f}", *(row[key] for key in EPOCH_COLUMNS.values())] for row in history]
    return Section(
        profile,
        [*observations(results[0]), *_other_engines(results)],
        (
            Table(("training", "value"), list(_training_record(training, run).items())),
            Table(("hyperparameter", "value"), _hyperparameters(training)),
            Table(("epoch", *EPOCH_COLUMNS), epochs),
            _metrics_table(results),
        ),
        [_loss_figure(profile, history)] if len(history) > 1 else (),
        level=3,
    )


def _other_engines(results: list[Result]) -> list[str]:
    """Says of each variant whose scores another engine, device or precision computed than the one that serves it."""
    return [
        f"Variant {result.variant}: scores, thresholds and metrics are those of {used}; {SERVING[result.variant]} serves it."
        for result in results
        if (used := result.validation.computation).device and used != SERVING[result.variant]
    ]


def _training_record(training: TrainingRecord, run: str | None) -> dict[str, str]:
    record = {
        "parameters": f"{training.parameters:,}",
        "weights": source_name(training.weights),
        "epochs": f"{len(training.history)} of {training.profile['epochs']} planned, the best is {training.best_epoch}",
        "duration": f"{training.seconds:,.0f} s" + (", teachers included" if training.teachers else ""),
        **({"teachers": "; ".join(map(teacher_title, training.teachers))} if training.teachers else {}),
        **({"transfer set": f"{training.transfer_texts:,} texts"} if training.transfer_texts else {}),
        "hardware": training.hardware,
        "precision": training.precision,
        "peak memory": f"{training.peak_memory_bytes / 2**20:,.0f} MiB",
    }
    if training.peak_gpu_memory_bytes:
        record["peak GPU memory"] = f"{training.peak_gpu_memory_bytes / 2**20:,.0f} MiB"
    record |= {"seed": str(training.seed), "torch": training.torch}
    return record | ({"MLflow run": run} if run else {})


def _hyperparameters(training: TrainingRecord) -> list[list[str]]:
    """Those that had an effect: a model that was taught by the teachers of the run had none of its own."""
    settings, taught_by = training.profile, [teacher.profile["name"] for teacher in training.teachers]
    unused = () if taught_by == [settings["name"]] * settings.get("teachers", 0) else ("teachers", "teacher_epochs")
    values = [(name, settings.get(name)) for name in profiles.HYPERPARAMETERS if name not in unused]
    return [[_title(name), _shown(value)] for name, value in values if value is not None]


def _title(hyperparameter: str) -> str:
    if hyperparameter == "teachers":
        return "own teachers"
    return title_of(hyperparameter).replace("lr", "learning rate").replace("init bias", "initial bias")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _metrics_table(results: list[Result]) -> Table:
    titles = ("validation, tuned", "validation at 0.5", "test, tuned", "test at 0.5")
    forms = ("validation/{}", "validation/{}/at_0.5", "test/{}", "test/{}/at_0.5")
    rows: list[list[Cell]] = [
        [f"{result.engine}: {title_of(name)}", *(result.metrics[form.format(name)] for form in forms)]
        for result in results
        for name in METRICS
    ]
    return Table(("metric", *titles), rows)


def _loss_figure(profile: str, history: list[dict[str, float]]) -> Figure:
    losses = ("train loss", "validation loss")
    rows = [{"epoch": row["epoch"], "value": row[EPOCH_COLUMNS[name]], "series": name} for row in history for name in losses]
    return Figure(f"training-{profile}", f"Loss of {profile} per epoch", figures.training_curves(rows, "mean loss per label"))


def observations(result: Result) -> list[str]:
    """What follows from the metrics: over- or underfitting, the number of predicted labels, and the effect of calibration."""
    metrics, calibration = result.metrics, result.training.calibration
    given, predicted = result.validation.labels.sum(axis=1).mean(), metrics["validation/labels_per_row"]
    if predicted < given * (1 - BALANCED):
        tendency = "conservative"
    else:
        tendency = "generous" if predicted > given * (1 + BALANCED) else "balanced"
    highest = result.test.probabilities.max(axis=0)
    never = [name for name, probability in zip(result.test.names, highest, strict=True) if probability < 0.5]
    calibration_error = {row["method"]: row["calibration_error"] for row in calibration.comparison}
    return [
        f"Training: {_training_progress(result.training)}",
        f"Predictions at the tuned thresholds are {tendency}: {predicted:.2f} labels per text on validation, where the raters gave "
        f"{given:.2f}; precision {metrics['validation/precision_micro']:.3f}, recall {metrics['validation/recall_micro']:.3f} (micro).",
        f"At a threshold of 0.5, recall on validation is {metrics['validation/recall_micro/at_0.5']:.3f}; "
        + (f"labels never predicted on test: {listed(never)}." if never else "every label is predicted on test."),
        f"Calibration: {calibration.method}; cross-fitted calibration error {calibration_error['none']:.4f} before, "
        f"{calibration_error[calibration.method]:.4f} after.",
    ]


def _training_progress(training: TrainingRecord) -> str:
    history, number = training.history, training.best_epoch
    if len(history) == 1:
        return "a single epoch, which shows neither over- nor underfitting."
    start = f"the best epoch is {number} of {len(history)}"
    last, lowest = history[-1], min(history, key=lambda row: row["validation/loss"])
    if last["validation/loss"] > lowest["validation/loss"] * (1 + NOTABLE_LOSS):
        rise = f"{lowest['validation/loss']:.4f} after epoch {lowest['epoch']:.0f} to {last['validation/loss']:.4f}"
        return f"{start}; the model overfits: validation loss rises from {rise}."
    gain = last["validation/auc_micro"] - history[-2]["validation/auc_micro"]
    if number == len(history) and gain > NOTABLE_AUC:
        return f"{start}, with {gain:+.4f} micro AUC: still improving at the end, so more epochs may help, or overfit."
    return f"{start}; the last validation loss is {last['validation/loss']:.4f}, with no sign of over- or underfitting."
