"""The local stack: started once, reused, stopped, and never reachable from other machines."""

from pathlib import Path

import psutil
import pytest

from goemotions.registry import mlflow_client
from goemotions.storage import s3, store
from pipelines import stack as local_stack
from pipelines.server import ServerFailed, serving


def test_up_starts_no_server_that_is_running(stack: Path) -> None:
    records = {name: (stack / f"{name}.json").read_text() for name in ("seaweedfs", "mlflow")}
    assert local_stack.up(stack) == local_stack.up(stack)
    assert records == {name: (stack / f"{name}.json").read_text() for name in ("seaweedfs", "mlflow")}


def test_every_port_is_on_loopback(stack: Path) -> None:
    addresses = set()
    for name in ("seaweedfs", "mlflow"):
        server = local_stack._server(stack, name)
        assert server is not None
        for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
            addresses |= {c.laddr.ip for c in process.connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


def test_the_file_of_the_keys_is_readable_by_its_owner_only(stack: Path) -> None:
    assert [oct((stack / name).stat().st_mode & 0o777) for name in ("s3.json", "env")] == ["0o600", "0o600"]


def test_wrong_keys_are_refused(stack: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.client.cache_clear()
    try:
        with pytest.raises(store.StorageError, match=r"access denied|credentials are not valid"):
            store.children(bucket)
    finally:
        s3.client.cache_clear()


def test_another_process_with_the_same_id_is_not_taken_for_a_server(stack: Path) -> None:
    server = local_stack._server(stack, "mlflow")
    assert server is not None
    assert not local_stack.Server(server.pid, server.started - 100, server.port).is_alive()


def test_mlflow_responds(stack: Path) -> None:
    assert mlflow_client.connect().startswith("http://127.0.0.1:")


def test_a_server_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with (
        pytest.raises(ServerFailed, match=rf"the server did not become ready: its log is {log}"),
        serving(["-c", "1 / 0"], log),
    ):
        pass
    assert "ZeroDivisionError" in log.read_text()
