"""Windows of traffic: what a server or a service scored in some time, or what is in the outputs of batch scoring."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from goemotions.errors import BadArgument, DataError, MonitoringUnavailable
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, Traffic, features_of
from goemotions.monitoring import observations
from goemotions.registry.bundle import Bundle
from goemotions.storage import store

ROWS, PREDICTIONS = "goemotions_scored_texts_total", "goemotions_predictions_total"
TOTAL, PREDICTED = "goemotions_label_scores_total", "goemotions_predicted_label_scores_total"
SCORES, TEXT_FEATURES = "goemotions_score_bins_total", "goemotions_text_features_total"
METRICS = (ROWS, PREDICTIONS, TOTAL, PREDICTED, SCORES, TEXT_FEATURES)
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
    """

    counts: Counts
    start: float | None
    end: float
    source: str

    def versions(self) -> list[str]:
        """The versions that scored texts."""
        return sorted({labels["version"] for name, labels, value in self.counts if name == ROWS and value})

    def traffic(self, names: tuple[str, ...], version: str) -> Traffic:
        """The traffic of a version.

        Args:
            names: its labels.
            version: as the server calls it.

        Raises:
            DataError: it scored nothing, or has other labels.
        """
        if version not in self.versions():
            served = ", ".join(self.versions()) or "none"
            raise DataError(
                f"{self.source}: version {version} scored no text in the window ({served} did): give --version-number"
            )
        numbers = {name: number for number, name in enumerate(names)}
        counted = Traffic.empty(names)
        of_labels = {PREDICTIONS: counted.predicted, TOTAL: counted.total_sum, PREDICTED: counted.predicted_sum}
        rows = 0.0
        try:
            for name, labels, value in self.counts:
                if labels["version"] != version:
                    continue
                if name == ROWS:
                    rows += value
                elif name == TEXT_FEATURES:
                    counted.features[labels["feature"]][FEATURES[labels["feature"]].index(labels["bin"])] += round(value)
                elif name == SCORES:
                    counted.scores[numbers[labels["label"]], SCORE_BINS.index(labels["bin"])] += round(value)
                else:
                    of_labels[name][numbers[labels["label"]]] += value if name != PREDICTIONS else round(value)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{self.source}: the server counts {error}, which the bundle lacks: compare it with its own bundle"
            ) from error
        # Prometheus extrapolates to the ends of the window, each series for itself.
        predicted = np.minimum(counted.predicted, round(rows))
        return Traffic(
            names, round(rows), predicted, counted.predicted_sum, counted.total_sum, counted.scores, counted.features
        )


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


def scrape(server: str) -> str:
    """The metrics of a server and the time, as text that ``of_scrapes`` reads.

    Raises:
        MonitoringUnavailable: it does not respond.
    """
    address = f"{server.rstrip('/')}/metrics"
    return f"{SCRAPED}{time.time()}\n{observations.get(address).decode()}"


def of_scrapes(server: str, before: str, now: str) -> Window:
    """What a server scored between two scrapes; without a former one since it started. A restart between them is noticed."""
    counters = [
        {(one.name, one.labels): one.value for one in observations.parse(server, text, METRICS)} for text in (before, now)
    ]
    counts: Counts = []
    for key, value in counters[1].items():
        former = counters[0].get(key, 0.0)
        counts.append((key[0], dict(key[1]), value - former if value >= former else value))
    start, end = (_scraped(text) for text in (before, now))
    return Window(counts, start, end or time.time(), server)


def _scraped(text: str) -> float | None:
    line = text.partition("\n")[0]
    try:
        return float(line.removeprefix(SCRAPED)) if line.startswith(SCRAPED) else None
    except ValueError:
        return None


def of_prometheus(address: str, duration: str, service: str = "") -> Window:
    """What all servers scored in the time until now, by the HTTP API of Prometheus.

    Args:
        address: such as http://prometheus:9090.
        duration: of the window, such as ``1d``.
        service: the InferenceService; empty for all servers that are scraped.

    Raises:
        MonitoringUnavailable: Prometheus does not respond, or refuses the query.
    """
    end = time.time()
    selector = f'{{{SERVICE}="{service}"}}' if service else ""
    counts: Counts = []
    for name in METRICS:
        query = f"sum by (version, label, feature, bin) (increase({name}{selector}[{duration}]))"
        parameters = urllib.parse.urlencode({"query": query, "time": f"{end:.3f}"})
        counts += [(name, labels, value) for labels, value in _vector(f"{address.rstrip('/')}/api/v1/query?{parameters}")]
    return Window(counts, end - seconds_of(duration), end, f"{service or 'all services'} in Prometheus")


def _vector(url: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """The samples of an instant query."""
    try:
        for series in json.loads(observations.get(url))["data"]["result"]:
            value = float(series["value"][1])
            yield series["metric"], value if math.isfinite(value) else 0.0
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise MonitoringUnavailable(f"Prometheus answered in an unknown form ({type(error).__name__})") from error


def of_scored(location: str, bundle: Bundle, column: str = "") -> Traffic:
    """The traffic in the Parquet outputs of ``goemotions score``.

    Args:
        location: a .parquet file, or the folder or S3 prefix of scored shards.
        bundle: whose thresholds and tokenizer are used.
        column: the column with the texts; empty for the one that was scored.

    Raises:
        DataError: there is no scored row, or one without the probabilities of the bundle's labels.
    """
    names = bundle.taxonomy.names
    folder, _, only = location.rpartition("/") if location.endswith(".parquet") else (location, "", "")
    folder = folder or "."
    files = [file.name for file in store.files(folder) if file.name.endswith(".parquet") and only in ("", file.name)]
    column = column or _scored_column(folder)
    counted = Traffic.empty(names)
    for name in files:
        for texts, probabilities in _scored_rows(folder, name, column, names):
            features = features_of(bundle.encoder, texts)
            counted += Traffic.of(names, probabilities, bundle.thresholds, features)
    if not counted.rows:
        raise DataError(f"{location} has no scored row: give the .parquet or the folder that `goemotions score` wrote")
    return counted


def _scored_column(folder: str) -> str:
    from goemotions import defaults
    from goemotions.prediction import shards

    return shards.read(folder).column if store.has(folder, shards.PLAN) else defaults.TEXT_COLUMN


def _scored_rows(folder: str, name: str, column: str, names: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray[Any, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [f"p/{label}" for label in names]
    try:
        with store.open_file(folder, name) as file:
            parquet = pq.ParquetFile(file)
            if missing := [one for one in (column, *columns) if one not in parquet.schema_arrow.names]:
                raise DataError(
                    f"{name} has no column {missing[0]!r}: score it with the probabilities of all labels, or give --text-column"
                )
            for batch in parquet.iter_batches(4096, columns=[column, *columns]):
                table = pa.table(batch).drop_null()
                if len(table):
                    yield table[column].to_pylist(), np.column_stack([table[one].to_numpy() for one in columns])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a Parquet file, or damaged: score it again") from error
