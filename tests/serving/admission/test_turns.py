"""The order in which the clients of a server get their turn."""

import asyncio
import collections
import functools
import time

import pytest

from goemotions.serving.admission import turns as turns_of
from goemotions.serving.admission.turns import WAITING, WORK, FairThread, Turns


def test_what_waits_of_one_address_does_not_delay_another() -> None:
    async def run() -> list[str]:
        turns, done = Turns(), list[str]()
        for _ in range(20 * WORK):
            turns.wait("greedy", functools.partial(done.append, "greedy"))
        await asyncio.sleep(0)
        for _ in range(3):
            turns.wait("other", functools.partial(done.append, "other"))
        while len(done) < 20 * WORK + 3:
            await asyncio.sleep(0)
        return done

    done = asyncio.run(run())
    assert [position for position, address in enumerate(done) if address == "other"] == [WORK + 1, WORK + 3, WORK + 5]


def test_a_turn_has_room_for_so_much_and_first_for_what_waits() -> None:
    async def run() -> None:
        turns = Turns()
        assert [turns.has_room("a") for _ in range(WORK + 1)] == [True] * WORK + [False]
        turns.wait("a", lambda: None)
        for _ in range(WORK):
            turns.wait("a", lambda: None)
        await asyncio.sleep(0)
        assert not turns.has_room("b")
        await asyncio.sleep(0)
        assert turns.has_room("b")
        assert turns.has_room("a")

    asyncio.run(run())


@pytest.mark.fault("server-overload")
def test_what_waits_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_of, "TURN_SECONDS", 0.1)

    async def run() -> collections.Counter[str]:
        turns, done = Turns(), collections.Counter[str]()

        def work() -> None:
            done["done"] += 1
            time.sleep(0.005)

        for _ in range(100):
            turns.wait("a", work, lambda: done.update(["refused"]))
        while done.total() < 100:
            await asyncio.sleep(0)
        return done

    done = asyncio.run(run())
    assert 0 < done["done"] <= 21
    assert done["refused"] == 100 - done["done"]


def test_so_much_waits_of_one_address() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(3):
            turns.wait("a", lambda: None)
        assert turns.is_full("a", 3)
        assert not turns.is_full("a", 4)
        assert not turns.is_full("b", 3)

    asyncio.run(run())


def test_a_flood_of_one_address_leaves_the_others_their_share() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(WAITING):
            turns.wait("greedy", lambda: None)
        turns.wait("other", lambda: None)
        assert turns.is_full("greedy", 2 * WAITING)
        assert not turns.is_full("other", 2 * WAITING)
        for _ in range(WAITING // 2):
            turns.wait("other", lambda: None)
        assert turns.is_full("other", 2 * WAITING)
        assert not turns.is_full("third", 2 * WAITING)

    asyncio.run(run())


def test_a_thread_does_one_piece_of_work_of_each_address_also_after_some_failed_or_were_cancelled() -> None:
    def fail() -> None:
        raise ValueError

    async def run() -> list[str]:
        thread, done = FairThread("test"), list[str]()

        def begin(address: str) -> asyncio.Task[None]:
            return asyncio.create_task(thread.run(address, functools.partial(done.append, address)))

        running = asyncio.create_task(thread.run("greedy", functools.partial(time.sleep, 0.1)))
        greedy = [begin("greedy") for _ in range(9)]
        failed = asyncio.create_task(thread.run("greedy", fail))
        other = begin("other")
        await asyncio.sleep(0.02)
        # One that runs, one that is next, and one that waits behind others.
        for left in (running, greedy[0], greedy[4]):
            left.cancel()
        async with asyncio.timeout(10):
            ended = await asyncio.gather(running, *greedy, failed, other, return_exceptions=True)
        assert [type(one) for one in ended if one] == [asyncio.CancelledError] * 3 + [ValueError]
        assert await thread.run("third", lambda: 3) == 3
        return done

    done = asyncio.run(run())
    assert sorted(done) == ["greedy"] * 7 + ["other"]
    assert "other" in done[:2]
