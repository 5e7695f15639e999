"""The local stack: a SeaweedFS S3 server and an MLflow server with SQLite, on loopback and free ports, with files below ``.local/``.

``up`` starts what is not running; ``down`` stops what ``up`` started, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from goemotions import defaults
from goemotions.defaults import BUCKET
from goemotions.deployment import cluster_keys
from goemotions.errors import WorkflowError
from goemotions.registry import trust
from goemotions.storage import s3
from goemotions.storage.folder import replacing

FOLDER = Path(".local")
START_SECONDS = 120
STOP_SECONDS = 15
# Each port of SeaweedFS has a gRPC port 10000 above it.
WEED_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")


class StackError(WorkflowError):
    """A local server is not installed or did not start."""


@dataclass(frozen=True)
class Server:
    """A process that ``up`` started. Its start time distinguishes it from a later process with the same id."""

    pid: int
    started: float
    port: int

    @classmethod
    def of(cls, process: subprocess.Popen[bytes], port: int) -> Server:
        return cls(process.pid, psutil.Process(process.pid).create_time(), port)

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        if not self.is_alive():
            return
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        os.killpg(self.pid, signal.SIGTERM)
        for process in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
            process.kill()


def up(folder: Path = FOLDER) -> dict[str, str]:
    """Starts the servers that are not running.

    Returns:
        The environment variables that the clients of the stack need; they are also written to ``env`` in the folder.

    Raises:
        StackError: a server did not start in time; the message has the location of its log.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    keys = _keys(folder)
    _bypass_proxies()
    weed = _server(folder, "seaweedfs")
    if weed is None:
        # An MLflow server that is still running would use the port of the former S3 server.
        down(folder)
        weed = _start_seaweedfs(folder, keys)
    environment = {
        "NO_PROXY": os.environ["NO_PROXY"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{weed.port}",
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_REGION": "us-east-1",
        trust.STORE: defaults.STORE,
    }
    _wait(weed, folder / "seaweedfs.log", lambda: s3.is_reachable(BUCKET, environment))
    mlflow = _server(folder, "mlflow") or _start_mlflow(folder, environment)
    _wait(mlflow, folder / "mlflow.log", lambda: responds(f"http://127.0.0.1:{mlflow.port}/health"))
    environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{mlflow.port}"
    _write_private(folder / "env", "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
    return environment


def services(folder: Path = FOLDER) -> dict[str, str]:
    """The variables of the registry and the store: the environment's if MLFLOW_TRACKING_URI is set, otherwise those of the stack.

    Raises:
        StackError: the stack did not start.
    """
    return dict(os.environ) if os.environ.get("MLFLOW_TRACKING_URI") else up(folder)


def down(folder: Path = FOLDER) -> list[str]:
    """Stops the servers; returns the names of those that ran."""
    stopped = []
    for name in ("mlflow", "seaweedfs"):
        server = _server(folder, name)
        if server:
            server.stop()
            stopped.append(name)
        _record(folder, name).unlink(missing_ok=True)
    return stopped


@contextlib.contextmanager
def running(folder: Path, **variables: str) -> Iterator[dict[str, str]]:
    """The servers for as long as the block lasts; the environment of this process has the variables of their clients meanwhile.

    The servers get the other variables, too.

    Raises:
        StackError: a server did not start.
    """
    before = dict(os.environ)
    try:
        os.environ.update(variables)
        environment = up(folder) | variables
        os.environ.update(environment)
        yield environment
    finally:
        down(folder)
        os.environ.clear()
        os.environ.update(before)


def _bypass_proxies() -> None:
    """Excludes loopback from the proxy of the environment, which cannot reach it."""
    hosts = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    if "127.0.0.1" not in hosts:
        hosts = ",".join(filter(None, [hosts, "127.0.0.1", "localhost"]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts


def responds(url: str) -> bool:
    """Whether a server on loopback returns a successful response."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # nosec B310 # loopback, up makes the address
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Free ports on loopback. The port 10000 above each is free, too; both are below the kernel's own range."""
    ports: list[int] = []
    random = secrets.SystemRandom()
    while len(ports) < count:
        port = random.randrange(10_000, 22_000)
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _server(folder: Path, name: str) -> Server | None:
    """The server of that name, if ``up`` started it and it is still running."""
    try:
        server = Server(**json.loads(_record(folder, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return server if server.is_alive() else None


def _keys(folder: Path) -> dict[str, str]:
    """The keys of the S3 server, created at the first start."""
    path = folder / "s3.json"
    if not path.exists():
        identity = cluster_keys.identity("goemotions", ("Admin", "Read", "Write", "List", "Tagging"), cluster_keys.new_keys())
        _write_private(path, json.dumps({"identities": [identity]}))
    stored: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    return stored


def _write_private(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")


def _start_seaweedfs(folder: Path, keys: dict[str, str]) -> Server:
    ports = free_ports(len(WEED_PORTS))
    data = folder / "seaweedfs"
    data.mkdir(exist_ok=True)
    command = [
        _program("weed"),
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}={port}" for name, port in zip(WEED_PORTS, ports, strict=True)),
        f"-s3.config={folder / 's3.json'}",
        f"-bucket={BUCKET}",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    return _start(folder, "seaweedfs", command, ports[0], {})


def _start_mlflow(folder: Path, environment: dict[str, str]) -> Server:
    port = free_ports(1)[0]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
        f"--artifacts-destination=s3://{BUCKET}/mlflow",
        "--workers=1",
    ]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return _start(folder, "mlflow", command, port, environment | settings)


def _start(folder: Path, name: str, command: list[str], port: int, environment: dict[str, str]) -> Server:
    with (folder / f"{name}.log").open("ab") as log:
        # In its own session, a server is not stopped by Ctrl-C in the terminal.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | environment,
            start_new_session=True,
        )
    server = Server.of(process, port)
    _record(folder, name).write_text(json.dumps(vars(server)), encoding="utf-8")
    return server


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if not program:
        raise StackError(f"{name} is not installed: run `make setup`")
    return program


def _wait(server: Server, log: Path, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if not server.is_alive() or time.monotonic() > deadline:
            server.stop()
            raise StackError(f"a local server did not start: its log is {log}")
        time.sleep(0.2)
