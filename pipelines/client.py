"""The connection to Kubeflow Pipelines: kfp's client with errors that say what is wrong, within seconds."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import kfp
import kfp_server_api
import urllib3.exceptions

from goemotions.errors import WorkflowError

ANSWER_SECONDS = 30
HEALTH_SECONDS = 10


class ServerError(WorkflowError):
    """Kubeflow Pipelines is not named, does not answer, or refuses."""


class ServerAway(ServerError):
    """Kubeflow Pipelines does not answer now; it may do so again."""


@dataclass(frozen=True)
class Connection:
    """Where Kubeflow Pipelines is and who asks.

    Attributes:
        endpoint: address of the API or of its proxy; empty for the cluster of ``kube_context``.
        namespace: profile namespace of a multi-user Kubeflow; empty otherwise.
        token: bearer token; cookies: those of a session, as ``name=value``. Neither is ever shown.
        kube_context: context of the kubeconfig through whose API server it is reached.
        ca_cert: file with the certificate authority of the endpoint, where the system's do not do.
        server_namespace: where Kubeflow Pipelines itself lives, for ``kube_context``.
    """

    endpoint: str = ""
    namespace: str = ""
    token: str = ""
    cookies: str = ""
    kube_context: str = ""
    ca_cert: str = ""
    server_namespace: str = "kubeflow"

    def place(self) -> str:
        return self.endpoint or f"the context {self.kube_context}"


class Client(kfp.Client):
    """kfp's client, which asks for the server's health when it is made: once, and not five times over."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        answer = self._healthz_api.healthz_service_get_healthz(_preload_content=False, _request_timeout=HEALTH_SECONDS)
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=json.loads(answer.data).get("multi_user", False))


def connect(connection: Connection) -> Client:
    """A client that has spoken with its server.

    Raises:
        ServerError: no endpoint, nothing answers there, it is not Kubeflow Pipelines, it refuses, or the namespace is missing.
    """
    if not (connection.endpoint or connection.kube_context):
        raise ServerError(
            "no endpoint of Kubeflow Pipelines is named: set KF_PIPELINES_ENDPOINT "
            "(such as http://localhost:8080 after `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80`) or KUBE_CONTEXT"
        )
    _require_context(connection)
    with named(connection), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            client = Client(
                host=connection.endpoint or None,
                namespace=connection.server_namespace,
                existing_token=connection.token or None,
                cookies=connection.cookies or None,
                kube_context=connection.kube_context or None,
                ssl_ca_cert=connection.ca_cert or None,
            )
            is_multi_user = client.get_kfp_healthz().multi_user
        except ValueError as error:
            raise ServerError(
                f"{connection.place()} answers with a page instead of Kubeflow Pipelines, most often a login: "
                "set KF_PIPELINES_TOKEN or KF_PIPELINES_COOKIES, or fix the endpoint"
            ) from error
    if is_multi_user and not connection.namespace:
        raise ServerError(
            f"{connection.place()} has several users: set KF_PIPELINES_NAMESPACE to the namespace of your profile"
        )
    # Without it an answer that never comes is waited for for ever.
    client._run_api.api_client.rest_client.pool_manager.connection_pool_kw["timeout"] = ANSWER_SECONDS
    return client


@contextlib.contextmanager
def named(connection: Connection) -> Iterator[None]:
    """Failures of requests as named errors.

    Raises:
        ServerAway: the server does not answer, or says that it cannot now.
        ServerError: it refuses.
    """
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise ServerAway(f"Kubeflow Pipelines does not answer at {connection.place()}: start it or fix the endpoint") from error
    except kfp_server_api.ApiException as error:
        advice = {
            401: "set KF_PIPELINES_TOKEN, or log in again",
            403: "the account has no right to this: check KF_PIPELINES_NAMESPACE and the token",
            404: "check the endpoint and KF_PIPELINES_NAMESPACE",
        }.get(error.status, "fix what it says")
        kind = ServerAway if error.status >= 500 else ServerError
        raise kind(f"{connection.place()} refuses ({error.status}, {_reason(error)}): {advice}") from error


def _require_context(connection: Connection) -> None:
    """kfp passes over a context that it cannot load, and asks localhost."""
    from kubernetes import config

    if connection.endpoint:
        return
    if connection.token:
        raise ServerError("KF_PIPELINES_TOKEN goes with KF_PIPELINES_ENDPOINT: KUBE_CONTEXT has a login of its own")
    try:
        contexts = [context["name"] for context in config.list_kube_config_contexts()[0]]
    except config.ConfigException as error:
        raise ServerError("there is no kubeconfig to find KUBE_CONTEXT in: set KUBECONFIG") from error
    if connection.kube_context not in contexts:
        raise ServerError(f"the kubeconfig has no context {connection.kube_context!r}: it has {', '.join(contexts) or 'none'}")


def _reason(error: kfp_server_api.ApiException) -> str:
    """The message of the server's answer, on one line."""
    try:
        content: dict[str, Any] = json.loads(error.body)
        text = str(content.get("error_message") or content.get("message") or content.get("error") or error.reason)
    except (TypeError, ValueError, AttributeError):
        text = str(error.reason)
    return " ".join(text.split())[:300]
