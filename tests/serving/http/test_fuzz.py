"""Generated requests from the server's OpenAPI document: none gets a 500, and every response matches the document."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Server, serving

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the default limits."""
    log = tmp_path_factory.mktemp("fuzzed") / "serve.log"
    with serving(bundle, log) as running:
        yield running
        assert running.is_ready()
    assert running.process.returncode == 0
    assert "Traceback" not in log.read_text()


# A JSON schema cannot express that a tensor's shape matches its data, so a V2 request may fit the schema and still be wrong.
V2 = ["--include-path-regex=/infer$", "--exclude-checks=positive_data_acceptance"]


@pytest.mark.parametrize("options", [["--exclude-path-regex=/infer$"], V2], ids=["all-but-v2", "v2"])
def test_every_response_matches_the_document(server: Server, options: list[str]) -> None:
    """schemathesis derives valid and invalid requests from the document and checks the responses."""
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, f"--max-examples={EXAMPLES}", "--seed=1", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
