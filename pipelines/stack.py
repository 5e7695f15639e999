"""The local stack: a SeaweedFS S3 server and an MLflow server with SQLite, on loopback and free ports, below ``.local/``.

``up`` finds them running or starts them; ``down`` ends what ``up`` started, and nothing else.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil

from goemotions.defaults import BUCKET
from goemotions.errors import WorkflowError
from goemotions.storage import s3
from goemotions.storage.folder import replacing

FOLDER = Path(".local")
START_SECONDS = 120
STOP_SECONDS = 15
# Each port of SeaweedFS has a gRPC port 10000 above it.
WEED_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")


class StackError(WorkflowError):
    """A local server did not start."""


@dataclass(frozen=True)
class Server:
    """A process that ``up`` started; its start time tells it from a later process with the same id."""

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
    """The environment of the running stack; starts what is not running.

    Raises:
        StackError: a server did not answer in time; the message names its log.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    keys = _keys(folder)
    _bypass_proxies()
    weed = _server(folder, "seaweedfs")
    if weed is None:
        # A server of MLflow that outlived its S3 would go on asking at the old port.
        down(folder)
        weed = _start_seaweedfs(folder, keys)
    environment = {
        "NO_PROXY": os.environ["NO_PROXY"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{weed.port}",
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_REGION": "us-east-1",
    }
    _wait(weed, folder / "seaweedfs.log", lambda: s3.is_reachable(BUCKET, environment))
    mlflow = _server(folder, "mlflow") or _start_mlflow(folder, environment)
    _wait(mlflow, folder / "mlflow.log", lambda: _answers(f"http://127.0.0.1:{mlflow.port}/health"))
    environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{mlflow.port}"
    _write_private(folder / "env", "".join(f"export {name}={value}\n" for name, value in environment.items()))
    return environment


def down(folder: Path = FOLDER) -> list[str]:
    """Ends the servers; answers the names of those that ran."""
    ended = []
    for name in ("mlflow", "seaweedfs"):
        server = _server(folder, name)
        if server:
            server.stop()
            ended.append(name)
        _record(folder, name).unlink(missing_ok=True)
    return ended


def _bypass_proxies() -> None:
    """A proxy of the network's cannot reach this machine's loopback."""
    named = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    if "127.0.0.1" not in named:
        named = ",".join(filter(None, [named, "127.0.0.1", "localhost"]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = named


def free_ports(count: int) -> list[int]:
    """Ports on loopback that are free, with the port 10000 above each, below the range the kernel hands out itself."""
    found: list[int] = []
    random = secrets.SystemRandom()
    while len(found) < count:
        port = random.randrange(10_000, 22_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


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
    """The server of that name, if it was started here and still runs."""
    try:
        server = Server(**json.loads(_record(folder, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return server if server.is_alive() else None


def _keys(folder: Path) -> dict[str, str]:
    path = folder / "s3.json"
    if not path.exists():
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        identity = {"name": "goemotions", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        _write_private(path, json.dumps({"identities": [identity]}))
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    return found


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
        # A session of its own: Ctrl-C in the terminal ends what runs there, not the servers.
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
    _record(folder, name).write_text(json.dumps(asdict(server)), encoding="utf-8")
    return server


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise StackError(f"{name} is not installed: run `make setup`")
    return found


def _wait(server: Server, log: Path, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if not server.is_alive() or time.monotonic() > deadline:
            server.stop()
            raise StackError(f"a local server did not start: its log is {log}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # nosec B310 # loopback, the address is made by up
            return True
    except OSError:
        return False


@click.command()
@click.argument("action", type=click.Choice(["up", "down"]))
def main(action: str) -> None:
    """Start or end the local stack."""
    if action == "down":
        click.echo(f"ended: {', '.join(down()) or 'nothing was running'}")
        return
    environment = up()
    click.echo(f"MLflow    {environment['MLFLOW_TRACKING_URI']}")
    click.echo(f"S3        {environment['AWS_ENDPOINT_URL']}, bucket {BUCKET}")
    click.echo(f"variables . {FOLDER}/env")


if __name__ == "__main__":
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"stack: {error}")
