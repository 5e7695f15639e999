"""Labels of users and annotators as training data: joined with the answers in the request log, one row per text.

What is joined is kept in a file meanwhile, so that neither the log nor the feedback has to fit into memory.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import logging
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from goemotions.data import annotation, dataset
from goemotions.data.labels import SOFT_LABELS
from goemotions.data.request_log import ANSWERS, FEEDBACK, FEEDBACK_DELAY, LogReader
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import as_cell, normalized
from goemotions.errors import DataError
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder

log = logging.getLogger(__name__)

NEWEST, MAJORITY = "newest", "majority"
# Of the ids of the rows.
ROW_PREFIX = "feedback-"
INFO_FILE, CONFLICTS_FILE = "feedback.json", "conflicts.csv"
# Most rows with an unknown label that are listed; all are counted.
MOST_LISTED = 100_000
BATCH = 4096
TABLES = """
CREATE TABLE feedback (id TEXT, position INTEGER, time REAL, labels TEXT, voter TEXT);
CREATE INDEX of_answer ON feedback (id, position);
CREATE TABLE answers (id TEXT, position INTEGER, text TEXT, PRIMARY KEY (id, position));
CREATE TABLE ambiguous (id TEXT, position INTEGER, PRIMARY KEY (id, position));
CREATE TABLE votes
    (text TEXT, shown TEXT, id TEXT, position INTEGER, time REAL, labels TEXT, predicted TEXT, version TEXT, voter TEXT);
"""


@dataclass
class Counts:
    """What became of the feedback; the content of ``feedback.json`` besides the options.

    Attributes:
        feedback: labels of users in the log; ``exported``: of annotators in the files.
        without_answer: of the former, those whose answer is not in the log.
        ambiguous: those whose id has several texts.
        unknown_labels: of both, those with a label that is not in the taxonomy.
        repeated: those that their user, or without one any user of the same answer, gave other labels later.
        texts: different texts with labels.
        conflicts: of those, texts with several label sets, of which one was chosen.
        held_out: texts left out because they are in validation or test.
        replaced: rows of earlier feedback whose text has labels again, and which are therefore left out.
        rows: written; ``as_predicted``: of those, with the labels that the model had predicted.
        versions: rows per version of the model.
        since, until: of the labels that were written.
    """

    feedback: int = 0
    exported: int = 0
    without_answer: int = 0
    ambiguous: int = 0
    unknown_labels: int = 0
    repeated: int = 0
    texts: int = 0
    conflicts: int = 0
    held_out: int = 0
    replaced: int = 0
    rows: int = 0
    as_predicted: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    since: str = ""
    until: str = ""

    def add(self, vote: Vote) -> None:
        moment = datetime.fromtimestamp(vote.time, UTC).isoformat(timespec="seconds")
        self.rows += 1
        self.as_predicted += vote.labels == vote.predicted
        self.versions[vote.version] += 1
        self.since, self.until = min(self.since or moment, moment), max(self.until, moment)


@dataclass(frozen=True)
class Vote:
    """The labels that somebody, the ``voter``, gave a text: names in alphabetical order."""

    text: str
    id: str
    position: int
    time: float
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    version: str
    voter: str

    @property
    def row_id(self) -> str:
        return _row_id(self.id, self.position)


@store.raise_on_full_disk
def from_feedback(
    output: Path,
    reader: LogReader | None,
    *,
    labelled: Sequence[Path] = (),
    append_to: str = "",
    conflicts: str = NEWEST,
    max_quarantined: float = 1.0,
) -> Counts:
    """Writes a source with the labels of users and annotators as train, which ``ingest`` reads.

    Args:
        output: the folder to write: ``train.parquet``, which has the names of the labels, ``feedback.json``, ``conflicts.csv`` and
            ``quarantine.csv``; with ``append_to`` also ``validation.parquet`` and ``test.parquet``.
        reader: the request log; None for annotators' labels alone.
        labelled: exports of Label Studio or Argilla.
        append_to: a source or Dataset folder. Its rows of train come first, and its validation and test stay as they are; texts that
            are in these are left out. If it has rows of earlier feedback, those are replaced whose text has labels again.
        conflicts: which labels a text has that was given several: the ``newest``, or those of the ``majority`` (of equal ones the
            newest). Each voter counts once per text, by the newest labels: a user, an annotator's row of an export, or, of users that
            are not known, all who were given the same answer.
        max_quarantined: the largest share of the labels of users and annotators that may be left out, because the taxonomy does not
            have one of them.

    Raises:
        DataError: there is no feedback, too much of it has unknown labels, or a file is no export.
        StorageError: the log cannot be read.
    """
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty: give another folder")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(temporary_folder())
        base = stack.enter_context(dataset.as_folder(append_to)) if append_to else None
        taxonomy = _taxonomy(reader, base)
        counts = Counts()
        joined = stack.enter_context(contextlib.closing(sqlite3.connect(scratch / "joined.sqlite", isolation_level=None)))
        joined.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {TABLES}")
        joined.execute("BEGIN")
        written = scratch / "source"
        written.mkdir()
        with (written / dataset.QUARANTINE_FILE).open("w", newline="", encoding="utf-8") as file:
            known = _KnownLabels(taxonomy, counts, csv.writer(file))
            if reader:
                _join(joined, reader, known, counts)
            for path in labelled:
                _add_export(joined, path, known, counts)
        if counts.unknown_labels > max_quarantined * (counts.feedback + counts.exported):
            raise DataError(
                f"{counts.unknown_labels:,} rows have labels that the taxonomy does not have ({known.first}): rename them, or allow "
                "more to be left out"
            )
        again = {_digest(text) for (text,) in joined.execute("SELECT shown FROM votes")}
        _write(written, base, taxonomy, _chosen(joined, conflicts, written / CONFLICTS_FILE, counts), again, counts)
        if not counts.rows:
            raise DataError(f"there is no feedback to write: {_reasons(counts)}")
        options = {"log": reader.location if reader else "", "append_to": append_to, "conflicts_by": conflicts}
        about = options | {"labelled": [path.name for path in labelled]} | vars(counts)
        (written / INFO_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")
        shutil.copytree(written, output, dirs_exist_ok=True)
    return counts


def _reasons(counts: Counts) -> str:
    return (
        f"{counts.feedback} in the log, of which {counts.without_answer} have no answer there and {counts.ambiguous} an id of several "
        f"texts; {counts.exported} in exports; {counts.unknown_labels} have labels that the taxonomy does not have; {counts.held_out} "
        "texts are in validation or test"
    )


class _KnownLabels:
    """The rows whose labels the taxonomy has; the others are counted and listed."""

    def __init__(self, taxonomy: Taxonomy, counts: Counts, lines: Any) -> None:
        self._names, self._counts, self._lines = set(taxonomy.names), counts, lines
        self.first = ""
        lines.writerow(["file", "id", "reason"])

    def check(self, place: str, row_id: str, labels: Iterable[str]) -> bool:
        unknown = sorted(set(labels) - self._names)
        if unknown:
            self.first = self.first or f"such as {unknown[0][:100]!r} in {place}"
            if self._counts.unknown_labels < MOST_LISTED:
                self._lines.writerow([place, row_id, f"the taxonomy has no label {unknown[0][:100]!r}"])
            self._counts.unknown_labels += 1
        return not unknown


def _taxonomy(reader: LogReader | None, base: Path | None) -> Taxonomy:
    known = [Taxonomy(next(iter(reader.labels().values())).names)] if reader else []
    if base:
        known.append(dataset.taxonomy_of(dataset.load_dataset(base, ())[1]))
    if not known:
        raise DataError("the labels are not known: give --log, or --append-to with the data that they belong to")
    if set(known[0].names) != set(known[-1].names):
        raise DataError("the request log and --append-to have other labels: give the data that the model was trained on")
    return known[-1]


def _join(joined: sqlite3.Connection, reader: LogReader, known: _KnownLabels, counts: Counts) -> None:
    for row in reader.rows(FEEDBACK):
        counts.feedback += 1
        row_id = _row_id(row["id"], row["index"])
        if known.check(reader.location, row_id, row["labels"]):
            values = (row["id"], row["index"], row["time"].timestamp(), _json(row["labels"]), row.get("user") or row_id)
            joined.execute("INSERT INTO feedback VALUES (?, ?, ?, ?, ?)", values)
    for row in reader.rows(ANSWERS, earlier=FEEDBACK_DELAY):
        key = (row["id"], row["index"])
        given = joined.execute("SELECT time, labels, voter FROM feedback WHERE id = ? AND position = ?", key).fetchall()
        if given and _is_new(joined, key, row["text"]):
            about = (_json(row["labels"]), row["version"])
            joined.executemany(
                "INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(normalized(row["text"]), row["text"], *key, time, labels, *about, voter) for time, labels, voter in given],
            )
    joined.execute("DELETE FROM votes WHERE (id, position) IN (SELECT id, position FROM ambiguous)")
    ambiguous = "SELECT count(*) FROM feedback WHERE (id, position) IN (SELECT id, position FROM ambiguous)"
    counts.ambiguous = joined.execute(ambiguous).fetchone()[0]
    missing = "SELECT count(*) FROM feedback WHERE (id, position) NOT IN (SELECT id, position FROM answers)"
    counts.without_answer = joined.execute(missing).fetchone()[0]


def _is_new(joined: sqlite3.Connection, key: tuple[str, int], text: str) -> bool:
    """Whether an answer is the first of its id and position. A request that is repeated has the same text; another one is ambiguous."""
    known = joined.execute("SELECT text FROM answers WHERE id = ? AND position = ?", key).fetchone()
    if known is None:
        joined.execute("INSERT INTO answers VALUES (?, ?, ?)", (*key, text))
    elif known[0] != text:
        joined.execute("INSERT OR IGNORE INTO ambiguous VALUES (?, ?)", key)
    return known is None


def _add_export(joined: sqlite3.Connection, path: Path, known: _KnownLabels, counts: Counts) -> None:
    for one in annotation.read_export(path):
        counts.exported += 1
        if known.check(path.name, _row_id(one.id, one.position), one.labels):
            about = (one.id, one.position, one.time, _json(one.labels), _json(one.predicted), one.version)
            values = (normalized(one.text), one.text, *about, f"row {counts.exported}")
            joined.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _json(names: Iterable[str]) -> str:
    return json.dumps(sorted(set(names)))


def _chosen(joined: sqlite3.Connection, policy: str, conflicts: Path, counts: Counts) -> Iterator[Vote]:
    """One vote per text; writes those that differ from it to ``conflicts``."""
    rows = joined.execute("SELECT * FROM votes ORDER BY text, time, id, position")
    with conflicts.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["text_of", "id", "labels", "chosen"])
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            given = [_vote(row) for row in group]
            newest = {vote.voter: vote for vote in given}
            votes = [vote for vote in given if newest[vote.voter] is vote]
            counts.repeated += len(given) - len(votes)
            times_given = Counter(vote.labels for vote in votes)
            most = max(times_given.values()) if policy == MAJORITY else 0
            chosen = next(vote for vote in reversed(votes) if times_given[vote.labels] >= most)
            counts.texts += 1
            counts.conflicts += len(times_given) > 1
            if len(times_given) > 1:
                rest = [("|".join(vote.labels), vote.labels == chosen.labels) for vote in votes]
                lines.writerows(
                    map(as_cell, (chosen.row_id, vote.row_id, *cells)) for vote, cells in zip(votes, rest, strict=True)
                )
            yield chosen


def _vote(row: Sequence[Any]) -> Vote:
    _, text, answer_id, position, time, labels, predicted, version, voter = row
    return Vote(text, answer_id, position, time, tuple(json.loads(labels)), tuple(json.loads(predicted)), version, voter)


def _row_id(answer_id: str, position: int) -> str:
    return f"{ROW_PREFIX}{answer_id}-{position}"


def _write(
    output: Path, base: Path | None, taxonomy: Taxonomy, votes: Iterable[Vote], again: set[bytes], counts: Counts
) -> None:
    """``again`` has the digests of the texts that have votes."""
    # It takes a second, which only commands that write rows need.
    import datasets

    splits = dataset.load_dataset(base)[0] if base else datasets.DatasetDict()
    held_out = set()
    for name in ("validation", "test"):
        if name in splits:
            splits[name].to_parquet(output / f"{name}.parquet")
            held_out |= {_digest(text) for batch in splits[name].iter(BATCH) for text in batch["text"]}
    features = (
        splits["train"].features
        if base
        else datasets.Features(
            id=datasets.Value("string"),
            text=datasets.Value("string"),
            labels=datasets.List(datasets.ClassLabel(names=list(taxonomy.names))),
        )
    )
    place = {name: position for position, name in enumerate(taxonomy.names)}
    schema = features.arrow_schema
    with pq.ParquetWriter(output / "train.parquet", schema) as writer:
        if base:
            for batch in splits["train"].with_format("arrow").iter(BATCH):
                rows = zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)
                is_kept = [not (row_id.startswith(ROW_PREFIX) and _digest(text) in again) for row_id, text in rows]
                counts.replaced += is_kept.count(False)
                writer.write_table(batch.filter(pa.array(is_kept)).cast(schema))
        while some := list(itertools.islice(votes, BATCH)):
            kept = [vote for vote in some if _digest(vote.text) not in held_out]
            counts.held_out += len(some) - len(kept)
            added = []
            for vote in kept:
                counts.add(vote)
                labels = [place[name] for name in vote.labels]
                shares = [float(position in labels) for position in range(len(taxonomy))]
                added.append({"id": vote.row_id, "text": vote.text, "labels": labels, SOFT_LABELS: shares})
            writer.write_table(pa.Table.from_pylist(added, schema=schema))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(normalized(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
