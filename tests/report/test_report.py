"""The report: its metrics are computed again here, with scikit-learn, from the stored Predictions."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from goemotions.data.dataset import ingest, load_dataset
from goemotions.evaluation import evaluate
from goemotions.evaluation.tables import write_csv
from goemotions.metrics.classification import METRICS_FILE
from goemotions.registry.bundle import ENGINES, VARIANTS
from goemotions.report import comparison, measurements, performance, use_cases
from goemotions.report import dataset as report_dataset
from goemotions.report import labels as report_labels
from goemotions.report.document import to_markdown
from goemotions.report.published import OFFICIAL_DIGEST
from goemotions.report.result import Result, milliseconds

FILES = ["dataset.html", "dataset.md", "figures", "report.html", "report.md", "tables"]


class Stored:
    """A scored split straight from its Parquet, and the decisions at the stored thresholds."""

    def __init__(self, folder: Path, split: str) -> None:
        table = pq.read_table(folder / split / "predictions.parquet").to_pydict()
        self.names = [name[2:] for name in table if name.startswith("p/")]
        self.scores = np.array([table[f"p/{name}"] for name in self.names]).T
        self.labels = np.array([[i in row for i in range(len(self.names))] for row in table["labels"]])
        content = json.loads((folder / "thresholds" / "thresholds.json").read_text(encoding="utf-8"))
        if content["k"]:
            ranks = (-self.scores).argsort(axis=1, kind="stable").argsort(axis=1)
            self.predicted = ranks < content["k"]
        else:
            self.predicted = self.scores >= np.array([content["thresholds"][name] for name in self.names], dtype=np.float32)


def shown(value: float) -> str:
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_comparison_has_the_metrics_of_scikit_learn(tables: Any, candidate: Path, variant: str) -> None:
    row = tables["model (engine)"][f"minilm ({ENGINES[variant]})"]
    test = Stored(candidate / variant, "test")
    half = test.scores >= 0.5
    assert row == {
        "micro AUC": shown(roc_auc_score(test.labels, test.scores, average="micro")),
        "macro AUC": shown(roc_auc_score(test.labels, test.scores, average="macro")),
        "macro F1": shown(f1_score(test.labels, test.predicted, average="macro", zero_division=0)),
        "micro F1": shown(f1_score(test.labels, test.predicted, average="micro", zero_division=0)),
        "macro F1 at 0.5": shown(f1_score(test.labels, half, average="macro", zero_division=0)),
        "micro F1 at 0.5": shown(f1_score(test.labels, half, average="micro", zero_division=0)),
        "p95 latency (ms)": row["p95 latency (ms)"],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the engine that serves computed the scores")
def test_scores_of_another_engine_than_the_one_that_serves_are_named(markdown: str) -> None:
    used, serving = "openvino-fp32 on cpu in fp32", "torch on cuda in bf16"
    assert f"Variant gpu: scores, thresholds and metrics are those of {used}; {serving} serves it." in markdown
    assert "Variant cpu: scores" not in markdown


def test_the_latency_is_the_measured_one(tables: Any, candidate: Path) -> None:
    export = json.loads((candidate / "onnx" / "export.json").read_text(encoding="utf-8"))
    rows = tables["model (engine)"]
    assert rows["minilm (openvino-int8)"]["p95 latency (ms)"] == milliseconds(export["openvino-int8"]["latency_ms_p95"])
    if not torch.cuda.is_available():
        assert export["torch"]["latency_ms_p95"] is None
        assert (
            rows["minilm (torch)"]["p95 latency (ms)"]
            == tables["cost"]["minilm (torch)"]["median latency (ms)"]
            == "not measured"
        )


def test_the_latency_on_a_gpu_is_the_one_that_evaluate_measured(candidate: Path, results: list[Result], tmp_path: Path) -> None:
    (on_gpu,) = [result for result in results if result.variant == "gpu"]
    metrics = json.loads((candidate / "gpu" / "validation" / METRICS_FILE).read_text(encoding="utf-8"))
    (tmp_path / METRICS_FILE).write_text(
        json.dumps(metrics | dict(zip(evaluate.LATENCY, (4.5, 6.25), strict=True))), encoding="utf-8"
    )
    export = replace(on_gpu.export, latency_ms_p50=None, latency_ms_p95=None)
    assert replace(on_gpu, export=export, artifacts=replace(on_gpu.artifacts, validation=tmp_path)).latency_ms == (4.5, 6.25)
    text = to_markdown(
        "t",
        [
            *comparison.sections([replace(on_gpu, export=export)], on_gpu, "d"),
            use_cases.recommendation([replace(on_gpu, export=export)]),
        ],
    )
    assert "not measured" in text
    assert "accuracy-latency" not in text


def test_the_headline_metrics_are_within_their_intervals(tables: Any) -> None:
    for row in tables["test split"].values():
        for cell in row.values():
            metric, low, high = map(float, re.findall(r"[0-9.]+", cell))
            assert low <= metric <= high
            assert low < high


def label_row(test: Stored, i: int) -> dict[str, float]:
    truth, guess = test.labels[:, i], test.predicted[:, i]
    return {
        "support": int(truth.sum()),
        "precision": precision_score(truth, guess, zero_division=0),
        "recall": recall_score(truth, guess, zero_division=0),
        "f1": f1_score(truth, guess, zero_division=0),
        "auc": roc_auc_score(truth, test.scores[:, i]),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_metrics_per_label_are_those_of_scikit_learn(tables: Any, candidate: Path, variant: str) -> None:
    rows = tables[f"minilm ({ENGINES[variant]})"]
    test = Stored(candidate / variant, "test")
    assert sorted(rows) == sorted(test.names)
    for i, name in enumerate(test.names):
        expected = label_row(test, i)
        titles = {"f1": "F1", "auc": "AUC"}
        assert rows[name] == {
            titles.get(key, key): str(value) if key == "support" else shown(value) for key, value in expected.items()
        }
    assert [float(row["F1"]) for row in rows.values()] == sorted((float(row["F1"]) for row in rows.values()), reverse=True)


@pytest.mark.parametrize(("labels", "shown"), [(1, 0), (2, 1), (7, 3), (28, 5)])
def test_no_label_is_among_the_best_and_the_worst(
    labels: int, shown: int, results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    per_label = [{**results[0].per_label[0], "label": f"label {number}", "f1": number / 100} for number in range(labels)]
    monkeypatch.setattr(Result, "per_label", per_label)
    tables = report_labels._summary(replace(results[0])).tables
    assert [table.columns[0] for table in tables] == ([f"best {shown}", f"worst {shown}"] if shown else [])
    listed = [row[0] for table in tables for row in table.rows]
    assert len(set(listed)) == len(listed) == 2 * shown


def test_the_csv_holds_the_same_rows_unrounded(folder: Path, candidate: Path) -> None:
    with (folder / "tables" / "per_label.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_engine = {ENGINES[variant]: Stored(candidate / variant, "test") for variant in VARIANTS}
    assert [(row["engine"], row["label"]) for row in rows] == [
        (engine, name) for engine, test in by_engine.items() for name in test.names
    ]
    for row in rows:
        test = by_engine[row["engine"]]
        expected = label_row(test, test.names.index(row["label"]))
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
        assert int(row["predicted"]) == test.predicted[:, test.names.index(row["label"])].sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_score_of_the_chosen_strategy_is_that_of_scikit_learn(tables: Any, candidate: Path, variant: str) -> None:
    chosen = [name for name in tables["strategy"] if name.endswith("(chosen)") and f"({ENGINES[variant]})" in name]
    assert len(chosen) == 1
    validation = Stored(candidate / variant, "validation")
    fitted = f1_score(validation.labels, validation.predicted, average="macro", zero_division=0)
    assert tables["strategy"][chosen[0]]["fitted on all"] == shown(fitted)
    content = json.loads((candidate / variant / "thresholds" / "thresholds.json").read_text(encoding="utf-8"))
    best = max(row["f1_macro_cross_fitted"] for row in content["comparison"])
    assert tables["strategy"][chosen[0]]["cross-fitted"] == shown(best)


def test_the_epochs_are_those_of_the_training_record(markdown: str, tables: Any, candidate: Path, markdown_tables: Any) -> None:
    training = json.loads((candidate / "model" / "training.json").read_text(encoding="utf-8"))
    epochs = next(table for table in markdown_tables(markdown) if table[0][0] == "epoch")
    assert len(epochs) - 1 == len(training["history"]) == 6
    for row, values in zip(epochs[1:], training["history"], strict=True):
        keys = ("train/loss", "validation/loss", "validation/auc_micro", "validation/auc_macro")
        assert row == [f"{values['epoch']:.0f}", *(shown(values[key]) for key in keys)]
    assert tables["training"]["parameters"]["value"] == f"{training['parameters']:,}"
    epochs = f"{len(training['history'])} of {training['profile']['epochs']} planned, the best is {training['best_epoch']}"
    assert tables["training"]["epochs"]["value"] == epochs
    assert tables["hyperparameter"]["learning rate"]["value"] == f"{training['profile']['learning_rate']:g}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_strategy_is_scored_on_test_as_by_scikit_learn(
    markdown: str, candidate: Path, variant: str, markdown_tables: Any
) -> None:
    rows = {
        strategy: cells
        for model, strategy, *cells in next(table for table in markdown_tables(markdown) if table[0][0] == "model on test")
        if model == f"minilm ({ENGINES[variant]})"
    }
    test = Stored(candidate / variant, "test")
    content = json.loads((candidate / variant / "thresholds" / "thresholds.json").read_text(encoding="utf-8"))
    assert set(rows) == {row["strategy"] for row in content["comparison"]}
    for row in content["comparison"]:
        predicted = test.scores >= np.array(row["values"], dtype=np.float32)
        if row["k"]:
            predicted &= (-test.scores).argsort(axis=1, kind="stable").argsort(axis=1) < row["k"]
        expected = [f1_score(test.labels, predicted, average=average, zero_division=0) for average in ("macro", "micro")]
        assert rows[row["strategy"]][:2] == [shown(value) for value in expected]
        labelled = test.labels.any(axis=1)
        recall = recall_score(test.labels[labelled], predicted[labelled], average="samples", zero_division=0)
        assert rows[row["strategy"]][-2] == shown(recall)
        assert rows[row["strategy"]][-1] == str(predicted.any(axis=0).sum())


def test_the_metrics_by_threshold_are_those_of_scikit_learn(tables: Any, markdown: str, candidate: Path) -> None:
    engine = re.search(r"## Global threshold\n\nminilm \((.+)\) on validation", markdown).group(1)  # type: ignore[union-attr]
    variant = next(variant for variant, name in ENGINES.items() if name == engine)
    validation = Stored(candidate / variant, "validation")
    assert list(tables["threshold"]) == [f"{step / 10:g}" for step in range(1, 10)]
    for threshold, row in tables["threshold"].items():
        predicted = validation.scores >= float(threshold)
        assert row["macro F1"] == shown(f1_score(validation.labels, predicted, average="macro", zero_division=0))
        assert row["micro recall"] == shown(recall_score(validation.labels, predicted, average="micro", zero_division=0))


def test_the_metrics_before_calibration_are_those_of_the_uncalibrated_logits(tables: Any, candidate: Path) -> None:
    test = Stored(candidate / "gpu", "test")
    training = json.loads((candidate / "model" / "training.json").read_text(encoding="utf-8"))["calibration"]
    logits = np.log(test.scores / (1 - test.scores))
    before = 1 / (1 + np.exp(-(logits - training["intercept"]) / training["slope"]))
    rows = tables["calibration on test"]
    for when, scores in (("before", before), ("after", test.scores)):
        brier = ((scores - test.labels) ** 2).mean()
        assert float(rows[f"minilm (torch), {when}"]["Brier score"]) == pytest.approx(brier, abs=6e-5)


def test_the_counts_of_labels_are_those_of_the_splits(tables: Any, candidate: Path, dataset: Path) -> None:
    info = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    assert list(tables["label"]) == info["labels"]
    for split in ("validation", "test"):
        stored = Stored(candidate / "gpu", split)
        counts = [int(row[split]) for row in tables["label"].values()]
        assert counts == stored.labels.sum(axis=0).tolist()


def test_the_disagreement_of_raters_is_shown_if_the_data_has_them(tmp_path: Path, markdown: str, markdown_tables: Any) -> None:
    (tmp_path / "source").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "source" / f"{split}.csv").write_text("text,calm,dread\na lake,0.75,0.2\na storm,0,1\n")
    info = ingest(str(tmp_path / "source"), tmp_path / "dataset")
    sections = report_dataset.sections(info, {split: np.array([2, 2]) for split in info["rows"]})
    (table,) = markdown_tables(to_markdown("t", [section for section in sections if section.title == "Disagreement of raters"]))
    assert [row[:3] for row in table[-2:]] == [["calm", "1", "0.75"], ["dread", "2", "0.60"]]
    assert "Disagreement of raters" not in markdown


def test_of_labels_that_are_too_many_no_pairs_are_shown(dataset: Path) -> None:
    info = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    words = {split: np.array([2, 2]) for split in info["rows"]}
    assert "Label co-occurrence" in [section.title for section in report_dataset.sections(info, words)]
    assert "Label co-occurrence" not in [
        section.title for section in report_dataset.sections({**info, "cooccurrence": []}, words)
    ]


def test_how_the_source_was_read_and_split_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("text,labels\n" + "".join(f"a lake {n},{'ab'[n % 2]}\n" for n in range(20)))
    info = ingest(str(tmp_path / "mine.csv"), tmp_path / "dataset", split_share=0.2, split_seed=7)
    words = {split: np.array([2, 2]) for split in info["rows"]}
    shown = to_markdown("t", report_dataset.sections(info, words)[:1])
    assert f"Source: mine.csv, digest {info['digest']}." in shown
    assert "Read as mine.csv (CSV): texts from column 'text', label names in column 'labels', ids made from position" in shown
    assert (
        "The source has no validation and no test: 20% of the rows of train each, drawn per label set with the seed 7." in shown
    )
    former = {name: value for name, value in info.items() if name not in ("form", "drawn")}
    assert "Read as" not in to_markdown("t", report_dataset.sections(former, words)[:1])  # type: ignore[arg-type]


def test_the_versions_and_the_reason_against_promotion_are_shown(markdown: str, tables: Any) -> None:
    assert tables["variant"]["cpu"] == {
        "profile": "minilm",
        "version": "4",
        "alias": "challenger-cpu",
        "bundle": "s3://b/models/x/cpu/",
    }
    assert "cpu: not promoted, because micro AUC is not higher." in markdown


def test_the_best_on_validation_is_named(markdown: str, candidate: Path) -> None:
    scores = {
        f"minilm ({ENGINES[variant]})": roc_auc_score(stored.labels, stored.scores, average="micro")
        for variant in VARIANTS
        for stored in [Stored(candidate / variant, "validation")]
    }
    assert f"Best on validation: {max(scores, key=scores.__getitem__)}." in markdown


def test_the_run_of_a_registered_model_is_named(tables: Any) -> None:
    assert tables["training"]["MLflow run"]["value"] == "f00d"


def test_each_version_has_the_command_that_downloads_it(markdown: str) -> None:
    assert "make download-model VERSION=3 " in markdown
    assert "make download-model VERSION=4 " in markdown


def test_a_report_without_registration_has_no_versions(dataset: Path, results: list[Result]) -> None:
    _, sections = performance.sections(dataset, results, registered={})
    text = to_markdown("t", sections)
    assert "## Models" in text
    assert "Registered versions" not in text
    assert "MLflow run" not in text
    assert "download-model" not in text


def test_the_folder_has_pages_texts_figures_and_tables(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_texts_are_on_the_html_page_and_never_in_the_markdown_or_a_table(folder: Path, dataset: Path, page: str) -> None:
    texts = load_dataset(dataset)[0]["validation"]["text"][:]
    published = "".join(path.read_text(encoding="utf-8") for path in [*folder.glob("*.md"), *folder.glob("tables/*.csv")])
    assert not any(text in published for text in texts)
    assert any(text in page for text in texts)


def test_every_referenced_figure_is_there_and_no_other(folder: Path) -> None:
    referenced = {
        name for path in folder.glob("*.md") for name in re.findall(r"\(figures/(.+?)\)", path.read_text(encoding="utf-8"))
    }
    assert {path.name for path in (folder / "figures").iterdir()} == referenced
    assert {
        "class-distribution.svg",
        "co-occurrence.svg",
        "lengths.svg",
        "label-f1.svg",
        "threshold-curves.svg",
        "label-coverage.svg",
        "label-thresholds.svg",
        "precision-recall.svg",
        "reliability.svg",
        "accuracy-latency.svg",
    } <= referenced


def test_no_path_of_this_machine_is_written(folder: Path, source: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.*"))
    assert str(source.parent) not in text
    assert str(Path.home()) not in text.replace(f"{Path.home()}/.", "")


def test_each_document_names_commit_machine_and_date(folder: Path, candidate: Path) -> None:
    machine = json.loads((candidate / "model" / "training.json").read_text(encoding="utf-8"))["hardware"]
    for name in ("report.md", "dataset.md"):
        provenance = (folder / name).read_text(encoding="utf-8").split("## Provenance")[1]
        assert re.search(rf"at commit c0ffee, on \d{{4}}-\d\d-\d\d\. Models trained on {re.escape(machine)}\.", provenance)


def test_no_placeholder_is_left(folder: Path) -> None:
    for path in folder.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\b(TODO|TBD|FIXME|XXX|None|nan|NaN|inf|lorem|placeholder)\b|[{}]|\?\?", text) == []


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces the measurements of the package: called with the rows of ``ablations`` or ``frontier``."""
    for name in ("ABLATIONS", "SEEDS", "FRONTIER"):
        monkeypatch.setattr(measurements, name, tmp_path / f"{name.lower()}.csv")
    return lambda name, rows: write_csv(tmp_path / f"{name}.csv", rows)


def test_measurements_are_shown_for_the_data_they_were_made_on(recorded: Any, markdown_tables: Any) -> None:
    row = dict.fromkeys(measurements.ABLATION_METRICS, 0.5)
    rows = [
        {"row": "base", "changes": "{}", "seed": 0, **row, "digest": "of the data"},
        {"row": "focal", "changes": '{"loss": "focal"}', "seed": 0, **row, "auc_micro": 0.75, "digest": "of the data"},
        {"row": "elsewhere", "changes": "{}", "seed": 0, **row, "digest": "another"},
    ]
    recorded("ablations", rows)
    (table,) = markdown_tables(to_markdown("t", measurements.sections("of the data")))
    assert table[0][0] == "ablation"
    assert [line[0] for line in table[1:]] == ["base", "focal"]
    assert table[2][1] == "loss focal"
    assert table[2][-2:] == ["+0.2500", "+0.0000"]
    assert measurements.sections("of other data") == []


def test_the_frontier_is_shown_best_first(recorded: Any, markdown_tables: Any) -> None:
    shared = {"machine": "two cores of a machine", "digest": "of the data"}
    rows = [
        {"predictor": "bag", "f1_macro": 0.3719, "texts_per_second": 49250, **shared},
        {"predictor": "openvino-int8", "f1_macro": 0.5485, "texts_per_second": 1175, **shared},
    ]
    recorded("frontier", rows)
    text = to_markdown("t", measurements.sections("of the data"))
    (table,) = markdown_tables(text)
    assert table == [
        ["predictor", "macro F1", "texts per second"],
        ["openvino-int8", "0.5485", "1,175"],
        ["bag", "0.3719", "49,250"],
    ]
    assert "two cores of a machine" in text


def test_seeds_are_summarised_per_recipe_and_metric(recorded: Any, markdown_tables: Any) -> None:
    def measured(row: str, seed: int, f1: float) -> dict[str, Any]:
        metrics = {
            f"{split}/{name}_{average}": 0.5
            for split in ("validation", "test")
            for name in ("auc", "f1")
            for average in ("micro", "macro")
        }
        return {
            "row": row,
            "seed": seed,
            **metrics,
            "validation/f1_macro": f1,
            "test/f1_macro": f1 + 0.1,
            "digest": "of the data",
        }

    recorded("seeds", [measured("base", 0, 0.4), measured("base", 1, 0.6), measured("once", 0, 0.9)])
    (table,) = markdown_tables(to_markdown("t", measurements.sections("of the data")))
    half = "0.5000 (0.5000 to 0.5000)"
    assert table == [
        ["over seeds", "seeds", "split", "micro AUC", "macro AUC", "macro F1", "micro F1"],
        ["base", "0, 1", "validation", half, half, "0.5000 (-0.7706 to 1.7706)", half],
        ["base", "0, 1", "test", half, half, "0.6000 (-0.6706 to 1.8706)", half],
    ]


def test_measurements_of_the_package_are_readable(markdown_tables: Any) -> None:
    text = to_markdown("t", measurements.sections(OFFICIAL_DIGEST))
    assert [table[0][0] for table in markdown_tables(text)] == ["over seeds", "over seeds", "ablation", "predictor"]
