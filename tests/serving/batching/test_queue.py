"""The queue of texts: nothing is lost or given out twice, and each request gets its turn."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.errors import RequestError
from goemotions.serving.batching.queue import QueuedRequest, QueuedText, TextQueue
from goemotions.serving.limits import Limits

UNLIMITED = Limits(queue_texts=10**6, queue_tokens=10**9, queue_seconds=10**6)


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    yield own
    asyncio.set_event_loop(None)
    own.close()


def request(*lengths: int, peer: str = "") -> QueuedRequest:
    """A request of an address, with texts of so many characters, each of one token."""
    future = asyncio.get_event_loop().create_future()
    return QueuedRequest(["a" * length for length in lengths], future, max_length=128, peer=peer)


def batch(queue: TextQueue, size: int) -> list[QueuedText]:
    """What a worker does with the queue: it tokenizes what there is to tokenize, and takes a batch, the first text and next ones."""
    texts = queue.get() or []
    for text in texts:
        text.ids = [0] * max(1, len(text.text))
    queue.put_tokenized(texts)
    return queue.take(lambda texts: texts[:size])


# Requests (the lengths of their texts), and in between, the size of a batch.
STEPS = st.lists(st.one_of(st.lists(st.integers(0, 40), min_size=1, max_size=600), st.integers(1, 64)), max_size=60)


@given(steps=STEPS)
@settings(deadline=None)
def test_every_text_is_in_one_batch(steps: list[list[int] | int]) -> None:
    queue, requests, taken = TextQueue(UNLIMITED), [], []
    for step in steps:
        if isinstance(step, list):
            requests.append(request(*step))
            queue.put(requests[-1])
        elif len(taken) < sum(len(one.texts) for one in requests):
            taken += batch(queue, step)
    queue.close()
    while len(taken) < sum(len(one.texts) for one in requests):
        taken += batch(queue, 16)
    assert queue.get() is None
    expected = {(id(one), position) for one in requests for position in range(len(one.texts))}
    assert len(taken) == len(expected)
    assert {(id(text.request), text.position) for text in taken} == expected


@given(large=st.lists(st.integers(1, 600), min_size=1, max_size=12), batches=st.integers(0, 8), size=st.integers(1, 32))
@settings(deadline=None)
@pytest.mark.fault("server-greedy-client")
def test_a_request_of_one_text_waits_for_small_ones_only(large: list[int], batches: int, size: int) -> None:
    queue = TextQueue(Limits(queue_texts=10**4, queue_tokens=10**5, queue_seconds=10**6))
    others = [request(*[20] * count) for count in large]
    for other in others:
        queue.put(other)
    left = sum(large)
    for _ in range(batches):
        left -= len(batch(queue, size)) if left else 0
    small = request(5)
    queue.put(small)
    others_first = sum(1 for other in others if other.waiting and other.is_small)
    waited = 0
    while small.waiting:
        batch(queue, size)
        waited += 1
        assert waited <= others_first + 1


@pytest.mark.fault("server-greedy-client")
def test_a_large_request_gives_way_to_small_ones_but_not_for_ever() -> None:
    queue, large = TextQueue(Limits()), request(*[20] * 300)
    queue.put(large)
    batches = 0
    while large.waiting == 300:
        queue.put(request(5))
        batch(queue, 1)
        batches += 1
        assert batches < 2000
    assert batches > 100


@pytest.mark.fault("server-greedy-client")
def test_a_text_of_megabytes_has_the_turn_of_what_the_model_reads_of_it() -> None:
    # Its memory counts for the limit of the queue. As its tokens, it would put other large requests before all that come later.
    queue = TextQueue(Limits())
    for _ in range(3):
        queue.put(request(2_000_000, *[500] * 127))
        batch(queue, 4)
    small = request(5)
    queue.put(small)
    batch(queue, 4)
    assert not small.waiting


@pytest.mark.fault("server-overload")
def test_requests_of_one_size_are_complete_in_the_order_in_which_they_came_while_more_come() -> None:
    queue, requests = TextQueue(UNLIMITED), [request(*[20] * 8) for _ in range(20)]
    for number, one in enumerate(requests):
        queue.put(one)
        batch(queue, 6)
        # Three quarters of what comes is served: no request keeps the rest of its texts waiting for those that came later.
        is_complete = [not other.waiting for other in requests[: number + 1]]
        assert is_complete == [True] * (6 * (number + 1) // 8) + [False] * (number + 1 - 6 * (number + 1) // 8)


@pytest.mark.fault("server-greedy-client", "server-overload")
def test_a_large_request_is_rejected_where_a_small_one_is_admitted() -> None:
    queue = TextQueue(Limits())
    queue.update_throughput(10_000)
    queue.put(request(*[400] * 512))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(*[400] * 512))
    small = request(20)
    queue.put(small)
    batch(queue, 8)
    assert batch(queue, 8)[0].request is small or not small.waiting


@pytest.mark.fault("server-greedy-client", "server-overload")
def test_requests_of_many_texts_leave_room_for_small_ones() -> None:
    queue = TextQueue(Limits())
    for _ in range(8):
        queue.put(request(*[5] * 512))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(*[5] * 512))
    for _ in range(400):
        queue.put(request(5))


@pytest.mark.fault("server-greedy-client")
def test_many_small_requests_of_one_address_do_not_delay_those_of_another() -> None:
    queue = TextQueue(UNLIMITED)
    for _ in range(200):
        queue.put(request(*[5] * 8, peer="greedy"))
    batch(queue, 8)
    for _ in range(20):
        other = request(*[5] * 8, peer="other")
        queue.put(other)
        batch(queue, 8)
        batch(queue, 8)
        assert not other.waiting


@pytest.mark.fault("server-greedy-client")
def test_many_large_requests_of_one_address_do_not_delay_those_of_another() -> None:
    queue = TextQueue(Limits(queue_seconds=2.0))
    for _ in range(90):
        queue.put(request(*[150] * 45, peer="greedy"))
        batch(queue, 8)
    queue.update_throughput(10_000)
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(*[150] * 45, peer="greedy"))
    other = request(*[150] * 45, peer="other")
    queue.put(other)
    batches = 0
    while other.waiting:
        batch(queue, 8)
        batches += 1
    # Six for its own texts.
    assert batches <= 14


@pytest.mark.fault("server-greedy-client")
def test_an_address_has_no_claim_from_the_time_in_which_it_had_a_large_request_only() -> None:
    queue = TextQueue(UNLIMITED)
    queue.put(request(*[5] * 600, peer="large"))
    for _ in range(40):
        queue.put(request(*[5] * 8, peer="other"))
        batch(queue, 8)
    for _ in range(20):
        queue.put(request(*[5] * 8, peer="large"))
        queue.put(other := request(*[5] * 8, peer="other"))
        batch(queue, 8)
        batch(queue, 8)
        assert not other.waiting


@pytest.mark.fault("server-greedy-client", "server-overload")
def test_an_address_that_fills_the_queue_leaves_room_for_another_and_not_for_itself() -> None:
    queue = TextQueue(Limits(queue_texts=1000))
    for _ in range(110):
        queue.put(request(*[5] * 10, peer="greedy"))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(5, peer="greedy"))
    for _ in range(15):
        queue.put(request(*[5] * 10, peer="other"))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(5, peer="other"))


@pytest.mark.fault("server-greedy-client", "server-overload")
def test_the_expected_wait_of_an_address_is_that_of_its_share() -> None:
    queue = TextQueue(Limits(queue_seconds=1.0))
    queue.update_throughput(1000)
    for _ in range(42):
        queue.put(request(*[5] * 8, peer="greedy"))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(*[5] * 8, peer="greedy"))
    for _ in range(5):
        queue.put(request(5, peer="other"))


def test_tokens_of_long_texts_fill_the_queue() -> None:
    queue = TextQueue(Limits(queue_tokens=50_000))
    queue.put(request(3))
    queue.put(request(2_000_000))
    with pytest.raises(RequestError, match="queue is full"):
        queue.put(request(2_000_000))
    queue.put(request(3))


def test_a_dropped_request_leaves_nothing_behind() -> None:
    queue = TextQueue(UNLIMITED)
    dropped, other = request(*[20] * 300), request(5)
    queue.put(dropped)
    batch(queue, 4)
    queue.put(other)
    queue.drop(dropped)
    queue.drop(dropped)
    assert [text.request for text in batch(queue, 4)] == [other]
    queue.close()
    assert queue.get() is None
