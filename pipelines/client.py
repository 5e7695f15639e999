"""The connection to Kubeflow Pipelines: kfp's client with timeouts of seconds and errors that say what to do."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import kfp
import kfp_server_api
import urllib3.exceptions

from goemotions import addresses
from goemotions.errors import WorkflowError

log = logging.getLogger(__name__)

RESPONSE_SECONDS = 30
# Of Kubeflow Pipelines itself, and the ConfigMap of Argo there.
SERVER_NAMESPACE, WORKFLOW_CONTROLLER = "kubeflow", "workflow-controller-configmap"
HEALTH_SECONDS = 10


class ServerError(WorkflowError):
    """Kubeflow Pipelines has no address, does not respond, or refuses."""


class ServerUnavailable(ServerError):
    """Kubeflow Pipelines does not respond now; it may later."""


@dataclass(frozen=True)
class Connection:
    """Address of Kubeflow Pipelines, and the credentials for it.

    Attributes:
        endpoint: address of the API or of its proxy; empty for the cluster of ``kube_context``.
        namespace: profile namespace of a multi-user Kubeflow; empty otherwise.
        token: bearer token; never shown.
        cookies: session cookies, as ``name=value``; never shown.
        kube_context: context of the kubeconfig; Kubeflow is then reached through its API server.
        ca_cert: file with the certificate authority of the endpoint, if the system does not have it.
    """

    endpoint: str = ""
    namespace: str = ""
    token: str = ""
    cookies: str = ""
    kube_context: str = ""
    ca_cert: str = ""

    def place(self) -> str:
        return self.endpoint or f"the context {self.kube_context}"


class Client(kfp.Client):
    """kfp's client, which checks the health of the server when it is created: once, instead of five times."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        response = self._healthz_api.healthz_service_get_healthz(_preload_content=False, _request_timeout=HEALTH_SECONDS)
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=json.loads(response.data).get("multi_user", False))


def connect(connection: Connection) -> Client:
    """A client whose connection was tested.

    Raises:
        ServerError: there is no address, nothing responds there, it is not Kubeflow Pipelines, it refuses, or the namespace is missing.
    """
    addresses.server(connection.endpoint, "KF_PIPELINES_ENDPOINT")
    if not (connection.endpoint or connection.kube_context):
        raise ServerError(
            "there is no address of Kubeflow Pipelines: set KF_PIPELINES_ENDPOINT "
            "(such as http://localhost:8080 after `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80`) or KUBE_CONTEXT"
        )
    _require_context(connection)
    with translate_errors(connection), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            client = Client(
                host=connection.endpoint or None,
                namespace=SERVER_NAMESPACE,
                existing_token=connection.token or None,
                cookies=connection.cookies or None,
                kube_context=connection.kube_context or None,
                ssl_ca_cert=connection.ca_cert or None,
            )
            is_multi_user = client.get_kfp_healthz().multi_user
        except ValueError as error:
            raise ServerError(
                f"{connection.place()} returns a web page instead of the API of Kubeflow Pipelines, most often a login: "
                "set KF_PIPELINES_TOKEN or KF_PIPELINES_COOKIES, or fix the endpoint"
            ) from error
    if is_multi_user and not connection.namespace:
        raise ServerError(
            f"{connection.place()} is a multi-user Kubeflow: set KF_PIPELINES_NAMESPACE to the namespace of your profile"
        )
    # kfp sets no timeout.
    client._run_api.api_client.rest_client.pool_manager.connection_pool_kw["timeout"] = RESPONSE_SECONDS
    return client


@contextlib.contextmanager
def translate_errors(connection: Connection) -> Iterator[None]:
    """Turns errors of requests into named errors.

    Raises:
        ServerUnavailable: the server does not respond, or returns a status from 500.
        ServerError: it refuses.
    """
    try:
        yield
    except WorkflowError:
        raise
    except urllib3.exceptions.HTTPError as error:
        raise ServerUnavailable(
            f"Kubeflow Pipelines does not respond at {connection.place()}: start it or fix the endpoint"
        ) from error
    except kfp_server_api.ApiException as error:
        advice = {
            401: "set KF_PIPELINES_TOKEN, or log in again",
            403: "the account has no permission for this: check KF_PIPELINES_NAMESPACE and the token",
            404: "check the endpoint and KF_PIPELINES_NAMESPACE",
        }.get(error.status, "fix what it says")
        kind = ServerUnavailable if error.status >= 500 else ServerError
        raise kind(f"{connection.place()} refuses ({error.status}, {_reason(error)}): {advice}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ServerError(f"{connection.place()} cannot be used ({reason}): check the endpoint and the certificate") from error


def workflow_controller(connection: Connection) -> dict[str, str] | None:
    """The data of the ConfigMap of Argo's workflow controller, read with the kubeconfig; None if it cannot be read or there is none."""
    from kubernetes import client, config

    try:
        api = client.CoreV1Api(config.new_client_from_config(context=connection.kube_context or None))
        read = api.read_namespaced_config_map(WORKFLOW_CONTROLLER, SERVER_NAMESPACE, _request_timeout=RESPONSE_SECONDS // 6)
    except Exception as error:
        # Whoever submits need not have access to Kubernetes.
        log.debug("the configuration of Argo cannot be read: %s", error)
        return None
    return dict(read.data or {})


def _require_context(connection: Connection) -> None:
    """Checks the context: kfp ignores one that it cannot load, and connects to localhost."""
    from kubernetes import config

    if connection.endpoint:
        return
    if connection.token:
        raise ServerError("KF_PIPELINES_TOKEN goes with KF_PIPELINES_ENDPOINT: KUBE_CONTEXT has its own login")
    try:
        contexts = [context["name"] for context in config.list_kube_config_contexts()[0]]
    except config.ConfigException as error:
        raise ServerError("there is no kubeconfig to find KUBE_CONTEXT in: set KUBECONFIG") from error
    if connection.kube_context not in contexts:
        raise ServerError(f"the kubeconfig has no context {connection.kube_context!r}: it has {', '.join(contexts) or 'none'}")


def _reason(error: kfp_server_api.ApiException) -> str:
    """The message of the server's response, on one line."""
    try:
        content: dict[str, Any] = json.loads(error.body)
        text = str(content.get("error_message") or content.get("message") or content.get("error") or error.reason)
    except (TypeError, ValueError, AttributeError):
        text = str(error.reason)
    return " ".join(text.split())[:300]
