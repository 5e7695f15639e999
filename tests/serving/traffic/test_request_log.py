"""The request log: off by default, redacted, never in the way of a request, bounded on disk, whole after a kill."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from goemotions.data.request_log import ANSWERS, FEEDBACK, Labels, LogReader, is_logged
from goemotions.errors import RequestError, WorkflowError
from goemotions.serving.limits import LogSettings
from goemotions.serving.protocols.request_ids import answer_id
from goemotions.serving.traffic import request_log
from goemotions.serving.traffic.request_log import RequestLog
from tests.support.object_store import KEYS, Behaviour, ObjectStore, running

LABELS = Labels(("joy", "anger"), (0.5, 0.25), 2)
RESULT = SimpleNamespace(
    predictions=[{"labels": ["joy"], "scores": {}, "truncated": False}],
    probabilities=np.array([[0.75, 0.125]], dtype=np.float32),
)
Connect = Callable[[ObjectStore], None]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(request_log, "UPLOAD_SECONDS", 0.02)


@pytest.fixture
def connect(configure_s3: Callable[..., None]) -> Connect:
    return lambda server: configure_s3(AWS_ENDPOINT_URL=server.url, **KEYS)


def settings(folder: Path, **options: Any) -> LogSettings:
    return LogSettings(**{"log_share": 1.0, "log_folder": str(folder), **options})


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"goemotions_request_log_{name}_total", labels) or 0.0


def texts(folder: str | Path) -> list[str]:
    return [row["text"] for row in LogReader(str(folder), "m").rows(ANSWERS)]


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_off_by_default() -> None:
    assert LogSettings().log_share == 0


@pytest.mark.usefixtures("fast")
def test_answers_and_feedback_are_in_the_store_by_version_and_hour_without_personal_data(
    tmp_path: Path, connect: Connect
) -> None:
    with running(Behaviour()) as server:
        connect(server)
        log = RequestLog(settings(tmp_path, log_store="s3://b/", log_seconds=0.0), "m", "7", LABELS)
        log.add_answers("request-1", ["Mail jo@example.org"], RESULT)
        log.add_answers("request-2", ["so good"], RESULT)
        assert log.add_feedback("request-1", 0, ["anger"])
        log.close()
        keys = list(server.objects)
        reader = LogReader("s3://b/", "m")
        rows, feedback = list(reader.rows(ANSWERS)), list(reader.rows(FEEDBACK))
    folder = time.strftime("b/requests/m/7/date=%Y-%m-%d/hour=%H/", time.gmtime(rows[0]["time"].timestamp()))
    assert {key.rpartition("/")[0] + "/" for key in keys} == {folder}
    assert [row["text"] for row in rows] == ["Mail [EMAIL]", "so good"]
    first = rows[0]
    assert {**first, "scores": first["scores"].tolist(), "time": 0} == {
        "id": "request-1",
        "index": 0,
        "time": 0,
        "version": "7",
        "text": "Mail [EMAIL]",
        "labels": ["joy"],
        "scores": [0.75, 0.125],
        "truncated": False,
    }
    assert [(row["id"], row["index"], row["labels"]) for row in feedback] == [("request-1", 0, ["anger"])]
    assert reader.labels() == {"7": LABELS}
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_share_of_the_requests_is_drawn_by_their_ids() -> None:
    ids = [answer_id(None) for _ in range(2000)]
    drawn = [one for one in ids if is_logged(one, 0.25)]
    assert 0.2 < len(drawn) / len(ids) < 0.3
    assert all(is_logged(one, 0.5) for one in drawn)
    assert not any(is_logged(one, 0.0) for one in ids)


@pytest.mark.parametrize("given", [None, "", "short", "x" * 65, "a\nb" * 5, "jo@example.org", "../../../etc", "ünïcödé-id"])
def test_an_id_that_is_none_is_replaced(given: str | None) -> None:
    assert answer_id(given) != given
    assert answer_id("0123-4567_89ab") == "0123-4567_89ab"


@pytest.mark.fault("request-log-store-away")
@pytest.mark.usefixtures("fast")
def test_a_store_that_hangs_holds_up_nothing_and_the_oldest_files_make_room(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "PAUSE_SECONDS", 0.0)
    hangs = threading.Event()
    with running(Behaviour(late=lambda number: (hangs.wait(30) and 0.0) or 0.0)) as server:
        connect(server)
        dropped = counted("dropped_files")
        limit = 100_000
        log = RequestLog(settings(tmp_path, log_store="s3://b/", log_seconds=0.0, log_bytes=limit), "m", "7", LABELS)
        for number in range(200):
            log.add_answers(f"request-{number}", [" ".join(secrets.token_hex(4) + "x" for _ in range(90))], RESULT)
            if number % 10 == 9:
                until(lambda: log._put == log._taken)
                assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= limit
        assert counted("dropped_files") > dropped
        assert server.requests
        hangs.set()
        log.close()


@pytest.mark.fault("request-log-queue-full")
def test_a_full_queue_drops_and_counts_answers_and_rejects_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "WRITE_SECONDS", 30.0)
    monkeypatch.setattr(request_log, "QUEUE_ROWS", 3)
    log = RequestLog(settings(tmp_path), "m", "7", LABELS)
    before = counted("dropped_rows", reason="queue")
    for number in range(5):
        log.add_answers(f"request-{number}", ["a"], RESULT)
    assert counted("dropped_rows", reason="queue") == before + 2
    with pytest.raises(RequestError, match="too much feedback") as error:
        log.add_feedback("request-1", 0, ["joy"])
    assert (error.value.status, error.value.retry_after) == (429, 1)
    log.close()
    assert texts(tmp_path) == ["a"] * 3


@pytest.mark.fault("request-log-repeated-feedback")
def test_an_address_and_an_answer_have_their_own_quotas_of_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "FEEDBACK_SECONDS", 30.0)
    log = RequestLog(settings(tmp_path, peer_feedback=4, answer_feedback=2), "m", "7", LABELS)

    def refused(request_id: str, peer: str) -> str:
        with pytest.raises(RequestError) as error:
            log.add_feedback(request_id, 0, ["joy"], peer=peer)
        assert (error.value.status, error.value.retry_after) == (429, 30)
        return str(error.value)

    for number in (1, 1, 2):
        assert log.add_feedback(f"request-{number}", 0, ["joy"], peer="10.0.0.1")
    assert refused("request-1", "10.0.0.2") == "too much feedback to this answer: at most 2 per minute"
    assert log.add_feedback("request-3", 0, ["joy"], peer="10.0.0.1")
    assert refused("request-4", "10.0.0.1") == "too much feedback from this address: at most 4 per minute"
    assert log.add_feedback("request-4", 0, ["joy"], peer="10.0.0.2")
    monkeypatch.setattr(request_log, "FEEDBACK_SECONDS", 0.0)
    assert log.add_feedback("request-1", 0, ["anger"], "user-0001", "10.0.0.1")
    log.close()
    rows = list(LogReader(str(tmp_path), "m").rows(FEEDBACK))
    assert [(row["id"], row["user"]) for row in rows] == [
        *((f"request-{n}", "") for n in (1, 1, 2, 3, 4)),
        ("request-1", "user-0001"),
    ]


@pytest.mark.fault("request-log-disk-full")
@pytest.mark.usefixtures("fast")
def test_a_full_disk_drops_and_counts_rows_and_ends_nothing(tmp_path: Path) -> None:
    # Linux has a device without space; the segment of this process is one.
    log = RequestLog(settings(tmp_path), "m", "7", LABELS)
    before = counted("dropped_rows", reason="disk")
    log.add_answers("request-1", ["written"], RESULT)
    until(lambda: log._segments._file)
    whole = log._segments._file
    with Path("/dev/full").open("wb", buffering=0) as full:
        log._segments._file = full
        log.add_answers("request-2", ["lost"], RESULT)
        until(lambda: counted("dropped_rows", reason="disk") == before + 1)
        log._segments._file = whole
    log.add_answers("request-3", ["written, too"], RESULT)
    log.close()
    assert texts(tmp_path) == ["written", "written, too"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.serving.traffic.test_request_log import LABELS, RESULT, settings
from goemotions.serving.traffic.request_log import RequestLog
log = RequestLog(settings(Path(sys.argv[1])), "m", "7", LABELS)
for number in range(50):
    log.add_answers(f"request-{number}", [f"text {number}"], RESULT)
time.sleep(1.2)
log.add_answers("request-late", ["too late"], RESULT)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.fault("request-log-killed")
@pytest.mark.usefixtures("fast")
def test_a_killed_process_loses_the_last_second_and_no_torn_line_is_read(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"kind":"part","id":"request-torn","text":"to')
    RequestLog(settings(tmp_path), "m", "8", LABELS).close()
    assert texts(tmp_path) == [f"text {number}" for number in range(50)]
    assert {row["version"] for row in LogReader(str(tmp_path), "m").rows(ANSWERS)} == {"7"}
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.fault("request-log-foreign-files")
@pytest.mark.usefixtures("fast")
def test_other_files_of_the_folder_are_neither_read_nor_uploaded_nor_removed(tmp_path: Path, connect: Connect) -> None:
    others = {
        "train.jsonl": b"{}\n",
        "scored.parquet": b"PAR1",
        "requests/notes.parquet": b"PAR1",
        "sub/part-1.parquet": b"PAR1",
    }
    for name, content in others.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with running(Behaviour()) as server:
        connect(server)
        log = RequestLog(settings(tmp_path, log_store="s3://b/", log_seconds=0.0, log_bytes=2**20), "m", "7", LABELS)
        log.add_answers("request-1", ["so good"], RESULT)
        log.close()
        assert [key.rpartition("/")[2][:5] for key in server.objects] == ["part-"]
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


@pytest.mark.usefixtures("fast")
def test_the_segment_of_a_process_that_runs_is_left_to_it(tmp_path: Path) -> None:
    first, second = (RequestLog(settings(tmp_path), "m", "7", LABELS, workers=2) for _ in range(2))
    for number in range(20):
        (first, second)[number % 2].add_answers(f"request-{number}", [f"{number} times"], RESULT)
    until(lambda: len(list(tmp_path.glob("*.jsonl"))) == 2)
    RequestLog(settings(tmp_path), "m", "7", LABELS, workers=2).close()
    assert not texts(tmp_path)
    first.close()
    second.close()
    assert sorted(texts(tmp_path)) == sorted(f"{number} times" for number in range(20))


def test_the_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    with pytest.raises(WorkflowError, match="belongs to another user: give another --log-folder"):
        RequestLog(settings(tmp_path), "m", "7", LABELS)
