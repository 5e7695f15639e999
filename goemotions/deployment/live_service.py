"""Changes of an InferenceService in the cluster, and waits for what KServe makes of them. A wait ends early if it cannot help."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from goemotions.deployment import inference_service, problems
from goemotions.deployment.cluster import Cluster, backends
from goemotions.deployment.problems import Problem
from goemotions.errors import DeploymentError

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# How long a gateway has, after its controller has seen a route, until all its proxies follow it.
SETTLE_SECONDS = 5.0
ATTEMPTS = 5

FORMER = "the former version still serves; deploy that one again"
RESUME = "both versions serve; deploy again, it goes on from here"

Service = dict[str, Any]


class LiveService:
    """An InferenceService in the cluster. All waits together end after ``seconds``; with 0 there are none.

    ``require`` is called before each change, and raises if it may not be made any more.
    """

    def __init__(self, cluster: Cluster, name: str, seconds: float, require: Callable[[], None] = lambda: None) -> None:
        self.cluster, self.name, self.seconds, self._require = cluster, name, seconds, require
        self._deadline = time.monotonic() + seconds

    def update(self, change: Callable[[Service], Service], announce: Callable[[], object] = lambda: None) -> bool:
        """Changes the InferenceService; returns False if nothing is to change. A concurrent change of another process is kept.

        Args:
            change: returns what is wanted of what is there.
            announce: is called before something changes.

        Raises:
            DeploymentError: other processes change it each time, or the API refuses.
        """
        for _ in range(ATTEMPTS):
            before = self.cluster.service(self.name)
            wanted = change(before)
            if wanted == before:
                return False
            self._require()
            announce()
            if self.cluster.replace(self.name, wanted):
                return True
        raise DeploymentError(f"{self.name} was changed by another process at the same time: deploy again")

    def wait_for_predictor(self) -> None:
        """Waits until every pod of the stable version has the location of the specification."""
        deployment = f"{self.name}-predictor"

        def missing(service: Service) -> str:
            return problems.rolling(self.cluster.deployment(deployment), service["spec"]["predictor"])

        def problem(service: Service) -> Problem | None:
            source = service["spec"]["predictor"]["model"]["storageUri"]
            return problems.of_pods(self.cluster, self.name, deployment, source)

        self._wait("the predictor", FORMER, missing, problem)

    def wait_for_route(self) -> None:
        """Waits until KServe reports the service as ready, whose pods are: route and gateway."""

        def missing(service: Service) -> str:
            return "" if inference_service.conditions(service).get("Ready") == "True" else problems.unmet(service)

        advice = "the predictor serves the new version to pods of the cluster; outside of it nothing may reach it"
        self._wait("the route; the predictor serves", advice, missing, lambda service: problems.of_route(self.cluster, service))

    def wait_for_canary(self) -> None:
        """Waits until the canary is ready and gets its share of the traffic."""

        def problem(service: Service) -> Problem | None:
            return problems.of_canary(self.cluster, service)

        def missing(service: Service) -> str:
            obstacle = problem(service)
            return obstacle.text if obstacle else ""

        advice = "the stable version still serves; deploy that one to take the canary back"
        self._wait("the canary; the stable version serves", advice, missing, problem)

    def wait_until_canary_is_idle(self) -> None:
        """Waits until no route gives a canary traffic, and the gateways follow that."""
        if not self.seconds or not inference_service.canaries(self.cluster.service(self.name)):
            return

        def missing(service: Service) -> str:
            names = {f"{self.name}-{canary}-predictor" for canary in inference_service.canaries(service)}
            routes = {route["metadata"]["name"]: route for route in self.cluster.routes(self.name)}
            busy = [name for name, route in routes.items() if any(backends(route).get(one) for one in names)]
            return ", ".join(busy or [name for name, route in routes.items() if not problems.is_followed(route)])

        self._wait("HTTPRoutes without traffic to the canary", RESUME, missing)
        time.sleep(SETTLE_SECONDS)

    def wait_until_canaries_are_gone(self, names: set[str]) -> None:
        """Waits until KServe has removed the pods of canaries, then removes their autoscalers, which KServe leaves."""
        deployments = [f"{self.name}-{name}-predictor" for name in sorted(names)]
        self._wait("the removal of the canary", RESUME, lambda _: ", ".join(filter(self.cluster.deployment, deployments)))
        for deployment in deployments if self.seconds else ():
            self._require()
            self.cluster.delete_autoscaler(deployment)

    def wait_for_revision(self, before: Service) -> None:
        """Waits until the service is ready with its newest revision (Knative).

        Args:
            before: the service before it was changed. Until the controller has seen the change, the status is the one from before.
        """

        def missing(service: Service) -> str:
            created, ready = inference_service.revisions(service)
            is_seen = created != inference_service.revisions(before)[0] or not inference_service.needs_revision(before, service)
            is_ready = inference_service.conditions(service).get("Ready") == "True"
            return "" if is_seen and is_ready and created == ready else problems.unmet(service)

        self._wait("the new revision", FORMER, missing)

    def _wait(
        self,
        target: str,
        advice: str,
        missing: Callable[[Service], str],
        problem: Callable[[Service], Problem | None] = lambda _: None,
    ) -> None:
        """Waits until nothing is missing.

        Raises:
            DeploymentError: not in time, or a kind of problem lasted for its time.
        """
        said, watch = "", problems.Watch()
        while self.seconds and (text := missing(service := self.cluster.service(self.name))):
            if text != said:
                log.info("%s: waiting for %s: %s", self.name, target, said := text)
            obstacle = problem(service)
            hint = f"{advice}, or see `kubectl -n {self.cluster.namespace} describe inferenceservice {self.name}`"
            if lasting := watch.lasting(obstacle):
                raise DeploymentError(f"{self.name} does not become ready by waiting ({lasting.text}): {hint}")
            if time.monotonic() > self._deadline:
                reason = problems.failure(service.get("status", {})) or (obstacle.text if obstacle else text)
                raise DeploymentError(f"{self.name} is not ready after {self.seconds:g} s ({reason}): {hint}")
            time.sleep(POLL_SECONDS)
