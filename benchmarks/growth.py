"""Growth of time and memory with rows and labels, on generated data, each size in a separate process.

    python -m benchmarks.growth --quick

Texts have generated words; probabilities correlate with the labels. No network runs: `evaluate` starts from probabilities. Of the
report, the analyses that read every row are measured. Batch scoring, with its memory, has another benchmark.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from benchmarks.measuring import Row, compared, forget_peak, peak_mib, provenance, spread, table
from goemotions.metrics.sorted_scores import SortedScores

# The sources that ingest reads, by the name of its step here.
SOURCES = {"ingest": "tsv", "ingest_csv": "csv", "ingest_json_lines": "jsonl"}
STEPS = (*SOURCES, "evaluate", "tune_thresholds", "report")
TITLES = {
    "ingest_csv": "ingest of one CSV that it splits",
    "ingest_json_lines": "ingest of JSON Lines",
    "report": "the report's analyses of every row",
}
SIZES = {
    "quick": [(10_000, 28), (100_000, 28), (10_000, 100)],
    "full": [(10_000, 28), (100_000, 28), (1_000_000, 28), (10_000, 100), (100_000, 100), (1_000_000, 100), (100_000, 1_000)],
}
LABELS = 28
# n log n from 10^4 to 10^6 rows is n to the power of 1.09; the margin is for small sizes and caches.
STEEPEST = 1.2
FLAT = 0.35
SORTS = 10.0


def probabilities(rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, bool, and probabilities that correlate with them, float32, each [rows, labels]."""
    random = np.random.default_rng(0)
    there = random.random((rows, labels), dtype=np.float32) < 1.2 / labels
    logits = random.standard_normal((rows, labels), dtype=np.float32) - 3
    logits += 3 * there
    return there, 1 / (1 + np.exp(-logits))


def names(labels: int) -> list[str]:
    return [f"label-{number:04d}" for number in range(labels)]


def write_source(folder: Path, rows: int, labels: int, form: str) -> None:
    """A source as the official TSV, as a single CSV without ids, or as JSON Lines with label names that no file lists."""
    random = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)])
    if form != "jsonl":
        (folder / "emotions.txt").write_text("\n".join(names(labels)))
    for name, count in (("train", rows), ("dev", 10), ("test", 10)) if form != "csv" else (("comments", rows),):
        with (folder / f"{name}.{form}").open("w") as file:
            if form == "csv":
                file.write("text,labels\n")
            for number in range(count):
                text = " ".join(words[random.integers(0, len(words), random.integers(3, 25))])
                label = int(random.integers(labels))
                file.write(_line(form, text, label, f"{name}{number}"))


def _line(form: str, text: str, label: int, row_id: str) -> str:
    if form == "tsv":
        return f"{text}\t{label}\t{row_id}\n"
    if form == "csv":
        return f'"{text}",{label}\n'
    return json.dumps({"text": text, "labels": [f"label-{label:04d}"], "id": row_id}) + "\n"


def prepare(step: str, scratch: Path) -> Callable[[], object]:
    """A function that runs a step on the files below a folder."""
    from goemotions.data.dataset import ingest
    from goemotions.evaluation import evaluate, tuning
    from goemotions.evaluation.predictions import FILE, Predictions
    from goemotions.metrics import strategies

    if step in SOURCES:
        return lambda: ingest(str(scratch / SOURCES[step]), scratch / "dataset")
    if step == "tune_thresholds":
        return lambda: tuning.tune(scratch / "validation", scratch / "thresholds")
    predictions = Predictions.read(scratch / "validation" / FILE)
    fixed = strategies.fixed(SortedScores.of(predictions.labels, predictions.probabilities))
    if step == "evaluate":
        return lambda: evaluate.write_split(scratch / "evaluated", predictions, evaluate.compute_metrics(predictions, fixed))
    return lambda: _chapters(predictions)


def _chapters(predictions: object) -> None:
    """The analyses of the report: intervals, calibration, confused labels."""
    from goemotions.evaluation import error_analysis
    from goemotions.evaluation.predictions import Predictions
    from goemotions.metrics import bootstrap, calibration, strategies

    assert isinstance(predictions, Predictions)
    drawn = bootstrap.weights(len(predictions.ids), 20, 0)
    bootstrap.auc_micro(predictions.labels, predictions.probabilities, drawn)
    calibration.reliability(predictions.labels, predictions.probabilities)
    predicted = strategies.fixed(SortedScores.of(predictions.labels, predictions.probabilities)).apply(
        predictions.probabilities
    )
    error_analysis.confused(predictions.names, predictions.labels, predicted)
    error_analysis.by_label_count(predictions.labels, predicted, predictions.probabilities)


def measure_step(step: str, scratch: Path) -> tuple[float, float]:
    """Runs a step on the files below a folder; returns its seconds and the growth of the peak memory in MiB."""
    code = "import sys; from benchmarks import growth; growth.run_and_print(*sys.argv[1:])"
    command = [sys.executable, "-c", code, step, str(scratch)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise click.ClickException(f"{step} failed: {ended.stderr[-2000:]}")
    seconds, mebibytes = json.loads(ended.stdout.splitlines()[-1])
    return float(seconds), float(mebibytes)


def run_and_print(step: str, scratch: str) -> None:
    """Runs a step and prints the values that ``measure_step`` returns."""
    logging.disable(logging.WARNING)
    run = prepare(step, Path(scratch))
    forget_peak()
    before = peak_mib()
    started = time.perf_counter()
    run()
    taken = time.perf_counter() - started
    print(json.dumps([taken, peak_mib() - before]))


def make(scratch: Path, rows: int, labels: int) -> None:
    """Writes the inputs of the steps; in a separate process, because generating them uses memory."""
    code = "import sys; from benchmarks import growth; growth.generate(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, str(scratch), str(rows), str(labels)], check=True)


def generate(scratch: str, rows: str, labels: str) -> None:
    from goemotions.evaluation.predictions import FILE, Predictions

    folder = Path(scratch)
    (folder / "validation").mkdir()
    for form in SOURCES.values():
        (folder / form).mkdir()
        write_source(folder / form, int(rows), int(labels), form)
    there, scores = probabilities(int(rows), int(labels))
    ids = [f"row{number}" for number in range(int(rows))]
    predictions = Predictions(tuple(names(int(labels))), ids, there, scores, "validation", "openvino-int8", "generated")
    predictions.write(folder / "validation" / FILE)


def sorting(repeats: int, rows: int) -> list[Row]:
    """Fitting thresholds relative to sorting the columns, in alternating runs."""
    from goemotions.metrics import cross_fitting, strategies

    there, scores = probabilities(rows, LABELS)
    seconds: dict[str, list[float]] = {"sort": [], "fit": [], "choose": []}
    runs: dict[str, Callable[[], object]] = {
        "sort": lambda: np.sort(scores, axis=0),
        "fit": lambda: strategies.per_label(SortedScores.of(there, scores)),
        "choose": lambda: cross_fitting.choose(there, scores),
    }
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rows_of_table = [Row(f"sorting {rows:,} rows of {LABELS} columns by NumPy", spread(seconds["sort"], "s"))]
    for name, what, target in (
        ("fit", "one threshold per label", SORTS),
        ("choose", "all nine strategies, cross-fitted", None),
    ):
        rows_of_table.append(compared(f"{what}: {spread(seconds[name], 's')}", seconds[name], seconds["sort"], most=target))
    return rows_of_table


def measure(*, is_quick: bool) -> list[Row]:
    measured: dict[str, dict[tuple[int, int], tuple[float, float]]] = {step: {} for step in STEPS}
    for rows, labels in SIZES["quick" if is_quick else "full"]:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch), rows, labels)
            for step in STEPS:
                measured[step][rows, labels] = measure_step(step, Path(scratch))
    return [row for step in STEPS for row in _rows(step, measured[step])] + sorting(3, 100_000 if is_quick else 1_000_000)


def _rows(step: str, measured: dict[tuple[int, int], tuple[float, float]]) -> list[Row]:
    title = TITLES.get(step, step)
    rows_of_table = [
        Row(
            f"{title}, {rows:,} rows, {labels:,} labels",
            f"{seconds:.2f} s ({1e6 * seconds / rows:,.0f} us per row), "
            f"{mebibytes:,.0f} MiB ({2**20 * mebibytes / rows:,.0f} bytes per row)",
        )
        for (rows, labels), (seconds, mebibytes) in measured.items()
    ]
    same = {rows: values for (rows, labels), values in measured.items() if labels == LABELS}
    time_, memory = (exponent(list(same), [values[part] for values in same.values()]) for part in (0, 1))
    rows_of_table.append(
        Row(f"- {title}: exponent of time over rows", f"{time_:.2f}", f"at most {STEEPEST:g}", time_ <= STEEPEST)
    )
    target = (f"at most {FLAT:g}", memory <= FLAT) if step in SOURCES else ("", None)
    rows_of_table.append(Row(f"- {title}: exponent of memory over rows", f"{memory:.2f}", *target))
    return rows_of_table


def exponent(sizes: list[int], values: list[float]) -> float:
    """The power of the size that the values grow with, fitted to their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0])


@click.command()
@click.option("--quick", is_flag=True, help="Up to 10^5 rows and 100 labels.")
def main(quick: bool) -> None:
    """Measure how the steps grow on this machine."""
    click.echo(f"{provenance()}.\n\n{table(measure(is_quick=quick))}")


if __name__ == "__main__":
    main()
