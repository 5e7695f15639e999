"""Requests made up from the server's own OpenAPI: none gets a 500, and every answer is as the document says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from goemotions.registry import registration
from goemotions.registry.registration import CandidateArtifacts
from tests.support.servers import Server, serving

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))


@pytest.fixture(scope="module")
def server(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzzed")
    facts = {"profile": "minilm", "run_id": "r1", "dataset_digest": "d"}
    registration.assemble(folder / "bundle", "cpu", CandidateArtifacts.below(candidate, "cpu"), facts)
    with serving(folder / "bundle", folder / "serve.log") as running:
        yield running
        assert running.is_ready()
    assert running.process.returncode == 0
    assert "Traceback" not in (folder / "serve.log").read_text()


# A JSON schema cannot say that a tensor's shape is that of its data: requests for V2 may fit the schema and still be wrong.
V2 = ["--include-path-regex=/infer$", "--exclude-checks=positive_data_acceptance"]


@pytest.mark.parametrize("options", [["--exclude-path-regex=/infer$"], V2], ids=["all-but-v2", "v2"])
def test_every_answer_is_as_the_document_says(server: Server, options: list[str]) -> None:
    """Bad HTTP inputs beyond the table: schemathesis derives valid and invalid requests from the document and checks the answers."""
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, f"--max-examples={EXAMPLES}", "--seed=1", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
