"""How the traffic of a service is split between two versions: by KServe, or by the proxy of one machine (``pipelines.proxy``)."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from goemotions import defaults, strict_json
from goemotions.deployment import inference_service, kserve, problems
from goemotions.deployment.cluster import Cluster
from goemotions.deployment.inference_service import ServiceStatus
from goemotions.errors import ClusterUnavailable, DeploymentError

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shares:
    """The numbers of the versions of a service, the canary's empty if there is none, and the canary's share in percent."""

    stable: str
    canary: str = ""
    percent: int = 0

    def __str__(self) -> str:
        canary = f" and {self.percent}% version {self.canary}" if self.canary else ""
        return f"version {self.stable or '(unknown)'}{canary}"


class TrafficSplit(Protocol):
    """A service with a stable version, and perhaps a canary."""

    name: str

    def shares(self) -> Shares:
        """What is set now.

        Raises:
            ClusterUnavailable: it cannot be read now.
        """

    def deploy(self, number: str, percent: int, require: Callable[[], None] = lambda: None) -> None:
        """Gives a version so much of the traffic as a canary, or with 0 all of it, and waits until it is served. Idempotent.

        Args:
            number, percent: the version and its share.
            require: is called before each change, and raises if it may not be made any more.

        Raises:
            DeploymentError: it does not become ready.
        """

    def problem(self) -> str:
        """Why the canary does not serve its share; empty if it does."""

    def targets(self) -> list[str]:
        """The addresses of the servers of both versions."""


class KServeSplit:
    """An InferenceService: ``spec.canary`` in Standard mode, ``canaryTrafficPercent`` in Knative mode.

    Args:
        service, namespace, model_name, wait_seconds: as for ``kserve.deploy``.
    """

    def __init__(
        self,
        service: str,
        namespace: str = "",
        *,
        model_name: str = defaults.MODEL_NAME,
        wait_seconds: float = kserve.WAIT_SECONDS,
    ) -> None:
        self.name, self._model_name, self._wait_seconds = service, model_name, wait_seconds
        self._cluster = Cluster(namespace)

    @property
    def namespace(self) -> str:
        return self._cluster.namespace

    def shares(self) -> Shares:
        status = ServiceStatus.of(self._cluster.service(self.name))
        return Shares(status.version, status.canary_version, status.canary_percent)

    def deploy(self, number: str, percent: int, require: Callable[[], None] = lambda: None) -> None:
        kserve.deploy(
            number,
            self.name,
            self.namespace,
            model_name=self._model_name,
            canary_percent=percent,
            wait_seconds=self._wait_seconds,
            require=require,
        )

    def problem(self) -> str:
        service = self._cluster.service(self.name)
        if inference_service.is_knative(service):
            return "" if inference_service.conditions(service).get("Ready") == "True" else problems.unmet(service)
        problem = problems.of_canary(self._cluster, service)
        return problem.text if problem else ""

    def targets(self) -> list[str]:
        addresses = [pod["status"].get("podIP") for pod in self._cluster.pods(self.name)]
        return [f"http://{address}:{defaults.PORT}" for address in addresses if address]


class ProxySplit:
    """The proxy of one machine. Its servers run already: one of each version.

    Args:
        address: of the proxy.
        wait_seconds: how long a version has to become ready.
    """

    def __init__(self, address: str, *, name: str = "local", wait_seconds: float = 60.0) -> None:
        self.name, self._address, self._wait_seconds = name, address.rstrip("/"), wait_seconds

    def shares(self) -> Shares:
        state = self._state()
        return Shares(state["stable"], state["canary"], state["percent"])

    def deploy(self, number: str, percent: int, require: Callable[[], None] = lambda: None) -> None:
        servers, deadline = self._state()["servers"], time.monotonic() + self._wait_seconds
        if not (server := servers.get(number)):
            raise DeploymentError(
                f"the proxy at {self._address} has no server of version {number}: it has {', '.join(servers)}"
            )
        while not _is_ready(server):
            if time.monotonic() > deadline:
                raise DeploymentError(f"version {number} at {server} is not ready after {self._wait_seconds:g} s: see its log")
            time.sleep(POLL_SECONDS)
        require()
        shares = {"canary": number, "percent": percent} if percent else {"stable": number, "canary": "", "percent": 0}
        self._request("PUT", json.dumps(shares).encode())

    def problem(self) -> str:
        state = self._state()
        server = state["servers"].get(state["canary"], "")
        return "" if not server or _is_ready(server) else f"{server} is not ready"

    def targets(self) -> list[str]:
        return list(self._state()["servers"].values())

    def _state(self) -> dict[str, Any]:
        return self._request("GET")

    def _request(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._address}/-/shares", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # nosec B310 # the address of a server
                content: dict[str, Any] = strict_json.load(response, "the response")
                return content
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ClusterUnavailable(f"the proxy at {self._address} does not respond: {error}") from error


def _is_ready(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/v2/health/ready", timeout=5) as response:  # nosec B310 # the address of a server
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False
