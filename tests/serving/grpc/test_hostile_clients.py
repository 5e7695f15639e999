"""Clients of the gRPC port that send too much, too little or nonsense, or do not read: others are served, and memory stays bounded."""

import contextlib
import gzip
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.serving.grpc.frames import FRAMES_BESIDE_CALLS
from tests.support import http2
from tests.support.http2 import Connection, frame, headers, message
from tests.support.servers import Server, serving

pytestmark = pytest.mark.slow
# Beyond what the server has before an attack.
MEMORY_MIB = 300
# Of the whole log; one attack alone sends more wrong fields than would fit.
LOG_BYTES = 20_000


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving(bundle, log, "--read-seconds", "1", "--write-seconds", "1") as running:
        yield running
        assert running.is_ready()
    assert running.process.returncode == 0
    assert "Traceback" not in log.read_text(), log.read_text()
    assert log.stat().st_size < LOG_BYTES


def request(texts: list[str], id: str = "") -> Any:
    content = pb.ModelInferRequest(model_name="goemotions", id=id)
    content.inputs.add(name="text", datatype="BYTES", shape=[len(texts)]).contents.bytes_contents.extend(
        text.encode() for text in texts
    )
    return content


INFERENCE = message(request(["we found the lake"]).SerializeToString())
LARGE = message(request(["a"] * 512, "i" * 200).SerializeToString())


# 50 kB that decompress to 50 MB.
BOMB = gzip.compress(bytes(50_000_000), 9)


def nobody_reads(port: int) -> Iterator[Connection]:
    """Responses for windows of 0 bytes."""
    for _ in range(10):
        connection = Connection(port, window=0)
        connection.acknowledge()
        for _ in range(4):
            connection.call(LARGE)
        yield connection


def no_message(port: int) -> Iterator[Connection]:
    for _ in range(8):
        connection = Connection(port)
        for _ in range(http2.MAX_STREAMS):
            connection.call()
        yield connection


def half_messages(port: int) -> Iterator[Connection]:
    for _ in range(60):
        connection = Connection(port)
        for _ in range(3):
            connection.call(message(b"x" * 20_000, length=2_000_000), end=False)
        yield connection


def resets(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    connection.acknowledge()
    for stream in range(1, 20_001, 2):
        connection.send(
            frame(http2.HEADERS, http2.END_HEADERS, stream, headers())
            + frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
        )
    yield connection


def calls(content: bytes = INFERENCE, path: str = http2.INFER, **more: str) -> Callable[[int], Iterator[Connection]]:
    """1,000 calls on each of 4 connections, whose responses are not read."""

    def send(port: int) -> Iterator[Connection]:
        for _ in range(4):
            connection = Connection(port)
            connection.acknowledge()
            for _ in range(1000):
                connection.call(content, end=True, path=path, **more)
            yield connection

    return send


def flood(part: bytes, count: int) -> Callable[[int], Iterator[Connection]]:
    """Frames of one connection."""

    def send(port: int) -> Iterator[Connection]:
        connection = Connection(port)
        connection.acknowledge()
        for _ in range(count):
            connection.send(part * 100)
        yield connection

    return send


def endless_headers(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    connection.send(frame(http2.HEADERS, 0, 1, headers()))
    for _ in range(500):
        connection.send(frame(http2.CONTINUATION, 0, 1, b"\x00\x01a\x7e" + b"b" * 126) * 100)
    yield connection


def large_metadata(port: int) -> Iterator[Connection]:
    for _ in range(20):
        connection = Connection(port)
        connection.call(INFERENCE, x="y" * 100_000)
        yield connection


def bombs(port: int) -> Iterator[Connection]:
    content = message(BOMB, compressed=True)
    for _ in range(16):
        connection = Connection(port)
        connection.call(content, grpc_encoding="gzip")
        yield connection


def large_ids(port: int) -> Iterator[Connection]:
    for _ in range(8):
        connection = Connection(port)
        connection.call(message(request(["a"], "i" * 60_000).SerializeToString()))
        yield connection


def many_outputs(port: int) -> Iterator[Connection]:
    content = request(["a"])
    for _ in range(5000):
        content.outputs.add(name="labels")
    connection = Connection(port)
    for _ in range(8):
        connection.call(message(content.SerializeToString()))
    yield connection


def large(content: bytes) -> Callable[[int], Iterator[SimpleNamespace]]:
    """Messages that are larger than the window of a connection."""

    def send(port: int) -> Iterator[SimpleNamespace]:
        for _ in range(8):
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
            # A call that nothing refers to is cancelled.
            yield SimpleNamespace(call=channel.unary_unary(http2.INFER).future(content), close=channel.close)

    return send


def frames_of_one_byte(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    stream = connection.call(LARGE[:5], end=False)
    for byte in LARGE[5:]:
        connection.send(frame(http2.DATA, 0, stream, bytes([byte])))
    yield connection


def header_block(fields: bytes) -> Callable[[int], Iterator[Connection]]:
    """Calls with further fields, of clients that do not acknowledge the settings."""

    def send(port: int) -> Iterator[Connection]:
        block = headers() + fields
        parts = [block[start : start + http2.FRAME_BYTES] for start in range(0, len(block), http2.FRAME_BYTES)]
        for _ in range(40):
            connection = Connection(port)
            connection.send(frame(http2.HEADERS, http2.END_HEADERS * (len(parts) == 1), 1, parts[0]))
            for number, part in enumerate(parts[1:], 2):
                connection.send(frame(http2.CONTINUATION, http2.END_HEADERS * (number == len(parts)), 1, part))
            yield connection

    return send


def http_1(port: int) -> Iterator[socket.socket]:
    for _ in range(100):
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        yield connection


def silent_connections(port: int) -> Iterator[Any]:
    for _ in range(1200):
        yield socket.create_connection(("127.0.0.1", port), timeout=10)


FLOOD = 'rejected_requests_total{reason="flood"}'
# Each attack, with the counter that shows it, if the library reports it.
ATTACKS: dict[str, tuple[Callable[[int], Iterator[Any]], str]] = {
    "nobody-reads": (nobody_reads, 'closed_connections_total{reason="unread-answer"}'),
    "no-message": (no_message, 'rejected_requests_total{reason="slow"}'),
    "half-messages": (half_messages, 'rejected_requests_total{reason="slow"}'),
    "resets": (resets, FLOOD),
    "pings": (flood(frame(http2.PING, payload=bytes(8)), 300), ""),
    "settings": (flood(http2.settings(window=65535), 300), FLOOD),
    "empty-frames": (flood(frame(http2.DATA, 0, 1), 300), ""),
    "window-updates": (flood(frame(http2.WINDOW_UPDATE, payload=(1).to_bytes(4, "big")), 300), FLOOD),
    "endless-headers": (endless_headers, ""),
    "large-metadata": (large_metadata, ""),
    "bombs": (bombs, 'requests_total{outcome="client",protocol="grpc"}'),
    "large-ids": (large_ids, 'rejected_requests_total{reason="malformed"}'),
    "many-outputs": (many_outputs, 'rejected_requests_total{reason="too-large"}'),
    "empty-tensors": (large(b"\x2a\x00" * 1_000_000), 'rejected_requests_total{reason="too-large"}'),
    "empty-parameters": (large(b"\x22\x00" * 1_000_000), 'rejected_requests_total{reason="too-large"}'),
    "priorities": (flood(frame(http2.PRIORITY, 0, 1, bytes(5)), 300), FLOOD),
    "unknown-frames": (flood(frame(0x77, 0, 1, bytes(100)), 300), FLOOD),
    "goaways": (flood(frame(http2.GOAWAY, payload=bytes(8)), 300), ""),
    "window-overflow": (flood(frame(http2.WINDOW_UPDATE, payload=b"\x7f\xff\xff\xff"), 10), ""),
    "large-tables": (flood(frame(http2.SETTINGS, payload=struct.pack(">HI", 1, 2**32 - 1)), 300), ""),
    "frame-of-16-megabytes": (flood(b"\xff\xff\xff" + frame(http2.DATA, 0, 1, bytes(16384))[3:], 100), ""),
    "frames-of-one-byte": (frames_of_one_byte, ""),
    "tiny-fields": (header_block(b"\x00\x01a\x01b" * 470_000), ""),
    "table-references": (header_block(b"\x40\x01a\x01b" + b"\xbe" * 470_000), ""),
    "long-table-references": (header_block(b"\x40\x01a\x7f\xbd\x1d" + b"b" * 3900 + b"\xbe" * 4000), ""),
    "http-1": (http_1, ""),
    "deadline-0": (calls(grpc_timeout="0n"), 'rejected_requests_total{reason="client-gone"}'),
    "deadline-of-10000-years": (calls(grpc_timeout="99999999H"), 'requests_total{outcome="ok",protocol="grpc"}'),
    "wrong-deadlines": (calls(grpc_timeout="soon"), ""),
    "wrong-encodings": (calls(grpc_encoding="snappy"), ""),
    "reflection": (
        calls(path="/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
        'requests_total{outcome="client",protocol="grpc"}',
    ),
    "two-messages": (calls(INFERENCE * 20), ""),
    "silent-connections": (silent_connections, ""),
}


@pytest.mark.fault("grpc-hostile-client")
@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_while_one_client_attacks(server: Server, name: str) -> None:
    attack, counter = ATTACKS[name]
    process, before = psutil.Process(server.process.pid), server.metrics()
    used = process.memory_info().rss
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    outcomes: list[str] = []
    ended = threading.Event()
    honest = threading.Thread(target=serve_honestly, args=(server, ended, outcomes))
    honest.start()
    opened: list[Any] = []
    try:
        # The server may close a connection in the middle of an attack.
        with contextlib.suppress(OSError):
            opened.extend(attack(server.grpc_port))
        deadline = time.monotonic() + 10
        while counter and not server.metrics().get(f"goemotions_{counter}", 0) > before.get(f"goemotions_{counter}", 0):
            assert time.monotonic() < deadline, server.metrics()
            time.sleep(0.1)
        assert server.request("GET", "/v2/health/live")[0] == 200
    finally:
        ended.set()
        honest.join()
    for connection in opened:
        connection.close()
    assert set(outcomes) == {"OK"}, outcomes
    assert peak(process.pid) < used + MEMORY_MIB * 2**20
    assert server.metrics().get('goemotions_requests_total{outcome="server",protocol="grpc"}', 0) == 0


@pytest.mark.fault("grpc-resets")
def test_a_client_that_updates_a_small_window_often_is_served(server: Server) -> None:
    connection, content, answers, updates = Connection(server.grpc_port, window=1024), LARGE, 0, 0
    connection.acknowledge()
    connection.call(content)
    for kind, flags, stream, payload in connection.frames(60):
        if kind == http2.DATA and payload:
            size = len(payload).to_bytes(4, "big")
            connection.send(frame(http2.WINDOW_UPDATE, payload=size) + frame(http2.WINDOW_UPDATE, 0, stream, size))
            updates += 2
        if kind == http2.HEADERS and flags & http2.END_STREAM:
            answers += 1
            if answers == 120:
                break
            connection.call(content)
    connection.close()
    assert answers == 120
    assert updates > FRAMES_BESIDE_CALLS


def serve_honestly(server: Server, ended: threading.Event, outcomes: list[str]) -> None:
    """Sends requests one after the other, each on the connection of the last or, every tenth, on a new one."""
    while not ended.is_set() or len(outcomes) < 10:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            for _ in range(10):
                try:
                    stub.ModelInfer(request(["lake"]), timeout=10, wait_for_ready=True)
                    outcomes.append("OK")
                except grpc.RpcError as error:
                    outcomes.append(f"{error.code()} {error.details()}")
                time.sleep(0.01)


def peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
