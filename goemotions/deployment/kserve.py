"""Versions on InferenceServices: deploys them, alone or as canaries.

A version is set by its ``storageUri``, an immutable prefix: KServe starts pods with it, and ends the old ones when they are ready.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from goemotions import defaults
from goemotions.deployment import inference_service, node_pools, problems
from goemotions.deployment.cluster import Cluster
from goemotions.deployment.inference_service import ServiceStatus, with_stable_version, with_version
from goemotions.deployment.live_service import LiveService
from goemotions.deployment.node_pools import NodePool
from goemotions.errors import BadArgument, DeploymentError
from goemotions.registry import changes, model_registry, trust
from goemotions.registry.model_registry import Version

if TYPE_CHECKING:
    from goemotions.registry.bundle import Variant
    from goemotions.registry.registered_versions import RegisteredVersion

log = logging.getLogger(__name__)

WAIT_SECONDS = 900.0


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
    require: Callable[[], None] = lambda: None,
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
        require: is called before each change, and raises if it may not be made any more.

    Raises:
        ModelError: there is no such version, or it is retired meanwhile.
        UntrustedBundle: its bundle is not one that `register` stored (``trust``).
        BadArgument: there is no such preset, or the version is for CPUs.
        DeploymentError: no cluster, no such InferenceService, the API refuses, or it is not ready in time.
    """
    if not 0 <= canary_percent <= 99:
        raise DeploymentError(f"a canary gets 1 to 99 percent of the traffic, not {canary_percent}: 0 replaces what is served")
    version = model_registry.get_version(model_name, reference)
    log.info("version %s of %s: %s", version.number, model_name, trust.check(version, trust.variant_of(reference)))
    service = service or service_name(model_name, version.variant)
    if preset and version.variant != "gpu":
        raise BadArgument(f"version {version.number} is for CPUs: a preset names a node pool with GPUs, leave it out")
    pool = node_pools.get(preset) if preset else None
    cluster = Cluster(namespace)
    before = cluster.service(service)
    if not wait_seconds and inference_service.canaries(before):
        raise DeploymentError(f"{service} has a canary, which is removed in several steps: deploy with a time to wait")

    @functools.cache
    def record() -> None:
        target = f"{cluster.namespace}/{service}"
        changes.record(model_name, version, "deploy", target, ServiceStatus.of(before).version, percent=canary_percent)

    def announce() -> None:
        # In this order: a retirement marks a version, then looks whether it was deployed meanwhile.
        record()
        model_registry.get_version(model_name, version.number)

    live = LiveService(cluster, service, wait_seconds, require)
    for change, wait in _steps(live, before, version, canary_percent, pool):
        live.update(change, announce)
        wait()
    return ServiceStatus.of(cluster.service(service))


def _steps(
    live: LiveService, before: dict[str, Any], version: Version, canary_percent: int, pool: NodePool | None
) -> Iterator[tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[], None]]]:
    """The changes of a deployment, each with the wait after it.

    A step that is done already changes nothing, so a deployment that was killed goes on where it was. When a canary is removed, KServe
    deletes its Service at once, and its route follows seconds later: so it is removed only when no route gives it traffic.
    """
    if inference_service.is_knative(before):
        yield (lambda service: with_version(service, version, canary_percent, pool)), lambda: live.wait_for_revision(before)
        return
    canaries = inference_service.canaries(before)
    if not canary_percent:
        yield (lambda service: with_stable_version(service, version, pool)), live.wait_for_predictor
    if not canary_percent or set(canaries.values()) - {inference_service.source_in(before, version)}:
        yield inference_service.without_traffic_to_canaries, live.wait_until_canary_is_idle
        names = {inference_service.CANARY, *canaries}
        yield inference_service.without_canary, lambda: live.wait_until_canaries_are_gone(names)
    if canary_percent:
        yield (lambda service: with_version(service, version, canary_percent, pool)), live.wait_for_canary
    yield (lambda service: service), live.wait_for_route


def restart(
    service: str,
    namespace: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    variant: str = "cpu",
    wait_seconds: float = WAIT_SECONDS,
) -> ServiceStatus:
    """Replaces the pods of an InferenceService, and of its canary, by new ones of the same versions, and waits until they serve.

    KServe takes back what ``kubectl rollout restart`` changes.

    Args:
        service: name of the InferenceService; empty for ``<model name>-<variant>``.
        namespace, wait_seconds: as for ``deploy``.
        model_name, variant: of the service, if it is not named.

    Raises:
        DeploymentError: as ``deploy``.
    """
    cluster = Cluster(namespace)
    live = LiveService(cluster, service or service_name(model_name, variant), wait_seconds)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = cluster.service(live.name)
    live.update(lambda document: inference_service.restarted(document, now))
    if inference_service.is_knative(before):
        live.wait_for_revision(before)
    else:
        live.wait_for_predictor()
        live.wait_for_canary()
        live.wait_for_route()
    return ServiceStatus.of(cluster.service(live.name))


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
    statuses = {}
    for service in cluster.services():
        name = service["metadata"]["name"]
        if name in services:
            problem = problems.of_canary(cluster, service)
            statuses[name] = ServiceStatus.of(service, problem.text if problem else "")
    return [statuses[name] for name in services if name in statuses]
