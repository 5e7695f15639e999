"""The gRPC server of one process."""

from __future__ import annotations

import secrets
import socket

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.serving.grpc.calls import CallLimiter
from goemotions.serving.grpc.frames import STREAMS
from goemotions.serving.grpc.relay import Relays
from goemotions.serving.grpc.servicer import Health, Servicer
from goemotions.serving.limits import Limits
from goemotions.serving.service import Service

METADATA_BYTES = 16 * 2**10
# A client opens a new connection after this time, so that new pods get their share.
AGE_SECONDS = 600
# Pings show whether a client reads its connection; clients may send them that often.
PING_SECONDS, PONG_SECONDS, LEAST_PING_SECONDS = 20, 10, 10


class GrpcServer:
    """The gRPC server of one process."""

    def __init__(self, service: Service, port: socket.socket) -> None:
        self._port = port
        self._relays = Relays(service.limits, f"goemotions-{secrets.token_hex(8)}")
        self._calls = CallLimiter(service.limits, service.requests, self._relays)
        self._server = grpc.aio.server(interceptors=[self._calls], options=_options(service.limits))
        stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service, self._relays), self._server)
        self._server.add_generic_rpc_handlers((Health(service, self._relays).handler(),))
        self._server.add_insecure_port(f"unix-abstract:{self._relays.name}")

    async def start(self) -> None:
        """Accepts connections on the port, which worker processes may share."""
        await self._server.start()
        self._relays.listen(self._port)

    async def stop(self, seconds: float) -> None:
        """Completes the calls that were admitted, within so many seconds; clients with others get the status to connect again.

        The library itself would cancel the calls that reach it while it stops.
        """
        await self._calls.close(seconds)
        await self._relays.close()
        await self._server.stop(None)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """What the library itself limits: sizes, counts, and in milliseconds how long a client may do nothing."""
    seconds = {
        "grpc.keepalive_time_ms": PING_SECONDS,
        "grpc.keepalive_timeout_ms": PONG_SECONDS,
        "grpc.http2.min_ping_interval_without_data_ms": LEAST_PING_SECONDS,
        "grpc.max_connection_idle_ms": limits.idle_seconds,
        "grpc.max_connection_age_ms": AGE_SECONDS,
        "grpc.max_connection_age_grace_ms": limits.read_seconds + limits.answer_seconds + limits.write_seconds,
    }
    return [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.http2.max_pings_without_data", 0),
        # Calls that are over and not freed yet would count, and those of a client within the limit be refused; ``turns`` bounds both.
        ("grpc.http.overload_protection", 0),
        *((name, int(1000 * value)) for name, value in seconds.items()),
    ]
