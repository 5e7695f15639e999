"""Versions on InferenceServices. No other module of the library uses the Kubernetes API.

A version is set by its ``storageUri``, an immutable prefix: KServe starts pods with it, and ends the old ones when they are ready.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goemotions import defaults
from goemotions.deployment import node_pools
from goemotions.deployment.node_pools import NodePool
from goemotions.errors import BadArgument, DeploymentError
from goemotions.registry import tracking
from goemotions.registry.tracking import Version
from goemotions.storage import store

if TYPE_CHECKING:
    from goemotions.registry.bundle import Variant
    from goemotions.registry.registration import RegisteredVersion

log = logging.getLogger(__name__)

RESOURCE = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
VERSION = "goemotions-version"
CANARY_VERSION = "goemotions-canary-version"
# The annotation with the location that a pod's storage initializer downloads.
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
MODE = "serving.kserve.io/deploymentMode"
# Its name since KServe 0.16, and before.
KNATIVE = ("Knative", "Serverless")
# Fields that KServe rejects in a canary.
STABLE_ONLY = ("maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_SECONDS = 20
POLL_SECONDS = 2.0
WAIT_SECONDS = 900.0
ATTEMPTS = 5


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

    @classmethod
    def of(cls, service: dict[str, Any]) -> ServiceStatus:
        annotations = service["metadata"].get("annotations") or {}
        predictor = service["spec"]["predictor"]
        source = predictor["model"].get("storageUri", "")
        canary = (service["spec"].get("canary") or [{}])[0]
        is_split = bool(predictor.get("canaryTrafficPercent"))
        percent = predictor["canaryTrafficPercent"] if is_split else canary.get("trafficPercent", 0)
        canary_source = source if is_split else canary.get("predictor", {}).get("model", {}).get("storageUri", "")
        return cls(
            service["metadata"]["name"],
            annotations.get(VERSION, ""),
            # With Knative the stable version is in a revision, and the service has the location of the canary alone.
            "" if is_split else source,
            annotations.get(CANARY_VERSION, "") if percent else "",
            canary_source if percent else "",
            percent,
            _is_ready(service),
        )


def service_name(model_name: str, variant: str) -> str:
    """The InferenceService of a variant, unless another one is named."""
    return f"{model_name}-{variant}"


def deploy(
    reference: str,
    service: str,
    namespace: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    canary_percent: int = 0,
    preset: str = "",
    wait_seconds: float = WAIT_SECONDS,
) -> ServiceStatus:
    """Sets a version on an InferenceService and waits until it is served. If it is set already, nothing is changed (idempotent).

    Args:
        reference: an alias or a version number.
        service: name of the InferenceService; empty for ``<model name>-<variant>``.
        namespace: its namespace; empty for that of the current context.
        model_name: name of the registered model.
        canary_percent: share of the traffic that the version gets beside the one that is served; 0: all of it.
        preset: the node pool of all pods of a service with GPUs, a name of ``node_pools.PRESETS``; empty keeps the present one.
        wait_seconds: longest time until it is ready; 0: do not wait.

    Raises:
        ModelError: there is no such version.
        BadArgument: there is no such preset, or the version is for CPUs.
        DeploymentError: no cluster, no such InferenceService, the API refuses, or it is not ready in time.
    """
    if not 0 <= canary_percent <= 99:
        raise DeploymentError(f"a canary gets 1 to 99 percent of the traffic, not {canary_percent}: 0 replaces what is served")
    version = tracking.get_version(model_name, reference)
    service = service or service_name(model_name, version.tags["variant"])
    if preset and version.tags["variant"] != "gpu":
        raise BadArgument(f"version {version.number} is for CPUs: a preset names a node pool with GPUs, leave it out")
    pool = node_pools.get(preset) if preset else None
    cluster = Cluster(namespace)
    before = cluster.service(service)
    for _ in range(ATTEMPTS):
        wanted = with_version(before, version, canary_percent, pool)
        if wanted == before:
            break
        if cluster.replace(service, wanted):
            target = f"{cluster.namespace}/{service}"
            tracking.record(model_name, version, "deploy", target, ServiceStatus.of(before).version, percent=canary_percent)
            break
        before = cluster.service(service)
    else:
        raise DeploymentError(f"{service} was changed by another process at the same time: deploy again")
    return ServiceStatus.of(cluster.ready(service, wait_seconds) if wait_seconds else cluster.service(service))


def deploy_registered(
    registered: Mapping[Variant, RegisteredVersion],
    namespace: str,
    model_name: str,
    canary_percent: int,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Deploys the champions of a pipeline run, and with a canary's share its challengers too, variant by variant.

    Args:
        registered: per variant the version and its alias, as ``registration.register`` returns them.
        namespace, model_name, canary_percent, wait_seconds: as for ``deploy``.

    Raises:
        DeploymentError: a variant could not be deployed; the others are.
    """
    errors = []
    names = [service_name(model_name, variant) for variant in registered]
    existing = {status.service for status in list_services(names, namespace)}
    for variant, version in registered.items():
        service = service_name(model_name, variant)
        if service not in existing:
            log.warning("there is no InferenceService %s: version %s is not deployed", service, version["version"])
        elif canary_percent or version["alias"].startswith("champion"):
            try:
                deploy(
                    version["version"],
                    service,
                    namespace,
                    model_name=model_name,
                    canary_percent=canary_percent,
                    wait_seconds=wait_seconds,
                )
            except DeploymentError as error:
                errors.append(str(error))
    if errors:
        raise DeploymentError("; ".join(errors))


def list_services(services: list[str], namespace: str) -> list[ServiceStatus]:
    """The status of the InferenceServices of these names that exist."""
    cluster = Cluster(namespace)
    existing = {service["metadata"]["name"]: service for service in cluster.services()}
    return [ServiceStatus.of(existing[name]) for name in services if name in existing]


def with_version(
    service: dict[str, Any], version: Version, canary_percent: int, pool: NodePool | None = None
) -> dict[str, Any]:
    """The InferenceService with a version set on it, alone or as a canary beside the one it serves, and with the node pool if given."""
    changed = copy.deepcopy(service)
    # The bucket may have another name in the cluster: the one in the service is kept.
    source = store.in_bucket(version.source, store.bucket_of(service["spec"]["predictor"]["model"].get("storageUri", "")))
    annotations = changed["metadata"].setdefault("annotations", {})
    predictor = changed["spec"]["predictor"]
    if pool:
        node_pools.place(predictor, pool)
    changed["spec"].pop("canary", None)
    predictor.pop("canaryTrafficPercent", None)
    annotations.pop(CANARY_VERSION, None)
    if not canary_percent:
        predictor["model"]["storageUri"] = source
        annotations[VERSION] = version.number
        return changed
    annotations[CANARY_VERSION] = version.number
    if _mode(service) in KNATIVE:
        predictor["model"]["storageUri"] = source
        predictor["canaryTrafficPercent"] = canary_percent
        return changed
    canary = {name: copy.deepcopy(value) for name, value in predictor.items() if name not in STABLE_ONLY}
    canary |= {"name": "canary", "minReplicas": 1}
    canary["model"]["storageUri"] = source
    changed["spec"]["canary"] = [{"trafficPercent": canary_percent, "predictor": canary}]
    return changed


def _mode(service: dict[str, Any]) -> str:
    annotations = service["metadata"].get("annotations") or {}
    return str(annotations.get(MODE) or service.get("status", {}).get("deploymentMode") or "Standard")


def _is_ready(service: dict[str, Any]) -> bool:
    """Whether it is ready, and its canaries too, which KServe reports separately."""
    status = service.get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    return conditions.get("Ready") == "True" and all(canary.get("ready", True) for canary in status.get("canaryStatuses") or [])


def _is_rolled_out(deployment: dict[str, Any], source: str) -> bool:
    """Whether every pod of a Deployment has its newest template, and that template downloads from this location."""
    template, status = deployment["spec"]["template"], deployment.get("status", {})
    downloaded = (template["metadata"].get("annotations") or {}).get(SOURCE, source)
    counts = {status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")}
    is_observed = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return bool(downloaded == source and is_observed and len(counts) == 1 and counts != {0})


class Cluster:
    """The InferenceServices of a namespace, by the kubeconfig, or by the pod's service account."""

    def __init__(self, namespace: str) -> None:
        from kubernetes import client, config

        kubeconfig = os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config"))
        try:
            if "KUBECONFIG" in os.environ or Path(kubeconfig).exists():
                config.load_kube_config(kubeconfig)
                current = config.list_kube_config_contexts(kubeconfig)[1]["context"].get("namespace", "default")
            else:
                config.load_incluster_config()
                current = POD_NAMESPACE.read_text(encoding="utf-8")
        except (config.ConfigException, OSError) as error:
            raise DeploymentError("no Kubernetes cluster is configured: set KUBECONFIG, or run inside a cluster") from error
        self.namespace = namespace or current
        configuration = client.Configuration.get_default_copy()
        configuration.retries = 2
        self._api = client.CustomObjectsApi(client.ApiClient(configuration))
        self._apps = client.AppsV1Api(client.ApiClient(configuration))

    def service(self, name: str) -> dict[str, Any]:
        with self._translate_errors(name):
            service: dict[str, Any] = self._call(self._api.get_namespaced_custom_object, name=name)
            return service

    def services(self) -> list[dict[str, Any]]:
        with self._translate_errors("InferenceServices"):
            services: list[dict[str, Any]] = self._call(self._api.list_namespaced_custom_object)["items"]
            return services

    def replace(self, name: str, service: dict[str, Any]) -> bool:
        """Replaces the object; returns False if another process changed it since it was read."""
        from kubernetes.client import ApiException

        with self._translate_errors(name):
            try:
                # The client's patch method sends a content type that the API rejects for custom resources.
                self._call(self._api.replace_namespaced_custom_object, name=name, body=service)
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
        return True

    def ready(self, name: str, seconds: float) -> dict[str, Any]:
        """Waits until the InferenceService is ready and returns it.

        Raises:
            DeploymentError: it is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not self._is_served(service := self.service(name)):
            failure = service.get("status", {}).get("modelStatus", {}).get("lastFailureInfo", {})
            if time.monotonic() > deadline:
                reason = failure.get("message") or _not_ready(service)
                raise DeploymentError(
                    f"{name} is not ready after {seconds:g} s ({reason}): the former version still serves; "
                    f"deploy that one again, or see `kubectl -n {self.namespace} describe inferenceservice {name}`"
                )
            time.sleep(POLL_SECONDS)
        return service

    def _is_served(self, service: dict[str, Any]) -> bool:
        """Whether it is ready with its present specification: KServe reports it as ready while pods are still being replaced."""
        if not _is_ready(service):
            return False
        name = service["metadata"]["name"]
        if _mode(service) in KNATIVE:
            predictor = service["status"].get("components", {}).get("predictor", {})
            return bool(predictor.get("latestReadyRevision") == predictor.get("latestCreatedRevision"))
        with self._translate_errors(f"{name}-predictor"):
            deployment = self._apps.read_namespaced_deployment(
                f"{name}-predictor", self.namespace, _preload_content=False, _request_timeout=TIMEOUT_SECONDS
            )
        return _is_rolled_out(json.loads(deployment.data), service["spec"]["predictor"]["model"]["storageUri"])

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        return method(**RESOURCE, namespace=self.namespace, **arguments, _request_timeout=TIMEOUT_SECONDS)

    @contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        place = f"{name} in namespace {self.namespace}"
        try:
            yield
        except HTTPError as error:
            raise DeploymentError(f"the Kubernetes API does not respond: check the context of KUBECONFIG ({place})") from error
        except ApiException as error:
            try:
                reason = json.loads(error.body)["message"]
            except (TypeError, ValueError, KeyError):
                reason = error.reason
            advice = {
                401: "log in to the cluster again",
                403: "the account lacks permissions; manifests/components/rbac grants those that deploying needs",
                404: "apply manifests/isvc.yaml first, or name another namespace",
            }.get(error.status, "fix the reported cause")
            raise DeploymentError(f"Kubernetes refuses {place} ({error.status}, {reason}): {advice}") from error


def _not_ready(service: dict[str, Any]) -> str:
    """The conditions that are not true, in KServe's words."""
    conditions = service.get("status", {}).get("conditions", [])
    unmet = [condition for condition in conditions if condition["status"] != "True"]
    texts = [f"{one['type']}: {one.get('message') or one.get('reason') or one['status']}" for one in unmet]
    return "; ".join(texts) or "no status yet"
