"""What both sides of a gRPC connection send, frame by frame: its calls, whether its client floods it, and why something ends.

https://www.rfc-editor.org/rfc/rfc9113#section-4.1
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from goemotions.serving.metrics import CLIENT_GONE, FLOOD

# The bytes before the payload of a frame; types of frames; the flag of an acknowledgement.
HEAD_BYTES, IS_ACK = 9, 1
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
# Of a message in its first data: whether it is compressed, and its size.
PREFIX_BYTES = 5
# In answers of the library, a field and its value: to a call whose message is too large once it is decompressed, and to one that never
# begins, since its head has another method, scheme or ``te`` than calls have.
EXPANDED = b"grpc-message\x24Decompressed message larger than max"
UNREADABLE = re.compile(rb"grpc-message(\x1bError parsing 'te'| Error parsing ':(method|scheme)') metadata")
# https://www.rfc-editor.org/rfc/rfc9113#section-7
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CALM = 0, 1, 2, 7, 11
# Errors of streams that the library ends before a call of them begins: their heads are none of a call, or there are too many.
NEVER_BEGUN = {INTERNAL_ERROR: 400, REFUSED_STREAM: FLOOD}
# Calls at once on one connection; the client keeps more to itself until one ends.
STREAMS = 128
# A connection is closed beyond so many, and so many per second, of calls that its client resets at once, or makes the library reset, or
# of frames that begin no call: https://www.cve.org/CVERecord?id=CVE-2023-44487, https://www.cve.org/CVERecord?id=CVE-2025-8671 and
# https://www.cve.org/CVERecord?id=CVE-2019-9512
RESETS, FRAMES_BESIDE_CALLS, PER_SECOND = 1000, 4000, 200
# So many more of those frames for each call, and one for so many bytes: large messages have many, and a client with a small window
# sends many updates of it for a large response.
FRAMES_PER_CALL, BYTES_PER_FRAME = 10, 256
# A call that is reset later is one of a deadline, or of hedging.
RESET_SECONDS = 0.002


class _Allowance:
    """So many, and so many per second more."""

    def __init__(self, most: int, now: float) -> None:
        self._most = self._left = float(most)
        self._since = now

    def give(self, count: float) -> None:
        self._left = min(self._most, self._left + count)

    def take(self, now: float) -> bool:
        """Whether it was left."""
        self.give(PER_SECOND * (now - self._since))
        self._since = now
        self._left -= 1
        return self._left >= 0


@dataclass
class _Call:
    """A call without an answer: when it began, its bytes, whether its message began, and whether the library ends it for its size."""

    began: float
    size: int = 0
    has_message: bool = False
    is_too_large: bool = False


class Frames:
    """The frames of one connection, whose messages may have so many bytes."""

    def __init__(self, most_bytes: int, now: float) -> None:
        self._most_bytes = most_bytes
        self._resets, self._others = _Allowance(RESETS, now), _Allowance(FRAMES_BESIDE_CALLS, now)
        # The newest calls by their streams.
        self._calls: dict[int, _Call] = {}
        # How many messages are too large, and how many calls the client left: the library ends them all in one way.
        self._too_large = self._left = 0
        # The bytes of the calls without an answer. Those of calls beyond the limit count until the connection ends.
        self.held = 0
        # The stream of the newest call.
        self.last = 0
        # Why the library closes the connection; 0 once either side has said that it ends as it should.
        self.closing_status = 400

    def count_bytes(self, count: int) -> None:
        """Counts bytes of messages, of either side."""
        self._others.give(count / BYTES_PER_FRAME)

    def is_flood(self, frame: bytes, now: float) -> bool:
        """Notes a frame of the client, its head and what begins its payload; whether it is one too many."""
        kind, stream = frame[3], stream_of(frame)
        call, is_reset_at_once = self._calls.get(stream), False
        if kind == HEADERS:
            self._begin(stream, now)
            return False
        if kind == DATA:
            self.count_bytes(length_of(frame))
            if call:
                call.size += length_of(frame)
                self.held += length_of(frame)
            if call and not call.has_message and length_of(frame):
                self._note_message(call, frame[HEAD_BYTES:])
        elif kind == RST_STREAM and call:
            self._end(stream)
            self._left += 1
            self._too_large -= call.is_too_large
            is_reset_at_once = now - call.began < RESET_SECONDS
        elif kind == GOAWAY:
            self.closing_status = 0
        return (is_reset_at_once and not self._resets.take(now)) or not self._others.take(now)

    def note_answer(self, frame: bytes) -> int:
        """Notes the first or the last frame of an answer: the status of a call that never begins, otherwise 0."""
        self._end(stream_of(frame))
        self._too_large += EXPANDED in frame
        return 400 if UNREADABLE.search(frame) else 0

    def note_reset(self, frame: bytes, now: float) -> tuple[int, bool]:
        """Notes that the library resets a call: the status of one that never begins, otherwise 0, and whether it is one too many."""
        error = int.from_bytes(frame[HEAD_BYTES:], "big")
        self._end(stream_of(frame))
        return NEVER_BEGUN.get(error, 0), error != NO_ERROR and not self._resets.take(now)

    def note_goodbye(self, frame: bytes) -> None:
        """Notes that the library ends the connection."""
        error, reason = int.from_bytes(frame[HEAD_BYTES + 4 : HEAD_BYTES + 8], "big"), frame[HEAD_BYTES + 8 :]
        self.closing_status = (
            0 if error == NO_ERROR else 408 if reason.endswith(b"timeout") else FLOOD if error == CALM else 400
        )

    @property
    def has_reason(self) -> bool:
        """Whether it is known why the library has ended a call."""
        return bool(self._left or self._too_large)

    def status_of_ended(self) -> int:
        """The status of a call that the library has ended: the client left it, or what it sent was too large or no message."""
        if self._left:
            self._left -= 1
            return CLIENT_GONE
        if self._too_large:
            self._too_large -= 1
            return 413
        return 400

    def _begin(self, stream: int, now: float) -> None:
        self.last = stream
        self._calls.setdefault(stream, _Call(now))
        if len(self._calls) > STREAMS:
            del self._calls[next(iter(self._calls))]
        self._others.give(FRAMES_PER_CALL)

    def _end(self, stream: int) -> None:
        if call := self._calls.pop(stream, None):
            self.held -= call.size

    def _note_message(self, call: _Call, prefix: bytes) -> None:
        """Notes the start of a message: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md"""
        size = int.from_bytes(prefix[1:], "big")
        call.has_message, call.is_too_large = True, size > self._most_bytes
        self._too_large += call.is_too_large


def length_of(head: bytes) -> int:
    return int.from_bytes(head[:3], "big")


def stream_of(head: bytes) -> int:
    return int.from_bytes(head[5:HEAD_BYTES], "big")


def is_ack(head: bytes) -> bool:
    return head[3] == SETTINGS and bool(head[4] & IS_ACK)


def goaway(error: int, reason: str, last: int = 0) -> bytes:
    """The last frame to a client; calls after the stream ``last`` were not handed over, and clients may send them again."""
    payload = last.to_bytes(4, "big") + error.to_bytes(4, "big") + reason.encode()
    return len(payload).to_bytes(3, "big") + bytes([GOAWAY, 0, 0, 0, 0, 0]) + payload
