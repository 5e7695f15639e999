"""The report: every figure in it is computed again here, with scikit-learn, from the stored Predictions."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from goemotions import report
from goemotions.bundle import ENGINES, VARIANTS
from goemotions.registration import Parts
from goemotions.report import Section, Table

bounded = settings(max_examples=50, deadline=None)

REGISTERED = {
    "gpu": {"profile": "minilm", "version": "3", "alias": "champion-gpu", "source": "s3://b/models/x/gpu/", "gate": None},
    "cpu": {
        "profile": "minilm",
        "version": "4",
        "alias": "challenger-cpu",
        "source": "s3://b/models/x/cpu/",
        "gate": {"passes": False, "reasons": ["AUC micro is not higher"], "differences": {}},
    },
}


class Page(HTMLParser):
    """The tables of a page as lists of rows of text, its headings and paragraphs, and whether every tag is closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("p", "h1", "h2"):
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += text
        elif self.open and self.open[-1] in ("p", "h1", "h2"):
            self.texts[-1] += text


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, the header first."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return tables


@pytest.fixture(scope="module")
def parts(candidate: Path) -> dict[Any, list[Parts]]:
    return {variant: [Parts.below(candidate, variant)] for variant in VARIANTS}


@pytest.fixture(scope="module")
def folder(dataset: Path, parts: dict[Any, list[Parts]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(dataset, parts, tmp_path_factory.mktemp("report") / "report", REGISTERED)


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """By the first header cell, a table as rows by their first cell, each a mapping from column to cell."""
    found = markdown_tables((folder / "report.md").read_text(encoding="utf-8"))
    return {header[0]: {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows} for header, *rows in found[::-1]}


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
def test_the_comparison_holds_the_figures_of_scikit_learn(tables: Any, candidate: Path, variant: str) -> None:
    row = tables["model (engine)"][f"minilm ({ENGINES[variant]})"]
    test = Stored(candidate / variant, "test")
    half = test.scores >= 0.5
    assert row == {
        "AUC micro": shown(roc_auc_score(test.labels, test.scores, average="micro")),
        "AUC macro": shown(roc_auc_score(test.labels, test.scores, average="macro")),
        "F1 macro": shown(f1_score(test.labels, test.predicted, average="macro", zero_division=0)),
        "F1 micro": shown(f1_score(test.labels, test.predicted, average="micro", zero_division=0)),
        "F1 macro at 0.5": shown(f1_score(test.labels, half, average="macro", zero_division=0)),
        "F1 micro at 0.5": shown(f1_score(test.labels, half, average="micro", zero_division=0)),
        "p95 ms": row["p95 ms"],
    }


def test_the_latency_is_the_measured_one(tables: Any, candidate: Path) -> None:
    export = json.loads((candidate / "onnx" / "export.json").read_text(encoding="utf-8"))
    rows = tables["model (engine)"]
    assert rows["minilm (onnx-int8)"]["p95 ms"] == shown(export["onnx-int8"]["latency_ms_p95"])
    assert rows["minilm (torch)"]["p95 ms"] == "–"


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
def test_the_figures_of_each_label_are_those_of_scikit_learn(tables: Any, candidate: Path, variant: str) -> None:
    rows = tables[f"minilm ({ENGINES[variant]})"]
    test = Stored(candidate / variant, "test")
    assert sorted(rows) == sorted(test.names)
    for i, name in enumerate(test.names):
        expected = label_row(test, i)
        assert rows[name] == {key: str(value) if key == "support" else shown(value) for key, value in expected.items()}
    assert [float(row["f1"]) for row in rows.values()] == sorted((float(row["f1"]) for row in rows.values()), reverse=True)


def test_the_csv_holds_the_same_rows_unrounded(folder: Path, candidate: Path) -> None:
    with (folder / "per_label.csv").open(newline="", encoding="utf-8") as file:
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


def test_the_half_strategy_is_scored_as_by_scikit_learn(tables: Any, candidate: Path) -> None:
    row = next(row for name, row in tables["strategy"].items() if name.startswith("minilm (torch): global-0.5"))
    validation = Stored(candidate / "gpu", "validation")
    expected = shown(f1_score(validation.labels, validation.scores >= 0.5, average="macro", zero_division=0))
    assert row == {"cross-fitted": expected, "fitted on all": expected}


def test_the_epochs_are_those_of_the_training_record(folder: Path, tables: Any, candidate: Path) -> None:
    training = json.loads((candidate / "model" / "training.json").read_text(encoding="utf-8"))
    found = markdown_tables((folder / "report.md").read_text(encoding="utf-8"))
    epochs = next(table for table in found if table[0][1] == "train loss")
    assert len(epochs) - 1 == len(training["history"]) == 6
    for row, values in zip(epochs[1:], training["history"], strict=True):
        keys = ("train/loss", "validation/loss", "validation/auc_micro", "validation/auc_macro")
        assert row == [f"minilm, epoch {values['epoch']:.0f}", *(shown(values[key]) for key in keys)]
    assert tables["model"]["minilm"]["best"] == str(training["best_epoch"])
    assert tables["model"]["minilm"]["parameters"] == f"{training['parameters']:,}"


def test_the_counts_of_labels_are_those_of_the_splits(tables: Any, candidate: Path, dataset: Path) -> None:
    info = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    assert list(tables["label"]) == info["labels"]
    for split in ("validation", "test"):
        stored = Stored(candidate / "gpu", split)
        counts = [int(row[split]) for row in tables["label"].values()]
        assert counts == stored.labels.sum(axis=0).tolist()


def test_the_versions_and_the_reason_against_promotion_are_there(folder: Path, tables: Any) -> None:
    assert tables["variant"]["cpu"] == {
        "profile": "minilm",
        "version": "4",
        "alias": "challenger-cpu",
        "bundle": "s3://b/models/x/cpu/",
    }
    assert "cpu: not promoted, since AUC micro is not higher." in (folder / "report.md").read_text(encoding="utf-8")


def test_the_best_on_validation_is_named(folder: Path, candidate: Path) -> None:
    scores = {
        f"minilm ({ENGINES[variant]})": roc_auc_score(stored.labels, stored.scores, average="micro")
        for variant in VARIANTS
        for stored in [Stored(candidate / variant, "validation")]
    }
    assert f"Best on validation: {max(scores, key=scores.__getitem__)}." in (folder / "report.md").read_text(encoding="utf-8")


def test_a_report_without_registration_has_no_versions(dataset: Path, parts: Any, tmp_path: Path) -> None:
    report.write(dataset, parts, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per_label.csv", "report.html", "report.md"]
    assert "Registered versions" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_nothing_is_left_to_fill_in(folder: Path, name: str) -> None:
    text = re.sub(r"<style>.*?</style>", "", (folder / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"\b(TODO|TBD|FIXME|XXX|None|nan|NaN|inf|lorem|placeholder)\b|[{}]|\?\?", text) == []


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?:|src=|href=|url\(|@import", text) == []
    page = Page(text)
    assert page.tags & {"script", "link", "img", "iframe", "object"} == set()
    assert page.open == []


def test_the_page_holds_the_tables_of_the_markdown(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.tables == markdown_tables((folder / "report.md").read_text(encoding="utf-8"))


printable = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)


@bounded
@given(printable, printable, printable)
def test_text_on_the_page_stays_text(title: str, paragraph: str, cell: str) -> None:
    page = Page(report.to_html(title, [Section(title, (paragraph,), (Table((title, "n"), [(cell, 1)]),))]))
    assert page.tables == [[[title, "n"], [cell, "1"]]]
    assert page.texts == [title, title, paragraph]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</td></table>", "a & b", '"><img src=x>', "&lt;b&gt;", "]]>"])
def test_markup_in_the_data_is_shown_and_not_obeyed(text: str) -> None:
    html = report.to_html(text, [Section(text, (text,), (Table((text,), [(text,)]),))])
    page = Page(html)
    assert page.tags & {"script", "img"} == set()
    assert page.attributes <= {"lang", "charset", "name", "content", "scope", "class", "tabindex"}
    assert page.tables == [[[text], [text]]]


@pytest.mark.parametrize("name", ["joy|grief", "two\nlines", "<b>bold</b>", "|"])
def test_a_label_cannot_break_a_markdown_table(name: str) -> None:
    text = report.to_markdown("t", [Section("s", (), (Table(("label", "n"), [(name, 1), ("plain", 2)]),))])
    (table,) = markdown_tables(text)
    assert [len(row) for row in table] == [2, 2, 2]
    assert [row[1] for row in table] == ["n", "1", "2"]
    assert "<b>" not in text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (0.5, "0.5000"),
        (0.0, "0.0000"),
        (0.00002, "2e-05"),
        (-0.00002, "-2e-05"),
        (1234567, "1,234,567"),
        ("7", "7"),
    ],
)
def test_cells_are_shown_the_same_in_both(cell: Any, text: str) -> None:
    sections = [Section("s", (), (Table(("a", "b"), [("x", cell)]),))]
    assert markdown_tables(report.to_markdown("t", sections))[0][1] == ["x", text]
    assert Page(report.to_html("t", sections)).tables[0][1] == ["x", text]
