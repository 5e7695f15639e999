"""The lock: one holder at a time, and a process that was killed blocks the others no longer than its lease."""

import json
import threading
import time
from pathlib import Path

import pytest

from goemotions.errors import StorageError
from goemotions.storage import lock
from goemotions.storage.s3 import S3Backend


@pytest.fixture(params=["s3", "folder"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("bucket") if request.param == "s3" else f"{tmp_path}/store/"


def test_a_lock_has_one_holder_at_a_time(location: str) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with lock.hold(location):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lock_of_a_killed_process_is_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    backend = S3Backend(bucket)
    old_tag = lock._acquire(backend)
    began = time.monotonic()
    with lock.hold(bucket):
        assert time.monotonic() - began > 0.9
        # The process was only slow: its release does not release the new holder's lock.
        assert backend.write_if(lock.NAME, lock._content(holder=""), old_tag) is None
        assert json.loads(backend.read(lock.NAME) or b"{}")["holder"]


def test_a_holder_that_takes_too_long_is_stopped(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.2)
    with lock.hold(location) as held:
        held.require()
        time.sleep(0.15)
        with pytest.raises(StorageError, match="the work took too long, another process may have taken over the lock"):
            held.require()


def test_waiting_for_a_lock_ends_with_a_named_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock._acquire(S3Backend(bucket))
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)
    with pytest.raises(StorageError, match=r"another process still holds lock\.json after 0\.5 s"), lock.hold(bucket):
        pass
