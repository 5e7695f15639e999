"""What every protocol shares: errors and metrics of a request."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from goemotions.errors import RequestError
from goemotions.serving.service import handle


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


def test_a_cancelled_request_is_counted_as_a_disconnected_client() -> None:
    async def cancel() -> None:
        request = asyncio.create_task(handle("test", asyncio.sleep(30)))
        await asyncio.sleep(0)
        request.cancel()
        await request

    before = rejected("client-gone")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert rejected("client-gone") == before + 1
    assert REGISTRY.get_sample_value("goemotions_request_seconds_count", {"protocol": "test", "code": "499"}) == 1
