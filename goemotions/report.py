"""The performance report: one list of sections, written as Markdown and as a self-contained HTML page.

Every figure is computed here from the stored Predictions, thresholds and training records; nothing is typed in.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goemotions import data, evaluation, metrics, thresholds
from goemotions.bundle import ENGINES, Variant
from goemotions.predictions import FILE, Predictions
from goemotions.registration import Parts
from goemotions.tokenization import read_json

Row = Sequence[str | float | int | None]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2230; background: #fff; margin: 0 auto; padding: 1rem; max-width: 76rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; margin-bottom: 1.5rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #d9dee8; white-space: nowrap; }
td.text, th:first-child { text-align: left; } th { border-bottom: 2px solid #8a94a8; }
"""


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs of plain text, and tables."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


@dataclass(frozen=True)
class Result:
    """One profile as one engine runs it: what the report knows of it."""

    profile: str
    engine: str
    training: dict[str, Any]
    export: dict[str, Any]
    thresholds: thresholds.Thresholds
    comparison: list[dict[str, Any]]
    validation: Predictions
    test: Predictions

    @classmethod
    def read(cls, variant: Variant, parts: Parts) -> Result:
        training = read_json(parts.model / "training.json")
        fitted, content = thresholds.read(parts.thresholds / "thresholds.json")
        return cls(
            training["profile"]["name"],
            ENGINES[variant],
            training,
            read_json(parts.onnx / "export.json"),
            fitted,
            content["comparison"],
            Predictions.read(parts.validation / FILE),
            Predictions.read(parts.test / FILE),
        )

    @property
    def title(self) -> str:
        return f"{self.profile} ({self.engine})"


def write(dataset: Path, parts: dict[Variant, list[Parts]], output: Path, registered: dict[str, Any] | None = None) -> Path:
    """Writes ``report.md``, ``report.html`` and ``per_label.csv`` into a folder, which it returns.

    Args:
        dataset: the Dataset folder.
        parts: for each variant the folders of every profile.
        output: the folder to write.
        registered: what ``registration.register`` answered, for the section on versions.
    """
    info = data.load(dataset)[1]
    results = [Result.read(variant, folder) for variant, folders in parts.items() for folder in folders]
    sections = [
        _overview(info, results),
        *([_versions(registered)] if registered else []),
        _comparison(results),
        _training(results),
        _thresholds(results),
        _per_label(results),
        _data(info),
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(to_markdown("Model performance", sections), encoding="utf-8")
    (output / "report.html").write_text(to_html("Model performance", sections), encoding="utf-8")
    evaluation.write_csv(output / "per_label.csv", [row for result in results for row in _label_rows(result)])
    return output


def comparison(results: Sequence[Result]) -> Table:
    """A row for each model and engine: the figures on test, thresholds fitted on validation."""
    rows = []
    for result in results:
        values = evaluation.figures(result.test, result.thresholds)
        fixed = evaluation.figures(result.test, thresholds.fixed(result.test.labels, result.test.probabilities))
        latency = result.export[result.engine]["latency_ms_p95"] if result.engine in result.export else None
        rows.append(
            [
                result.title,
                values["test/auc_micro"],
                values["test/auc_macro"],
                values["test/f1_macro"],
                values["test/f1_micro"],
                fixed["test/f1_macro"],
                fixed["test/f1_micro"],
                latency,
            ]
        )
    return Table(
        ("model (engine)", "AUC micro", "AUC macro", "F1 macro", "F1 micro", "F1 macro at 0.5", "F1 micro at 0.5", "p95 ms"),
        rows,
    )


def _overview(info: dict[str, Any], results: Sequence[Result]) -> Section:
    best = max(results, key=lambda result: evaluation.figures(result.validation, result.thresholds)["validation/auc_micro"])
    counts = ", ".join(f"{count:,} {split}" for split, count in info["rows"].items())
    return Section(
        "Overview",
        (
            f"Data: {info['source']} ({counts} rows, {len(info['labels'])} labels), digest {info['digest'][:12]}.",
            f"Best on validation: {best.title}. Epochs, thresholds and winners are chosen on validation alone; "
            "the test split gives the figures below and nothing else.",
        ),
    )


def _versions(registered: dict[str, Any]) -> Section:
    rows = [
        [variant, found["profile"], found["version"], found["alias"], found["source"]] for variant, found in registered.items()
    ]
    reasons = [
        f"{variant}: not promoted, since {', '.join(found['gate']['reasons'])}."
        for variant, found in registered.items()
        if found["gate"] and not found["gate"]["passes"]
    ]
    return Section("Registered versions", reasons, (Table(("variant", "profile", "version", "alias", "bundle"), rows),))


def _comparison(results: Sequence[Result]) -> Section:
    return Section(
        "Model comparison",
        ("Test split. Thresholds are fitted on validation. Latency: one text of 20 tokens, two threads, 95th percentile.",),
        (comparison(results),),
    )


def _training(results: Sequence[Result]) -> Section:
    rows, epochs = [], []
    for name, training in {result.profile: result.training for result in results}.items():
        settings = training["profile"]
        rows.append(
            [
                name,
                training["parameters"],
                settings["epochs"],
                training["best_epoch"],
                settings["learning_rate"],
                settings["batch_size"],
                round(training["seconds"]),
                round(training["peak_memory_bytes"] / 2**20),
                training["precision"],
                training["hardware"],
            ]
        )
        epochs += [
            [f"{name}, epoch {int(values['epoch'])}", *(values[key] for key in EPOCH_COLUMNS.values())]
            for values in training["history"]
        ]
    columns = ("model", "parameters", "epochs", "best", "rate", "batch", "seconds", "peak MiB", "precision", "hardware")
    return Section("Training", (), (Table(columns, rows), Table(("model", *EPOCH_COLUMNS), epochs)))


EPOCH_COLUMNS = {
    "train loss": "train/loss",
    "validation loss": "validation/loss",
    "AUC micro": "validation/auc_micro",
    "AUC macro": "validation/auc_macro",
}


def _thresholds(results: Sequence[Result]) -> Section:
    rows: list[Row] = []
    for result in results:
        for row in result.comparison:
            chosen = " (chosen)" if row["strategy"] == result.thresholds.strategy else ""
            rows.append([f"{result.title}: {row['strategy']}{chosen}", row["f1_macro_cross_fitted"], row["f1_macro_fitted"]])
    return Section(
        "Threshold selection",
        (
            "Macro F1 on validation. Cross-fitted: each fold decided with thresholds from the other four; this one is chosen by.",
        ),
        (Table(("strategy", "cross-fitted", "fitted on all"), rows),),
    )


def _label_rows(result: Result) -> list[dict[str, Any]]:
    test = result.test
    rows = metrics.per_label(test.names, test.labels, test.probabilities, result.thresholds.apply(test.probabilities))
    return [{"model": result.profile, "engine": result.engine, **row} for row in rows]


def _per_label(results: Sequence[Result]) -> Section:
    tables = []
    for result in results:
        rows = sorted(_label_rows(result), key=lambda row: -row["f1"])
        keys = ("label", "support", "precision", "recall", "f1", "auc")
        tables.append(Table((result.title, *keys[1:]), [[row[key] for key in keys] for row in rows]))
    return Section("Per label", ("Test split, best F1 first.",), tables)


def _data(info: dict[str, Any]) -> Section:
    splits = list(info["rows"])
    labels = [[name, *(info["label_counts"][split][name] for split in splits)] for name in info["labels"]]
    leakage = [[split, counts["exact"], counts["normalized"]] for split, counts in info["leakage"].items()]
    lengths = [[split, *info["words"][split].values()] for split in splits]
    repeated = info["duplicates"]
    return Section(
        "Data",
        (
            f"Train repeats {repeated['texts']} texts in {repeated['rows']} rows, {repeated['texts_with_other_labels']} of "
            "them with other labels.",
        ),
        (
            Table(("words", "mean", "min", "p50", "p95", "p99", "max"), lengths),
            Table(("texts also in train", "exact", "ignoring case and punctuation"), leakage),
            Table(("label", *splits), labels),
        ),
    )


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for table in section.tables:
            lines.append(f"| {' | '.join(map(_markdown, table.columns))} |")
            lines.append(f"|---|{'---:|' * (len(table.columns) - 1)}")
            lines += [f"| {' | '.join(_markdown(_shown(cell)) for cell in row)} |" for row in table.rows]
            lines.append("")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """Text of a table's cell: what would end the cell or the row, or be taken for HTML, is escaped."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def to_html(title: str, sections: Sequence[Section]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
        for table in section.tables:
            head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
            rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>\n" for row in table.rows)
            body.append(
                f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
            )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>{chr(10).join(body)}</body></html>\n"
    )


def _html_cell(cell: str | float | int | None) -> str:
    return f"<td{' class=text' if isinstance(cell, str) else ''}>{html.escape(_shown(cell))}</td>"


def _shown(cell: str | float | int | None) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.0e}" if 0 < abs(cell) < 1e-3 else f"{cell:.4f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
