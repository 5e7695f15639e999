"""What every protocol shares: errors and metrics of a request."""

import asyncio
import logging
import time

import pytest
from prometheus_client import REGISTRY

from goemotions.errors import RequestError
from goemotions.evaluation.occlusion import Occlusion, occlude
from goemotions.models.tokenizer import TextEncoder
from goemotions.prediction.predictor import Options, Predictor
from goemotions.serving import service as service_of
from goemotions.serving.limits import Limits
from goemotions.serving.logs import RateLimit
from goemotions.serving.service import Service, handle


def rejected(reason: str) -> float:
    return REGISTRY.get_sample_value("goemotions_rejected_requests_total", {"reason": reason}) or 0.0


def test_an_unexpected_error_becomes_a_500_without_its_text() -> None:
    async def handler() -> None:
        raise OSError("/secret/path")

    before = rejected("failed")
    with pytest.raises(RequestError, match="see its log") as error:
        asyncio.run(handle("test", handler()))
    assert error.value.status == 500
    assert "/secret/path" not in str(error.value)
    assert rejected("failed") == before + 1


@pytest.mark.fault("server-blame")
@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "client"), (408, "client"), (413, "client"), (429, "overload"), (499, "client"), (504, "server")],
)
def test_a_rejected_request_is_counted_by_who_is_to_blame(status: int, outcome: str) -> None:
    async def handler() -> None:
        raise RequestError("rejected", status)

    def counted() -> float:
        return REGISTRY.get_sample_value("goemotions_requests_total", {"protocol": "blame", "outcome": outcome}) or 0.0

    before = counted()
    with pytest.raises(RequestError):
        asyncio.run(handle("blame", handler()))
    assert counted() == before + 1


@pytest.mark.fault("server-log-flood")
def test_a_statement_that_logs_without_end_is_limited_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    logger, other, limit = logging.getLogger("flood"), logging.getLogger("other"), RateLimit(records=3, seconds=0.2)
    caplog.handler.addFilter(limit)
    try:
        for pause in (0, 0.5):
            time.sleep(pause)
            for number in range(1 if caplog.records else 100):
                logger.warning("request %d", number)
            other.warning("something else")
    finally:
        caplog.handler.removeFilter(limit)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        *("request 0", "request 1", "request 2", "something else"),
        *("request 0 (97 more of these were left out before)", "something else"),
    ]


def test_a_cancelled_request_is_counted_as_a_disconnected_client() -> None:
    async def cancel() -> None:
        request = asyncio.create_task(handle("test", asyncio.sleep(30)))
        await asyncio.sleep(0)
        request.cancel()
        await request

    def timed() -> float:
        return REGISTRY.get_sample_value("goemotions_request_seconds_count", {"protocol": "test", "code": "499"}) or 0.0

    before, timed_before = rejected("client-gone"), timed()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert rejected("client-gone") == before + 1
    assert timed() == timed_before + 1


@pytest.mark.fault("server-greedy-client")
def test_a_text_to_explain_does_not_wait_for_all_texts_of_other_requests(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    occluded: list[str] = []

    def record(encoder: TextEncoder, text: str, removals: int) -> Occlusion:
        occluded.append(text)
        return occlude(encoder, text, removals)

    monkeypatch.setattr(service_of, "occlude", record)
    service = Service(predictor, "r1", Limits())

    async def run(peer: str) -> int:
        occluded.clear()
        greedy = (service.explain(["storm"] * 10, Options(), 1, "greedy") for _ in range(12))
        await asyncio.gather(*greedy, service.explain(["lake"], Options(), 1, peer))
        assert len(occluded) == 121
        return occluded.index("lake")

    of_own_address, of_another = (asyncio.run(run(peer)) for peer in ("greedy", "other"))
    service.close()
    assert of_own_address <= 12
    assert of_another <= 2


@pytest.mark.fault("server-overload")
def test_texts_to_explain_that_wait_too_long_are_rejected(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_of, "occlude", lambda *_: time.sleep(0.5))
    service = Service(predictor, "r1", Limits(answer_seconds=0.1))
    with pytest.raises(RequestError, match="try again later") as rejected:
        asyncio.run(service.explain(["lake"] * 2, Options(), 1))
    service.close()
    assert rejected.value.status == 429


@pytest.mark.fault("http-text-limit")
def test_words_to_explain_are_bounded_and_counted_before_all_texts_are_read(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    occluded: list[Occlusion] = []

    def record(encoder: TextEncoder, text: str, removals: int) -> Occlusion:
        occluded.append(occlude(encoder, text, removals))
        return occluded[-1]

    monkeypatch.setattr(service_of, "occlude", record)
    service = Service(predictor, "r1", Limits(texts=64))
    with pytest.raises(RequestError, match="more than 1,024 words") as rejected:
        asyncio.run(service.explain(["a, " * 32] * 32, Options(threshold=0.0), 1))
    service.close()
    assert rejected.value.status == 413
    assert sum(len(one.words) for one in occluded[:-1]) <= 1024
    assert len(occluded) < 32
