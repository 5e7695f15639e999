"""Where the best model errs on validation: perturbed texts, confused labels, and likely label errors."""

from __future__ import annotations

from collections.abc import Sequence

from goemotions.evaluation import error_analysis, robustness
from goemotions.report.document import Section, Table
from goemotions.report.result import HEADLINE, Result, table_of

# A large model takes long to score every text once per perturbation.
ROBUSTNESS_TEXTS = 1000
LABEL_ERRORS = 25


def robustness_section(result: Result, texts: Sequence[str]) -> Section:
    """Perturbed validation texts, scored by the engine that serves."""
    engine = result.artifacts.load_engine(result.variant)
    labels = result.validation.labels[:ROBUSTNESS_TEXTS]
    rows = robustness.measure(engine, texts[:ROBUSTNESS_TEXTS], labels, result.thresholds)
    worst = max(rows, key=lambda row: row["flips"])
    return Section(
        "Robustness",
        (
            f"{result.title} on the first {len(labels):,} validation texts. Other labels: the share of the changed texts whose "
            "predicted labels differ from those of the original. Mean shift: the mean change of a probability on those texts.",
            f"Largest effect: {worst['perturbation']}, where {worst['flips']:.1%} of the {worst['changed']:,} changed texts get other "
            "labels."
            if worst["flips"]
            else "No perturbation changes any predicted label.",
        ),
        (table_of(rows, ("perturbation", "changed", *HEADLINE, "flips", "shift")),),
    )


def error_section(result: Result, texts: dict[str, str]) -> Section:
    """Confused pairs and likely label errors; ``texts`` by row id appear on the HTML page only."""
    names, ids, labels = result.validation.names, result.validation.ids, result.validation.labels
    probabilities = result.validation.probabilities
    confused = error_analysis.confused(names, labels, result.thresholds.apply(probabilities))
    likely = error_analysis.likely_label_errors(names, ids, labels, probabilities)
    listed = [
        row for kind in ("missing", "superfluous") for row in [row for row in likely if row["kind"] == kind][:LABEL_ERRORS]
    ]
    given = {
        row_id: ", ".join(name for name, has_label in zip(names, row, strict=True) if has_label)
        for row_id, row in zip(ids, labels, strict=True)
    }
    return Section(
        "Error analysis",
        (
            f"{result.title} on validation. Confused labels: the given label was missed and another predicted instead; the share is "
            "of the texts with the given label.",
            f"Likely label errors, by confident learning (Northcutt et al. 2021): {len(likely):,} of {labels.size:,} text-label pairs. "
            f"The {LABEL_ERRORS} most likely of each kind are listed. Their texts are on the HTML page of the run only.",
        ),
        (
            Table(
                ("given", "predicted instead", "texts", "share"),
                [[row["label"], row["taken_for"], row["count"], f"{row['share']:.1%}"] for row in confused],
            ),
            Table(
                ("likely label error", "label", "kind", "probability", "given labels"),
                [[row["id"], row["label"], row["kind"], float(row["probability"]), given[row["id"]]] for row in listed],
            ),
        ),
        private=(Table(("row", "text"), [[row_id, texts[row_id]] for row_id in dict.fromkeys(row["id"] for row in listed)]),),
    )
