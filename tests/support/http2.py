"""A client of gRPC that writes the frames of HTTP/2 itself, also wrong ones, and reads only what the test reads."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES = 16384
# What the server allows per connection.
MAX_STREAMS = 128
INFER = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; ``window`` is the initial window of the streams on which the server sends."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", INITIAL_WINDOW_SIZE, value) for value in values.values()))


def headers(path: str = INFER, **more: str) -> bytes:
    """Headers of a call, none of them indexed."""
    named = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    named |= {"content-type": "application/grpc"} | {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in named.items())


def message(content: bytes, length: int | None = None, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix, whose length may be wrong."""
    return struct.pack(">BI", compressed, len(content) if length is None else length) + content


def _string(text: str) -> bytes:
    content = text.encode()
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest, encoded = len(content) - 127, bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes(encoded) + bytes([rest]) + content


class Connection:
    """One connection; odd streams are numbered as they are opened."""

    def __init__(self, port: int, source: str = "127.0.0.1", **initial_settings: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
        self.send(PREFACE + settings(**initial_settings))
        self.stream = -1

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def acknowledge(self) -> None:
        """Acknowledges the settings of the server, once they are there."""
        head = self.socket.recv(9, socket.MSG_WAITALL)
        self.socket.recv(int.from_bytes(head[:3], "big"), socket.MSG_WAITALL)
        self.send(frame(SETTINGS, ACK))

    def call(self, content: bytes = b"", *, end: bool = True, path: str = INFER, **more: str) -> int:
        """Opens a stream and sends what follows its headers, if anything, in frames of the usual size; returns its number."""
        self.stream += 2
        parts = [content[start : start + FRAME_BYTES] for start in range(0, len(content), FRAME_BYTES)]
        block = headers(path, **more)
        sent = frame(HEADERS, END_HEADERS * (len(block) <= FRAME_BYTES), self.stream, block[:FRAME_BYTES])
        for start in range(FRAME_BYTES, len(block), FRAME_BYTES):
            part = block[start : start + FRAME_BYTES]
            sent += frame(CONTINUATION, END_HEADERS * (start + FRAME_BYTES >= len(block)), self.stream, part)
        for number, part in enumerate(parts, 1):
            sent += frame(DATA, END_STREAM if end and number == len(parts) else 0, self.stream, part)
        self.send(sent)
        return self.stream

    def frames(self, seconds: float) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that arrives, until the server closes the connection or the time is over."""
        ends, buffer = time.monotonic() + seconds, b""
        with contextlib.suppress(OSError):
            while (left := ends - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not (received := self.socket.recv(65536)):
                    return
                buffer += received
                while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3], "big")):
                    kind, flags, stream = struct.unpack(">BBI", buffer[3:9])
                    yield kind, flags, stream, buffer[9 : 9 + length]
                    buffer = buffer[9 + length :]

    def is_closed(self, seconds: float) -> bool:
        """Whether the server closes the connection within so many seconds."""
        ends = time.monotonic() + seconds
        try:
            while (left := ends - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(65536):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def close(self) -> None:
        self.socket.close()
