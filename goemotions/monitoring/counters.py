"""How much the counters of servers grew between two readings."""

from __future__ import annotations

from collections.abc import Iterable
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


def series(sample: Sample) -> Series:
    """What identifies the series of a sample."""
    return sample.instance, sample.name, sample.labels


def _is_of_another_start(sample: Sample, before: float) -> bool:
    return sample.value != before if sample.name == STARTED else sample.value < before
