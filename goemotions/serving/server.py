"""The predictor server's life: it becomes ready, answers, drains at SIGTERM, and ends. One process, or several workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from goemotions import defaults
from goemotions.errors import WorkflowError
from goemotions.serving.limits import Limits
from goemotions.storage import manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a bundle is served. ``grpc_port`` 0: no gRPC; ``threads`` None: every core, shared among the workers."""

    folder: Path
    version: str
    engine: str = ""
    threads: int | None = None
    host: str = defaults.HOST
    port: int = defaults.PORT
    grpc_port: int = 0
    workers: int = 1
    page: bool = True
    across_requests: bool = True
    limits: Limits = field(default_factory=Limits)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        IntegrityError, ModelError: the bundle cannot be served; no port was opened.
    """
    config = uvicorn.Config(
        functools.partial(create, settings),
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.limits.answer_seconds),
        timeout_keep_alive=75,
        timeout_worker_healthcheck=30,
        backlog=2048,
    )
    manifest.verify(settings.folder)
    listening = _listen(settings.host, settings.port)
    # uvicorn raises the signal again once it has shut down: the exit is a clean one then.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if settings.workers == 1:
        uvicorn.Server(config).run([listening])
        return
    with tempfile.TemporaryDirectory() as scratch:
        # Where the workers' metrics add up; read when prometheus_client is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch
        Multiprocess(config, [listening]).run()


def create(settings: Settings) -> Starlette:
    """The application of one worker, its engine warmed up."""
    from goemotions.prediction.predictor import Predictor
    from goemotions.serving import grpc, page, rest
    from goemotions.serving.service import Service

    # The event loop and the lanes pass the interpreter on ten times as often as by default: each waits less for the other.
    sys.setswitchinterval(0.0005)
    predictor = Predictor.load(settings.folder, engine=settings.engine, threads=_threads(settings))
    service = Service(predictor, settings.version, settings.limits, across_requests=settings.across_requests)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        _drain_at_sigterm(service)
        server = grpc.start(service, f"{settings.host}:{settings.grpc_port}") if settings.grpc_port else None
        if server:
            await server.start()
        logger.info(
            "http://%s:%s/ answers: version %s, %s", settings.host, settings.port, settings.version, predictor.engine.name
        )
        yield
        if server:
            await server.stop(settings.limits.answer_seconds)
        service.close()

    return rest.create(service, lifespan, page.route(service) if settings.page else None)


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 that gives a client a bounded time for the head of a request."""

    head_seconds = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.head_seconds, transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.transport.close)

    def on_headers_complete(self) -> None:
        self._forget_deadline()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _drain_at_sigterm(service: Any) -> None:
    """At SIGTERM readiness goes first; requests are answered while the routers hear of it; only then does the port close."""
    stop: Any = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def drain(number: int, frame: Any) -> None:
        if service.is_draining:
            stop(number, frame)
            return
        service.is_draining = True
        logger.info("draining for %g seconds", service.limits.drain_seconds)
        loop.call_soon_threadsafe(loop.call_later, service.limits.drain_seconds, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)


def _threads(settings: Settings) -> int:
    from goemotions.models import engines

    return settings.threads or max(1, engines.cpus() // settings.workers)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise WorkflowError(f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port") from error
    listening.set_inheritable(True)
    return listening
