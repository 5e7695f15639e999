"""The running server that the tests of a module share, and the predictor to compare it with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Server, serving


@pytest.fixture(scope="session")
def bundle(whole: Path) -> Path:
    """A bundle for CPU, run r1, profile minilm."""
    return whole


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits; it must end cleanly, without an exception in its log."""
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving(bundle, log, "--body-bytes", "200000", "--texts", "64", "--read-seconds", "1") as running:
        yield running
        assert running.is_ready()
    assert running.process.returncode == 0
    assert "Traceback" not in log.read_text(), log.read_text()
