"""Request logs as the server leaves them in its store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from goemotions.data.request_log import ANSWERS, FEEDBACK, Labels, name, table
from goemotions.metrics.thresholds import Thresholds
from goemotions.storage import layout

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def answer(request_id: str, text: str, scores: Mapping[str, float], labels: Labels, **columns: Any) -> dict[str, Any]:
    """A row of the log: labels with a score that is not listed have 0."""
    listed = [scores.get(one, 0.0) for one in labels.names]
    (is_chosen,) = Thresholds("", labels.thresholds, labels.k).apply(np.array([listed], dtype=np.float32))
    chosen = [one for one, is_one in zip(labels.names, is_chosen, strict=True) if is_one]
    row = {"id": request_id, "index": 0, "time": NOON, "version": "7", "text": text, "labels": chosen, "scores": listed}
    return {**row, "truncated": False, **columns}


def feedback(request_id: str, *labels: str, **columns: Any) -> dict[str, Any]:
    return {"id": request_id, "index": 0, "time": NOON + 60, "version": "7", "labels": list(labels), **columns}


def write(store: Path, labels: Labels, answers: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]] = ()) -> None:
    """Writes a log of the model `goemotions`: a file per kind, version and hour."""
    files: dict[tuple[str, str, datetime], list[dict[str, Any]]] = defaultdict(list)
    for kind, rows in ((ANSWERS, answers), (FEEDBACK, given)):
        for row in rows:
            files[kind, row["version"], datetime.fromtimestamp(row["time"] // 3600 * 3600, UTC)].append(row)
    for (kind, version, hour), rows in files.items():
        path = Path(layout.requests(str(store), "goemotions")) / name(kind, version, hour, "worker", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(kind, rows, labels), path)
