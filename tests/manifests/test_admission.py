"""What the admission policy of the deploy step lets it change: its CEL expressions, computed as an API server computes them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import celpy
import pytest
from celpy import celtypes

from goemotions.deployment import inference_service
from goemotions.registry.model_registry import Version
from tests.support.rendering import every

FOLDER = "overlays/production"
STORE, RUN = "s3://goemotions/models/", "a" * 32
Service = dict[str, Any]
Change = Callable[[Service], object]


def substring(text: Any, start: Any, end: Any = None) -> celtypes.StringType:
    """That of Kubernetes: https://kubernetes.io/docs/reference/using-api/cel/"""
    return celtypes.StringType(str(text)[int(start) : None if end is None else int(end)])


@functools.cache
def programs(part: str, name: str) -> tuple[tuple[str, Any], ...]:
    (policy,) = every("ValidatingAdmissionPolicy", FOLDER).values()
    environment = celpy.Environment()
    return tuple(
        (one[name], environment.program(environment.compile(one["expression"]), functions={"substring": substring}))
        for one in policy["spec"][part]
    )


def refused(before: Service, after: Service) -> str:
    """The message with which the policy refuses a change; empty if it allows it."""
    variables = celtypes.MapType()
    given = {
        "object": celpy.json_to_cel(after),
        "oldObject": celpy.json_to_cel(before),
        "request": celpy.json_to_cel({}),
        "variables": variables,
    }
    # An expression that fails refuses, too: failurePolicy is Fail.
    try:
        for name, program in programs("variables", "name"):
            variables[celtypes.StringType(name)] = program.evaluate(given)
        for message, program in programs("validations", "message"):
            if not program.evaluate(given):
                return message
    except celpy.CELEvalError as error:
        return f"fails: {error}"
    return ""


def service(variant: str = "cpu") -> Service:
    return copy.deepcopy(every("InferenceService", FOLDER)[f"goemotions-{variant}"])


def version(variant: str = "cpu") -> Version:
    return Version("7", f"s3://elsewhere/models/goemotions/{RUN}/{variant}/", "run", {"variant": variant}, "goemotions")


def with_canary() -> Service:
    return inference_service.with_version(service(), version(), 10)


def as_stored() -> Service:
    """As the API server has it, with what KServe adds."""
    stored = service()
    stored["metadata"] |= {"finalizers": ["inferenceservice.finalizers"], "labels": {"team": "a"}, "generation": 3}
    return {**stored, "status": {"url": "http://goemotions"}}


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
@pytest.mark.parametrize("percent", [0, 10, 50])
def test_the_deploy_step_may_set_a_version_and_a_canary(variant: str, percent: int) -> None:
    before = service(variant)
    assert not refused(before, inference_service.with_version(before, version(variant), percent))


def test_the_deploy_step_may_take_a_canary_back_and_restart_pods() -> None:
    before = with_canary()
    for after in (
        inference_service.without_traffic_to_canaries(before),
        inference_service.without_canary(before),
        inference_service.with_stable_version(before, version()),
        inference_service.restarted(before, "2026-01-02T03:04:05Z"),
        before,
    ):
        assert not refused(before, after)


def test_what_kserve_has_added_is_no_obstacle() -> None:
    assert not refused(as_stored(), inference_service.with_version(as_stored(), version(), 0))


def test_a_service_without_annotations_or_variables_gets_a_version_and_keeps_what_it_has() -> None:
    """As one that was applied by hand, or by an earlier version of these manifests."""
    bare = service()
    del bare["metadata"]["annotations"]
    del bare["spec"]["predictor"]["model"]["env"]
    for percent in (0, 10):
        assert not refused(bare, inference_service.with_version(bare, version(), percent))
    assert not refused(bare, inference_service.restarted(bare, "2026-01-02T03:04:05Z"))
    canary = inference_service.with_version(bare, version(), 10)
    assert not refused(canary, inference_service.without_canary(canary))
    forbidden = copy.deepcopy(bare)
    forbidden["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Knative"}
    assert refused(bare, forbidden).startswith("of the annotations only those of the versions may change")


@pytest.mark.parametrize("mode", inference_service.KNATIVE)
def test_the_deploy_step_may_split_traffic_with_knative(mode: str) -> None:
    before = service()
    before["metadata"]["annotations"][inference_service.MODE] = mode
    before = inference_service.with_version(
        before, replace(version(), number="6", source=f"{STORE}goemotions/{'b' * 32}/cpu/"), 0
    )
    canary = inference_service.with_version(before, version(), 10)
    assert not refused(before, canary)
    assert not refused(canary, inference_service.with_version(canary, version(), 0))
    assert not refused(canary, before)


def at(source: str) -> Change:
    return lambda one: inference_service.set_version(one["spec"]["predictor"]["model"], source, "7")


def predictor(**values: Any) -> Change:
    return lambda one: one["spec"]["predictor"].update(values)


def model(**values: Any) -> Change:
    return lambda one: one["spec"]["predictor"]["model"].update(values)


def metadata(**values: Any) -> Change:
    return lambda one: one["metadata"].update(values)


def variable(**values: Any) -> Change:
    return lambda one: one["spec"]["predictor"]["model"]["env"].append(values)


def without(name: str) -> Change:
    def remove(one: Service) -> None:
        model = one["spec"]["predictor"]["model"]
        model["env"] = [variable for variable in model["env"] if variable["name"] != name]

    return remove


REFUSED: dict[str, Change] = {
    "image": model(image="another"),
    "arguments": model(args=["--bundle=/another"]),
    "command": model(command=["sh"]),
    "runtime": model(runtime="another"),
    "mounts": model(volumeMounts=[{"name": "another", "mountPath": "/another"}]),
    "credentials of another store": model(storage={"key": "another"}),
    "volumes": predictor(volumes=[{"name": "host", "hostPath": {"path": "/"}}]),
    "containers": predictor(containers=[{"name": "another", "image": "another"}]),
    "init containers": predictor(initContainers=[{"name": "another", "image": "another"}]),
    "account": predictor(serviceAccountName="another"),
    "token": predictor(automountServiceAccountToken=True),
    "network of the host": predictor(hostNetwork=True),
    "security context": predictor(securityContext={}),
    "placement": predictor(nodeSelector={"another": "node"}),
    "no replicas": predictor(minReplicas=0, maxReplicas=0),
    "many replicas": predictor(minReplicas=10_000, maxReplicas=10_000),
    "annotations of the pods": predictor(annotations={"sidecar.istio.io/inject": "true"}),
    "a restart that is no time": predictor(annotations={inference_service.RESTARTED: "x" * 1000}),
    "another annotation of this project": lambda one: one["metadata"]["annotations"].update({"goemotions-another": "7"}),
    "the number of another version": lambda one: one["metadata"]["annotations"].update({inference_service.VERSION: "8"}),
    "a canary's version that is none": lambda one: one["metadata"]["annotations"].update(
        {inference_service.CANARY_VERSION: "x"}
    ),
    "no version": lambda one: one["metadata"]["annotations"].pop(inference_service.VERSION),
    "a version without its annotation": at(f"{STORE}goemotions/{RUN}/cpu/"),
    "transformer": lambda one: one["spec"].update(transformer={"containers": [{"name": "another", "image": "another"}]}),
    "mode": lambda one: one["metadata"]["annotations"].update({inference_service.MODE: "Knative"}),
    "removed mode": lambda one: one["metadata"]["annotations"].pop(inference_service.MODE),
    "labels": metadata(labels={"serving.kserve.io/stop": "true"}),
    "owner": metadata(ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "0"}]),
    "finalizer": metadata(finalizers=["another/never"]),
    "variable": variable(name="LD_PRELOAD", value="another"),
    "number from a secret": variable(name=inference_service.NUMBER, valueFrom={"secretKeyRef": {"name": "a", "key": "b"}}),
    "number with an option": variable(name=inference_service.NUMBER, value="7 --another"),
    "source of another bundle": variable(name=inference_service.BUNDLE_SOURCE, value=f"{STORE}goemotions/{'b' * 32}/cpu/"),
    "no number": without(inference_service.NUMBER),
    "no source": without(inference_service.BUNDLE_SOURCE),
    "no variables": lambda one: one["spec"]["predictor"]["model"].pop("env"),
    "no variables of another bundle": lambda one: (
        at(f"{STORE}goemotions/{RUN}/cpu/")(one),
        one["spec"]["predictor"]["model"].pop("env"),
    ),
    "two numbers": variable(name=inference_service.NUMBER, value="8"),
    "variables of a secret": model(envFrom=[{"secretRef": {"name": "another"}}]),
    "probe": model(readinessProbe={"exec": {"command": ["sh"]}}),
    "lifecycle": model(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
    "resources": model(resources={"limits": {"cpu": "64"}}),
    "several locations": predictor(storageUris=[{"uri": "hf://another/model"}]),
    "class of the pods": predictor(runtimeClassName="another"),
    "names of hosts": predictor(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["another"]}]),
    "explainer": lambda one: one["spec"].update(explainer={"containers": [{"name": "another", "image": "another"}]}),
    "another store": at(f"s3://another/models/goemotions/{RUN}/cpu/"),
    "another folder": at(f"s3://goemotions/requests/models/goemotions/{RUN}/cpu/"),
    "parent folder": at(f"{STORE}../models/goemotions/{RUN}/cpu/"),
    "folder within": at(f"{STORE}a/b/models/goemotions/{RUN}/cpu/"),
    "another model": at(f"{STORE}another/{RUN}/cpu/"),
    "another variant": at(f"{STORE}goemotions/{RUN}/gpu/"),
    "line break": at(f"{STORE}goemotions/{RUN}/cpu/\n"),
    "hub": at("hf://another/model"),
}


@pytest.mark.parametrize("change", [*REFUSED])
def test_nothing_else_of_a_service_changes(change: str) -> None:
    before, after = service(), service()
    REFUSED[change](after)
    assert after != before
    message = refused(before, after)
    assert message
    assert not message.startswith("fails")


CANARY: dict[str, Change] = {
    "image": lambda one: one["predictor"]["model"].update(image="another"),
    "account": lambda one: one["predictor"].update(serviceAccountName="another"),
    "no account": lambda one: one["predictor"].pop("serviceAccountName"),
    "no security context": lambda one: one["predictor"].pop("securityContext"),
    "volumes": lambda one: one["predictor"].update(volumes=[]),
    "another store": lambda one: one["predictor"]["model"].update(storageUri=f"s3://another/models/goemotions/{RUN}/cpu/"),
    "variable": lambda one: one["predictor"]["model"]["env"].append({"name": "LD_PRELOAD", "value": "another"}),
    "annotations of the pods": lambda one: one["predictor"].update(annotations={"another": "annotation"}),
    "no variables": lambda one: one["predictor"]["model"].pop("env"),
    "no source": lambda one: one["predictor"]["model"]["env"].pop(),
    "containers": lambda one: one["predictor"].update(initContainers=[{"name": "another", "image": "another"}]),
    "name": lambda one: one["predictor"].update(name="another"),
    "many replicas": lambda one: one["predictor"].update(minReplicas=9),
    "another field": lambda one: one.update(another="field"),
}


@pytest.mark.parametrize("change", [*CANARY])
def test_a_canary_differs_in_its_version_alone(change: str) -> None:
    after = with_canary()
    CANARY[change](after["spec"]["canary"][0])
    assert refused(service(), after)


def test_there_is_one_canary() -> None:
    after = with_canary()
    after["spec"]["canary"] *= 2
    assert refused(service(), after)


@pytest.mark.parametrize("field", ["finalizers", "labels"])
def test_what_kserve_has_added_is_not_removed(field: str) -> None:
    after = as_stored()
    del after["metadata"][field]
    assert refused(as_stored(), after)
