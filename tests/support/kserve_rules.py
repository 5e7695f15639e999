"""The rules of KServe's webhook beyond the schema of an InferenceService (kserve/kserve, pkg/apis/serving/v1beta1, at 0.21)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
SCHEMES = ("s3://", "gs://", "pvc://", "hf://", "https://", "http://", "hdfs://", "webhdfs://", "oci://")
IMPLEMENTATIONS = (
    "model", "huggingface", "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "pmml", "lightgbm", "paddle", "containers",
)  # fmt: skip
SCALING = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


def violations(service: dict[str, Any]) -> list[str]:
    """The errors that the webhook would report for an InferenceService; empty if it is admitted."""
    annotations = service["metadata"].get("annotations") or {}
    is_standard = annotations.get(MODE) == "Standard"
    predictor = service["spec"]["predictor"]
    errors = [] if NAME.fullmatch(service["metadata"]["name"]) else [f"name {service['metadata']['name']!r}"]
    errors += _component(predictor, is_standard)
    errors += _autoscaling(predictor, annotations.get(AUTOSCALER, "hpa")) if is_standard else []
    if canaries := service["spec"].get("canary"):
        errors += _canaries(canaries, predictor, is_standard)
    return errors


def _component(predictor: dict[str, Any], is_standard: bool) -> Iterator[str]:
    if len([name for name in IMPLEMENTATIONS if name in predictor]) != 1:
        yield "exactly one implementation is needed"
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if low < 0 or high < 0 or (high and low > high):
        yield f"minReplicas {low} and maxReplicas {high}"
    if "deploymentStrategy" in predictor and not is_standard:
        yield "deploymentStrategy needs the annotation deploymentMode: Standard"
    model = predictor.get("model", {})
    if "name" in model:
        yield "a model has no name"
    if "storageUri" in model and "storageUris" in predictor:
        yield "storageUri and storageUris"
    if (uri := model.get("storageUri")) is not None and not uri.startswith(SCHEMES):
        yield f"storageUri {uri!r}"
    for storage in predictor.get("storageUris", []):
        path = storage.get("mountPath", "/mnt/models")
        if not path.startswith("/") or ".." in path:
            yield f"mountPath {path!r}"
    if any(variable["name"] == "PYTHONPATH" for variable in model.get("env", [])):
        yield "PYTHONPATH"


def _autoscaling(predictor: dict[str, Any], autoscaler: str) -> Iterator[str]:
    metrics = predictor.get("autoScaling", {}).get("metrics", [])
    if autoscaler == "keda" and "scaleMetric" in predictor:
        yield "KEDA takes no scaleMetric"
    if autoscaler == "hpa" and predictor.get("scaleMetric") == "cpu" and not 1 <= predictor.get("scaleTarget", 80) <= 100:
        yield f"scaleTarget {predictor['scaleTarget']}"
    for metric in metrics:
        if autoscaler == "hpa" and metric["type"] != "Resource":
            yield f"HPA takes Resource metrics, not {metric['type']}"
        target = metric.get("resource", {}).get("target", {})
        if metric.get("resource", {}).get("name") == "cpu":
            if target.get("type") != "Utilization":
                yield "a CPU target is a Utilization"
            elif not 1 <= target.get("averageUtilization", 0) <= 100:
                yield f"averageUtilization {target.get('averageUtilization')}"
        if metric["type"] == "External":
            external = metric["external"]
            if not external["metric"].get("query"):
                yield "an external metric needs a query"
            if "value" not in external["target"]:
                yield "an external metric needs a value"


def _canaries(canaries: list[dict[str, Any]], stable: dict[str, Any], is_standard: bool) -> Iterator[str]:
    if not is_standard:
        yield "canary needs the annotation deploymentMode: Standard"
    names = [canary["predictor"].get("name") for canary in canaries]
    if len(set(names)) != len(names) or None in names:
        yield f"names of canaries {names}"
    if sum(canary["trafficPercent"] for canary in canaries) > 100:
        yield "the canaries get more than 100 percent"
    for canary in canaries:
        predictor = canary["predictor"]
        yield from (f"a canary has no {name}" for name in SCALING if name in predictor)
        if predictor.get("minReplicas", 1) > stable.get("minReplicas", 1):
            yield "a canary has more replicas than the stable version"
        yield from _component({name: value for name, value in predictor.items() if name not in SCALING}, is_standard)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields too, in a copy."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    if (
        isinstance(closed.get("properties"), dict)
        and "type" in closed
        and not closed.get("x-kubernetes-preserve-unknown-fields")
    ):
        closed.setdefault("additionalProperties", False)
    return closed


def schema(crd: dict[str, Any], version: str) -> dict[str, Any]:
    """The strict schema of one version of a custom resource; of its metadata the fields that a manifest sets."""
    (definition,) = (one for one in crd["spec"]["versions"] if one["name"] == version)
    opened = copy.deepcopy(definition["schema"]["openAPIV3Schema"])
    names = {"type": "object", "additionalProperties": {"type": "string"}}
    fields = {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": names, "annotations": names}
    opened["properties"]["metadata"] = {"type": "object", "properties": fields}
    closed: dict[str, Any] = strict(opened)
    return closed
