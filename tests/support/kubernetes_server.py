"""A Kubernetes API with InferenceServices, as a process: the requests of a deployment, and what KServe's controller makes of them.

It runs the commands of Jobs, and keeps one namespace in memory. A write is refused if KServe's webhook would refuse it. Time is
the number of requests: some requests after a change the Deployments follow, then KServe's HTTPRoute, then the gateway. The
Service of a canary that is removed is deleted at once, its autoscaler stays. With each request a client sends one to every
backend of the gateway, and errors are counted. The location of a version says what goes wrong with its pods: see ``FAULTS``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support import http_server, kserve_rules

TOKEN = "of-the-tests"
NAMESPACE = "models"
SERVICES = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices"
ROUTES = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
AUTOSCALERS = f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers"
# What KServe itself writes on a pod whose storage initializer downloads a location; not read from the library, which must find it.
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
# In requests: until Deployments change, pods are ready, the route has new weights, and the gateway follows it.
UPDATED, READY, ROUTED, FOLLOWED = 5, 10, 16, 24


def waiting(container: str, reason: str, message: str, ended: str = "") -> dict[str, Any]:
    state = {"name": container, "state": {"waiting": {"reason": reason, "message": message}}, "restartCount": 3}
    return state | ({"lastState": {"terminated": {"exitCode": 1, "message": ended}}} if ended else {})


FAULTS: dict[str, dict[str, Any]] = {
    "broken": {},
    "refused": {},
    "no-image": {
        "containerStatuses": [
            waiting("kserve-container", "ImagePullBackOff", 'Back-off pulling image "goemotions-predictor:x"')
        ]
    },
    "no-node": {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: 1 Insufficient cpu."}
        ]
    },
    "no-store": {
        "initContainerStatuses": [
            waiting("storage-initializer", "CrashLoopBackOff", "back-off 20s", "EndpointConnectionError: seaweedfs:8333")
        ]
    },
}
# The container of a service mesh, which goes on.
MESH = {"name": "mesh-proxy", "state": {"running": {}}}
JOB_FAULTS = {
    "no-image": {"containerStatuses": [waiting("goemotions", "ImagePullBackOff", "Back-off pulling image")]},
    "no-node": FAULTS["no-node"],
}
EVENT = {"no-image": "Failed to pull image: goemotions-predictor:x: not found"}
FORBIDDEN = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'


class State:
    def __init__(self, manifest: Path) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.clock: dict[str, int] = {}
        self.before: dict[str, dict[str, Any]] = {}
        self.autoscalers: set[str] = set()
        # Of Knative: how many revisions each service has.
        self.revisions: dict[str, int] = {}
        self.writes: list[dict[str, Any]] = []
        self.traffic = {"requests": 0, "errors": 0}
        # Set by tests: a status for every response, or for paths that contain a text; the number of writes that conflict with a
        # concurrent one; whether a gateway controller responds; whether KServe splits the traffic (0.20.0 does not).
        self.refuse = 0
        self.refuse_path = ""
        self.conflicts = 0
        self.gateway = 1
        self.splits = 1
        # What is wrong with pods of Jobs: a key of JOB_FAULTS, `refused`, or `deleted`; and how many requests get no response.
        self.job_fault = ""
        self.away = 0
        self.jobs: dict[str, Job] = {}
        self.finished: list[dict[str, Any]] = []
        for document in yaml.safe_load_all(manifest.read_text()):
            if document["kind"] == "InferenceService":
                name = document["metadata"]["name"]
                document["metadata"] |= {"namespace": NAMESPACE, "resourceVersion": "1", "generation": 1}
                self.services[name] = self.before[name] = document
                self.clock[name], self.revisions[name] = FOLLOWED, 1
                self.autoscalers.add(f"{name}-predictor")

    def tick(self) -> None:
        for name, service in self.services.items():
            self.clock[name] += 1
            existing = {f"{name}-predictor", *canaries(name, service)}
            followed = self.weights(name, service if self.clock[name] >= FOLLOWED else self.before[name])
            for backend, weight in followed.items():
                self.traffic["requests"] += weight > 0
                self.traffic["errors"] += weight > 0 and backend not in existing

    def weights(self, name: str, service: dict[str, Any]) -> dict[str, int]:
        """The weight of each backend; a canary that is not ready has none."""
        shares = {
            canary: percent if fault(source) is None else 0 for canary, (source, percent) in canaries(name, service).items()
        }
        shares = shares if self.splits else {}
        return {f"{name}-predictor": 100 - sum(shares.values()), **shares}

    def read(self, name: str) -> dict[str, Any]:
        service = self.services[name]
        is_routed = {"type": "IngressReady", "status": "True"}
        if not self.gateway:
            is_routed = {"type": "IngressReady", "status": "False", "reason": "HTTPRouteStatusNotAvailable"}
        ready = {"type": "Ready", "status": is_routed["status"]}
        predictor = {"type": "PredictorReady", "status": "True"}
        status: dict[str, Any] = {"conditions": [ready, predictor, is_routed], "observedGeneration": 3}
        if "broken" in service["spec"]["predictor"]["model"]["storageUri"]:
            status["modelStatus"] = blocked()
        for canary, (source, percent) in canaries(name, service).items() if self.splits else ():
            is_ready = self.clock[name] >= READY and fault(source) is None
            entry = {"name": canary.removeprefix(f"{name}-").removesuffix("-predictor"), "ready": is_ready}
            entry["trafficPercent"] = percent if is_ready else 0
            status["canaryStatuses"] = [entry | ({"modelStatus": blocked()} if "broken" in source else {})]
        if service["metadata"]["annotations"].get("serving.kserve.io/deploymentMode") == "Knative":
            self.add_revisions(name, status)
        return {**service, "status": status}

    def add_revisions(self, name: str, status: dict[str, Any]) -> None:
        """The controller sees a change some requests after it; then a revision is created, and its pods start."""
        service, newest = self.services[name], self.revisions[name]
        is_new = template(service) != template(self.before[name])
        created = newest - (is_new and self.clock[name] < UPDATED)
        ready = newest - (is_new and (self.clock[name] < READY or fault(stable(service)) is not None))
        names = {"latestCreatedRevision": created, "latestReadyRevision": ready}
        status["components"] = {"predictor": {key: f"{name}-predictor-{number:05}" for key, number in names.items()}}
        if created != ready:
            for condition in status["conditions"][:2]:
                condition |= {"status": "Unknown", "reason": "RevisionMissing"}

    def deployment(self, deployment: str) -> dict[str, Any] | None:
        """The unchanged Deployment first, then one with pods of both templates, then one with new pods only."""
        for name, service in self.services.items():
            sources = {f"{name}-predictor": stable(service)} | {
                one: source for one, (source, _) in canaries(name, service).items()
            }
            if deployment in sources:
                former = {f"{name}-predictor": stable(self.before[name])}.get(deployment, sources[deployment])
                template = self.clock[name] >= UPDATED
                annotations = (service if template else self.before[name])["spec"]["predictor"].get("annotations", {})
                source = sources[deployment] if template else former
                # That of before has all its pods: only its annotations tell that it is not the new one.
                is_done = self.clock[name] >= READY if template else fault(source) is None
                return rolled(deployment, {**annotations, SOURCE: source}, is_done)
        return None

    def routes(self) -> list[dict[str, Any]]:
        routes = []
        for name, service in self.services.items():
            is_new = self.clock[name] >= ROUTED
            seen = service["metadata"]["generation"] - (self.clock[name] < FOLLOWED)
            weights = self.weights(name, service if is_new else self.before[name])
            backends = [{"name": backend, "port": 80, "weight": weight} for backend, weight in weights.items()]
            accepted = {"type": "Accepted", "status": "True", "observedGeneration": seen}
            generation = service["metadata"]["generation"] - (not is_new)
            routes.append(
                {
                    "metadata": {"name": name, "generation": generation},
                    "spec": {"rules": [{"backendRefs": backends}]},
                    "status": {"parents": [{"conditions": [accepted]}] if self.gateway else []},
                }
            )
        return routes

    def pods(self, name: str) -> list[dict[str, Any]]:
        service = self.services[name]
        sources = {f"{name}-predictor": stable(service)} | {one: source for one, (source, _) in canaries(name, service).items()}
        return [
            {
                "metadata": {
                    "name": f"{deployment}-7d9f-{fault(source) or 'x'}".replace("no-", "no"),
                    "annotations": {SOURCE: source},
                },
                "status": FAULTS[fault(source) or "broken"],
            }
            for deployment, source in sources.items()
        ]

    def labelled(self, label: str, value: str) -> list[dict[str, Any]]:
        if label != "job-name":
            return self.pods(value)
        hidden = self.job_fault in ("refused", "deleted")
        return [] if hidden or value not in self.jobs else [self.jobs[value].pod(self.job_fault)]

    def events(self, selector: str) -> list[dict[str, Any]]:
        if "involvedObject.name=goemotions-" in selector and self.job_fault == "refused":
            return [{"message": f"Error creating: {FORBIDDEN}"}]
        return [{"message": text} for kind, text in EVENT.items() if kind.replace("no-", "no") in selector]

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
        if changed:
            self.before[name], self.clock[name] = self.services[name], 0
            self.revisions[name] += template(service) != template(self.before[name])
        self.services[name] = service
        self.autoscalers |= set(canaries(name, service))
        self.writes.append(service)
        return 200, service


class Job:
    """A Job whose command runs in a process of its own, as in its pod."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest, self.name = manifest, manifest["metadata"]["name"]
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        folder = Path(tempfile.mkdtemp())
        self.message, self.log = folder / "message", folder / "log"
        variables = {one["name"]: one["value"].replace("/dev/termination-log", str(self.message)) for one in container["env"]}
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "goemotions.cli", *container["args"]]
            self.process = subprocess.Popen(command, cwd=folder, env=os.environ | variables, stdout=log, stderr=log)

    def pod(self, fault: str) -> dict[str, Any]:
        code = self.process.poll()
        message = self.message.read_text() if self.message.exists() else ""
        state = (
            {"running": {}} if code is None else {"terminated": {"exitCode": code, "message": message, "reason": "Completed"}}
        )
        status = JOB_FAULTS.get(fault, {"containerStatuses": [MESH, {"name": "goemotions", "state": state}]})
        return {"metadata": {"name": f"{self.name}-x"}, "status": status}

    def status(self, fault: str) -> dict[str, Any]:
        failed = {
            "type": "Failed",
            "status": "True",
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the backoff limit",
        }
        return {"conditions": [failed] if fault == "deleted" else []}


def stable(service: dict[str, Any]) -> str:
    return str(service["spec"]["predictor"]["model"]["storageUri"])


def template(service: dict[str, Any]) -> dict[str, Any]:
    """What Knative makes revisions of."""
    return {name: value for name, value in service["spec"]["predictor"].items() if name != "canaryTrafficPercent"}


def canaries(name: str, service: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Location and share of each canary, by the name of its Deployment and Service."""
    return {
        f"{name}-{one['predictor']['name']}-predictor": (one["predictor"]["model"]["storageUri"], one["trafficPercent"])
        for one in service["spec"].get("canary", [])
    }


def fault(source: str) -> str | None:
    return next((kind for kind in FAULTS if kind in source), None)


def blocked() -> dict[str, Any]:
    failure = {"reason": "ModelLoadFailed", "message": "MANIFEST.json does not match"}
    return {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}


def rolled(name: str, annotations: dict[str, str], is_done: bool) -> dict[str, Any]:
    source = annotations[SOURCE]
    failed = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": FORBIDDEN}]
    return {
        "metadata": {"name": name, "generation": 17},
        "spec": {"template": {"metadata": {"annotations": annotations}}},
        "status": {
            "observedGeneration": 17,
            "replicas": 2,
            "updatedReplicas": 2 if is_done and fault(source) is None else 1,
            "availableReplicas": 2,
            "conditions": failed if fault(source) == "refused" else [],
        },
    }


class Handler(http_server.Handler):
    state: State

    def do_GET(self) -> None:
        if self.path.startswith("/tests/"):
            value = getattr(self.state, self.path.removeprefix("/tests/"))
            return self._respond(
                200, list(value) if value is self.state.jobs else sorted(value) if isinstance(value, set) else value
            )
        if self._is_refused():
            return None
        self.state.tick()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith(DEPLOYMENTS):
            found = self.state.deployment(url.path.removeprefix(DEPLOYMENTS))
            return self._respond(200, found) if found else self._refused(404, "deployments.apps not found")
        if url.path.startswith(f"{JOBS}/"):
            job = self.state.jobs.get(url.path.rpartition("/")[2])
            return (
                self._respond(200, {"status": job.status(self.state.job_fault)})
                if job
                else self._refused(404, "jobs not found")
            )
        if url.path.startswith(f"{PODS}/") and url.path.endswith("/log"):
            if query.get("container") != "goemotions":
                return self._refused(400, "a container name must be specified for the pod")
            return self.send(200, self.state.jobs[url.path.split("/")[-2].removesuffix("-x")].log.read_bytes())
        lists = {
            SERVICES: lambda: [self.state.read(one) for one in self.state.services],
            ROUTES: self.state.routes,
            PODS: lambda: self.state.labelled(*query["labelSelector"].split("=")),
            EVENTS: lambda: self.state.events(query["fieldSelector"]),
        }
        if url.path.rstrip("/") in lists:
            return self._respond(200, {"kind": "List", "items": lists[url.path.rstrip("/")]()})
        return self._named(lambda name: (200, self.state.read(name)))

    def do_PUT(self) -> None:
        body = json.loads(self.body())
        if self.path == "/tests/switch":
            vars(self.state).update(body)
            return self._respond(200, {})
        if self._is_refused():
            return None
        return self._named(lambda name: self.state.write(name, body))

    def do_POST(self) -> None:
        manifest = json.loads(self.body())
        if self._is_refused():
            return None
        name = manifest["metadata"]["name"]
        if name in self.state.jobs:
            return self._refused(409, f'jobs.batch "{name}" already exists')
        self.state.jobs[name] = Job(manifest)
        return self._respond(201, manifest)

    def do_DELETE(self) -> None:
        self.body()
        if self._is_refused():
            return None
        path, _, name = self.path.partition("?")[0].rpartition("/")
        if path == JOBS and name in self.state.jobs:
            job = self.state.jobs.pop(name)
            job.process.kill()
            job.process.wait()
            self.state.finished.append(job.manifest)
            return self._respond(200, {"kind": "Status", "status": "Success"})
        if path != AUTOSCALERS or name not in self.state.autoscalers:
            return self._refused(404, f'horizontalpodautoscalers "{name}" not found')
        self.state.autoscalers.remove(name)
        return self._respond(200, {"kind": "Status", "status": "Success"})

    def _is_refused(self) -> bool:
        if self.state.away:
            self.state.away -= 1
            self.close_connection = True
            return True
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refused(401, "Unauthorized")
        elif self.state.refuse and self.state.refuse_path in self.path:
            self._refused(self.state.refuse, "inferenceservices is forbidden: User cannot update resource")
        else:
            return False
        return True

    def _named(self, act: Any) -> None:
        path, _, name = self.path.partition("?")[0].partition(f"{SERVICES}/")
        if path or name not in self.state.services:
            return self._refused(404, f'inferenceservices.serving.kserve.io "{name}" not found')
        status, content = act(name)
        return self._respond(200, content) if status == 200 else self._refused(status, content)

    def _refused(self, status: int, message: str) -> None:
        self._respond(status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status})

    def _respond(self, status: int, content: Any) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


if __name__ == "__main__":
    Handler.state = State(Path(sys.argv[1]))
    server = http_server.Server(Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
