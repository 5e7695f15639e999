"""What stops an InferenceService, in the words of Kubernetes: its pods, its route, its gateway, or KServe's split of the traffic."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from goemotions.deployment.cluster import Cluster, backends
from goemotions.deployment.inference_service import RESTARTED, SOURCE, is_knative

# How long each lasts until waiting cannot help. A node may still be added for a pod that fits on none.
SECONDS = {"pods": 30.0, "nodes": 180.0, "route": 60.0, "split": 60.0, "start": float("inf")}
WAITING = (
    "CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
    "CreateContainerError",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something that does not pass by waiting if its kind lasts for the ``SECONDS`` of the kind."""

    kind: str
    text: str


class Watch:
    """Follows what stops something, and how long."""

    def __init__(self) -> None:
        self._kind, self._since = "", 0.0

    def lasting(self, problem: Problem | None) -> Problem | None:
        """Takes the problem of now, and returns it if its kind has lasted for so long that waiting cannot help."""
        if problem and problem.kind != self._kind:
            self._since = time.monotonic()
        self._kind = problem.kind if problem else ""
        return problem if problem and time.monotonic() - self._since >= SECONDS[problem.kind] else None


def rolling(deployment: dict[str, Any] | None, predictor: dict[str, Any]) -> str:
    """What a Deployment lacks until every pod has its newest template, and that template is of this predictor; or nothing."""
    if deployment is None:
        return "KServe has not created it yet"
    template, status = deployment["spec"]["template"], deployment.get("status", {})
    annotations, wanted = template["metadata"].get("annotations") or {}, predictor.get("annotations") or {}
    source = predictor["model"].get("storageUri", "")
    is_new = annotations.get(SOURCE, source) == source and annotations.get(RESTARTED) == wanted.get(RESTARTED)
    if not is_new or status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return "KServe has not updated it yet"
    pods, updated, available = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas"))
    return "" if pods == updated == available > 0 else f"{pods} pods, {updated} of them new, {available} available"


def of_pods(cluster: Cluster, service: str, deployment: str, source: str) -> Problem | None:
    """What stops the pods of a Deployment that download from this location."""
    status = (cluster.deployment(deployment) or {}).get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Problem("pods", f"pods are refused: {condition.get('message', '')}")
    for pod in cluster.pods(service):
        is_new = (pod["metadata"].get("annotations") or {}).get(SOURCE, source) == source
        is_of_deployment = re.fullmatch(rf"{re.escape(deployment)}-[^-]+-[^-]+", pod["metadata"]["name"])
        if is_new and is_of_deployment and (problem := of_pod(cluster, pod)):
            return problem
    return None


def of_pod(cluster: Cluster, pod: dict[str, Any]) -> Problem | None:
    """What stops a pod."""
    for problem in _of_status(pod["status"]):
        # The events say more than the status, such as which image was not found.
        events = [text for text in cluster.warnings(pod["metadata"]["name"])[-1:] if text not in problem.text]
        return Problem(problem.kind, f"pod {pod['metadata']['name']}: {'; '.join([problem.text, *events])}")
    return None


def _of_status(status: dict[str, Any]) -> Iterator[Problem]:
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            yield Problem("nodes", f"Unschedulable: {condition.get('message', '')}")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in WAITING:
            ended = container.get("lastState", {}).get("terminated", {}).get("message", "").strip()
            yield Problem("pods", f"{waiting['reason']} of {container['name']}: {ended or waiting.get('message', '')}")


def of_route(cluster: Cluster, service: dict[str, Any]) -> Problem | None:
    """What stops the route to a predictor that serves: KServe made none, or no gateway follows it."""
    name = service["metadata"]["name"]
    routes = cluster.routes(name)
    if not routes:
        return Problem("route", "KServe has made no HTTPRoute; " + unmet(service))
    for route in routes:
        title, accepted = f"HTTPRoute {route['metadata']['name']}", _accepted(route)
        if not accepted:
            return Problem("route", f"gateway: no controller responds to {title}; is one installed for its Gateway?")
        for condition in accepted:
            if condition["status"] != "True":
                return Problem("route", f"gateway: {title} is not accepted: {condition.get('message', '')}")
    return None


def is_followed(route: dict[str, Any]) -> bool:
    """Whether the controllers of all its gateways have seen the newest state of a route. One without any is followed by nobody."""
    generation = route["metadata"].get("generation", 0)
    return all(one.get("observedGeneration", generation) >= generation for one in _accepted(route))


def _accepted(route: dict[str, Any]) -> list[dict[str, Any]]:
    parents = route.get("status", {}).get("parents", [])
    return [one for parent in parents for one in parent.get("conditions", []) if one["type"] == "Accepted"]


def of_canary(cluster: Cluster, service: dict[str, Any]) -> Problem | None:
    """Why a canary does not get its share of the traffic. KServe reports the service as ready nevertheless."""
    name = service["metadata"]["name"]
    if is_knative(service):
        return None
    reported = {one["name"]: one for one in service.get("status", {}).get("canaryStatuses") or []}
    for predictor in (one["predictor"] for one in service["spec"].get("canary") or []):
        canary, source = predictor["name"], predictor["model"].get("storageUri", "")
        deployment = f"{name}-{canary}-predictor"
        if problem := of_pods(cluster, name, deployment, source):
            return problem
        report = reported.get(canary, {})
        missing = rolling(cluster.deployment(deployment), predictor) or (
            "" if report.get("ready", True) else "KServe: not ready"
        )
        if missing:
            # It may only be starting.
            return Problem("start", f"{deployment}: {failure(report) or missing}")
    return _of_split(cluster, service)


def _of_split(cluster: Cluster, service: dict[str, Any]) -> Problem | None:
    name = service["metadata"]["name"]
    wanted = {
        f"{name}-{one['predictor']['name']}-predictor": one["trafficPercent"] for one in service["spec"].get("canary") or []
    }
    if not wanted:
        return None
    routes = cluster.routes(name)
    split = [route for route in routes if wanted.items() <= backends(route).items()]
    if any(map(is_followed, split)):
        return None
    if split:
        return Problem("route", f"gateway: HTTPRoute {split[0]['metadata']['name']} is split, and not accepted yet")
    seen = "; ".join(f"{one['metadata']['name']}: {backends(one)}" for one in routes) or "none"
    return Problem(
        "split",
        f"the traffic is not split: {wanted} percent are wanted, HTTPRoutes have: {seen}. It needs the Gateway API "
        "(enableGatewayApi), and a KServe after 0.20.0, which accepts spec.canary but sets no weights",
    )


def failure(status: dict[str, Any]) -> str:
    """KServe's reason why a model does not load, from the status of a service or of a canary."""
    return str(status.get("modelStatus", {}).get("lastFailureInfo", {}).get("message", ""))


def unmet(service: dict[str, Any]) -> str:
    """The conditions that are not true, in KServe's words."""
    conditions = service.get("status", {}).get("conditions", [])
    texts = [
        f"{one['type']}: {one.get('message') or one.get('reason') or one['status']}"
        for one in conditions
        if one["status"] != "True"
    ]
    return "; ".join(texts) or "no status yet"
