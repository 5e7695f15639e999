"""The Kubernetes API of ``kubernetes_server`` in a process of its own, and the configuration of its clients."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from goemotions.deployment import live_service, problems
from tests.support.kubernetes_server import NAMESPACE, TOKEN


@dataclass(frozen=True)
class Kubernetes:
    url: str

    def writes(self) -> list[dict[str, Any]]:
        """The InferenceServices that were written, oldest first."""
        with urllib.request.urlopen(f"{self.url}/tests/writes", timeout=10) as response:
            writes: list[dict[str, Any]] = json.load(response)
            return writes

    def state(self, name: str) -> Any:
        """A field of the server's state, such as the client requests that it counted."""
        with urllib.request.urlopen(f"{self.url}/tests/{name}", timeout=10) as response:
            return json.load(response)

    def errors(self) -> int:
        """How many requests of clients reached no Service, of those that were sent."""
        traffic = self.state("traffic")
        assert traffic["requests"] > 0
        return int(traffic["errors"])

    def switch(self, **fields: Any) -> None:
        request = urllib.request.Request(f"{self.url}/tests/switch", json.dumps(fields).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=10).close()


def kubeconfig(path: Path, url: str) -> None:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(content))


@contextmanager
def running(manifest: Path, folder: Path, environment: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """The API with the InferenceServices of a manifest; commands use it, and wait for hundredths of seconds."""
    command = [sys.executable, "-m", "tests.support.kubernetes_server", str(manifest)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        server = Kubernetes(f"http://127.0.0.1:{int(process.stdout.readline())}")
        kubeconfig(folder / "kubeconfig", server.url)
        environment.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        environment.setattr(live_service, "POLL_SECONDS", 0.01)
        environment.setattr(live_service, "SETTLE_SECONDS", 0.0)
        environment.setattr(problems, "SECONDS", {**dict.fromkeys(problems.SECONDS, 0.2), "start": float("inf")})
        try:
            yield server
        finally:
            process.terminate()
