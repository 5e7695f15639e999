"""A Kubernetes API with InferenceServices, as a process: the requests of a deployment, and the status that KServe then reports.

It keeps one namespace in memory. A write is refused if KServe's webhook would refuse it. A service is always ready, as with KServe in
Standard mode; its Deployment, with its own generations, is updated some polls after a change, unless the location contains
``broken``.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
from goemotions.deployment.kserve import SOURCE
from tests.support import kserve_rules

TOKEN = "of-the-tests"
NAMESPACE = "models"
PREFIX = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/"
POLLS_UNTIL_READY = 3


class State:
    def __init__(self, manifest: Path) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.polls: dict[str, int] = {}
        self.rolled: dict[str, str] = {}
        self.writes: list[dict[str, Any]] = []
        # Set by tests: a status for every response, and the number of writes that conflict with a concurrent one.
        self.refuse = 0
        self.conflicts = 0
        for document in yaml.safe_load_all(manifest.read_text()):
            if document["kind"] == "InferenceService":
                document["metadata"] |= {"namespace": NAMESPACE, "resourceVersion": "1", "generation": 1}
                self.services[document["metadata"]["name"]] = document
                self.polls[document["metadata"]["name"]] = POLLS_UNTIL_READY
                self.rolled[document["metadata"]["name"]] = document["spec"]["predictor"]["model"]["storageUri"]

    def read(self, name: str) -> dict[str, Any]:
        service = self.services[name]
        self.polls[name] += 1
        status: dict[str, Any] = {"conditions": [{"type": "Ready", "status": "True"}], "observedGeneration": 3}
        if "broken" in json.dumps(service["spec"]):
            failure = {"reason": "ModelLoadFailed", "message": "MANIFEST.json does not match"}
            status["modelStatus"] = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}
        for canary in service["spec"].get("canary", []):
            is_ready = self.polls[name] >= POLLS_UNTIL_READY and "broken" not in json.dumps(canary)
            status["canaryStatuses"] = [{"name": canary["predictor"]["name"], "ready": is_ready}]
        return {**service, "status": status}

    def deployment(self, name: str) -> dict[str, Any]:
        """The unchanged Deployment first, then one with pods of both templates, then one with new pods only."""
        location = self.services[name]["spec"]["predictor"]["model"]["storageUri"]
        if self.polls[name] >= POLLS_UNTIL_READY - 1:
            self.rolled[name] = location
        is_done = self.polls[name] >= POLLS_UNTIL_READY and "broken" not in location
        counts = {
            "replicas": 2,
            "updatedReplicas": 2 if is_done or self.rolled[name] != location else 1,
            "availableReplicas": 2,
        }
        return {
            "metadata": {"name": f"{name}-predictor", "generation": 17},
            "spec": {"template": {"metadata": {"annotations": {SOURCE: self.rolled[name]}}}},
            "status": {"observedGeneration": 17, **counts},
        }

    def write(self, name: str, service: dict[str, Any]) -> tuple[int, Any]:
        before = self.services[name]["metadata"]
        if self.conflicts:
            self.conflicts -= 1
            before["resourceVersion"] = str(int(before["resourceVersion"]) + 1)
        if service["metadata"]["resourceVersion"] != before["resourceVersion"]:
            return 409, "the object has been modified"
        service.pop("status", None)
        if errors := kserve_rules.violations(service):
            return 400, f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {errors[0]}'
        changed = service["spec"] != self.services[name]["spec"]
        service["metadata"]["resourceVersion"] = str(int(before["resourceVersion"]) + 1)
        service["metadata"]["generation"] = before["generation"] + changed
        self.services[name] = service
        self.polls[name] = 0 if changed else self.polls[name]
        self.writes.append(service)
        return 200, service


class Handler(BaseHTTPRequestHandler):
    state: State

    def do_GET(self) -> None:
        if self.path == "/tests/writes":
            return self._respond(200, self.state.writes)
        return self._named(lambda name: (200, self.state.read(name)))

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tests/switch":
            vars(self.state).update(body)
            return self._respond(200, {})
        return self._named(lambda name: self.state.write(name, body))

    def _named(self, act: Any) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refused(401, "Unauthorized")
        if self.state.refuse:
            return self._refused(self.state.refuse, "inferenceservices is forbidden: User cannot update resource")
        url = self.path.partition("?")[0]
        if url.startswith(DEPLOYMENTS):
            return self._respond(200, self.state.deployment(url.removeprefix(DEPLOYMENTS).removesuffix("-predictor")))
        path, _, name = url.partition(PREFIX)
        if path or (name and name.strip("/") not in self.state.services):
            return self._refused(404, f'inferenceservices.serving.kserve.io "{name.strip("/")}" not found')
        if not name:
            return self._respond(
                200, {"kind": "InferenceServiceList", "items": [self.state.read(one) for one in self.state.services]}
            )
        status, content = act(name.strip("/"))
        return self._respond(200, content) if status == 200 else self._refused(status, content)

    def _refused(self, status: int, message: str) -> None:
        self._respond(status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status})

    def _respond(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    Handler.state = State(Path(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
