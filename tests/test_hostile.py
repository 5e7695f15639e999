"""Hostile clients: the server answers, refuses or drops each, serves an honest client meanwhile, and its memory stays bounded."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.attacks import (
    CHUNKED,
    LIVE,
    POST,
    TEXTS,
    Attack,
    bomb,
    dribbled,
    half_closed,
    held,
    pipelined,
    posts,
    repeated,
    resets,
    sends,
    sent_again,
    slow,
)
from tests.support.servers import Server, serving

# That of the pod in manifests/isvc.yaml.
MEMORY_BYTES = 2 * 2**30
LIMITS = {"connections": 200, "peer-connections": 100, "requests": 64, "read-seconds": 3, "write-seconds": 1, "idle-seconds": 3}
OPTIONS = [f"--{name}={value}" for name, value in LIMITS.items()]
GET = b"GET /v2/health/live HTTP/1.1\r\n"
LONG_TEXTS = json.dumps({"instances": ["storm " * 130] * 512}).encode()
NUMBERS = b'{"instances": [' + b"1," * 690_000 + b"1]}"

COMBINING = json.dumps({"instances": ["a" + "\u0300\u0323" * 900] * 512}, ensure_ascii=False).encode()
EXPLAIN = json.dumps({"instances": ["storm " * 340_000], "parameters": {"removals": 128}}).encode()
DEEP = b'{"inputs": [], "parameters": {"headers": ' + b"[" * 20_000 + b"]" * 20_000 + b"}}"
V2 = b"/v2/models/goemotions/infer"


def tensors(count: int, **fields: Any) -> bytes:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]} | fields
    return json.dumps({"inputs": [tensor] * count}).encode()


def binary(count: int, content: bytes) -> tuple[bytes, bytes]:
    """The body and the field of a request with a binary tensor."""
    head = tensors(1, shape=[count], data=None, parameters={"binary_data_size": len(content)})
    return head + content, b"Inference-Header-Content-Length: %d" % len(head)


# The attack, and the statuses of its responses; 0 if it may get none.
ATTACKS: dict[str, tuple[Attack, set[int]]] = {
    "attack-field-without-end": (sends(GET + b"Host: a\r\nX: ", endless=b"a" * 4096), {431}),
    "attack-field-name-without-end": (sends(GET + b"Host: a\r\n", endless=b"a" * 4096), {431}),
    "attack-fields-without-end": (sends(GET + b"Host: a\r\n", endless=b"X: y\r\n" * 64), {431}),
    "attack-large-fields": (sends(GET, endless=b"X: " + b"y" * 8000 + b"\r\n"), {431}),
    "attack-folded-field": (sends(GET + b"Host: a\r\nX: y\r\n", endless=b" z\r\n" * 64), {400, 431}),
    "attack-101-fields": (sends(GET + b"X: y\r\n" * 101 + b"\r\n"), {431}),
    "attack-newlines-without-end": (sends(b"\r\n", endless=b"\r\n" * 1024), {400, 431}),
    "attack-spaces-without-end": (sends(b"GET ", endless=b" " * 1024), {400, 414, 431}),
    "attack-method-without-end": (sends(b"G", endless=b"G" * 1024), {400}),
    "attack-url-without-end": (sends(b"GET /", endless=b"a" * 4096), {414}),
    "attack-100000-url-parameters": (sends(b"GET /v2?", endless=b"a=1&" * 1024), {414}),
    "attack-url-not-utf8": (sends(b"GET /%ff%fe\xff HTTP/1.1\r\nHost: a\r\n\r\n"), {400, 404}),
    "attack-url-of-another-host": (sends(b"GET http://b/v2 HTTP/1.1\r\nHost: a\r\n\r\n"), {200}),
    "attack-path-out-of-the-root": (sends(b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"), {404}),
    "attack-host-missing": (sends(GET + b"\r\n"), {400}),
    "attack-host-twice": (sends(GET + b"Host: a\r\nHost: b\r\n\r\n"), {400}),
    "attack-nul-in-head": (sends(GET + b"Host: a\r\nX: \x00\r\n\r\n"), {400}),
    "attack-bare-line-feeds": (sends(GET.replace(b"\r", b"") + b"Host: a\n\n"), {200, 400}),
    "attack-unknown-method": (sends(b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"), {400}),
    "attack-connect": (sends(b"CONNECT b:80 HTTP/1.1\r\nHost: a\r\n\r\n"), {400, 404, 405}),
    "attack-http-0.9": (sends(b"GET /v2\r\n\r\n"), {400}),
    "attack-http-2": (sends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 64), {400}),
    "attack-http-9.9": (sends(b"GET /v2 HTTP/9.9\r\nHost: a\r\n\r\n"), {400}),
    "attack-tls": (sends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))), {400}),
    "attack-upgrade-to-h2c": (sends(GET + b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI"), {200}),
    "attack-upgrade-to-websocket": (sends(GET + b"Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), {200}),
    "attack-length-and-chunks": (sends(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), {400}),
    "attack-two-lengths": (sends(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), {400}),
    "attack-length-of-200-digits": (sends(POST + b"Content-Length: " + b"9" * 200 + b"\r\n\r\n"), {400, 413}),
    "attack-length-of-a-terabyte": (sends(POST + b"Content-Length: 1099511627776\r\n\r\n", endless=b"a" * 65536), {413}),
    "attack-length-in-hex": (sends(POST + b"Content-Length: 0x10\r\n\r\n"), {400}),
    "attack-unknown-transfer-encoding": (sends(POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"), {400}),
    "attack-chunk-size-of-200-digits": (sends(CHUNKED + b"f" * 200 + b"\r\n"), {400}),
    "attack-chunk-size-without-end": (sends(CHUNKED, endless=b"0" * 4096), {400, 431}),
    "attack-chunk-extension-without-end": (sends(CHUNKED + b"5;", endless=b"x" * 4096), {431}),
    "attack-chunk-extensions": (sends(CHUNKED, endless=b"1;" + b"x" * 4096 + b"\r\na\r\n"), {431}),
    "attack-chunks-of-one-byte": (sends(CHUNKED, endless=b"1\r\na\r\n" * 1024), {431}),
    "attack-trailers-without-end": (sends(CHUNKED + b"0\r\n", endless=b"X: y\r\n" * 64), {400, 431}),
    "attack-trailer-without-end": (sends(CHUNKED + b"0\r\nX: ", endless=b"y" * 4096), {400, 431}),
    "attack-garbage-after-a-request": (sends(LIVE + b"\xff" * 1000), {200, 400}),
    "attack-pipelined-gets": (pipelined(LIVE, 14_000), set()),
    "attack-pipelined-not-found": (pipelined(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 14_000), set()),
    "attack-pipelined-posts": (pipelined(POST + b"Content-Length: %d\r\n\r\n" % len(TEXTS) + TEXTS, 5_000), set()),
    "attack-pipelined-metrics": (pipelined(LIVE.replace(b"/v2/health/live", b"/metrics"), 5_000), set()),
    "attack-resets-after-a-request": (resets(LIVE), set()),
    "attack-resets-within-a-body": (resets(POST + b"Content-Length: 100\r\n\r\n{"), set()),
    "attack-connections-that-send-nothing": (resets(b""), set()),
    "attack-100-connections-that-never-pause": (repeated(LIVE, clients=100), {200}),
    "attack-half-closed": (half_closed(LIVE), {0, 200}),
    "attack-half-closed-body": (half_closed(POST + b"Content-Length: 100\r\n\r\n{"), {0, 400}),
    "attack-one-address-with-every-connection": (held(b"", clients=300, seconds=0.2), set()),
    "attack-gzip-bomb": (posts(bomb(2**30 // 8), b"Content-Encoding: gzip", clients=8), {413}),
    "attack-690000-numbers": (posts(NUMBERS, clients=20), {400, 413, 429}),
    "attack-million-brackets": (posts(b'{"instances": ' + b"[" * 1_000_000, clients=20), {413}),
    "attack-million-fields": (posts(b"{" + b'"a": 1,' * 200_000 + b'"a": 1}', clients=20), {413}),
    "attack-body-of-one-string": (posts(b'{"instances": ["' + b"storm " * 340_000 + b'"]}', clients=20), {200, 429}),
    "attack-long-texts-again-and-again": (sent_again(LONG_TEXTS, seconds=0.5), {200, 429}),
    "attack-lone-surrogates": (posts(b'{"instances": ["\\ud800", "\\udfff\\udc00"]}'), {200, 400}),
    "attack-escapes": (posts(b'{"instances": ["' + b"\\u0000" * 300_000 + b'"]}', clients=10), {200, 429}),
    "attack-number-of-a-million-digits": (posts(b'{"instances": [' + b"9" * 1_000_000 + b"]}"), {400}),
    "attack-duplicated-keys": (posts(b'{"instances": 1, "instances": [2], "instances": ["a"]}'), {200, 400}),
    "attack-combining-characters": (posts(COMBINING), {200}),
    "attack-explain-a-text-of-2-megabytes": (posts(EXPLAIN, clients=4, path=b"/v1/models/goemotions:explain"), {200, 429}),
    "attack-500-tensors": (posts(tensors(500), path=V2), {413}),
    "attack-deep-parameters": (
        posts(DEEP, path=V2),
        {413},
    ),
    "attack-binary-empty-texts": (posts(*binary(400_000, bytes(1_600_000)), path=V2), {413}),
    "attack-binary-text-of-4-gigabytes": (posts(*binary(1, b"\xff" * 4), path=V2), {400}),
    "attack-800-ranges": (
        sends(b"GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=" + b"0-0," * 800 + b"1-1\r\n\r\n"),
        {200},
    ),
    "attack-100-continue-and-reset": (resets(POST + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"), set()),
    "attack-nul-bytes": (posts(b"\x00" * 2_000_000), {400}),
}
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
# These need more than two seconds.
SLOW_ATTACKS: dict[str, tuple[Attack, set[int]]] = {
    "attack-long-texts-from-8-addresses": (sent_again(LONG_TEXTS, addresses=8), {200, 429}),
    "attack-slow-head": (slow(GET, b"X", pause=0.1), {408}),
    "attack-slow-fields": (slow(GET, b"X: y\r\n", pause=0.1), {408}),
    "attack-slow-first-byte": (held(b"", clients=90, seconds=4), set()),
    "attack-slow-next-request": (held(LIVE, clients=90, seconds=4), set()),
    "attack-stalled-body": (sends(POST + b"Content-Length: 100\r\n\r\n{"), {408}),
    "attack-stalled-bodies": (held(POST + b"Content-Length: 2000000\r\n\r\n" + b"{" * 60_000, clients=100, seconds=4), set()),
    "attack-slow-body": (slow(POST + b"Content-Length: 100000\r\n\r\n", b"a" * 90, pause=0.1), {408}),
    "attack-slow-chunks": (slow(CHUNKED, b"1\r\na\r\n", pause=0.05), {408}),
    "attack-no-body-after-100-continue": (sends(POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"), {408}),
    "attack-body-after-the-answer": (
        held(b"POST /v3 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", clients=20, seconds=4),
        set(),
    ),
    "attack-explain-long-texts": (
        posts(
            json.dumps({"instances": ["storm lake " * 3000] * 56}).encode(), clients=8, path=b"/v1/models/goemotions:explain"
        ),
        {200, 429},
    ),
    "attack-answers-that-are-read-byte-by-byte": (dribbled(DOCUMENT, 100, clients=20, seconds=3), set()),
    "attack-answers-that-nobody-reads": (held(DOCUMENT * 1000, clients=20, seconds=4, received=4096), set()),
}
# Why the server closed connections of these, as its metric has it.
REASONS = {
    "attack-one-address-with-every-connection": "overloaded",
    "attack-slow-first-byte": "silent",
    "attack-slow-next-request": "idle",
    "attack-slow-head": "slow",
    "attack-body-after-the-answer": "slow-body",
    "attack-answers-that-nobody-reads": "unread-answer",
    "attack-answers-that-are-read-byte-by-byte": "unread-answer",
}


class Honest(threading.Thread):
    """An honest client: it predicts, and asks whether the server is live, again and again."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.statuses: list[int] = []
        self.seconds: list[float] = []
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            self.statuses.append(self._server.predict(instances=["a quiet lake"])[0])
            started = time.monotonic()
            self.statuses.append(self._server.request("GET", "/v2/health/live")[0])
            self.seconds.append(time.monotonic() - started)
            time.sleep(0.01)


@contextlib.contextmanager
def attacked(bundle: Path, log: Path, *options: str) -> Iterator[tuple[Server, Honest]]:
    """A server and its honest client; at the end all honest requests were served, memory is bounded, and the server ends cleanly."""
    with serving(bundle, log, *OPTIONS, *options) as server:
        honest = Honest(server)
        honest.start()
        yield server, honest
        honest.is_over = True
        honest.join(timeout=30)
        assert not honest.is_alive()
        assert server.is_ready()
        assert server.peak_memory() < MEMORY_BYTES
    assert server.process.returncode == 0
    assert "Traceback" not in log.read_text(), log.read_text()
    assert set(honest.statuses) == {200}
    assert np.median(honest.seconds) < 0.1
    assert max(honest.seconds) < 5


@pytest.fixture(scope="module")
def server(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Honest]]:
    with attacked(whole, tmp_path_factory.mktemp("hostile") / "serve.log") as both:
        yield both


def cases(table: dict[str, tuple[Attack, set[int]]], *marks: pytest.MarkDecorator) -> list[pytest.ParameterSet]:
    return [pytest.param(name, *case, id=name, marks=(pytest.mark.fault(name), *marks)) for name, case in table.items()]


@pytest.mark.parametrize(("name", "attack", "allowed"), [*cases(ATTACKS), *cases(SLOW_ATTACKS, pytest.mark.slow)])
def test_an_attack_does_not_harm_others(server: tuple[Server, Honest], name: str, attack: Attack, allowed: set[int]) -> None:
    running, honest = server
    before, served = running.metrics(), len(honest.statuses)
    received = attack(running)
    if allowed:
        assert received <= allowed
        assert received or 0 in allowed
    else:
        assert not received
    assert running.predict(instances=["a"])[0] == 200
    assert set(honest.statuses[served:]) <= {200}
    assert honest.is_alive()
    if name in REASONS:
        closed = f'goemotions_closed_connections_total{{reason="{REASONS[name]}"}}'
        assert running.metrics()[closed] > before.get(closed, 0)
    if received & {400, 408, 414, 431}:
        refused = sum(
            value for key, value in running.metrics().items() if key.startswith('goemotions_requests_total{outcome="client"')
        )
        assert refused > sum(
            value for key, value in before.items() if key.startswith('goemotions_requests_total{outcome="client"')
        )
