"""The manifests as `kubectl apply -k` would send them, and the pods that KServe and Deployments make of them."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from goemotions.deployment import cluster_keys
from tests.support import tools
from tests.support.documents import yaml_documents

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ("base", "overlays/local", "overlays/gpu", "overlays/production", "overlays/knative")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send, in order."""
    kubectl = tools.program("kubectl", why="it renders the manifests (1.27 or newer)")
    finished = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return yaml_documents(finished.stdout)


@functools.cache
def rendered(folder: str) -> tuple[dict[str, Any], ...]:
    """The documents of a folder of the manifests."""
    return tuple(kustomize(with_keys() / folder))


@functools.cache
def with_keys() -> Path:
    """A copy of the manifests with keys, which are not in the repository."""
    folder = Path(tempfile.mkdtemp()) / "manifests"
    shutil.copytree(MANIFESTS, folder, ignore=shutil.ignore_patterns("keys"))
    cluster_keys.write(folder / "overlays" / "local" / "keys")
    return folder


def every(kind: str, folder: str = "base") -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in rendered(folder) if one["kind"] == kind}


def pod(isvc: dict[str, Any], folder: str) -> dict[str, Any]:
    """The pod that KServe creates from an InferenceService and its runtime, abridged."""
    predictor = isvc["spec"]["predictor"]
    runtime = every("ServingRuntime", folder)[predictor["model"]["runtime"]]["spec"]
    storage = every("ClusterStorageContainer", folder)[predictor["storageContainerName"]]["spec"]["container"]
    models = {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
    container = copy.deepcopy(runtime["containers"][0])
    container["volumeMounts"].append({**models, "readOnly": True})
    taken = ("model", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "autoScaling", "deploymentStrategy", "labels")
    taken += ("storageContainerName",)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{isvc['metadata']['name']}-predictor",
            "namespace": isvc["metadata"]["namespace"],
            "labels": {**predictor["labels"], "serving.kserve.io/inferenceservice": isvc["metadata"]["name"]},
        },
        "spec": {
            **{name: value for name, value in predictor.items() if name not in taken},
            "initContainers": [
                {**storage, "args": [predictor["model"]["storageUri"], "/mnt/models"], "volumeMounts": [models]}
            ],
            "containers": [container],
            "volumes": [*runtime["volumes"], {"name": "kserve-provision-location", "emptyDir": {}}],
        },
    }


def pod_labels(folder: str) -> list[dict[str, str]]:
    return [
        *(one["spec"]["predictor"]["labels"] for one in every("InferenceService", folder).values()),
        *(one["spec"]["template"]["metadata"]["labels"] for one in every("Deployment", folder).values()),
    ]
