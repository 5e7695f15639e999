"""The window between two scrapes of a server."""

from __future__ import annotations

import time

from goemotions import addresses
from goemotions.errors import DataError
from goemotions.monitoring import counters, exposition, http
from goemotions.monitoring.counters import STARTED
from goemotions.monitoring.drift.window import METRICS, Counts, Window, moment_of
from goemotions.monitoring.exposition import Sample

# A server that was started so long before its earlier scrape is another one, whatever the difference of the clocks.
CLOCK_SKEW_SECONDS = 60.0
# The first line of a stored scrape.
SCRAPED = "# scraped "


def scrape(server: str) -> str:
    """The metrics of a server and the time, as text that ``window`` reads.

    Raises:
        MonitoringUnavailable: it does not respond.
    """
    address = f"{server.rstrip('/')}/metrics"
    return f"{SCRAPED}{time.time()}\n{http.get(address).decode(errors='replace')}"


def window(server: str, before: str, now: str) -> Window:
    """What a server scored between two scrapes; without a former one since it started.

    Raises:
        DataError: one of them is not what ``scrape`` returned, ``before`` was scraped later than ``now``, or of another server.
    """
    server = addresses.shown(server)
    earlier, later = (_samples(server, text) for text in (before, now))
    counts: Counts = [(one.name, dict(one.labels), one.value) for one in counters.increases(earlier, later)]
    start, end = _scraped(before), _scraped(now) or time.time()
    if start is not None and not start < end:
        raise DataError(f"{server}: the earlier scrape is not the earlier one by its time: check the clocks, then scrape again")
    if not later:
        raise DataError(f"{server} has no metrics of a predictor: give the address of a predictor server")
    started_before, started = (_started(samples) for samples in (earlier, later))
    if start is not None and started_before is not None and started is not None and started != started_before:
        if started < start - CLOCK_SKEW_SECONDS:
            raise DataError(
                f"{server}: the earlier scrape is of another server behind the same address, or of another one: give the address of "
                "one server, or --prometheus for all of a service"
            )
        start = started if start < started < end else start
    return Window(counts, start, end, server)


def _samples(server: str, text: str) -> list[Sample]:
    try:
        return list(exposition.parse(server, text, (*METRICS, STARTED)))
    except ValueError as error:
        raise DataError(f"{server} has metrics of an unknown form ({error}): give the address of a predictor server") from error


def _started(samples: list[Sample]) -> float | None:
    return next((one.value for one in samples if one.name == STARTED), None)


def _scraped(text: str) -> float | None:
    line = text.partition("\n")[0]
    try:
        return moment_of(line.removeprefix(SCRAPED)) if text else None
    except ValueError:
        raise DataError(
            f"an earlier scrape starts with {SCRAPED!r} and a time: give the metrics.txt of an earlier report"
        ) from None
