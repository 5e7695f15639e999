"""The window of a Prometheus: what all servers of a service scored."""

from __future__ import annotations

import functools
import re
from typing import Any

from goemotions.errors import BadArgument, DataError, MonitoringUnavailable
from goemotions.monitoring import prometheus_api
from goemotions.monitoring.drift.window import METRICS, ROWS, Counts, Window, moment_of, seconds_of

# The label of a pod, as the ServiceMonitor of manifests/components/monitoring copies it.
SERVICE = "serving_kserve_io_inferenceservice"
# What every server exports, and for how long a service is known that has no servers.
MODEL, KNOWN = "goemotions_model_info", "30d"


def window(address: str, duration: str, service: str = "") -> Window:
    """What all servers scored in the time until now, by the HTTP API and the clock of Prometheus.

    Args:
        address: such as http://prometheus:9090.
        duration: of the window, such as ``1d``.
        service: the InferenceService, or its namespace, / and it; empty for all servers that are scraped.

    Raises:
        BadArgument: the time or the service has another form.
        DataError: a value is none of a counter, such as NaN; or services of this name in several namespaces scored texts.
        MonitoringUnavailable: Prometheus does not respond, refuses the query, does not know the service, or could not scrape it.
    """
    seconds = seconds_of(duration)
    if not re.fullmatch(r"([a-z0-9-]+/)?[a-z0-9.-]+|", service):
        raise BadArgument(
            f"{service[:100]!r} is no name of an InferenceService: give one such as goemotions-cpu or serving/goemotions-cpu, or none "
            "for all"
        )
    # Until a time that is still to come for Prometheus, a part of the window or all of it would be empty.
    end = prometheus_api.query(address, "vector(time())", lambda result: moment_of(result[0]["value"][1]))
    matchers = _matchers(service)
    counts: Counts = []
    warnings: list[str] = []
    for name in METRICS:
        # Several jobs of a Prometheus may scrape the same server: each server counts once.
        each = f"max by (instance, version, label, feature, bin) (increase({name}{matchers}[{duration}]))"
        query = f"sum by (version, label, feature, bin) ({each})"
        read = functools.partial(_increases, name)
        counts += prometheus_api.query(address, query, read, end, warnings.append)
    source = f"{service or 'all services'} in Prometheus"
    if not counts:
        if warnings:
            raise MonitoringUnavailable(f"{source}: no metrics of a predictor in the window: {warnings[0]}: try again later")
        _require_idle(address, duration, service, end, source)
    elif service and "/" not in service:
        _require_one_namespace(address, duration, service, end)
    return Window(counts, end - seconds, end, source, tuple(dict.fromkeys(warnings)))


def _require_idle(address: str, duration: str, service: str, end: float, source: str) -> None:
    """Checks that a window without series is that of a service without servers, as one that is scaled to zero.

    Raises:
        MonitoringUnavailable: Prometheus has never seen the service, or its servers did not respond to it.
    """
    namespace, _, name = service.rpartition("/")
    all_of_namespace, longest = _matchers(f"{namespace}/"), max(KNOWN, duration, key=seconds_of)
    known = f"count by ({SERVICE}) (last_over_time({MODEL}{all_of_namespace}[{longest}]))"
    services = prometheus_api.query(address, known, lambda result: [one["metric"].get(SERVICE, "") for one in result], end)
    if name not in ("", *services) or not services:
        names = [name or f"some without the label {SERVICE}" for name in sorted(services)]
        place = f"the namespace {namespace}" if namespace else "it"
        others = f"{place} has {', '.join(names) or 'none at all'}"
        raise MonitoringUnavailable(
            f"{source}: no metrics of such a predictor in {KNOWN}, {others}: check the name of the service, the address, and that "
            "its servers are scraped (manifests/components/monitoring)"
        )
    targets = _matchers(service) or f'{{{SERVICE}!=""}}'
    scraped = f"max(max_over_time(up{targets}[{duration}]))"
    if prometheus_api.query(address, scraped, lambda result: [float(one["value"][1]) for one in result], end) == [0.0]:
        raise MonitoringUnavailable(
            f"{source}: its servers did not respond to Prometheus in the window, so that their texts are not known: look at the "
            "targets of Prometheus"
        )


def _require_one_namespace(address: str, duration: str, service: str, end: float) -> None:
    """Raises DataError if services of this name scored texts in several namespaces, such as that of production and that of tests."""
    scored = f"count by (namespace) (increase({ROWS}{_matchers(service)}[{duration}]) > 0)"
    read = prometheus_api.query(address, scored, lambda result: {one["metric"].get("namespace", "") for one in result}, end)
    if len(namespaces := sorted(filter(None, read))) > 1:
        raise DataError(
            f"{service} in Prometheus: the services of several namespaces scored texts ({', '.join(namespaces)}): give one of them, "
            f"such as {namespaces[0]}/{service}"
        )


def _matchers(service: str) -> str:
    """The selector of a service, of all in a namespace (with a / at its end), or of all, which is none."""
    namespace, _, name = service.rpartition("/")
    matchers = [f'{label}="{value}"' for label, value in (("namespace", namespace), (SERVICE, name)) if value]
    return f"{{{','.join(matchers)}}}" if matchers else ""


def _increases(name: str, result: Any) -> Counts:
    """The series of an instant query for a counter."""
    return [(name, one["metric"], float(one["value"][1])) for one in result]
