"""A window of traffic against the reference of a bundle, as a report in JSON, on a page and in the terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from goemotions import defaults
from goemotions.evaluation.drift import DriftReport, DriftTest
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.reference import Reference
from goemotions.evaluation.traffic import FEATURES, Traffic
from goemotions.monitoring.drift import comparison, scored
from goemotions.monitoring.drift.window import Window, utc
from goemotions.registry.bundle import PREDICTIONS, Bundle
from goemotions.report.document import Section, Table, to_html
from goemotions.storage import store

PAGE = "drift.html"
NO_REFERENCE = "the bundle has no reference.json, so that the texts themselves are not compared: register the model again"
NO_FEATURE = "{} of the texts: the reference or the window lacks it"
NO_SCORER = "which bundle scored the files: {} of them do not name it, such as {}; check that it is this one"
INCOMPLETE = "texts that the metrics may lack: {}"
NO_SCORES = "the histograms of the scores of {:,} labels, such as {}: the reference or the window lacks them"
MEANING = (
    "The texts of the window against the reference: how often each label is predicted, its scores, and what the texts are like. "
    "An effect is, for predictions, how many times the rate of the reference the label has, and otherwise the Jensen-Shannon distance, "
    "from 0 for equal histograms to 1. An alarm has a p-value of at most its threshold, and an effect that matters: a rate "
    f"{comparison.LEAST_RATIO:g} times as high or low, or a distance of at least {comparison.LEAST_DISTANCE:g}."
)
NEXT = (
    "Next: look at the texts. If one client is the cause, mend it there. Otherwise label a sample of the texts, evaluate on it, and "
    "train with it if the metrics are lower."
)
# Of fewer texts only the largest shifts are detected (docs/monitoring.md).
FEW_TEXTS = 300


def reference_of(bundle: Bundle) -> tuple[Reference, list[str]]:
    """The reference of a bundle, and what it lacks; for bundles of before, what follows from their stored predictions."""
    if bundle.reference:
        return bundle.reference, []
    predictions = Predictions.read(bundle.folder / PREDICTIONS.format(split="validation"))
    return Reference.of(predictions, bundle.thresholds, {}), [NO_REFERENCE]


def report(
    bundle: Bundle,
    traffic: Traffic,
    *,
    model: str,
    version: str,
    source: str,
    start: str = "",
    end: str = "",
    alpha: float | None = None,
) -> DriftReport:
    """Compares traffic with the reference of a bundle.

    Args:
        bundle: of the version that scored the traffic.
        traffic: with at least one text.
        model, version, source, start, end: as in ``DriftReport``.
        alpha: the accepted chance of a false alarm; None for that of the default window (``comparison.alpha_of``).
    """
    reference, missing = reference_of(bundle)
    tests = comparison.compare(reference.traffic, traffic, comparison.alpha_of() if alpha is None else alpha)
    tested = {test.name for test in tests}
    with_scores = {test.label for test in tests if test.name == "scores"}
    without = [name for name in traffic.names if name not in with_scores]
    missing += [NO_SCORES.format(len(without), without[0])] if without else []
    missing += [NO_FEATURE.format(_words(name)) for name in FEATURES if name not in tested and bundle.reference]
    return DriftReport(
        model,
        version,
        start,
        end,
        traffic.rows,
        any(test.alarm for test in tests),
        tests,
        comparison.quality(reference.traffic, traffic, reference.f1),
        reference.traffic.rows,
        source,
        f"validation of the run {bundle.metadata.run_id}",
        missing,
    )


def of_window(
    bundle: Bundle, window: Window, *, model: str, version: str, false_alarms: float = defaults.FALSE_ALARMS_PER_MONTH
) -> DriftReport:
    """Compares what a server or Prometheus counted in a window; ``false_alarms`` are those that are accepted per month."""
    seconds = window.end - window.start if window.start else comparison.WINDOW_SECONDS
    compared = report(
        bundle,
        window.traffic(bundle.taxonomy.names, version),
        model=model,
        version=version,
        source=window.source,
        start=utc(window.start),
        end=utc(window.end),
        alpha=comparison.alpha_of(seconds, false_alarms),
    )
    return dataclasses.replace(compared, missing=[*compared.missing, *map(INCOMPLETE.format, window.warnings)])


def of_scored(
    bundle: Bundle,
    location: str,
    text_column: str = "",
    *,
    model: str,
    version: str,
    false_alarms: float = defaults.FALSE_ALARMS_PER_MONTH,
) -> DriftReport:
    """Compares what `goemotions score` wrote to a location, as one default window."""
    traffic, unnamed = scored.traffic_of(location, bundle, text_column)
    alpha = comparison.alpha_of(comparison.WINDOW_SECONDS, false_alarms)
    compared = report(bundle, traffic, model=model, version=version, source=location, alpha=alpha)
    missing = [NO_SCORER.format(len(unnamed), unnamed[0])] if unnamed else []
    return dataclasses.replace(compared, missing=[*compared.missing, *missing])


def write(report: DriftReport, location: str) -> None:
    """Writes ``drift.json`` and ``drift.html`` into a folder or S3 prefix."""
    report.write(location)
    with store.writing(location, PAGE) as path:
        Path(path).write_text(to_html(f"Drift of {report.model}", sections(report)), encoding="utf-8")


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
    return [
        Section("Summary", [summary(report), *(f"Not compared: {one}." for one in report.missing)]),
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
    count = sum(test.alarm for test in report.tests)
    few = f" (of {report.rows:,} texts, only the largest shifts are detected)" if report.rows < FEW_TEXTS else ""
    outcome = f"Drift: {count} of {len(report.tests)} tests are alarms." if report.drifted else f"No drift{few}."
    return (
        f"{outcome} {report.rows:,} texts of {report.model} version {report.version}{time} ({report.source}), compared with "
        f"{report.reference_rows:,} texts of {report.reference}."
    )


def lines(report: DriftReport) -> list[str]:
    """The report for a terminal: its summary, what is missing, and the alarms, largest first."""
    alarms = [test for test in report.tests if test.alarm]
    table = [f"{_words(one.name):<15} {one.label:<15} effect {_effect(one):<14} p {one.p_value:.1e}" for one in alarms]
    return [summary(report), *(f"not compared: {one}" for one in report.missing), *table]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _effect(test: DriftTest) -> str:
    return f"{test.effect:.2f} times" if test.name == "predictions" else f"{test.effect:.3f}"


def _time(moment: str) -> str:
    """A time of the report as people write it: 2026-01-31 09:15 UTC."""
    return f"{moment[:16].replace('T', ' ')} UTC" if moment else ""
