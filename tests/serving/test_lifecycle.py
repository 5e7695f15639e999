"""The processes of the predictor server: its end, workers that hang or whose supervisor is killed, a full disk, open files."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import psutil
import pytest

from goemotions.data.request_log import ANSWERS, LogReader
from goemotions.errors import WorkflowError
from goemotions.serving import workers as processes
from goemotions.storage import temporary
from pipelines import stack
from tests.support import attacks, http2, tools
from tests.support.object_store import KEYS, Behaviour, running
from tests.support.servers import PREDICT, Server, serving

WORKERS = ("--workers", "2", "--threads", "1")
POST = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\n".encode()
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"


def workers(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    running = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in running if "--multiprocessing-fork" in child.cmdline()]


def wait(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.fault("server-drain", "server-sigterm")
def test_who_watches_the_health_over_grpc_learns_that_the_server_drains(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--drain-seconds", "2") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            statuses = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=20)
            serving_status = next(statuses)
            server.process.send_signal(signal.SIGTERM)
            assert [serving_status, *statuses] == [b"\x08\x01", b"\x08\x02"]
        assert server.process.wait(timeout=30) == 0


@pytest.mark.fault("server-sigterm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_sigterm_does_not_shorten_the_drain_but_sigint_does(
    bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(bundle, tmp_path / "serve.log", "--drain-seconds", "4") as server:
        server.process.send_signal(signal.SIGTERM)
        wait(4, lambda: not server.is_ready())
        signalled = time.monotonic()
        server.process.send_signal(number)
        if number == signal.SIGTERM:
            time.sleep(0.5)
            assert server.predict(instances=["a"])[0] == 200
        assert server.process.wait(timeout=30) == 0
        assert (time.monotonic() - signalled > 2) == (number == signal.SIGTERM)


@pytest.mark.fault("server-sigterm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), WORKERS], ids=["one process", "workers"])
def test_signals_until_the_process_has_ended_change_nothing(
    bundle: Path, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    with serving(bundle, tmp_path / "serve.log", *options) as server:
        deadline = time.monotonic() + 30
        while server.process.poll() is None:
            assert time.monotonic() < deadline
            server.process.send_signal(number)
            time.sleep(0.002)
        assert server.process.returncode == 0


def hang(pipe: Connection) -> None:
    """A worker that never shows life."""
    time.sleep(60)


@pytest.mark.fault("server-worker-hangs")
def test_a_worker_that_hangs_before_it_is_ready_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The folder that it sets is not that of other servers.
    monkeypatch.setenv(processes.METRICS_FOLDER, "")
    monkeypatch.setattr(processes, "START_SECONDS", 1.0)
    monkeypatch.setattr(processes, "HUNG_SECONDS", 1.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(WorkflowError, match="hung"):
            processes.run(1, hang, 1.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.fault("server-drain")
def test_no_client_delays_the_end(bundle: Path, tmp_path: Path) -> None:
    """Connections in every state, when SIGTERM arrives: none keeps the server beyond the time to drain and to answer."""
    sent = [b"", b"GET /", attacks.LIVE, POST + b"Content-Length: 100\r\n\r\n{", DOCUMENT * 1000, attacks.GRPC_PREFACE]
    options = ("--drain-seconds", "1", "--answer-seconds", "4", "--read-seconds", "30", "--write-seconds", "30")
    with serving(bundle, tmp_path / "serve.log", *options) as server, contextlib.ExitStack() as stack:
        for content in sent:
            port = server.grpc_port if content == attacks.GRPC_PREFACE else server.port
            stack.enter_context(attacks.connected(server, received=4096, port=port)).sendall(content)
        for part in (b"", http2.message(b"{", length=100), http2.message(bytes(100_000))):
            calling = stack.enter_context(contextlib.closing(http2.Connection(server.grpc_port, window=0)))
            calling.acknowledge()
            for _ in range(3):
                calling.call(part, end=False)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - started < 1 + 4 + 4
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


@pytest.mark.slow
@pytest.mark.fault("server-worker-hangs")
def test_a_worker_that_hangs_is_noticed_and_replaced(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", *WORKERS) as server:
        wait(30, lambda: len(workers(server)) == 2 and "ready" in server.log.read_text().split("ready", 1)[1])
        hanging, other = workers(server)
        folder = Path(hanging.environ()["PROMETHEUS_MULTIPROC_DIR"])
        files, served = {path.name for path in folder.iterdir()}, 'goemotions_requests_total{outcome="ok",protocol="v1"}'
        for _ in range(20):
            server.predict(instances=["a"])
        # By which `monitor` knows that the server was started again.
        began = server.metrics()["goemotions_start_time_seconds"]
        assert 0 < time.time() - began < 120
        os.kill(hanging.pid, signal.SIGSTOP)
        wait(8, lambda: not server.is_ready())
        wait(40, lambda: hanging.pid not in {worker.pid for worker in workers(server)} and server.is_ready())
        assert other.pid in {worker.pid for worker in workers(server)}
        assert server.predict(instances=["a"])[0] == 200
        assert server.metrics()[served] == 21
        assert server.metrics()["goemotions_start_time_seconds"] == began
        wait(30, lambda: {path.name for path in folder.iterdir()} == files)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=40) == 0


@pytest.mark.slow
@pytest.mark.fault("server-supervisor-killed")
@pytest.mark.fault("leftovers")
def test_workers_end_with_their_supervisor_and_the_next_start_removes_their_files(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "tmp"
    files.mkdir()
    monkeypatch.setenv("TMPDIR", str(files))
    with serving(bundle, tmp_path / "serve.log", *WORKERS) as server:
        left = workers(server)
        server.process.kill()
        wait(5, lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in left))
    assert list(files.rglob("*.db"))
    temporary.sweep(files)
    assert not list(files.rglob("*.db"))


def on_small_disk(disk: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What executes a command whose temporary files are on a disk of this size."""
    disk.mkdir()
    monkeypatch.setenv("TMPDIR", str(disk))
    unshare = tools.program("unshare", why="it mounts a small disk")
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$TMPDIR" && exec "$@"'
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run([unshare, *rights, "--mount", "sh", "-c", mount, "sh", "true"], check=False).returncode:
        tools.missing("no permission to make a namespace or to mount in it: a full disk is not tested")
    return (unshare, *rights, "--mount", "sh", "-c", mount, "sh")


def fill(server: Server, disk: Path) -> Path:
    """Fills the small disk of a server with a file, which is returned."""
    rest = Path("/proc", str(server.process.pid), "root", disk.relative_to("/"), "rest")
    with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    return rest


@pytest.mark.slow
@pytest.mark.fault("server-disk-full")
@pytest.mark.parametrize("megabytes", [16, 1])
def test_a_full_disk_ends_no_worker(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    """The disk fills up while the server runs, or is too small from the start, which is a warning."""
    disk = tmp_path / "disk"
    with serving(bundle, tmp_path / "serve.log", *WORKERS, within=on_small_disk(disk, megabytes, monkeypatch)) as server:
        before = {worker.pid for worker in workers(server)}
        fill(server, disk)
        for path in ("/v9", "/metrics", "/v2/health/live", "/openapi.json"):
            assert server.request("GET", path)[0] in (200, 404)
        for fields in ({"instances": ["lake"]}, {"instances": []}, {"instances": ["a"] * 600}, {"instance": 1}):
            for _ in range(20):
                assert server.predict(**fields)[0] in (200, 400, 413)
        assert any(name.startswith("goemotions_requests_total") for name in server.metrics())
        assert {worker.pid for worker in workers(server)} == before
    assert ("no space for metrics" in (tmp_path / "serve.log").read_text()) == (megabytes == 1)


@pytest.mark.slow
@pytest.mark.fault("request-log-disk-full")
@pytest.mark.fault("request-log-store-away")
def test_a_full_disk_and_a_stopped_store_cost_rows_of_the_request_log_and_no_request(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure_s3: Callable[..., None]
) -> None:
    disk, port = tmp_path / "disk", stack.free_ports(1)[0]
    configure_s3(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_MAX_ATTEMPTS="1", **KEYS)
    options = ("--log-share", "1", "--log-store", "s3://b/", "--log-folder", str(disk / "log"), "--log-seconds", "0.5")
    name = "goemotions_request_log_{}_total"
    with serving(bundle, tmp_path / "serve.log", *options, within=on_small_disk(disk, 8, monkeypatch)) as server:

        def logged(text: str) -> None:
            assert server.predict(instances=[text])[0] == 200

        logged("before")
        wait(10, lambda: server.metrics().get(name.format("rows") + f'{{kind="{ANSWERS}"}}', 0) >= 1)
        rest = fill(server, disk)
        dropped = name.format("dropped_rows") + '{reason="disk"}'
        for _ in range(50):
            logged("lake " * 190)
        wait(10, lambda: server.metrics()[dropped] >= 1)
        rest.unlink()
        with running(Behaviour(), port):
            logged("after")
            wait(60, lambda: any(row["text"] == "after" for row in LogReader("s3://b/", "goemotions").rows(ANSWERS)))
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


@pytest.mark.fault("server-disk-full")
def test_without_a_folder_for_temporary_files_workers_have_no_folder_for_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/1/none"])
    with processes._metrics_folder():
        assert processes.METRICS_FOLDER not in os.environ
    assert "no space for metrics" in caplog.text


@pytest.mark.fault("server-disk-full")
def test_a_worker_reserves_the_space_of_its_metrics_before_they_are_imported() -> None:
    code = "import sys, goemotions.serving.server; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("grpc_port", [0, 65535])
def test_too_few_open_files_for_the_connections_is_a_named_error(bundle: Path, grpc_port: int) -> None:
    command = ["sh", "-c", 'ulimit -n 1000; exec "$@"', "sh", sys.executable, "-m", "goemotions.cli"]
    command += ["serve", "--bundle", str(bundle), "--port", "0", "--grpc-port", str(grpc_port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "--connections 1024 needs" in ended.stderr.strip().splitlines()[-1]


def lowest_free_file(pid: int) -> int:
    """The number that the next file of a process will have, once it has closed those of former connections."""
    seen = -1
    while True:
        numbers = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        lowest = next(number for number in range(len(numbers) + 1) if number not in numbers)
        if lowest == seen:
            return lowest
        seen = lowest
        time.sleep(0.3)


@pytest.mark.fault("server-files")
def test_connections_wait_while_no_file_may_be_opened_and_those_that_are_open_are_served(bundle: Path, tmp_path: Path) -> None:
    def answer(connection: socket.socket, seconds: float = 10) -> set[int]:
        connection.sendall(attacks.LIVE)
        return attacks.statuses(attacks.receive(connection, seconds))

    with serving(bundle, tmp_path / "serve.log") as server, attacks.connected(server) as before:
        assert answer(before) == {200}
        pid = server.process.pid
        allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_file(pid), allowed[1]))
        with attacks.connected(server) as waiting:
            assert answer(waiting, 0.3) == set()
            assert answer(before) == {200}
            resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
            assert attacks.statuses(attacks.receive(waiting)) == {200}
        assert 1 <= server.metrics()['goemotions_accept_errors_total{error="EMFILE"}'] < 100
    assert "a connection cannot be accepted: Too many open files" in (tmp_path / "serve.log").read_text()
