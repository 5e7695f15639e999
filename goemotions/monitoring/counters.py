"""How much the counters of servers grew between two readings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from goemotions.monitoring.exposition import Sample

STARTED = "goemotions_start_time_seconds"
Series = tuple[str, str, tuple[tuple[str, str], ...]]


def increases(before: Iterable[Sample], now: Iterable[Sample]) -> list[Sample]:
    """How much each counter grew. Those that were not there before count from 0.

    Counters begin at 0 when a server is started. So if one of them fell, or the server names another start, all counters of this
    server count from 0.
    """
    earlier, now = {series(one): one.value for one in before}, list(now)
    restarted = {one.instance for one in now if _is_of_another_start(one, earlier.get(series(one), one.value))}
    return [
        replace(one, value=one.value - (0.0 if one.instance in restarted else earlier.get(series(one), 0.0)))
        for one in now
        if one.name != STARTED
    ]


def newest(samples: Iterable[Sample]) -> list[Sample]:
    """Each series of a server once: of a counter the largest value is the newest, as long as the server is not started again."""
    by_series: dict[Series, Sample] = {}
    for one in sorted(samples, key=lambda sample: sample.value):
        by_series[series(one)] = one
    return list(by_series.values())


def not_older(before: Sequence[Sample], now: Sequence[Sample]) -> list[Sample]:
    """What was read now, or before where that is newer: of several replicas of a Prometheus, one may be behind the other.

    Only for servers that name the same start in both: of another one, a counter that fell has begun again.
    """
    starts = {(one.instance, one.value) for one in before if one.name == STARTED}
    same = {one.instance for one in now if one.name == STARTED and (one.instance, one.value) in starts}
    return newest([*now, *(one for one in before if one.instance in same)])


def series(sample: Sample) -> Series:
    """What identifies the series of a sample."""
    return sample.instance, sample.name, sample.labels


def _is_of_another_start(sample: Sample, before: float) -> bool:
    return sample.value != before if sample.name == STARTED else sample.value < before
