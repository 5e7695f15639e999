"""A window of traffic against the reference of a bundle, as a report in JSON and on a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from goemotions import defaults
from goemotions.evaluation.drift import DriftReport, DriftTest
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.reference import Reference
from goemotions.evaluation.traffic import FEATURES, Traffic
from goemotions.monitoring.drift import comparison, scored
from goemotions.monitoring.drift.window import Window, utc
from goemotions.registry.bundle import PREDICTIONS, Bundle
from goemotions.report import drift
from goemotions.report.document import to_html
from goemotions.storage import store

PAGE = "drift.html"
NO_REFERENCE = "the bundle has no reference.json, so that the texts themselves are not compared: register the model again"
NO_FEATURE = "{} of the texts: the reference or the window lacks it"
NO_SCORER = "which bundle scored the files: {} of them do not name it, such as {}; check that it is this one"
INCOMPLETE = "texts that the metrics may lack: {}"
NO_SCORES = "the histograms of the scores of {:,} labels, such as {}: the reference or the window lacks them"


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
    missing: Iterable[str] = (),
) -> DriftReport:
    """Compares traffic with the reference of a bundle.

    Args:
        bundle: of the version that scored the traffic.
        traffic: without a text, nothing is compared: the report has no tests.
        model, version, source, start, end: as in ``DriftReport``.
        alpha: the accepted chance of a false alarm; None for that of the default window (``comparison.alpha_of``).
        missing: what the traffic lacks, in words.
    """
    reference, without = reference_of(bundle)
    tests = comparison.compare(reference.traffic, traffic, comparison.alpha_of() if alpha is None else alpha)
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
        [*((*without, *_not_compared(bundle, traffic.names, tests)) if traffic.rows else ()), *missing],
    )


def _not_compared(bundle: Bundle, labels: Sequence[str], tests: Sequence[DriftTest]) -> Iterator[str]:
    with_scores = {test.label for test in tests if test.name == "scores"}
    if without := [name for name in labels if name not in with_scores]:
        yield NO_SCORES.format(len(without), without[0])
    tested = {test.name for test in tests}
    if bundle.reference:
        yield from (NO_FEATURE.format(name.replace("_", " ")) for name in FEATURES if name not in tested)


def of_window(
    bundle: Bundle, window: Window, *, model: str, version: str, false_alarms: float = defaults.FALSE_ALARMS_PER_MONTH
) -> DriftReport:
    """Compares what a server or Prometheus counted in a window; ``false_alarms`` are those that are accepted per month."""
    seconds = window.end - window.start if window.start else comparison.WINDOW_SECONDS
    return report(
        bundle,
        window.traffic(bundle.taxonomy.names, version),
        model=model,
        version=version,
        source=window.source,
        start=utc(window.start),
        end=utc(window.end),
        alpha=comparison.alpha_of(seconds, false_alarms),
        missing=map(INCOMPLETE.format, window.warnings),
    )


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
    missing = [NO_SCORER.format(len(unnamed), unnamed[0])] if unnamed else []
    return report(bundle, traffic, model=model, version=version, source=location, alpha=alpha, missing=missing)


def write(report: DriftReport, location: str) -> None:
    """Writes ``drift.json`` and ``drift.html`` into a folder or S3 prefix."""
    report.write(location)
    with store.writing(location, PAGE) as path:
        Path(path).write_text(to_html(f"Drift of {report.model}", drift.sections(report)), encoding="utf-8")
