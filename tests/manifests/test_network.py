"""Which pod reaches which, computed from the rendered network policies of each overlay."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.network import Pod, reaches
from tests.support.rendering import OVERLAYS, every, pod

NAMESPACE = "goemotions"
DNS, INTERNET = Pod("kube-system"), Pod("")
OTHERS = {
    "gateway": Pod("istio-ingress"),
    "prometheus": Pod("monitoring"),
    "step": Pod("team", namespace_labels={"app.kubernetes.io/part-of": "kubeflow-profile"}),
    "step-without-profiles": Pod("kubeflow"),
    "stranger": Pod("default"),
    "unknown": Pod(NAMESPACE, {"app": "unknown"}),
}


def own(folder: str) -> dict[str, Pod]:
    """The pods of an overlay."""
    predictors = {name: pod(isvc, folder)["metadata"]["labels"] for name, isvc in every("InferenceService", folder).items()}
    servers = {
        name: deployment["spec"]["template"]["metadata"]["labels"] for name, deployment in every("Deployment", folder).items()
    }
    return {name: Pod(NAMESPACE, labels) for name, labels in {**predictors, **servers}.items()}


def sources(folder: str, target: Pod, port: int) -> set[str]:
    """Who reaches a port of a pod."""
    policies = every("NetworkPolicy", folder).values()
    pods = {**own(folder), **OTHERS}
    return {name for name, source in pods.items() if source != target and reaches(policies, source, target, port)}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_predictors_are_reached_by_gateways_and_prometheus_alone(folder: str) -> None:
    for name in every("InferenceService", folder):
        for port in (8080, 8081):
            assert sources(folder, own(folder)[name], port) == {"gateway", "prometheus"}
        assert sources(folder, own(folder)[name], 22) == set()


@pytest.mark.parametrize("folder", OVERLAYS)
def test_predictors_reach_names_and_stores_alone(folder: str) -> None:
    policies = every("NetworkPolicy", folder).values()
    for name in every("InferenceService", folder):
        predictor = own(folder)[name]
        assert reaches(policies, predictor, DNS, 53, "UDP")
        reached = {
            port for port in (80, 443, 5000, 5432, 6443, 8080, 8333, 9000) if reaches(policies, predictor, INTERNET, port)
        }
        assert reached == {443}
        assert [port for port in (443, 5000, 8333, 9000) if reaches(policies, predictor, Pod("minio"), port)] == [8333, 9000]
        assert not any(reaches(policies, predictor, one, port) for one in OTHERS.values() for port in (443, 8333, 9000))


def test_the_store_and_the_tracking_server_are_reached_by_their_clients_alone() -> None:
    pods, steps = own("overlays/local"), {"step", "step-without-profiles"}
    assert sources("overlays/local", pods["seaweedfs"], 8333) == {"goemotions-cpu", "mlflow", *steps}
    assert sources("overlays/local", pods["mlflow"], 5000) == steps
    # The ports of the store's other servers.
    assert {name for port in (9333, 8888, 9340) for name in sources("overlays/local", pods["seaweedfs"], port)} == set()
    assert not reaches(every("NetworkPolicy", "overlays/local").values(), pods["seaweedfs"], INTERNET, 443)


def test_the_proxy_of_knative_is_reached_by_its_activator_and_gateways() -> None:
    policies = every("NetworkPolicy", "overlays/knative").values()
    predictor = own("overlays/knative")["goemotions-cpu"]
    assert reaches(policies, Pod("knative-serving"), predictor, 8012)
    assert sources("overlays/knative", predictor, 8012) == {"gateway", "prometheus"}
    assert sources("overlays/production", own("overlays/production")["goemotions-cpu"], 8012) == set()


def test_a_pod_that_no_policy_knows_reaches_nothing_and_is_not_reached() -> None:
    for folder in OVERLAYS:
        policies = every("NetworkPolicy", folder).values()
        unknown = OTHERS["unknown"]
        assert sources(folder, unknown, 8080) == set()
        assert not any(
            reaches(policies, unknown, target, port) for target, port in ((DNS, 53), (INTERNET, 443), (OTHERS["step"], 80))
        )


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        (lambda policies: policies.pop("default-deny"), "seaweedfs"),
        (lambda policies: policies["predictor"]["spec"]["ingress"][0].pop("from"), "goemotions-cpu"),
        (
            lambda policies: policies["predictor"]["spec"]["ingress"][0]["from"].append({"namespaceSelector": {}}),
            "goemotions-cpu",
        ),
    ],
)
def test_a_hole_in_the_policies_is_found(change: Any, reached: str) -> None:
    policies = copy.deepcopy(every("NetworkPolicy", "overlays/local"))
    stranger, target = OTHERS["stranger"], own("overlays/local")[reached]
    source, port = (target, 443) if reached == "seaweedfs" else (stranger, 8080)
    target = INTERNET if reached == "seaweedfs" else target
    assert not reaches(policies.values(), source, target, port)
    change(policies)
    assert reaches(policies.values(), source, target, port)
