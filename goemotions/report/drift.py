"""Drift of a served version: the sections of its page and of the performance report, and the summary of both."""

from __future__ import annotations

from dataclasses import replace

from goemotions.evaluation.drift import LEAST_DISTANCE, LEAST_RATIO, DriftReport, DriftTest
from goemotions.report.document import Section, Table

MEANING = (
    "The texts of the window against the reference: how often each label is predicted, its scores, and what the texts are like. "
    "An effect is, for predictions, how many times the rate of the reference the label has, and otherwise the Jensen-Shannon distance, "
    "from 0 for equal histograms to 1. An alarm has a p-value of at most its threshold, and an effect that matters: a rate "
    f"{LEAST_RATIO:g} times as high or low, or a distance of at least {LEAST_DISTANCE:g}."
)
NEXT = (
    "Next: look at the texts. If one client is the cause, mend it there. Otherwise label a sample of the texts, evaluate on it, and "
    "train with it if the metrics are lower."
)
# Of fewer texts only the largest shifts are detected (docs/monitoring.md).
FEW_TEXTS = 300


def of_performance_report(report: DriftReport) -> list[Section]:
    """The sections as a part of the performance report."""
    first, *others = sections(report)
    return [replace(first, title="Drift since the deployment"), *(replace(one, level=3) for one in others)]


def sections(report: DriftReport) -> list[Section]:
    """The report as sections of a document."""
    columns = ("what", "label", "effect", "p-value", "threshold")
    rows = [(_words(test.name), test.label or None, _effect(test), test.p_value, test.threshold) for test in report.tests]
    alarms = [row[:-1] for row, test in zip(rows, report.tests, strict=True) if test.alarm]
    expected = Table(
        (
            "label",
            "predicted",
            "predicted in the reference",
            "expected F1",
            "expected in the reference",
            "measured in the reference",
        ),
        [
            (row.label, f"{row.rate:.1%}", f"{row.reference_rate:.1%}", row.f1, row.reference_f1, row.measured_f1)
            for row in report.quality
        ],
    )
    first = Section("Summary", [summary(report), *(f"Not compared: {one}." for one in report.missing)])
    if not report.rows:
        return [first]
    return [
        first,
        Section("Alarms", [MEANING, NEXT] if alarms else ["None."], [Table(columns[:-1], alarms)] if alarms else []),
        Section(
            "Expected quality",
            [
                "Shares of the texts for which a label is predicted, and the F1 that the scores let expect without labels: as true as "
                "the probabilities are calibrated on these texts."
            ],
            [expected],
        ),
        Section(
            "All tests",
            [] if alarms else [MEANING],
            [
                Table(
                    (*columns, "alarm"),
                    [(*row, "yes" if test.alarm else "no") for row, test in zip(rows, report.tests, strict=True)],
                )
            ],
        ),
    ]


def summary(report: DriftReport) -> str:
    """The outcome in a sentence or two."""
    time = f" from {_time(report.start) or 'the start of the server'} to {_time(report.end)}" if report.end else ""
    if not report.rows:
        return f"Nothing to compare: no text of {report.model} version {report.version}{time} ({report.source})."
    count = len(report.alarms)
    few = f" (of {report.rows:,} texts, only the largest shifts are detected)" if report.rows < FEW_TEXTS else ""
    outcome = f"Drift: {count} of {len(report.tests)} tests are alarms." if report.drifted else f"No drift{few}."
    return (
        f"{outcome} {report.rows:,} texts of {report.model} version {report.version}{time} ({report.source}), compared with "
        f"{report.reference_rows:,} texts of {report.reference}."
    )


def lines(report: DriftReport) -> list[str]:
    """The report for a terminal: its summary, what is missing, and the alarms, largest first."""
    table = [f"{_words(one.name):<15} {one.label:<15} effect {_effect(one):<14} p {one.p_value:.1e}" for one in report.alarms]
    return [summary(report), *(f"not compared: {one}" for one in report.missing), *table]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _effect(test: DriftTest) -> str:
    return f"{test.effect:.2f} times" if test.name == "predictions" else f"{test.effect:.3f}"


def _time(moment: str) -> str:
    """A time of the report as people write it: 2026-01-31 09:15 UTC."""
    return f"{moment[:16].replace('T', ' ')} UTC" if moment else ""
