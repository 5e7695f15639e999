"""InferenceServices as objects: which versions they have, and what they are with another one. Nothing here uses the Kubernetes API."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from goemotions.deployment import node_pools
from goemotions.deployment.node_pools import NodePool
from goemotions.registry.model_registry import Version
from goemotions.storage import store

VERSION = "goemotions-version"
CANARY_VERSION = "goemotions-canary-version"
# The annotation of a pod with the location that its storage initializer downloads.
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
# An annotation of pods: another value makes KServe replace them.
RESTARTED = "goemotions-restarted-at"
MODE = "serving.kserve.io/deploymentMode"
# Its name since KServe 0.16, and before.
KNATIVE = ("Knative", "Serverless")
# The variables by which a predictor knows the number of its version, and where KServe downloaded its bundle from.
NUMBER, BUNDLE_SOURCE = "GOEMOTIONS_SERVE_VERSION_NUMBER", "GOEMOTIONS_SERVE_BUNDLE_SOURCE"
# Fields that KServe rejects in a canary.
STABLE_ONLY = ("maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")
CANARY = "canary"


@dataclass(frozen=True)
class ServiceStatus:
    """What an InferenceService serves: version and location of each part, and the canary's share of the traffic in percent."""

    service: str
    version: str
    source: str
    canary_version: str
    canary_source: str
    canary_percent: int
    is_ready: bool
    # Why the canary does not get its share; empty if it does.
    canary_problem: str = ""

    @classmethod
    def of(cls, service: dict[str, Any], canary_problem: str = "") -> ServiceStatus:
        annotations = service["metadata"].get("annotations") or {}
        predictor = service["spec"]["predictor"]
        source = predictor["model"].get("storageUri", "")
        canary: dict[str, Any] = (service["spec"].get("canary") or [{}])[0]
        is_split = bool(predictor.get("canaryTrafficPercent"))
        percent = predictor["canaryTrafficPercent"] if is_split else canary.get("trafficPercent", 0)
        canary_source = source if is_split else canary.get("predictor", {}).get("model", {}).get("storageUri", "")
        return cls(
            service["metadata"]["name"],
            annotations.get(VERSION, ""),
            # With Knative the stable version is in a revision, and the service has the location of the canary alone.
            "" if is_split else source,
            # A canary without a share of the traffic is one whose removal was interrupted.
            annotations.get(CANARY_VERSION, "") if canary or is_split else "",
            canary_source,
            percent,
            conditions(service).get("Ready") == "True",
            canary_problem if percent else "",
        )


def is_knative(service: dict[str, Any]) -> bool:
    """Whether KServe runs it by Knative, rather than by Deployments."""
    annotations = service["metadata"].get("annotations") or {}
    return str(annotations.get(MODE) or service.get("status", {}).get("deploymentMode") or "Standard") in KNATIVE


def conditions(service: dict[str, Any]) -> dict[str, str]:
    """The status of each condition by its type."""
    return {condition["type"]: condition["status"] for condition in service.get("status", {}).get("conditions", [])}


def canaries(service: dict[str, Any]) -> dict[str, str]:
    """The location that each canary serves, by the canary's name."""
    return {
        canary["predictor"]["name"]: canary["predictor"]["model"].get("storageUri", "")
        for canary in service["spec"].get("canary") or []
    }


def source_in(service: dict[str, Any], version: Version) -> str:
    """The location of a version; the bucket may have another name in the cluster, and the one in the service is kept."""
    return store.in_bucket(version.source, store.bucket_of(service["spec"]["predictor"]["model"].get("storageUri", "")))


def set_version(model: Any, source: str, number: str) -> None:
    """Sets a version on the ``model`` of a predictor."""
    model["storageUri"] = source
    own = {NUMBER: number, BUNDLE_SOURCE: source}
    others = [variable for variable in model.get("env") or [] if variable["name"] not in own]
    model["env"] = [*others, *({"name": name, "value": value} for name, value in own.items())]


def with_version(
    service: dict[str, Any], version: Version, canary_percent: int, pool: NodePool | None = None
) -> dict[str, Any]:
    """The InferenceService with a version set on it, alone or as a canary beside the one it serves, and with the node pool if given."""
    changed = without_canary(service)
    source = source_in(service, version)
    annotations, predictor = changed["metadata"]["annotations"], changed["spec"]["predictor"]
    if pool:
        node_pools.place(predictor, pool)
    if not canary_percent:
        set_version(predictor["model"], source, version.number)
        annotations[VERSION] = version.number
        return changed
    annotations[CANARY_VERSION] = version.number
    if is_knative(service):
        set_version(predictor["model"], source, version.number)
        predictor["canaryTrafficPercent"] = canary_percent
        return changed
    canary = {name: copy.deepcopy(value) for name, value in predictor.items() if name not in STABLE_ONLY}
    # As many pods per request as the stable version has, as far as KServe lets a canary have.
    replicas = predictor.get("minReplicas", 1)
    pods = math.ceil(replicas * canary_percent / (100 - canary_percent))
    canary |= {"name": CANARY, "minReplicas": max(1, min(replicas, pods))}
    set_version(canary["model"], source, version.number)
    changed["spec"]["canary"] = [{"trafficPercent": canary_percent, "predictor": canary}]
    return changed


def with_stable_version(service: dict[str, Any], version: Version, pool: NodePool | None = None) -> dict[str, Any]:
    """The InferenceService with a version as the stable one. A canary stays as it is."""
    changed = with_version(service, version, 0, pool)
    if canary := service["spec"].get("canary"):
        changed["spec"]["canary"] = copy.deepcopy(canary)
        if number := (service["metadata"].get("annotations") or {}).get(CANARY_VERSION):
            changed["metadata"]["annotations"][CANARY_VERSION] = number
    return changed


def revisions(service: dict[str, Any]) -> tuple[str, str]:
    """The newest revision that Knative has created, and the newest one that was ready; empty if there is none."""
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    return predictor.get("latestCreatedRevision", ""), predictor.get("latestReadyRevision", "")


def needs_revision(before: dict[str, Any], service: dict[str, Any]) -> bool:
    """Whether Knative creates a revision for a change: for any of the predictor but of its share of the traffic."""
    templates = [{**one["spec"]["predictor"], "canaryTrafficPercent": None} for one in (before, service)]
    return templates[0] != templates[1]


def restarted(service: dict[str, Any], time: str) -> dict[str, Any]:
    """The InferenceService with new pods of the same versions."""
    changed = copy.deepcopy(service)
    for part in [changed["spec"], *(changed["spec"].get("canary") or [])]:
        part["predictor"]["annotations"] = {**(part["predictor"].get("annotations") or {}), RESTARTED: time}
    return changed


def without_traffic_to_canaries(service: dict[str, Any]) -> dict[str, Any]:
    """The InferenceService with canaries that run on and get no traffic."""
    changed = copy.deepcopy(service)
    for canary in changed["spec"].get("canary") or []:
        canary["trafficPercent"] = 0
    return changed


def without_canary(service: dict[str, Any]) -> dict[str, Any]:
    """The InferenceService with its stable version alone."""
    changed = copy.deepcopy(service)
    changed["metadata"].setdefault("annotations", {}).pop(CANARY_VERSION, None)
    changed["spec"].pop("canary", None)
    changed["spec"]["predictor"].pop("canaryTrafficPercent", None)
    return changed
