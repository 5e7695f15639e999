"""A window of traffic: how much the counters of servers grew in some time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from goemotions.errors import BadArgument, DataError
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, Traffic

ROWS, PREDICTIONS = "goemotions_scored_texts_total", "goemotions_predictions_total"
TOTAL, PREDICTED = "goemotions_label_scores_total", "goemotions_predicted_label_scores_total"
SCORES, TEXT_FEATURES = "goemotions_score_bins_total", "goemotions_text_features_total"
METRICS = (ROWS, PREDICTIONS, TOTAL, PREDICTED, SCORES, TEXT_FEATURES)
# A million per second for a day. With many more, the exact test takes hours.
MOST_TEXTS = 1e11
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST_SECONDS = 10 * 366 * 86400.0
Counts = list[tuple[str, Mapping[str, str], float]]


@dataclass(frozen=True)
class Window:
    """Counters of some time, by name and labels.

    Raises:
        DataError: one grew as no counter does.

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

    def __post_init__(self) -> None:
        for name, _, value in self.counts:
            # Not a number is in no range.
            if not 0 <= value <= MOST_TEXTS:
                raise DataError(f"{self.source}: {name} grew by {value:g}, which no counter does: look at what exports it")

    def versions(self) -> list[str]:
        """The versions that scored texts."""
        return sorted({labels.get("version", "") for name, labels, value in self.counts if name == ROWS and round(value)})

    def traffic(self, names: tuple[str, ...], version: str) -> Traffic:
        """The traffic of a version; no texts if the servers of the window scored none. A histogram with other bins than today's counts
        as not counted.

        Args:
            names: its labels.
            version: as the server calls it.

        Raises:
            DataError: other versions scored texts and this one is not known, or it has other labels.
        """
        served = self.versions()
        known = {labels.get("version", "") for name, labels, _ in self.counts if name == ROWS}
        if served and version not in known:
            others = ", ".join(one or "(no name)" for one in served)
            raise DataError(
                f"{self.source}: version {version} scored no text in the window ({others} did): compare with the bundle of "
                "that version, or give --version-number if the server has another name for it"
            )
        if version not in served:
            return Traffic.empty(names)
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
        BadArgument: it has another form, or is longer than ten years.
    """
    if not (match := re.fullmatch(r"([1-9]\d*)([smhdw])", duration)):
        raise BadArgument(f"{duration!r} is not a duration: write a number and s, m, h, d or w, such as 1d")
    if (seconds := float(match[1]) * UNITS[match[2]]) > LONGEST_SECONDS:
        raise BadArgument(f"{duration[:50]} is longer than ten years: give a shorter time")
    return seconds


def utc(moment: float | None) -> str:
    """A time as ISO 8601; empty for None."""
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def moment_of(text: str) -> float:
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
