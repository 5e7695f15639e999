"""Windows of traffic: what a server or a service scored in some time."""

from __future__ import annotations

import functools
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from goemotions import addresses
from goemotions.errors import BadArgument, DataError, MonitoringUnavailable
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, Traffic
from goemotions.monitoring import observations

ROWS, PREDICTIONS = "goemotions_scored_texts_total", "goemotions_predictions_total"
TOTAL, PREDICTED = "goemotions_label_scores_total", "goemotions_predicted_label_scores_total"
SCORES, TEXT_FEATURES = "goemotions_score_bins_total", "goemotions_text_features_total"
METRICS = (ROWS, PREDICTIONS, TOTAL, PREDICTED, SCORES, TEXT_FEATURES)
# Counters begin at 0 when a server is started.
STARTED = "goemotions_start_time_seconds"
# A server that was started so long before its earlier scrape is another one, whatever the difference of the clocks.
CLOCK_SKEW_SECONDS = 60.0
# The label of a pod, as the ServiceMonitor of manifests/components/monitoring copies it.
SERVICE = "serving_kserve_io_inferenceservice"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# The first line of a stored scrape.
SCRAPED = "# scraped "
Counts = list[tuple[str, Mapping[str, str], float]]


@dataclass(frozen=True)
class Window:
    """Counters of some time, by name and labels.

    Attributes:
        counts: how much each counter grew.
        start, end: in seconds since the epoch; the start is None if it is not known.
        source: where the counters were read, in words.
        warnings: why the counts may lack a part.
    """

    counts: Counts
    start: float | None
    end: float
    source: str
    warnings: tuple[str, ...] = ()

    def versions(self) -> list[str]:
        """The versions that scored texts."""
        return sorted({labels.get("version", "") for name, labels, value in self.counts if name == ROWS and round(value)})

    def traffic(self, names: tuple[str, ...], version: str) -> Traffic:
        """The traffic of a version. A histogram with other bins than today's counts as not counted.

        Args:
            names: its labels.
            version: as the server calls it.

        Raises:
            DataError: it scored nothing, or has other labels.
        """
        served = ", ".join(self.versions())
        if not served:
            raise DataError(
                f"{self.source}: no text was scored in the window: send texts to the server, or take a longer window"
            )
        if version not in self.versions():
            raise DataError(
                f"{self.source}: version {version} scored no text in the window ({served} did): compare with the bundle of that version"
                ", or give --version-number if the server has another name for it"
            )
        counted: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for name, labels, value in self.counts:
            if labels.get("version", "") == version:
                counted[name, labels.get("label") or labels.get("feature", "")][labels.get("bin", "")] = value
        self._check_labels(counted, names)

        def values(metric: str, key: str, bins: Sequence[str] = ("",)) -> np.ndarray:
            by_bin = counted.get((metric, key), {})
            return np.array([by_bin.get(one, 0.0) if set(by_bin) <= set(bins) else 0.0 for one in bins])

        rows = round(values(ROWS, "").sum())
        predicted, predicted_sum, total_sum = (
            np.concatenate([values(metric, name) for name in names]) for metric in (PREDICTIONS, PREDICTED, TOTAL)
        )
        # Prometheus extrapolates to the ends of the window, each series for itself.
        predicted = np.minimum(np.rint(predicted), rows).astype(int)
        return Traffic(
            names,
            rows,
            predicted,
            np.minimum(predicted_sum, predicted),
            np.minimum(total_sum, rows),
            np.rint([values(SCORES, name, SCORE_BINS) for name in names]).astype(int),
            {name: np.rint(values(TEXT_FEATURES, name, bins)).astype(int) for name, bins in FEATURES.items()},
        )

    def _check_labels(self, counted: Iterable[tuple[str, str]], names: tuple[str, ...]) -> None:
        labels = {metric: {label for name, label in counted if name == metric} for metric in (PREDICTIONS, PREDICTED, TOTAL)}
        for metric, counts in labels.items():
            if others := sorted(counts - set(names)):
                raise DataError(
                    f"{self.source} counts the label {others[0]!r}, which the bundle lacks: compare it with its own bundle"
                )
            if absent := [name for name in names if name not in counts]:
                raise DataError(f"{self.source} has no {metric} of the label {absent[0]!r}: compare it with its own bundle")


def seconds_of(duration: str) -> float:
    """The seconds of a duration such as ``90s``, ``6h`` or ``1d``.

    Raises:
        BadArgument: it has another form.
    """
    if not (match := re.fullmatch(r"([1-9]\d*)([smhdw])", duration)):
        raise BadArgument(f"{duration!r} is not a duration: write a number and s, m, h, d or w, such as 1d")
    return float(match[1]) * UNITS[match[2]]


def utc(moment: float | None) -> str:
    """A time as ISO 8601; empty for None."""
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _moment(text: str) -> float:
    """The seconds since the epoch that a text says.

    Raises:
        ValueError: it says none that a calendar has.
    """
    moment = float(text)
    try:
        datetime.fromtimestamp(moment, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{text:.20} is no time") from error
    return moment


def scrape(server: str) -> str:
    """The metrics of a server and the time, as text that ``of_scrapes`` reads.

    Raises:
        MonitoringUnavailable: it does not respond.
    """
    address = f"{server.rstrip('/')}/metrics"
    return f"{SCRAPED}{time.time()}\n{observations.get(address).decode(errors='replace')}"


def of_scrapes(server: str, before: str, now: str) -> Window:
    """What a server scored between two scrapes; without a former one since it started.

    If a counter is smaller than before, or it started at another time, the server was started again, and all of its counters count
    from 0.

    Raises:
        DataError: one of them is not what ``scrape`` returned, ``before`` was scraped later than ``now``, or of another server.
    """
    server = addresses.shown(server)
    earlier, counters = ({(one.name, one.labels): one.value for one in _samples(server, text)} for text in (before, now))
    changed = [key for key, value in earlier.items() if counters.get(key, value) != value]
    is_restarted = any(key[0] == STARTED or counters[key] < earlier[key] for key in changed)
    counts: Counts = [
        (name, dict(labels), value - (0.0 if is_restarted else earlier.get((name, labels), 0.0)))
        for (name, labels), value in counters.items()
        if name != STARTED
    ]
    start, end = _scraped(before), _scraped(now) or time.time()
    if start is not None and not start < end:
        raise DataError(f"{server}: the earlier scrape is not the earlier one by its time: check the clocks, then scrape again")
    started = counters.get((STARTED, ()))
    if start is not None and started is not None and (STARTED, ()) in changed:
        if started < start - CLOCK_SKEW_SECONDS:
            raise DataError(
                f"{server}: the earlier scrape is of another server behind the same address, or of another one: give the address of "
                "one server, or --prometheus for all of a service"
            )
        start = started if start < started < end else start
    return Window(counts, start, end, server)


def _samples(server: str, text: str) -> list[observations.Sample]:
    try:
        return list(observations.parse(server, text, (*METRICS, STARTED)))
    except ValueError as error:
        raise DataError(f"{server} has metrics of an unknown form ({error}): give the address of a predictor server") from error


def _scraped(text: str) -> float | None:
    line = text.partition("\n")[0]
    try:
        return _moment(line.removeprefix(SCRAPED)) if text else None
    except ValueError:
        raise DataError(
            f"an earlier scrape starts with {SCRAPED!r} and a time: give the metrics.txt of an earlier report"
        ) from None


def of_prometheus(address: str, duration: str, service: str = "") -> Window:
    """What all servers scored in the time until now, by the HTTP API and the clock of Prometheus.

    Args:
        address: such as http://prometheus:9090.
        duration: of the window, such as ``1d``.
        service: the InferenceService; empty for all servers that are scraped.

    Raises:
        MonitoringUnavailable: Prometheus does not respond, refuses the query, or has no metrics of the service.
    """
    # Until a time that is still to come for Prometheus, a part of the window or all of it would be empty.
    end = observations.query(address, "vector(time())", lambda result: _moment(result[0]["value"][1]))
    selector = f'{{{SERVICE}="{service}"}}' if service else ""
    counts: Counts = []
    warnings: list[str] = []
    for name in METRICS:
        # Several jobs of a Prometheus may scrape the same server: each server counts once.
        each = f"max by (instance, version, label, feature, bin) (increase({name}{selector}[{duration}]))"
        query = f"sum by (version, label, feature, bin) ({each})"
        read = functools.partial(_increases, name)
        counts += observations.query(address, query, read, end, warnings.append)
    source = f"{service or 'all services'} in Prometheus"
    if not counts:
        raise MonitoringUnavailable(
            f"{source}: no metrics of a predictor in the window: check the name of the service and its targets"
        )
    return Window(counts, end - seconds_of(duration), end, source, tuple(dict.fromkeys(warnings)))


def _increases(name: str, result: Any) -> Counts:
    """The series of an instant query for a counter; Prometheus returns NaN, too."""
    values = [(one["metric"], float(one["value"][1])) for one in result]
    return [(name, labels, value if math.isfinite(value) else 0.0) for labels, value in values]
