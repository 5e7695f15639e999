"""The drift report: what ``goemotions monitor`` stores, and the report and the decision to train again read.

``monitoring.drift`` makes it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from goemotions import strict_json
from goemotions.errors import DataError
from goemotions.storage import store

log = logging.getLogger(__name__)

FILE = "drift.json"
# An alarm needs a rate that is so many times that of the reference, or the inverse, or a distance of histograms of at least so much.
LEAST_RATIO, LEAST_DISTANCE = 1.25, 0.1


@dataclass(frozen=True)
class DriftTest:
    """One test of a report.

    Attributes:
        name: what is compared: ``predictions``, ``scores``, or a feature of the texts such as ``tokens``.
        label: the label, or empty for a feature of the texts.
        p_value: the chance of a statistic at least as large without drift, not corrected for the number of tests.
        threshold: the largest p-value that is an alarm, after the correction for the number of tests.
        effect: the size of the move, for ``predictions`` the ratio of the rates, otherwise the Jensen-Shannon distance.
        alarm: whether the p-value is at most the threshold and the effect is not too small to matter.
    """

    name: str
    label: str
    statistic: float
    p_value: float
    threshold: float
    effect: float
    alarm: bool


@dataclass(frozen=True)
class LabelQuality:
    """What is expected of a label without labelled texts, beside the reference.

    Attributes:
        rate: the share of the texts of the window for which the label is predicted; ``reference_rate`` that of the reference.
        precision, recall, f1: expected from the scores of the window (``metrics.expected``).
        reference_f1: expected from the scores of the reference in the same way.
        measured_f1: of the reference, with its labels, at cross-fitted thresholds; None if the reference lacks it.
    """

    label: str
    rate: float
    reference_rate: float
    precision: float
    recall: float
    f1: float
    reference_f1: float
    measured_f1: float | None = None


@dataclass(frozen=True)
class DriftReport:
    """The comparison of a window with a reference; stored as ``drift.json``, where ``start`` and ``end`` are ``from`` and ``to``.

    Attributes:
        model, version: of the model whose predictions are compared.
        start, end: of the window, as ISO 8601 in UTC; empty if its source has no times.
        rows: the number of texts of the window, without which nothing is compared; ``reference_rows`` that of the reference.
        source, reference: where both come from, in words.
        missing: what could not be compared, and why.
    """

    model: str
    version: str
    start: str
    end: str
    rows: int
    drifted: bool
    tests: Sequence[DriftTest]
    quality: Sequence[LabelQuality]
    reference_rows: int = 0
    source: str = ""
    reference: str = ""
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def alarms(self) -> list[DriftTest]:
        """The tests that are alarms."""
        return [test for test in self.tests if test.alarm]

    @property
    def ended(self) -> float | None:
        """The end of the window, in seconds since the epoch; None if it has no times.

        Raises:
            ValueError: it is no time.
        """
        if not self.end:
            return None
        moment = datetime.fromisoformat(self.end)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def write(self, location: str) -> None:
        """Writes ``drift.json`` into a folder or S3 prefix."""
        content = dataclasses.asdict(self)
        content = {"from": content.pop("start"), "to": content.pop("end"), **content}
        with store.writing(location, FILE) as path:
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_report(location: str) -> DriftReport:
    """The report in a folder or S3 prefix.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        content: dict[str, Any] = strict_json.parse(store.read(location, FILE), FILE)
        content |= {"start": content.pop("from"), "end": content.pop("to")}
        strict_json.require(content, DriftReport, FILE)
        content["tests"] = [DriftTest(**test) for test in content["tests"]]
        content["quality"] = [LabelQuality(**row) for row in content["quality"]]
        report = DriftReport(**content)
        # That it is a time.
        _ = report.ended
        return report
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"{location} has no readable {FILE}: run `goemotions monitor` again") from error


def find_report(location: str) -> DriftReport | None:
    """As ``read_report``; None if there is none, or it is damaged."""
    try:
        return read_report(location)
    except DataError as error:
        log.info("%s", error)
        return None
