"""A namespace of its own on a cluster for ``benchmarks.cluster``: what is applied there, and clients that send requests from within."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from goemotions import defaults
from goemotions.deployment import cluster_keys
from goemotions.deployment.manifest_files import dump

ROOT = Path(__file__).parents[1]
PIPELINES, ACCOUNT = "kubeflow", "pipeline-runner"
CPU = "goemotions-cpu"
# Sends requests until the time is over, by eight threads; prints how many there were and how many failed.
CLIENT = """
import concurrent.futures, json, sys, time, urllib.request
url, host, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
end, headers = time.monotonic() + seconds, {"Content-Type": "application/json", **({"Host": host} if host else {})}
body = json.dumps({"instances": ["thank you"]}).encode()
def send(_):
    sent = lost = 0
    while not sent or time.monotonic() < end:
        sent += 1
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10).read()
        except Exception:
            lost += 1
    return sent, lost
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    counts = list(pool.map(send, range(8)))
print(json.dumps({"sent": sum(one[0] for one in counts), "lost": sum(one[1] for one in counts)}))
"""


class Skipped(Exception):
    """A check does not apply to this cluster."""


class Failed(Exception):
    """A check did not hold."""


class Tools:
    """The programs that the checks call."""

    def __init__(self, context: str) -> None:
        self.context = context

    def kubectl(self, *arguments: str, text: str = "") -> str:
        return execute(["kubectl", "--context", self.context, *arguments], text)

    def goemotions(self, *arguments: str) -> str:
        return execute([sys.executable, "-m", "goemotions.cli", *arguments], environment={"KUBE_CONTEXT": self.context})

    def registry(self, *arguments: str, image: str, secret: str) -> str:
        """A command on the registry, as a Job beside it."""
        secrets_of_steps = ("--secret", secret, "--signing-secret", f"{secret}-signing")
        job = ("--namespace", PIPELINES, "--image", image, "--service-account", ACCOUNT, *secrets_of_steps)
        return self.goemotions("in-cluster", *job, "model", *arguments)


def execute(command: list[str], text: str = "", environment: dict[str, str] | None = None) -> str:
    finished = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | (environment or {})
    )
    if finished.returncode:
        last = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-1:] or ["no message"]
        raise Failed(f"{' '.join(command[:6])}: {last[0]}")
    return finished.stdout


@dataclass
class Trial:
    """A namespace on a cluster, and the images that it runs."""

    tools: Tools
    registry: str
    tag: str
    folder: Path
    namespace: str = field(default_factory=lambda: f"goemotions-test-{secrets.token_hex(3)}")

    @property
    def trainer(self) -> str:
        return "/".join(filter(None, [self.registry, f"{defaults.TRAINER_IMAGE}:{self.tag}"]))

    @property
    def manifest(self) -> Path:
        return self.folder / "manifests" / "base" / "isvc.yaml"

    def kubectl(self, *arguments: str) -> str:
        """In the namespace of the trial."""
        return self.tools.kubectl("--namespace", self.namespace, *arguments)

    def wait_until_ready(self) -> None:
        self.kubectl("wait", "--for=condition=Ready", f"inferenceservice/{CPU}", "--timeout=600s")

    def get(self, *arguments: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.tools.kubectl("get", *arguments, "--output", "json"))
        return content

    def apply(self, documents: list[Any]) -> None:
        path = self.folder / "applied.yaml"
        dump(path, documents)
        self.tools.kubectl(
            "apply", "--server-side", "--force-conflicts", "--filename", "-", text=path.read_text(encoding="utf-8")
        )

    def rendered(self) -> list[Any]:
        """The local overlay with the permissions of the deploy step, moved to the namespace of the trial."""
        overlay = self.folder / "manifests" / "overlays" / "local" / "kustomization.yaml"
        if "rbac" not in overlay.read_text(encoding="utf-8"):
            overlay.write_text(
                overlay.read_text(encoding="utf-8").replace("components:\n", "components:\n  - ../../components/rbac\n"),
                encoding="utf-8",
            )
        if not self.keys.exists():
            cluster_keys.write(self.keys)
            for path in (path for path in self.keys.rglob("*") if path.is_file()):
                path.write_text(self._moved(path.read_text(encoding="utf-8")), encoding="utf-8")
        text = self._moved(execute(["kubectl", "kustomize", str(overlay.parent)]))
        documents = list(YAML().load_all(text))
        for document in documents:
            if document["kind"] in ("Namespace", "ClusterStorageContainer"):
                document["metadata"]["name"] = self.namespace
            else:
                document["metadata"]["namespace"] = self.namespace
            for subject in document.get("subjects", []):
                subject |= {"name": ACCOUNT, "namespace": PIPELINES}
            if document["kind"] == "InferenceService":
                document["spec"]["predictor"]["storageContainerName"] = self.namespace
        return documents

    @property
    def keys(self) -> Path:
        return self.folder / "manifests" / "overlays" / "local" / "keys"

    def _moved(self, text: str) -> str:
        """A text with the addresses that the servers have in the namespace of the trial."""
        return re.sub(r"\b(seaweedfs|mlflow)\.goemotions\b", rf"\1.{self.namespace}", text)

    def ask(self, *arguments: str) -> str:
        return self.tools.registry(*arguments, image=self.trainer, secret=self.namespace)

    def deploy(self, reference: str, *options: str) -> str:
        return self.ask("deploy", reference, "--namespace", self.namespace, *options)

    def requests(self, url: str, host: str = "", seconds: float = 0) -> dict[str, int]:
        """What a client in the namespace counts."""
        name = f"client-{secrets.token_hex(3)}"
        pod = client_pod(name, self.namespace, self.trainer, ["python3", "-c", CLIENT, url, host, str(seconds)])
        self.tools.kubectl("apply", "--filename", "-", text=json.dumps(pod))
        self.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", f"--timeout={int(seconds) + 180}s")
        counts: dict[str, int] = json.loads(self.kubectl("logs", name))
        return counts

    @contextlib.contextmanager
    def load(self, seconds: float) -> Iterator[dict[str, int]]:
        """Clients that send requests during the block; what they count is there after it."""
        counts: dict[str, int] = {}
        url, host = self.entry()
        clients = threading.Thread(target=lambda: counts.update(self.requests(url, host, seconds)))
        clients.start()
        try:
            yield counts
        finally:
            clients.join()

    def entry(self) -> tuple[str, str]:
        """Address and host by which clients reach the service: the gateway if there is one."""
        with contextlib.suppress(Skipped):
            return self.gateway()
        return f"http://{CPU}-predictor.{self.namespace}/v1/models/goemotions:predict", ""

    def gateway(self) -> tuple[str, str]:
        routes = self.get("httproutes", "--namespace", self.namespace).get("items", [])
        gateways = self.get("gateways", "--all-namespaces").get("items", [])
        addresses = [one["value"] for gateway in gateways for one in gateway.get("status", {}).get("addresses", [])]
        hosts = [host for route in routes for host in route["spec"].get("hostnames", []) if host.startswith(f"{CPU}-")]
        if not (addresses and hosts):
            raise Skipped("no gateway with an address")
        return f"http://{addresses[0]}/v1/models/goemotions:predict", min(hosts, key=len)


def client_pod(name: str, namespace: str, image: str, command: list[str]) -> dict[str, Any]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    resources = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "cluster-test"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {"name": "client", "image": image, "command": command, "securityContext": security, "resources": resources}
            ],
        },
    }
