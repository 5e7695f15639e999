"""Which texts are worth labelling most: those whose labels are uncertain, or that two models label differently."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions.data import tables
from goemotions.data.request_log import ANSWERS, FEEDBACK, FEEDBACK_DELAY, Labels, LogReader, path_of
from goemotions.data.text import normalized
from goemotions.errors import DataError
from goemotions.metrics.probabilities import logit, sigmoid
from goemotions.metrics.thresholds import Thresholds
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder

MARGIN, ENTROPY, DISAGREEMENT = "margin", "entropy", "disagreement"
# Of the columns of batch scoring.
SCORE = "p/"
# A row with what it is worth. It has scores, float32 [labels], and the chosen labels, bool [labels].
Row = dict[str, Any]
Worth = tuple[float, Row]


@dataclass(frozen=True)
class Candidate:
    """A text to label: where it is in the log, its labels and scores by name, and how much it is worth it, from 0 to 1."""

    id: str
    position: int
    version: str
    text: str
    labels: tuple[str, ...]
    scores: Mapping[str, float]
    worth: float


def uncertainty(scores: np.ndarray, thresholds: Thresholds, by: str) -> np.ndarray:
    """How uncertain the labels of each row are, from 0 to 1, float [n], for scores [n, labels].

    Scores are shifted in log-odds, so that each threshold becomes 0.5. Of k labels per text, the threshold is at least the middle
    between the k-th score of the text and the next one. ``margin`` is that of the label that is nearest to its threshold
    (BinMin of Brinker, 2006: On active learning in multi-label classification); ``entropy`` the mean binary entropy of the labels.
    """
    odds, least = logit(scores), logit(np.clip(np.asarray(thresholds.values), 0, 1))
    below = odds.shape[1] - (thresholds.k or odds.shape[1])
    if below:
        least = np.maximum(least, np.sort(odds, axis=1)[:, below - 1 : below + 1].mean(axis=1, keepdims=True))
    shifted = sigmoid(odds - least)
    if by == MARGIN:
        nearest: np.ndarray = 1 - np.abs(2 * shifted - 1).min(axis=1)
        return nearest
    inside = np.clip(shifted, 1e-12, 1 - 1e-12)
    entropy: np.ndarray = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).mean(axis=1)
    return entropy


def choose(reader: LogReader, count: int, by: str = MARGIN) -> tuple[tuple[str, ...], list[Candidate]]:
    """The names of the labels, and the texts of the log that are worth labelling most, best first, each text once.

    Texts that have feedback are left out. ``disagreement`` compares the answers of two versions to the same requests, as shadow mode
    makes them: the share of the labels that one of the two chose.

    Raises:
        DataError: there are no answers, or for ``disagreement`` none that two versions share.
    """
    versions = reader.labels()
    names = next(iter(versions.values())).names
    with temporary_folder() as scratch, _seen(scratch) as seen:
        _find_labelled(reader, seen)
        answers = _answers(reader, versions)
        if by == DISAGREEMENT:
            remedy = "log a champion with --shadow-url, and its challenger"
            ranked = _disagreeing(answers, seen, f"{reader.location} has no request that two versions answered: {remedy}")
        else:
            ranked = _uncertain(answers, versions, by)
        return names, _best(ranked, count, names, seen)


def compare(outputs: Sequence[str], count: int, column: str) -> tuple[tuple[str, ...], list[Candidate]]:
    """As ``choose`` by disagreement, for two outputs of batch scoring of the same texts, by two bundles: files, folders or S3 prefixes.

    Raises:
        DataError: they have other labels or no text in common, or are no output of ``goemotions score``.
    """
    names, others = (_score_names(output) for output in outputs)
    if names != others:
        raise DataError(f"{outputs[0]} and {outputs[1]} have the scores of other labels: score the texts with both bundles")
    rows = itertools.chain.from_iterable(_scored(output, names, column) for output in outputs)
    with temporary_folder() as scratch, _seen(scratch) as seen:
        ranked = _disagreeing(rows, seen, f"{outputs[0]} and {outputs[1]} have no text in common: score the same texts")
        return names, _best(ranked, count, names, seen)


def _seen(scratch: Path) -> closing[sqlite3.Connection]:
    """A database on disk of the answers that have feedback, their texts, and the answers of a first version."""
    connection = sqlite3.connect(scratch / "seen.sqlite", isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE done (id TEXT, position INTEGER, PRIMARY KEY (id, position))")
    connection.execute("CREATE TABLE labelled (text TEXT PRIMARY KEY)")
    columns = "id TEXT, position INTEGER, version TEXT, scores BLOB, chosen BLOB"
    connection.execute(f"CREATE TABLE answers ({columns}, PRIMARY KEY (id, position))")
    connection.execute("BEGIN")
    return closing(connection)


def _find_labelled(reader: LogReader, seen: sqlite3.Connection) -> None:
    """Notes the texts that have feedback, to whichever of their answers."""
    for row in reader.rows(FEEDBACK, later=FEEDBACK_DELAY):
        seen.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (row["id"], row["index"]))
    if seen.execute("SELECT 1 FROM done LIMIT 1").fetchone():
        for row in reader.rows(ANSWERS):
            if seen.execute("SELECT 1 FROM done WHERE id = ? AND position = ?", (row["id"], row["index"])).fetchone():
                seen.execute("INSERT OR IGNORE INTO labelled VALUES (?)", (normalized(row["text"]),))


def _answers(reader: LogReader, versions: Mapping[str, Labels]) -> Iterator[Row]:
    for row in reader.rows(ANSWERS):
        if row["text"].strip():
            yield {**row, "chosen": _thresholds(versions, row).apply(row["scores"][None])[0]}


def _uncertain(rows: Iterable[Row], versions: Mapping[str, Labels], by: str) -> Iterator[Worth]:
    for row in rows:
        yield float(uncertainty(row["scores"][None], _thresholds(versions, row), by)[0]), row


def _thresholds(versions: Mapping[str, Labels], row: Row) -> Thresholds:
    labels = versions[path_of(row["version"])]
    return Thresholds("", labels.thresholds, labels.k)


def _disagreeing(rows: Iterable[Row], seen: sqlite3.Connection, nothing: str) -> Iterator[Worth]:
    """Rows of a second version, with the difference to the first one that answered the same request; ``nothing``: there are none."""
    shared = 0
    for row in rows:
        key = (row["id"], row["index"])
        first = seen.execute("SELECT version, scores, chosen FROM answers WHERE id = ? AND position = ?", key).fetchone()
        if first is None:
            values = (*key, row["version"], row["scores"].tobytes(), row["chosen"].tobytes())
            seen.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", values)
        elif first[0] != row["version"]:
            shared += 1
            scores, chosen = np.frombuffer(first[1], dtype=np.float32), np.frombuffer(first[2], dtype=bool)
            # Of equally many labels that with the larger differences of scores.
            difference = np.abs(row["scores"] - scores).mean() / len(scores)
            yield float((row["chosen"] != chosen).mean() + difference), row
    if not shared:
        raise DataError(nothing)


def _files(output: str) -> list[tuple[str, str]]:
    """The location and name of each file of an output of batch scoring."""
    if Path(output).is_file():
        return [(str(Path(output).parent), Path(output).name)]
    files = [file.name for file in store.files(output) if tables.is_table(file.name) and not file.name.startswith("_")]
    if not files:
        raise DataError(f"{output} has no file of `goemotions score`: give its output")
    return [(output, name) for name in files]


def _score_names(output: str) -> tuple[str, ...]:
    location, name = _files(output)[0]
    columns = tables.open_table(name, lambda: store.open_file(location, name)).columns
    names = tuple(column.removeprefix(SCORE) for column in columns if column.startswith(SCORE))
    if not names or "labels" not in columns:
        raise DataError(f"{name} of {output} has no scores: score the texts with --all-scores")
    return names


def _scored(output: str, names: Sequence[str], column: str) -> Iterator[Row]:
    """The rows of an output with a text. Their key is the text."""
    for location, name in _files(output):
        table = tables.open_table(name, lambda location=location, name=name: store.open_file(location, name), column)  # type: ignore[misc]
        wanted = [table.column(column), "labels", *(SCORE + one for one in names)]
        if missing := [one or column for one in wanted if one not in table.columns]:
            raise DataError(f"{name} of {output} has no column {missing[0]!r}: give the column of the texts by --text-column")
        for _, (text, labels, *scores) in table.rows(wanted):
            if text and text.strip():
                given = labels.split("|") if isinstance(labels, str) else labels
                key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
                about = {"id": key, "index": 0, "version": output, "text": text}
                yield {**about, "scores": np.array(scores, dtype=np.float32), "chosen": np.isin(names, given)}


def _best(ranked: Iterable[Worth], count: int, names: Sequence[str], seen: sqlite3.Connection) -> list[Candidate]:
    heap: list[tuple[float, int, str, Row]] = []
    texts: set[str] = set()
    for number, (worth, row) in enumerate(ranked):
        text = normalized(row["text"])
        if text in texts or (len(heap) == count and worth <= heap[0][0]):
            continue
        if seen.execute("SELECT 1 FROM labelled WHERE text = ?", (text,)).fetchone():
            continue
        texts.add(text)
        heapq.heappush(heap, (worth, -number, text, row))
        if len(heap) > count:
            texts.discard(heapq.heappop(heap)[2])
    return [_candidate(worth, row, names) for worth, _, _, row in sorted(heap, key=lambda one: one[:2], reverse=True)]


def _candidate(worth: float, row: Row, names: Sequence[str]) -> Candidate:
    scores = {name: round(float(score), 4) for name, score in zip(names, row["scores"], strict=True)}
    chosen = [name for name, is_chosen in zip(names, row["chosen"], strict=True) if is_chosen]
    labels = tuple(sorted(chosen, key=lambda name: -scores[name]))
    return Candidate(row["id"], row["index"], row["version"], row["text"], labels, scores, round(min(worth, 1.0), 4))
