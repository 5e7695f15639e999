"""Responses to requests that nobody should send: JSON, bounded, without internals, and never sent elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from goemotions.prediction.predictor import Predictor
from goemotions.serving.http import page, rest
from goemotions.serving.limits import Limits
from goemotions.serving.service import Service

V1, V2 = "/v1/models/goemotions:predict", "/v2/models/goemotions/infer"
LONG = "x" * 2**20
EVIL = {"host": "evil.example"}


async def broken(request: Any) -> None:
    raise KeyError(LONG)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    service = Service(predictor, "1", Limits())
    app = rest.create_app(service, extra=[*page.routes(service), Route("/broken", broken)])
    yield TestClient(app, raise_server_exceptions=False, follow_redirects=False)
    service.close()


def v1(**fields: Any) -> dict[str, Any]:
    return {"url": V1, "method": "POST", "json": fields}


def v2(**fields: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    return {"url": V2, "method": "POST", "json": {"inputs": [tensor], **fields}}


REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "unknown path": (404, {"url": "/nowhere"}),
    "long path": (404, {"url": f"/{LONG[:60_000]}"}),
    "markup in the path": (404, {"url": "/<script>alert(1)</script>"}),
    "unknown model": (404, {"url": f"/v2/models/{LONG[:60_000]}"}),
    "a slash too many": (404, {"url": "/v1/models/", "headers": EVIL}),
    "a slash too many after the page": (404, {"url": "/page.css/", "headers": EVIL}),
    "a slash too many in inference": (404, {"url": V1 + "/", "method": "POST", "headers": EVIL}),
    "two slashes before a host": (404, {"url": "http://testserver//evil.example/", "headers": EVIL}),
    "method of the page": (405, {"url": "/", "method": "DELETE"}),
    "method of inference": (405, {"url": V1, "method": "GET"}),
    "unknown method": (405, {"url": "/v1/models", "method": "BREW"}),
    "an exception": (500, {"url": "/broken"}),
    "long content type": (415, {"url": V1, "method": "POST", "content": b"{}", "headers": {"content-type": LONG[:60_000]}}),
    "long encoding": (415, {"url": V1, "method": "POST", "content": b"{}", "headers": {"content-encoding": LONG[:60_000]}}),
    "long length of the header": (
        400,
        {"url": V2, "method": "POST", "content": b"{}", "headers": {"inference-header-content-length": LONG[:60_000]}},
    ),
    "no JSON": (400, {"url": V1, "method": "POST", "content": LONG.encode()}),
    "a long name": (400, v1(instances=["a"], **{LONG: 1})),
    "a long value": (400, v1(instances=["a"], parameters={"threshold": LONG})),
    "a long name of a parameter": (400, v1(instances=["a"], parameters={LONG: 1})),
    "a long number": (400, v1(instances=["a"], parameters={"top_k": int("9" * 4000)})),
    "an item that is no string": (400, v1(instances=[{LONG: 1}])),
    "a long id": (400, v2(id=LONG)),
    "a long output": (400, v2(outputs=[{"name": LONG}])),
    "a long datatype": (400, v2(inputs=[{"name": "text", "shape": [1], "datatype": LONG, "data": ["a"]}])),
    "a long tensor": (400, v2(inputs=[{"name": LONG, "shape": [1], "datatype": "BYTES", "data": ["a"]}])),
    "a long parameter": (400, v2(parameters={LONG: 1})),
    "markup": (400, v2(outputs=[{"name": "<img src=x onerror=alert(1)>"}])),
}


@pytest.mark.fault("message-unbounded")
@pytest.mark.parametrize("name", REQUESTS)
def test_an_error_is_json_bounded_and_without_internals(name: str, client: TestClient) -> None:
    status, request = REQUESTS[name]
    response = client.request(**{"method": "GET", **request})
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 1500
    assert list(json.loads(response.content)) == ["error"]
    for internal in ("Traceback", "Error(", "KeyError", "pydantic", "starlette", "/goemotions/", "object at 0x"):
        assert internal not in response.text
    assert "location" not in response.headers
    assert "evil" not in f"{response.headers} {response.text}"


def test_no_route_redirects(client: TestClient) -> None:
    app: Any = client.app
    for path in (route.path for route in app.routes):
        for changed in (f"{path}/", path.rstrip("/") or "//"):
            response = client.get(changed, headers=EVIL)
            assert not 300 <= response.status_code < 400, changed
            assert "location" not in response.headers
