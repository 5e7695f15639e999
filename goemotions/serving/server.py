"""The lifecycle of the predictor server: start, readiness, draining on SIGTERM, end. One process, or several worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import multiprocessing.connection
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette

from goemotions import defaults
from goemotions.models import devices
from goemotions.serving import workers
from goemotions.serving.admission import listening
from goemotions.serving.limits import Limits, LogSettings, ShadowSettings

if TYPE_CHECKING:
    # At run time only where it is used: a worker imports the metrics after their files exist.
    from goemotions.prediction.predictor import Predictor
    from goemotions.serving.http.connection import HttpConnections
    from goemotions.serving.service import Service
    from goemotions.serving.traffic.request_log import RequestLog

logger = logging.getLogger(__name__)
# For what runs after the last request to end.
END_SECONDS = 2.0
# Of a connection: that of the client, and both ends of that to the library.
FILES_PER_GRPC = 3


@dataclass(frozen=True)
class Settings:
    """How a bundle is served.

    ``folder`` holds a verified bundle (``references.as_folder``): the server does not compare it with its manifest again.
    ``grpc_port`` 0: no gRPC. ``threads`` None: all cores, divided among the ``workers`` (processes).
    """

    folder: Path
    version: str
    name: str = defaults.MODEL_NAME
    engine: str = ""
    threads: int | None = None
    host: str = defaults.HOST
    port: int = defaults.PORT
    grpc_port: int = 0
    workers: int = 1
    page: bool = True
    across_requests: bool = True
    limits: Limits = field(default_factory=Limits)
    shadow: ShadowSettings = field(default_factory=ShadowSettings)
    log: LogSettings = field(default_factory=LogSettings)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ModelError: the bundle cannot be served.
        DeviceError: this process was given a GPU and cannot use it; no port was opened.
        WorkflowError: the port is in use or not permitted, or too few files may be open.
    """
    if devices.is_required():
        devices.resolve()
    listening.allow_files(settings.limits.connections, 1 + FILES_PER_GRPC * bool(settings.grpc_port))
    port = listening.bind(settings.host, settings.port, "--port")
    grpc_port = listening.bind(settings.host, settings.grpc_port, "--grpc-port") if settings.grpc_port else None
    started = time.time()
    if settings.workers == 1:
        _serve(settings, port, grpc_port, started)
        return
    limits = settings.limits
    workers.run(
        settings.workers,
        functools.partial(_serve, settings, port, grpc_port, started),
        limits.drain_seconds + limits.answer_seconds + 2 * END_SECONDS,
    )
    workers.ignore_stops()


def _serve(
    settings: Settings,
    port: socket.socket,
    grpc_port: socket.socket | None,
    started: float,
    pipe: multiprocessing.connection.Connection | None = None,
) -> None:
    """Serves in this process; ``pipe``: that of a worker process, ``started``: when the server was."""
    from goemotions.serving.http.connection import HttpConnections

    connections = HttpConnections(settings.limits)

    def create_app() -> Starlette:
        from goemotions.serving import logs, metrics
        from goemotions.serving.http import page, rest

        logs.limit_rate()
        metrics.STARTED.set(started)
        # The event loop and the worker threads switch ten times as often as by default, so that neither waits long for the other.
        sys.setswitchinterval(0.0005)
        service = _service(settings)
        connections.health = {b"live": lambda: service.is_live, b"ready": lambda: service.is_ready}
        lifespan = functools.partial(_lifespan, settings, service, connections, grpc_port, pipe)
        return rest.create_app(service, lifespan, page.routes(service) if settings.page else ())

    config = uvicorn.Config(
        create_app,
        factory=True,
        loop="uvloop",
        http=connections,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # An address is that of the connection: a client can write any other one into a header.
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.limits.answer_seconds + END_SECONDS),
    )
    # After its shutdown uvicorn raises the signal again; this handler makes that a clean exit. Not earlier: an exception that is raised
    # while modules are imported may be lost, and the signal with it.
    for number in workers.STOPS:
        signal.signal(number, _exit)
    _Server(config, grpc_port).run([port])


def _exit(number: int, frame: Any) -> None:
    workers.ignore_stops()
    sys.exit(0)


class _Server(uvicorn.Server):
    """Accepts connections itself."""

    def __init__(self, config: uvicorn.Config, grpc_port: socket.socket | None) -> None:
        super().__init__(config)
        self._grpc_ports = [grpc_port] if grpc_port else []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Before the application starts, which could not end without a traceback.
        for port in [*(sockets or []), *self._grpc_ports]:
            listening.listen(port)
        await super().startup([])
        connections: Any = self.config.http_protocol_class
        protocol = functools.partial(connections, self.config, self.server_state, self.lifespan.state)
        listeners: list[Any] = [listening.Listener(port, protocol, connections, connections.turns) for port in sockets or []]
        self.servers.extend(listeners)


def _service(settings: Settings) -> Service:
    from goemotions.models import engines
    from goemotions.prediction.predictor import Predictor
    from goemotions.serving.service import Service
    from goemotions.serving.traffic.shadow import Shadow

    threads = settings.threads or max(1, engines.cpus() // settings.workers)
    predictor = Predictor.load(settings.folder, engine=settings.engine, threads=threads, is_verified=True)
    service = Service(
        predictor,
        settings.version,
        settings.limits,
        name=settings.name,
        across_requests=settings.across_requests,
        log=_request_log(settings, predictor),
    )
    if settings.shadow.shadow_url and settings.shadow.shadow_percent:
        service.shadow = Shadow(settings.shadow, settings.name, service.labels)
    return service


@contextlib.asynccontextmanager
async def _lifespan(
    settings: Settings,
    service: Service,
    connections: HttpConnections,
    grpc_port: socket.socket | None,
    pipe: multiprocessing.connection.Connection | None,
    _: Starlette,
) -> AsyncIterator[None]:
    """What runs beside the application: gRPC, and what shows the supervisor that this process is alive."""
    from goemotions.serving.grpc.server import GrpcServer

    grpc_server = GrpcServer(service, grpc_port) if grpc_port else None
    if grpc_server:
        await grpc_server.start()
    draining = _Draining(service, connections, grpc_server)
    beating = asyncio.create_task(_beat(service, pipe)) if pipe else None
    # What was imported never becomes garbage, and looking through it would stop all requests for up to a tenth of a second.
    gc.collect()
    gc.freeze()
    ready = "ready at http://%s:%s/: %s version %s (run %s), %s"
    logger.info(ready, settings.host, settings.port, settings.name, settings.version, service.run_id, service.computation)
    yield
    if grpc_server:
        await draining.stop_grpc()
    if beating:
        beating.cancel()
    # A worker thread that hangs does not delay the end of the process.
    closing = threading.Thread(target=service.close, daemon=True)
    closing.start()
    closing.join(END_SECONDS)


def _request_log(settings: Settings, predictor: Predictor) -> RequestLog | None:
    if not settings.log.log_share:
        return None
    from goemotions.data.request_log import Labels
    from goemotions.serving.traffic.request_log import RequestLog

    fitted = predictor.bundle.thresholds
    labels = Labels(predictor.bundle.taxonomy.names, fitted.values, fitted.k)
    return RequestLog(settings.log, settings.name, settings.version, labels, settings.workers)


class _Draining:
    """On SIGTERM, makes the server unready; after the drain time, when routers have stopped sending requests, its ports are closed.

    On SIGINT, they are closed at once; another SIGTERM changes nothing. From then on, requests of every protocol have the same time to
    be answered.
    """

    def __init__(self, service: Service, connections: HttpConnections, grpc_server: Any) -> None:
        self._service = service
        self._connections = connections
        self._grpc_server = grpc_server
        self._grpc_stops: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        # uvicorn's.
        self._stop: Any = signal.getsignal(signal.SIGTERM)
        for number in workers.STOPS:
            signal.signal(number, self._drain)

    async def stop_grpc(self) -> None:
        """Returns when gRPC has ended."""
        if self._grpc_stops is None:
            self._grpc_stops = self._loop.create_task(self._grpc_server.stop(self._service.limits.answer_seconds))
        await self._grpc_stops

    def _drain(self, number: int, frame: Any) -> None:
        if self._service.is_draining and number == signal.SIGTERM:
            return
        seconds = 0.0 if number == signal.SIGINT else self._service.limits.drain_seconds
        self._service.is_draining = True
        logger.info("draining for %g seconds", seconds)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._close, frame)

    def _close(self, frame: Any) -> None:
        self._connections.end_within(self._service.limits.answer_seconds)
        if self._grpc_server:
            self._loop.create_task(self.stop_grpc())
        # Of a second SIGINT, it would close all connections at once.
        self._stop(signal.SIGTERM, frame)


async def _beat(service: Service, pipe: multiprocessing.connection.Connection) -> None:
    """Shows the supervisor that the event loop runs and the engine works, and learns whether all workers do."""
    while True:
        if service.is_live:
            pipe.send_bytes(b"")
        while pipe.poll():
            service.has_hung_peer = not pipe.recv()
        # The process that a scraper reaches adds up the metrics of all.
        service.flush_metrics()
        await asyncio.sleep(workers.BEAT_SECONDS)
