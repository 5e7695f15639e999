"""The HTTP API of Prometheus, which Thanos and VictoriaMetrics have, too."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from goemotions import strict_json
from goemotions.errors import MonitoringUnavailable
from goemotions.monitoring import http

log = logging.getLogger(__name__)

T = TypeVar("T")


def query(
    address: str,
    text: str,
    read: Callable[[Any], T],
    time: float | None = None,
    warn: Callable[[str], None] = log.warning,
) -> T:
    """What ``read`` makes of the result of an instant query.

    Args:
        address: of Prometheus, or of what has its API.
        text: the query, whose result is a vector: VictoriaMetrics returns nothing else.
        read: gets the result.
        time: in seconds since the epoch, by default that of Prometheus's clock.
        warn: gets each reason for which the result may lack a part, such as a store of Thanos that does not respond.

    Raises:
        MonitoringUnavailable: Prometheus does not respond, refuses the query, or the result has another form.
    """
    parameters = {"query": text} | ({} if time is None else {"time": f"{time:.3f}"})
    try:
        url = f"{address.rstrip('/')}/api/v1/query?{urllib.parse.urlencode(parameters)}"
        answer = strict_json.parse(http.get(url), "the answer", http.MOST_BYTES)
        warnings = [*(answer.get("warnings") or ()), *(["a part of the storage is missing"] if answer.get("isPartial") else ())]
        for warning in warnings:
            warn(f"Prometheus warns: {str(warning)[:200]}")
        return read(answer["data"]["result"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MonitoringUnavailable(f"Prometheus answered in an unknown form ({type(error).__name__})") from error
