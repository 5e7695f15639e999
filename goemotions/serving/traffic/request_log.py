"""The request log: a sample of the answers, redacted, and the feedback to them, as Parquet files in the store. Off by default.

Requests append to a bounded queue and wait for nothing. One thread writes the queue to a segment, a local file of JSON lines, and makes
Parquet files of complete segments; another one uploads these. The oldest files are dropped if they take more than the bytes they may.
Of a process that is killed, the next one takes over the segment, but for a line that is not complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import math
import os
import re
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions.data import redaction, request_log
from goemotions.data.request_log import ANSWERS, FEEDBACK, Labels
from goemotions.errors import RequestError, WorkflowError
from goemotions.serving import metrics
from goemotions.serving.limits import LogSettings
from goemotions.storage import layout, store
from goemotions.storage.folder import replacing

logger = logging.getLogger(__name__)
# Rows in the queue, feedback per period of the writing thread, and seconds for which that of an address and to an answer is counted.
QUEUE_ROWS, FEEDBACK_ROWS, FEEDBACK_SECONDS = 4096, 256, 60.0
WRITE_SECONDS, UPLOAD_SECONDS = 0.5, 5.0
# So many rows are written at once, with a pause after them, so that requests do not wait for the interpreter.
CHUNK_ROWS, PAUSE_SECONDS = 32, 0.02
SEGMENT_BYTES = 8 * 2**20
TABLE_ROWS = 128
# The folder may hold other files, which stay as they are.
SEGMENT, SEGMENT_NAME = ".jsonl", re.compile(r"[0-9a-f]{8}-\d{6,}\.jsonl")
# The columns of which a file has the same values over and over.
REPEATED = ["version", "labels.list.element"]


class RequestLog:
    """The log of one process.

    Args:
        settings: what is logged, and where.
        model_name, version, labels: of the model that is served.
        workers: processes that share the folder.

    Raises:
        WorkflowError: the folder cannot be made or belongs to another user, or the address of the store is wrong.
    """

    def __init__(self, settings: LogSettings, model_name: str, version: str, labels: Labels, workers: int = 1) -> None:
        self._settings, self._version, self._labels = settings, version, labels
        _make_private(settings.folder)
        if settings.log_store:
            store.connect(settings.log_store)
        self._segments = Segments(settings, model_name, version, labels, workers)
        # Numbers of rows, and the rows, which the thread that writes them makes.
        self._queue: deque[tuple[int, Iterable[dict[str, Any]]]] = deque()
        # The event loop counts what it puts, and the thread that writes what it takes.
        self._put = self._taken = self._feedback = 0
        self._quotas, self._quotas_since = Counter[tuple[str, str]](), time.monotonic()
        self._is_closing = threading.Event()
        self._threads = [threading.Thread(target=self._write, name="request-log", daemon=True)]
        if settings.log_store:
            self._threads.append(threading.Thread(target=self._upload, name="request-log-upload", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def share(self) -> float:
        """The share of the requests whose answers are logged."""
        return self._settings.log_share

    def add_answers(self, request_id: str, texts: Sequence[str], result: Any) -> None:
        """Logs a ``service.Result``, if its request is in the sample; drops and counts it if the queue is full."""
        if not request_log.is_logged(request_id, self._settings.log_share):
            return
        cut = [text[: 2 * redaction.MAX_CHARACTERS] for text in texts]
        self._append(len(cut), self._answers(self._row(ANSWERS, request_id), cut, result))

    def add_feedback(self, request_id: str, index: int, labels: list[str], user: str = "", peer: str = "") -> bool:
        """Logs the labels that a user gave a text; returns whether its answer is in the log, without which they are of no use.

        Args:
            request_id, index: of the answer.
            labels: the right ones.
            user: a pseudonym; empty if it is not known.
            peer: the address that sends them.

        Raises:
            RequestError: 400 for labels that the model does not have, 429 for too much feedback, of all or of this address or answer.
        """
        if unknown := [label for label in labels if label not in self._labels.names]:
            raise RequestError(f"labels: the model has no label {unknown[0][:50]!r}")
        if not request_log.is_logged(request_id, self._settings.log_share):
            return False
        counted = self._within_quotas(peer, f"{request_id} {index}")
        self._feedback += 1
        row = {**self._row(FEEDBACK, request_id), "index": index, "labels": list(dict.fromkeys(labels)), "user": user}
        if self._feedback > FEEDBACK_ROWS or not self._append(1, [row]):
            raise RequestError("too much feedback: try again later", 429, retry_after=1)
        self._quotas.update(counted)
        return True

    def _within_quotas(self, peer: str, answer: str) -> list[tuple[str, str]]:
        """What one more feedback counts for, if the quotas of this minute have room for it."""
        left = FEEDBACK_SECONDS - (time.monotonic() - self._quotas_since)
        if left <= 0:
            self._quotas, self._quotas_since, left = Counter(), time.monotonic(), FEEDBACK_SECONDS
        most = {
            ("from this address", peer): self._settings.peer_feedback,
            ("to this answer", answer): self._settings.answer_feedback,
        }
        for key, quota in most.items():
            if self._quotas[key] >= quota:
                raise RequestError(
                    f"too much feedback {key[0]}: at most {quota:,} per minute", 429, retry_after=math.ceil(left)
                )
        return list(most)

    def close(self) -> None:
        """Writes what is queued, and uploads once more."""
        self._is_closing.set()
        for thread in self._threads:
            thread.join()

    def _append(self, count: int, rows: Iterable[dict[str, Any]]) -> bool:
        if self._put - self._taken + count > QUEUE_ROWS:
            metrics.LOG_DROPPED.labels("queue").inc(count)
            return False
        self._put += count
        self._queue.append((count, rows))
        return True

    def _write(self) -> None:
        self._segments.adopt()
        while not self._is_closing.wait(WRITE_SECONDS):
            self._drain()
        self._drain()
        self._segments.rotate()

    def _drain(self) -> None:
        """Writes what is in the queue now."""
        self._feedback = 0
        rows: list[dict[str, Any]] = []
        for _ in range(len(self._queue)):
            count, queued = self._queue.popleft()
            with _logged("an answer is not logged"):
                for row in queued:
                    rows.append(row)
                    if len(rows) == CHUNK_ROWS:
                        self._segments.append(rows)
                        rows = []
                        self._is_closing.wait(PAUSE_SECONDS)
            self._taken += count
        self._segments.append(rows)

    def _row(self, kind: str, request_id: str) -> dict[str, Any]:
        return {"kind": kind, "id": request_id, "time": time.time(), "version": self._version}

    def _answers(self, row: dict[str, Any], texts: Sequence[str], result: Any) -> Iterator[dict[str, Any]]:
        for index, (text, answer, scores) in enumerate(zip(texts, result.predictions, result.probabilities, strict=True)):
            values = {"labels": answer["labels"], "truncated": answer["truncated"], "scores": scores}
            yield {**row, "index": index, "text": redaction.redact(text), **values}

    def _upload(self) -> None:
        while not self._is_closing.wait(UPLOAD_SECONDS):
            self._segments.upload()
        # What the other thread makes of the last segment.
        self._threads[0].join()
        self._segments.upload()


class Segments:
    """The files of the log on disk: the segment of this process, and the Parquet files of all."""

    def __init__(self, settings: LogSettings, model_name: str, version: str, labels: Labels, workers: int) -> None:
        self._settings = settings
        self._root = settings.folder
        self._header = {"model": model_name, "version": version, **asdict(labels)}
        self._worker, self._number = secrets.token_hex(4), 0
        self._most = min(SEGMENT_BYTES, settings.log_bytes // (4 * workers))
        # The segments of all workers, and as much again while they become Parquet files, may be there at the same time.
        self._parts_most = settings.log_bytes - 2 * workers * self._most
        self._file: BinaryIO | None = None
        self._path = self._root
        self._started, self._size = 0.0, 0

    def adopt(self) -> None:
        """Makes Parquet files of the segments of processes that have ended."""
        with _logged("segments of ended processes are left"):
            for path in sorted(path for path in self._root.glob(f"*{SEGMENT}") if SEGMENT_NAME.fullmatch(path.name)):
                with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.exists():
                        self._convert(path)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes rows; those that the disk does not take are dropped and counted. Ends the segment if it is large or old."""
        if rows:
            lines = b"".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE) for row in rows)
            with _logged("rows are not written"):
                if self._write(lines):
                    metrics.LOGGED.labels(ANSWERS).inc(sum(row["kind"] == ANSWERS for row in rows))
                    metrics.LOGGED.labels(FEEDBACK).inc(sum(row["kind"] == FEEDBACK for row in rows))
                    lines = b""
            metrics.LOG_DROPPED.labels("disk").inc(len(rows) if lines else 0)
        if self._file and (self._size > self._most or time.monotonic() - self._started > self._settings.log_seconds):
            self.rotate()

    def rotate(self) -> None:
        """Makes Parquet files of the segment."""
        if self._file:
            self._convert(self._path)
            self._file.close()
            self._file = None

    def upload(self) -> None:
        """Moves the Parquet files of all processes to the store, oldest first, unless another process does so."""
        with _logged("files of the log are not uploaded"), (self._root / ".upload").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self._parts():
                name = path.relative_to(self._root).as_posix()
                store.write(self._settings.log_store, name, path.read_bytes())
                path.unlink(missing_ok=True)
                metrics.LOG_UPLOADED.inc()

    def _write(self, lines: bytes) -> bool:
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            is_complete = self._file.write(lines) == len(lines)
        except OSError:
            is_complete = False
        if is_complete:
            self._size += len(lines)
        else:
            # The next lines begin where these do.
            self._file.seek(self._size)
            self._file.truncate(self._size)
        return is_complete

    def _open(self) -> None:
        """Begins a segment. It has its name only when it is locked, since another process takes those that are not."""
        self._number += 1
        self._path = self._root / f"{self._worker}-{self._number:06}{SEGMENT}"
        hidden = self._path.with_suffix(".new")
        header = orjson.dumps(self._header) + b"\n"
        file = hidden.open("wb", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.write(header) < len(header):
                raise OSError("the disk is full")
            hidden.rename(self._path)
        except OSError:
            file.close()
            hidden.unlink(missing_ok=True)
            raise
        self._file, self._size, self._started = file, len(header), time.monotonic()

    def _convert(self, path: Path) -> None:
        """Writes the rows of a segment as Parquet files, one per kind and hour, and removes it."""
        is_whole = False
        with _logged(f"the segment {path.name} is dropped"):
            written: dict[tuple[str, datetime], list[pa.Table]] = {}
            with path.open("rb") as file:
                about = orjson.loads(file.readline())
                labels = Labels(tuple(about["names"]), tuple(about["thresholds"]), about.get("k"))
                # Few at a time: the interpreter is not free for requests while rows become a table.
                while lines := list(itertools.islice(file, TABLE_ROWS)):
                    for key, rows in _by_hour(lines).items():
                        written.setdefault(key, []).append(request_log.table(key[0], rows, labels))
            root = Path(layout.requests(str(self._root), about["model"]))
            worker, _, number = path.stem.partition("-")
            for (kind, hour), tables in written.items():
                name = request_log.name(kind, about["version"], hour, worker, int(number))
                with replacing(root / name) as partial:
                    # Texts, ids and scores hardly repeat: a dictionary of them takes longer and more bytes.
                    pq.write_table(pa.concat_tables(tables), partial, compression="zstd", use_dictionary=REPEATED)
            is_whole = True
        metrics.LOG_DROPPED_FILES.inc(not is_whole)
        path.unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        """Drops the oldest Parquet files until the others take no more than they may."""
        with contextlib.suppress(FileNotFoundError):
            sizes = {path: path.stat().st_size for path in self._parts()}
            total = sum(sizes.values())
            for path, size in sizes.items():
                if total <= self._parts_most:
                    break
                path.unlink(missing_ok=True)
                total -= size
                metrics.LOG_DROPPED_FILES.inc()

    def _parts(self) -> list[Path]:
        """The Parquet files, oldest first."""
        files = Path(layout.requests(str(self._root), "")).rglob("*.parquet")
        paths = (path for path in files if request_log.PATH.fullmatch("/".join(path.parts[-4:])))
        return sorted(paths, key=lambda path: (path.parent.parent.name, path.parent.name, path.name.partition("-")[2]))


def _by_hour(lines: Sequence[bytes]) -> dict[tuple[str, datetime], list[dict[str, Any]]]:
    """The rows of a segment by kind and hour; without the line that a killed process was writing."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines:
        with contextlib.suppress(orjson.JSONDecodeError):
            row = orjson.loads(line)
            rows.setdefault((row["kind"], int(row["time"] // 3600)), []).append(row)
    return {(kind, datetime.fromtimestamp(3600 * hour, UTC)): listed for (kind, hour), listed in rows.items()}


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise WorkflowError(f"{folder} belongs to another user: give another --log-folder")
    except OSError as error:
        raise WorkflowError(f"{folder} cannot be made ({error.strerror}): give another --log-folder") from error


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """The log never ends a thread of the server: an error is a line of the server's own log."""
    try:
        yield
    except BlockingIOError:
        # Another process holds the lock.
        pass
    except Exception as error:
        # Messages of other libraries may hold texts of users.
        reason = error if isinstance(error, WorkflowError) else getattr(error, "strerror", None) or type(error).__name__
        logger.warning("%s: %s", what, reason)
