"""The Kubernetes API of one namespace: InferenceServices, and what KServe makes of them. No other module of the library uses it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goemotions.errors import ClusterUnavailable, DeploymentError, NoCluster

log = logging.getLogger(__name__)

RESOURCE = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
ROUTES = {"group": "gateway.networking.k8s.io", "version": "v1", "plural": "httproutes"}
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_SECONDS = 20
FORBIDDEN, NOT_FOUND, CONFLICT = 403, 404, 409


class Cluster:
    """The objects of a namespace, by the kubeconfig, or by the pod's service account."""

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
            raise NoCluster("no Kubernetes cluster is configured: set KUBECONFIG, or run inside a cluster") from error
        self.namespace = namespace or current
        configuration = client.Configuration.get_default_copy()
        configuration.retries = 2
        connection = client.ApiClient(configuration)
        self._api = client.CustomObjectsApi(connection)
        self._apps = client.AppsV1Api(connection)
        self._core = client.CoreV1Api(connection)
        self._batch = client.BatchV1Api(connection)
        self._autoscaling = client.AutoscalingV2Api(connection)

    def service(self, name: str) -> dict[str, Any]:
        """An InferenceService."""
        with self._translate_errors(name):
            service: dict[str, Any] = self._call(self._api.get_namespaced_custom_object, **RESOURCE, name=name)
            return service

    def services(self) -> list[dict[str, Any]]:
        """Every InferenceService."""
        with self._translate_errors("InferenceServices"):
            services: list[dict[str, Any]] = self._call(self._api.list_namespaced_custom_object, **RESOURCE)["items"]
            return services

    def replace(self, name: str, service: dict[str, Any]) -> bool:
        """Replaces the object; returns False if another process changed it since it was read."""
        with self._translate_errors(name):
            # The client's patch method sends a content type that the API rejects for custom resources.
            replaced = self._unless(CONFLICT, self._api.replace_namespaced_custom_object, **RESOURCE, name=name, body=service)
        return replaced is not None

    def deployment(self, name: str) -> dict[str, Any] | None:
        """A Deployment; None if there is none."""
        return self._read(self._apps.read_namespaced_deployment, name)

    def routes(self, service: str) -> list[dict[str, Any]]:
        """The HTTPRoutes to the pods of an InferenceService; none in a cluster without the Gateway API."""
        with self._translate_errors("HTTPRoutes"):
            routes = self._unless(NOT_FOUND, self._api.list_namespaced_custom_object, **ROUTES)
        return [route for route in (routes or {"items": []})["items"] if f"{service}-predictor" in backends(route)]

    def pods(self, service: str) -> list[dict[str, Any]]:
        """The pods of an InferenceService; none if the account may not list them."""
        return self._listed(self._core.list_namespaced_pod, label_selector=f"{SERVICE_LABEL}={service}")

    def create_job(self, job: dict[str, Any]) -> None:
        """Creates a Job, unless one of its name exists."""
        with self._translate_errors(job["metadata"]["name"]):
            self._unless(CONFLICT, self._batch.create_namespaced_job, body=job, _preload_content=False)

    def job(self, name: str) -> dict[str, Any] | None:
        """A Job; None if there is none."""
        return self._read(self._batch.read_namespaced_job, name)

    def pods_of_job(self, name: str) -> list[dict[str, Any]]:
        """The pods of a Job."""
        return self._listed(self._core.list_namespaced_pod, label_selector=f"job-name={name}")

    def log(self, pod: str, container: str) -> str:
        """The log of a pod's container; empty if there is none yet, or no longer."""
        method, options = self._core.read_namespaced_pod_log, {"container": container, "_preload_content": False}
        with self._translate_errors(pod):
            response = self._unless(NOT_FOUND, method, name=pod, **options)
        return "" if response is None else str(response.data.decode(errors="replace"))

    def delete_job(self, name: str) -> None:
        """Deletes a Job and its pods, if it exists."""
        options = {"propagation_policy": "Background", "_preload_content": False}
        with self._translate_errors(name):
            self._unless(NOT_FOUND, self._batch.delete_namespaced_job, name=name, **options)

    def warnings(self, name: str) -> list[str]:
        """The texts of the warnings about an object, newest last; none if the account may not list them."""
        events = self._listed(self._core.list_namespaced_event, field_selector=f"involvedObject.name={name},type=Warning")
        return [event.get("message", "") for event in sorted(events, key=lambda event: event.get("lastTimestamp") or "")]

    def delete_autoscaler(self, name: str) -> None:
        """Deletes a HorizontalPodAutoscaler if there is one; warns if the account may not."""
        from kubernetes.client import ApiException

        try:
            self._unless(NOT_FOUND, self._autoscaling.delete_namespaced_horizontal_pod_autoscaler, name=name)
        except ApiException as error:
            remedy = f"kubectl -n {self.namespace} delete hpa {name}"
            log.warning("KServe leaves the HorizontalPodAutoscaler %s (%s): `%s`", name, error.reason, remedy)

    def _read(self, method: Callable[..., Any], name: str) -> dict[str, Any] | None:
        with self._translate_errors(name):
            response = self._unless(NOT_FOUND, method, name=name, _preload_content=False)
        return None if response is None else dict(json.loads(response.data))

    def _listed(self, method: Callable[..., Any], **arguments: Any) -> list[dict[str, Any]]:
        with self._translate_errors("pods and events"):
            response = self._unless(FORBIDDEN, method, **arguments, _preload_content=False)
        return [] if response is None else list(json.loads(response.data)["items"])

    def _unless(self, status: int, method: Callable[..., Any], **arguments: Any) -> Any:
        """What a call returns; None if the API responds with this status."""
        from kubernetes.client import ApiException

        try:
            return self._call(method, **arguments)
        except ApiException as error:
            if error.status == status:
                return None
            raise

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        return method(namespace=self.namespace, **arguments, _request_timeout=TIMEOUT_SECONDS)

    @contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        place = f"{name} in namespace {self.namespace}"
        try:
            yield
        except HTTPError as error:
            raise ClusterUnavailable(
                f"the Kubernetes API does not respond: check the context of KUBECONFIG ({place})"
            ) from error
        except ApiException as error:
            try:
                reason = json.loads(error.body)["message"]
            except (TypeError, ValueError, KeyError):
                reason = error.reason
            advice = {
                401: "log in to the cluster again",
                FORBIDDEN: "the account lacks permissions; manifests/components/rbac grants those that deploying needs",
                NOT_FOUND: "apply manifests/isvc.yaml first, or name another namespace",
            }.get(error.status, "fix the reported cause")
            kind = ClusterUnavailable if error.status >= 500 or error.status == 429 else DeploymentError
            raise kind(f"Kubernetes refuses {place} ({error.status}, {reason}): {advice}") from error


def backends(route: dict[str, Any]) -> dict[str, int]:
    """The share of each backend of an HTTPRoute, in percent, by the name of its Service."""
    rules = route["spec"].get("rules", [])
    shares: dict[str, int] = {}
    for rule in rules:
        weights = {one["name"]: one.get("weight", 1) for one in rule.get("backendRefs", [])}
        for name, weight in weights.items():
            shares[name] = max(shares.get(name, 0), round(100 * weight / (sum(weights.values()) or 1)))
    return shares
