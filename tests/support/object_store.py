"""An object store in memory that speaks the S3 API as far as this package uses it, and misbehaves as a test says."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support import http_server

PRECONDITION = (412, "PreconditionFailed")
# That of a store that accepts any.
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
CONDITIONS = ("If-Match", "If-None-Match")


@dataclass
class Behaviour:
    """How the store differs from S3.

    Attributes:
        ignored: conditions that are not kept to: If-Match, If-None-Match.
        refused: codes by method, and by ``PUT if`` for writes on a condition, with which requests are refused.
        late: seconds between a write and its response, as a function of the number of the write (from 1).
        tag: the tag of an object as GET returns it, made from the one that PUT returned.
        listed: whether listings hold an object.
        cut: how many responses with an object end within it, the first ones.
        short: how many responses have half of an object, as if it were all of it, the first ones.
    """

    ignored: frozenset[str] = frozenset()
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    late: Callable[[int], float] = lambda number: 0.0
    tag: Callable[[str], str] = lambda tag: tag
    listed: Callable[[str], bool] = lambda key: True
    cut: int = 0
    short: int = 0


class ObjectStore(http_server.Server):
    """``objects`` holds the content by bucket and key; ``requests`` the methods and paths so far."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        super().__init__(Handler, port)
        self.behaviour = behaviour
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.writes = 0
        self.lock = threading.Lock()


class Handler(http_server.Handler):
    server: ObjectStore

    def respond(self) -> None:
        body = self.body()
        parts = urlsplit(self.path)
        key, query = unquote(parts.path.lstrip("/")), parse_qs(parts.query)
        with self.server.lock:
            self.server.requests.append((self.command, key))
            status, headers, content = self.handle_request(key, query, body)
            if self.command == "GET" and "list-type" not in query and status < 300 and self.server.behaviour.cut:
                self.server.behaviour.cut -= 1
                headers, content = headers | {"Content-Length": str(len(content))}, content[: len(content) // 2]
                self.close_connection = True
            elif self.command == "GET" and "list-type" not in query and status < 300 and self.server.behaviour.short:
                self.server.behaviour.short -= 1
                content = content[: len(content) // 2]
            number = self.server.writes = self.server.writes + (self.command == "PUT")
        if self.command == "PUT":
            time.sleep(self.server.behaviour.late(number))
        with contextlib.suppress(OSError):
            self.send(status, content, headers)

    def handle_request(self, key: str, query: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
        behaviour, objects = self.server.behaviour, self.server.objects
        is_conditional = any(name in self.headers for name in CONDITIONS)
        for kind in (f"{self.command} if",) * is_conditional + (self.command,):
            if kind in behaviour.refused:
                return error(*behaviour.refused[kind])
        if "list-type" in query:
            return self.listing(key.partition("/")[0], query["prefix"][0] if "prefix" in query else "")
        tag = tag_of(objects[key]) if key in objects else ""
        wanted = {name: self.headers[name] for name in CONDITIONS if name in self.headers and name not in behaviour.ignored}
        if self.command == "PUT":
            if (wanted.get("If-None-Match") == "*" and tag) or wanted.get("If-Match", tag) != tag:
                return error(*PRECONDITION)
            objects[key] = body
            return 200, {"ETag": tag_of(body)}, b""
        if self.command == "DELETE":
            objects.pop(key, None)
            return 204, {}, b""
        if not tag:
            return error(404, "NoSuchKey")
        shown = behaviour.tag(tag)
        if wanted.get("If-Match", shown) != shown:
            return error(*PRECONDITION)
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        content = objects[key][int(start) : int(end or 99999999) + 1]
        headers = {"ETag": shown, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if "Range" not in self.headers:
            return 200, headers, content
        span = f"bytes {start}-{int(start) + len(content) - 1}/{len(objects[key])}"
        return 206, headers | {"Content-Range": span}, content

    def listing(self, bucket: str, prefix: str) -> tuple[int, dict[str, str], bytes]:
        keys = sorted(key.removeprefix(f"{bucket}/") for key in self.server.objects if key.startswith(f"{bucket}/{prefix}"))
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{escape(tag_of(content))}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in filter(self.server.behaviour.listed, keys)
            for content in [self.server.objects[f"{bucket}/{key}"]]
        )
        return 200, {"Content-Type": "application/xml"}, f"<ListBucketResult>{entries}</ListBucketResult>".encode()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = respond


def tag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {"Content-Type": "application/xml"},
        f"<Error><Code>{code}</Code><Message>as requested</Message></Error>".encode(),
    )


def running(behaviour: Behaviour, port: int = 0) -> contextlib.AbstractContextManager[ObjectStore]:
    return http_server.running(ObjectStore(behaviour, port))
