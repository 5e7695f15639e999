"""The HTTP API of Prometheus, which Thanos, Mimir and VictoriaMetrics have, too."""

from __future__ import annotations

import logging
import os
import re
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from goemotions import strict_json
from goemotions.errors import BadArgument, MonitoringUnavailable
from goemotions.monitoring import http

log = logging.getLogger(__name__)

# Headers of each query, one per line, such as a bearer token or the tenant of a Mimir: an address has no place for them.
HEADERS = "PROMETHEUS_HEADERS"
HEADER = re.compile(r"([\w-]+): *([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")

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
        BadArgument: ``PROMETHEUS_HEADERS`` has another form.
        MonitoringUnavailable: Prometheus does not respond, refuses the query, or the result has another form.
    """
    parameters = {"query": text} | ({} if time is None else {"time": f"{time:.3f}"})
    try:
        url = f"{address.rstrip('/')}/api/v1/query?{urllib.parse.urlencode(parameters)}"
        answer = strict_json.parse(http.get(url, headers=_headers()), "the answer", http.MOST_BYTES)
        warnings = [*(answer.get("warnings") or ()), *(["a part of the storage is missing"] if answer.get("isPartial") else ())]
        for warning in warnings:
            warn(f"Prometheus warns: {str(warning)[:200]}")
        return read(answer["data"]["result"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MonitoringUnavailable(f"Prometheus answered in an unknown form ({type(error).__name__})") from error


def _headers() -> dict[str, str]:
    headers = dict(http.ACCEPT)
    for number, line in enumerate(filter(None, map(str.strip, os.environ.get(HEADERS, "").splitlines())), 1):
        if not (match := HEADER.fullmatch(line)):
            # It may be a token, so it is not shown.
            raise BadArgument(f"{HEADERS}: line {number} is no header: write Name: value, such as X-Scope-OrgID: goemotions")
        headers[match[1]] = match[2]
    return headers
