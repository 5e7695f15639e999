"""The predictor server as a process, for the tests that send requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import stack

PREDICT = "/v1/models/goemotions:predict"


@dataclass(frozen=True)
class Server:
    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    log: Path
    name: str

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json"} | named)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def predict(self, verb: str = "predict", **fields: Any) -> tuple[int, Any]:
        status, _, body = self.request("POST", f"/v1/models/{self.name}:{verb}", json.dumps(fields).encode())
        return status, json.loads(body)

    def is_ready(self) -> bool:
        try:
            return self.request("GET", "/v2/health/ready")[0] == 200
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, by name and labels."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def peak_memory(self) -> int:
        """The most bytes that the process has had in memory."""
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())[0]) * 1024


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *options: str, name: str = "goemotions", within: Sequence[str] = ()) -> Iterator[Server]:
    """A ready server of a model with this name; it is terminated at the end, unless it has already ended.

    Args:
        bundle: what it serves.
        log: the file for its output.
        options: further options of its command.
        name: the name of the model.
        within: a command that executes the command that follows it.
    """
    port, grpc_port = stack.free_ports(2)
    command = [
        *within,
        sys.executable,
        "-m",
        "goemotions.cli",
        "serve",
        "--bundle",
        str(bundle),
        f"--model_name={name}",
        "--threads",
        "2",
        "--drain-seconds",
        "0",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--grpc-port", str(grpc_port), *options], stdout=output, stderr=output
        )
    server = Server(port, grpc_port, process, log, name)
    try:
        deadline = time.monotonic() + 60
        while not server.is_ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)
