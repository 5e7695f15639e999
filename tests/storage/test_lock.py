"""The lock: one holder at a time on every store, whatever it does, and a process that was killed blocks no longer than its lease."""

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import boto3
import hypothesis
import pytest
from botocore.config import Config
from hypothesis import strategies as st

from goemotions.errors import StorageError
from goemotions.storage import lock, probe, s3
from goemotions.storage.s3 import S3Backend
from tests.support.object_store import Behaviour, ObjectStore, running

PLACE = "s3://bucket/models/m/"
KEY = "bucket/models/m/lock.json"


@pytest.fixture(params=["s3", "folder"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("bucket") if request.param == "s3" else f"{tmp_path}/store/"


@pytest.fixture(scope="module")
def memory_store() -> Iterator[tuple[ObjectStore, Any]]:
    """A store in memory and its client, which takes a second to make."""
    with running(Behaviour()) as server:
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        yield server, boto3.client("s3", endpoint_url=server.url, config=Config(s3={"addressing_style": "path"}), **keys)


@pytest.fixture
def a_store(memory_store: tuple[ObjectStore, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., ObjectStore]:
    """A function that puts an empty store in memory in place of S3, which behaves as the arguments say."""
    server, client = memory_store

    def start(**behaviour: Any) -> ObjectStore:
        server.behaviour, server.objects = Behaviour(**behaviour), {}
        monkeypatch.setattr(s3, "client", lambda: client)
        monkeypatch.setattr(probe, "_suitable", set())
        return server

    return start


def held_by_another(location: str) -> lock._ObjectLock:
    """A lock as a process that was killed leaves it."""
    one = lock._ObjectLock(S3Backend(location))
    one.acquire(lock.WAIT_SECONDS)
    return one


def test_a_lock_has_one_holder_at_a_time(location: str) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with lock.hold(location) as held, held.writing():
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
    former = held_by_another(bucket)
    began = time.monotonic()
    with lock.hold(bucket):
        assert time.monotonic() - began > 0.9
        # The process was only slow: it can neither write nor release the new holder's lock.
        with pytest.raises(StorageError, match=r"another process has taken over lock\.json.*: run the command again"):
            former.require()
        former.release()
        assert json.loads(S3Backend(bucket).read(lock.NAME) or b"{}")["holder"]


@pytest.mark.fault("lock-lost")
def test_a_holder_that_was_slow_goes_on_only_if_nobody_took_over(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_store()
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.2)
    with lock.hold(PLACE) as held:
        time.sleep(0.3)
        with held.writing():
            pass
        with lock.hold(PLACE), pytest.raises(StorageError, match="another process has taken over"), held.writing():
            pytest.fail("the holder of before wrote")


@pytest.mark.fault("lock-lost")
@pytest.mark.parametrize("is_renewed", [True, False])
def test_a_lost_response_to_a_renewal_is_no_takeover(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch, is_renewed: bool
) -> None:
    """The store wrote the lock, but its response came too late for this process."""
    server = a_store()
    impatient = Config(s3={"addressing_style": "path"}, read_timeout=0.3, retries={"total_max_attempts": 1})
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=server.url, config=impatient, **keys)
    with lock.hold(PLACE) as held:
        server.behaviour.late = lambda _: 0.6
        with monkeypatch.context() as patched:
            patched.setattr(s3, "client", lambda: client)
            with pytest.raises(StorageError, match="cannot be reached"):
                held.require()
        server.behaviour.late = lambda _: 0.0
        if is_renewed:
            with held.writing():
                pass
    began = time.monotonic()
    with lock.hold(PLACE):
        assert time.monotonic() - began < lock.LEASE_SECONDS / 4


@pytest.mark.fault("lock-lost")
def test_a_write_that_outlasts_the_lease_is_an_error(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_store()
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.1)
    with (
        lock.hold(PLACE) as held,
        pytest.raises(StorageError, match=r"may have written meanwhile: see `make status`"),
        held.writing(),
    ):
        time.sleep(0.15)


@pytest.mark.fault("lock-lost")
def test_a_response_that_comes_after_the_lease_gives_no_lock(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes: the store writes the lock of the first at once, and answers after the second has taken it over."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.05)
    is_late = threading.Event()
    server = a_store(late=lambda _: 0.0)
    probe.require(PLACE)
    inside: list[str] = []
    overlaps: list[list[str]] = []

    def work(name: str, seconds: float) -> None:
        with lock.hold(PLACE):
            inside.append(name)
            overlaps.append(list(inside))
            time.sleep(seconds)
            inside.remove(name)

    def late(_: int) -> float:
        return 0.0 if is_late.is_set() else (is_late.set() or 0.9)

    server.behaviour.late = late
    slow = threading.Thread(target=work, args=("slow", 0.0))
    slow.start()
    assert is_late.wait(5)
    quick = threading.Thread(target=work, args=("quick", 0.3))
    quick.start()
    for thread in (slow, quick):
        thread.join(20)
    assert overlaps == [["quick"], ["slow"]]


@pytest.mark.fault("lock-store-unfit")
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"ignored": frozenset({"If-Match", "If-None-Match"})}, "ignores the condition If-None-Match"),
        ({"ignored": frozenset({"If-None-Match"})}, "ignores the condition If-None-Match"),
        ({"ignored": frozenset({"If-Match"})}, "ignores the condition If-Match"),
        ({"refused": {"PUT if": (412, "PreconditionFailed")}}, "refuses If-None-Match for a new object"),
        ({"refused": {"PUT if": (501, "NotImplemented")}}, "does not support a request .NotImplemented."),
        ({"refused": {"PUT": (403, "AccessDenied")}}, "access denied .AccessDenied.: check the keys"),
        ({"tag": lambda tag: f"W/{tag}"}, "does not return what was written last, or returns it with another tag"),
        ({"listed": lambda key: "probe" not in key}, "does not list what was written last"),
    ],
)
def test_a_store_that_cannot_hold_a_lock_is_refused_by_name(
    a_store: Callable[..., ObjectStore], behaviour: dict[str, Any], message: str
) -> None:
    server = a_store(**behaviour)
    for _ in range(2):
        with pytest.raises(StorageError, match=f"^{PLACE}: .*{message}"), lock.hold(PLACE):
            pytest.fail("the lock was held")
    assert server.objects == {}, "the test of the store leaves nothing behind"


@pytest.mark.fault("lock-store-unfit")
def test_a_condition_that_never_holds_is_not_tried_for_ever(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.0)
    server = a_store()
    with lock.hold(PLACE):
        pass
    server.behaviour.refused["PUT if"] = (412, "PreconditionFailed")
    with (
        pytest.raises(StorageError, match=r"refused to write lock\.json 10 times although it had not changed"),
        lock.hold(PLACE),
    ):
        pass


@pytest.mark.fault("lock-store-unfit")
def test_a_store_that_always_answers_late_is_an_error_in_bounded_time(
    a_store: Callable[..., ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.02)
    a_store(late=lambda _: 0.05)
    with pytest.raises(StorageError, match=r"the store is too slow to lock lock\.json"), lock.hold(PLACE):
        pass


@pytest.mark.fault("lock-damaged")
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"holder": ""}', b'{"holder": null, "written": "x"}', b"[" * 100_000),
        *(b'{"holder": "", "expires": 99999999999999}', b'{"holder": 7, "written": "2999-01-01"}'),
    ],
    ids=range(10),
)
def test_a_damaged_lock_is_an_error_with_its_remedy(a_store: Callable[..., ObjectStore], content: bytes) -> None:
    server = a_store()
    server.objects[KEY] = content
    with (
        pytest.raises(
            StorageError, match=r"^s3://bucket/models/m/: lock\.json is damaged .*, remove it and run the command again$"
        ),
        lock.hold(PLACE),
    ):
        pass
    assert server.objects[KEY] == content
    del server.objects[KEY]
    with lock.hold(PLACE):
        pass


@pytest.mark.fault("lock-damaged")
def test_a_lock_that_was_removed_is_not_held_any_more(location: str) -> None:
    with lock.hold(location) as held:
        if location.startswith("s3"):
            S3Backend(location).delete([lock.NAME])
        else:
            (Path(location) / lock.NAME).unlink()
        with lock.hold(location), pytest.raises(StorageError, match=r"taken over|was removed"), held.writing():
            pytest.fail("two processes wrote")


@pytest.mark.fault("lock-lost")
def test_a_lock_file_that_is_removed_while_it_is_taken_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, removed = fcntl.flock, []

    def after_a_removal(file: IO[bytes], operation: int) -> None:
        """Another process removes the file after this one has opened it."""
        if not removed:
            removed.append((tmp_path / lock.NAME).unlink())
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_removal)
    with (
        lock.hold(f"{tmp_path}/"),
        pytest.raises(StorageError, match="another process still holds"),
        lock.hold(f"{tmp_path}/", 0.2),
    ):
        pytest.fail("two processes hold the lock")


def test_a_folder_that_cannot_be_locked_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "m" / lock.NAME).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot be locked .Is a directory.: use a folder"), lock.hold(f"{tmp_path}/m/"):
        pass


def test_waiting_for_a_lock_ends_with_a_named_error(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.hold(location):
        monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)
        with (
            pytest.raises(StorageError, match=r"another process still holds .*lock\.json after 0\.5 s"),
            lock.hold(location),
        ):
            pass


@pytest.mark.fault("lock-lost")
def test_a_lock_that_cannot_be_released_does_not_undo_the_work(
    a_store: Callable[..., ObjectStore], caplog: pytest.LogCaptureFixture
) -> None:
    server = a_store()
    with lock.hold(PLACE):
        server.behaviour.refused["PUT"] = (403, "AccessDenied")
    assert "lock.json is not released, others wait for 120 s" in caplog.text


class Clock:
    """A clock that only the test moves; ``sleep`` lets the other processes run."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Memory:
    """The object of the lock, with conditional writes as S3 has them, and responses that take as long as the test says."""

    location = PLACE

    def __init__(self, clock: Clock) -> None:
        self.clock, self.delay = clock, 0.0
        self.content, self.tag = b"", ""

    def read_tagged(self, _: str) -> tuple[bytes, str] | None:
        return (self.content, self.tag) if self.tag else None

    def write_if(self, _: str, content: bytes, tag: str | None) -> str | None:
        if (tag or "") != self.tag:
            return None
        self.content, self.tag = content, content.hex()
        self.clock.now += self.delay
        return self.tag


@pytest.mark.fault("lock-lost")
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["acquire", "write", "release"]), st.floats(0, 200), st.floats(0, 200)),
        max_size=30,
    )
)
def test_no_two_processes_write_in_each_others_lease(steps: list[tuple[int, str, float, float]]) -> None:
    """Any order of three processes, with any times between their steps and any delays of the store's responses."""
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        memory: Any = Memory(clock)
        patched.setattr(lock.time, "monotonic", clock.monotonic)
        patched.setattr(lock.time, "sleep", lambda _: setattr(clock, "now", clock.now + 40))
        ends: dict[lock._ObjectLock, float] = {}
        processes = [lock._ObjectLock(memory) for _ in range(3)]
        for number, step, pause, delay in steps:
            clock.now += pause
            memory.delay = delay
            one = processes[number]
            if (step == "acquire") == (one in ends):
                continue
            before = ends.pop(one, None)
            with suppress(StorageError):
                if step == "release":
                    one.release()
                    processes[number] = lock._ObjectLock(memory)
                    continue
                one.acquire(lock.WAIT_SECONDS) if before is None else one.require()
                # The end is summed up in another order than by the process that waits: rounded, it may be now.
                assert all(end <= clock.now for end in ends.values()), "two leases at once"
                ends[one] = clock.now - one._spent() + lock.LEASE_SECONDS
