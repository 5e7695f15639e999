"""Batching across requests: batches, waiting, rejection, and that each text gets its own result."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.errors import RequestError
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder
from goemotions.serving.batching.batcher import Batcher
from goemotions.serving.limits import Limits

LIMITS = Limits(queue_texts=64, queue_seconds=5.0)
WORDS = ["lake", "storm", "balloon", "harbour", "the", "quiet", "gravel"]
REQUESTS = st.lists(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=130).map(" ".join), min_size=1, max_size=20), min_size=1, max_size=12
)


class Observed:
    """A real engine that records the shape of each batch, and blocks while ``unblocked`` is not set."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.encoder, self.workers, self.batch_tokens = engine.name, engine.encoder, 1, 256
        self.computation = engine.computation
        self.unblocked = threading.Event()
        self.unblocked.set()
        self.entered = threading.Semaphore(0)
        self.shapes: list[tuple[int, int]] = []
        self.is_failing = False

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.entered.release()
        assert self.unblocked.wait(30)
        if self.is_failing:
            raise RuntimeError("out of memory")
        self.shapes.append(ids.shape)
        return self.engine.logits(ids, mask)


@pytest.fixture(scope="module")
def engine(model_folder: Path, onnx_folder: Path) -> Engine:
    return engines.load("openvino-fp32", onnx_folder, TextEncoder.load(model_folder), threads=2)


@pytest.fixture
def observed(engine: Engine) -> Observed:
    return Observed(engine)


@pytest.fixture
def batcher(observed: Observed) -> Iterator[Batcher]:
    running = Batcher(observed, LIMITS)
    yield running
    observed.unblocked.set()
    running.close()


def alone(engine: Engine, texts: list[str]) -> np.ndarray:
    return np.concatenate([engines.logits(engine, [engine.encoder.encode([text])[0].ids]) for text in texts])


async def busy(batcher: Batcher, observed: Observed) -> "asyncio.Task[Any]":
    """A request that keeps the only worker busy until the engine is unblocked."""
    observed.unblocked.clear()
    observed.entered = threading.Semaphore(0)
    task = asyncio.create_task(batcher.logits(["lake"]))
    await asyncio.to_thread(observed.entered.acquire)
    return task


@given(requests=REQUESTS)
@settings(max_examples=20, deadline=None)
@pytest.mark.fault("http-mixed-batch")
def test_each_text_gets_the_result_it_gets_alone(engine: Engine, requests: list[list[str]]) -> None:
    batcher = Batcher(engine, Limits(queue_texts=10_000, queue_seconds=60, answer_seconds=60))

    async def run() -> list[tuple[np.ndarray, np.ndarray]]:
        return await asyncio.gather(*(batcher.logits(texts) for texts in requests))

    results = asyncio.run(run())
    batcher.close()
    for texts, (logits, truncated) in zip(requests, results, strict=True):
        assert np.abs(logits - alone(engine, texts)).max() < 1e-4
        assert truncated.tolist() == [len(text.split()) > 126 for text in texts]


def test_queued_texts_share_batches_within_the_token_budget(batcher: Batcher, observed: Observed) -> None:
    async def run() -> None:
        first = await busy(batcher, observed)
        others = [asyncio.create_task(batcher.logits([" ".join(["the"] * (1 + n % 30))])) for n in range(40)]
        await asyncio.sleep(0.05)
        observed.unblocked.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert observed.shapes[0] == (1, 3)
    assert len(observed.shapes) < 20
    for texts, tokens in observed.shapes:
        assert texts * tokens <= observed.batch_tokens or texts == 1
        assert texts & (texts - 1) == 0
    assert sum(texts for texts, _ in observed.shapes) == 41


def test_without_batching_across_requests_each_has_its_own_batch(observed: Observed) -> None:
    batcher = Batcher(observed, dataclasses.replace(LIMITS, batching=False))

    async def run() -> None:
        first = await busy(batcher, observed)
        others = [asyncio.create_task(batcher.logits(["lake"] * 2)) for _ in range(4)]
        await asyncio.sleep(0.05)
        observed.unblocked.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    batcher.close()
    assert observed.shapes == [(1, 3), *[(2, 3)] * 4]


def test_the_oldest_text_is_in_the_next_batch(batcher: Batcher, observed: Observed) -> None:
    """Short texts that keep coming do not starve a long one."""

    async def run() -> None:
        first = await busy(batcher, observed)
        long = asyncio.create_task(batcher.logits(["storm " * 100]))
        await asyncio.sleep(0.02)
        short = [asyncio.create_task(batcher.logits(["lake"])) for _ in range(50)]
        await asyncio.sleep(0.05)
        observed.unblocked.set()
        await asyncio.gather(first, long, *short)

    asyncio.run(run())
    assert observed.shapes[1][1] == 102


@pytest.mark.fault("server-overload")
def test_a_full_queue_rejects_with_the_time_to_wait(batcher: Batcher, observed: Observed) -> None:

    async def run() -> RequestError:
        first = await busy(batcher, observed)
        waiting = asyncio.create_task(batcher.logits(["lake"] * 60))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError) as rejected:
            await batcher.logits(["lake"] * 5)
        observed.unblocked.set()
        await asyncio.gather(first, waiting)
        await batcher.logits(["lake"] * 5)
        return rejected.value

    rejected = asyncio.run(run())
    assert rejected.status == 429
    assert rejected.retry_after is not None
    assert rejected.retry_after >= 1


def test_a_request_that_would_wait_too_long_is_rejected_but_not_one_that_is_due_earlier(observed: Observed) -> None:
    batcher = Batcher(observed, Limits(queue_texts=10_000, queue_seconds=5.0), tokens_per_second=10)

    async def run() -> RequestError:
        first = await busy(batcher, observed)
        waiting = asyncio.create_task(batcher.logits(["lake"] * 60))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError) as rejected:
            await batcher.logits(["lake"] * 60)
        small = asyncio.create_task(batcher.logits(["lake"]))
        observed.unblocked.set()
        await asyncio.gather(first, waiting, small)
        return rejected.value

    assert asyncio.run(run()).status == 429
    batcher.close()


@pytest.mark.fault("server-overload")
def test_a_request_that_has_waited_too_long_is_rejected_instead_of_served_late(observed: Observed) -> None:
    batcher = Batcher(observed, Limits(queue_seconds=0.05), tokens_per_second=10_000)

    async def run() -> list[Any]:
        first = await busy(batcher, observed)
        waiting = [asyncio.create_task(batcher.logits(["lake"])) for _ in range(3)]
        await asyncio.sleep(0.2)
        observed.unblocked.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    first, *waiting = asyncio.run(run())
    assert not isinstance(first, Exception)
    assert [one.status for one in waiting] == [429] * 3
    batcher.close()


def test_a_request_times_out_and_its_queued_texts_are_dropped(observed: Observed) -> None:
    batcher = Batcher(observed, Limits(answer_seconds=0.1))

    async def run() -> list[Any]:
        first = await busy(batcher, observed)
        return await asyncio.gather(first, batcher.logits(["storm"] * 7), return_exceptions=True)

    assert [error.status for error in asyncio.run(run())] == [504, 504]
    observed.unblocked.set()
    batcher.close()
    assert observed.shapes == [(1, 3)]


@pytest.mark.fault("client-disconnect")
def test_the_texts_of_a_cancelled_request_are_not_scored(batcher: Batcher, observed: Observed) -> None:

    async def run() -> None:
        first = await busy(batcher, observed)
        leaving = asyncio.create_task(batcher.logits(["storm"] * 60))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        staying = asyncio.create_task(batcher.logits(["lake"] * 60))
        await asyncio.sleep(0.05)
        observed.unblocked.set()
        await asyncio.gather(first, staying)

    asyncio.run(run())
    assert sum(texts for texts, _ in observed.shapes) == 61


def test_a_failing_engine_fails_only_the_requests_of_its_batch(batcher: Batcher, observed: Observed) -> None:
    async def run() -> None:
        observed.is_failing = True
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.logits(["lake"] * 3)
        observed.is_failing = False
        logits, _ = await batcher.logits(["lake"])
        assert logits.shape == (1, 7)

    asyncio.run(run())
    assert batcher.is_alive


def test_a_batcher_with_a_hanging_worker_is_not_alive(observed: Observed) -> None:
    batcher = Batcher(observed, Limits(answer_seconds=0.2))

    async def run() -> None:
        first = await busy(batcher, observed)
        assert batcher.is_alive
        await asyncio.sleep(0.3)
        assert not batcher.is_alive
        observed.unblocked.set()
        with pytest.raises(RequestError):
            await first
        async with asyncio.timeout(30):
            while not batcher.is_alive:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    batcher.close()


def test_closing_completes_what_is_queued(engine: Engine) -> None:
    batcher = Batcher(engine, LIMITS)

    async def run() -> int:
        waiting = [asyncio.create_task(batcher.logits(["lake"])) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(batcher.close)
        return len(await asyncio.gather(*waiting))

    assert asyncio.run(run()) == 20
    assert not batcher.is_alive


def test_copies_for_a_challenger_are_not_counted_as_traffic(engine: Engine) -> None:
    counted: list[str] = []
    batcher = Batcher(engine, LIMITS, count=lambda texts, encodings, logits: counted.extend(texts))

    async def requests() -> None:
        await asyncio.gather(batcher.logits(["lake", "storm"]), batcher.logits(["gravel"], is_counted=False))

    asyncio.run(requests())
    batcher.close()
    assert sorted(counted) == ["lake", "storm"]


@pytest.mark.fault("server-overload")
def test_short_texts_do_not_lower_the_expected_throughput(observed: Observed) -> None:
    """After them, a second large request is admitted while the first one waits; how many more, follows from what those take."""
    batcher, large = Batcher(observed, Limits(queue_seconds=0.05)), ["storm " * 60] * 100

    async def run() -> list[tuple[np.ndarray, np.ndarray]]:
        for _ in range(20):
            await batcher.logits(["lake"])
        return await asyncio.gather(batcher.logits(large), batcher.logits(large))

    assert [len(logits) for logits, _ in asyncio.run(run())] == [100, 100]
    batcher.close()
