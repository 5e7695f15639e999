"""The lifecycle of the predictor server: start, readiness, draining on SIGTERM, end. One process, or several worker processes."""

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
from uvicorn.supervisors import Multiprocess

from goemotions import defaults
from goemotions.errors import WorkflowError
from goemotions.models import devices
from goemotions.serving.http import Connections
from goemotions.serving.limits import Limits

logger = logging.getLogger(__name__)


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


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ModelError: the bundle cannot be served.
        DeviceError: this process was given a GPU and cannot use it; no port was opened.
        WorkflowError: the port is in use or not permitted.
    """
    config = uvicorn.Config(
        functools.partial(create_app, settings),
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http=Connections(settings.limits),  # type: ignore[arg-type]
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
    if devices.is_required():
        devices.resolve()
    if settings.grpc_port:
        # gRPC opens its port itself, where a port in use is no named error, and with several workers no error at all.
        _listen(settings.host, settings.grpc_port, "--grpc-port").close()
    listening = _listen(settings.host, settings.port, "--port")
    # After its shutdown uvicorn raises the signal again; this handler makes that a clean exit.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if settings.workers == 1:
        uvicorn.Server(config).run([listening])
        return
    with tempfile.TemporaryDirectory() as scratch:
        # prometheus_client reads the variable when it is imported, in each worker process.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch
        Multiprocess(config, [listening]).run()


def create_app(settings: Settings) -> Starlette:
    """The application of one process, with a warm engine."""
    from goemotions.models import engines
    from goemotions.prediction.predictor import Predictor
    from goemotions.serving import grpc, logs, page, rest
    from goemotions.serving.service import Service

    logs.limit_rate()

    # The event loop and the worker threads switch ten times as often as by default, so that neither waits long for the other.
    sys.setswitchinterval(0.0005)
    threads = settings.threads or max(1, engines.cpus() // settings.workers)
    predictor = Predictor.load(settings.folder, engine=settings.engine, threads=threads, is_verified=True)
    service = Service(
        predictor, settings.version, settings.limits, name=settings.name, across_requests=settings.across_requests
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        _drain_on_sigterm(service)
        address, is_shared = f"{settings.host}:{settings.grpc_port}", settings.workers > 1
        server = grpc.create_server(service, address, is_shared=is_shared) if settings.grpc_port else None
        if server:
            await server.start()
        logger.info(
            "ready at http://%s:%s/: %s version %s (run %s), %s",
            settings.host,
            settings.port,
            settings.name,
            settings.version,
            service.run_id,
            service.computation,
        )
        yield
        if server:
            await server.stop(settings.limits.answer_seconds)
        service.close()

    return rest.create_app(service, lifespan, page.routes(service) if settings.page else ())


def _drain_on_sigterm(service: Any) -> None:
    """On SIGTERM, makes the server unready; it closes its port after the drain time, when routers have stopped sending requests."""
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


def _listen(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise WorkflowError(f"cannot listen on {host}:{port} ({error.strerror}): choose another {option}") from error
    listening.set_inheritable(True)
    return listening
