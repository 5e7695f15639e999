"""Every manifest and overlay against the rules of a cluster: schemas, KServe's webhook, pod security."""

from __future__ import annotations

import base64
import configparser
import copy
import functools
import json
import math
import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks import store
from goemotions import defaults
from goemotions.cli import main as cli
from goemotions.deployment import inference_service, node_pools
from goemotions.deployment import isvc as manifest
from goemotions.evaluation import drift
from goemotions.monitoring.drift import comparison
from goemotions.registry import bundle
from goemotions.serving import metrics as exported
from tests.support import kserve_rules, tools
from tests.support.documents import yaml_documents
from tests.support.rendering import MANIFESTS, OVERLAYS, every, kustomize, pod, pod_labels, rendered, with_keys

ROOT = Path(__file__).parents[2]
FOLDERS = (*OVERLAYS, "storage")
CRDS = Path(os.environ.get("KSERVE_CRD_DIR", ROOT.parent / "shared" / "kserve"))
KUBERNETES = "1.32"
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"KServe's CRDs are not in {CRDS}: set KSERVE_CRD_DIR")

STRING, NAMES = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required), "additionalProperties": False}


def resource(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = fields({"name": STRING}, namespace=STRING, labels=NAMES, annotations=NAMES)
    return fields({"apiVersion": STRING, "kind": STRING, "metadata": metadata, "spec": spec})


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


# Fields that the manifests use, for kinds without an installed definition.
OTHERS = {
    "ServiceMonitor": resource(
        fields(
            {
                "selector": fields({"matchLabels": NAMES}),
                "endpoints": items(fields({"port": STRING, "path": STRING, "interval": {"pattern": r"^\d+s$"}})),
            },
            podTargetLabels=items(STRING),
        )
    ),
    "PrometheusRule": resource(
        fields(
            {
                "groups": items(
                    fields(
                        {
                            "name": STRING,
                            "rules": items(
                                fields(
                                    {
                                        "alert": {"pattern": "^GoEmotions[A-Z][A-Za-z]+$"},
                                        "expr": STRING,
                                        "for": {"pattern": r"^\d+[mh]$"},
                                        "labels": fields({"severity": {"enum": ["info", "warning", "critical"]}}),
                                        "annotations": fields({"summary": STRING, "description": STRING, "runbook": STRING}),
                                    }
                                )
                            ),
                        }
                    )
                )
            }
        )
    ),
    "ClusterStorageContainer": resource(
        fields(
            {
                "container": fields(
                    {
                        "name": STRING,
                        "image": STRING,
                        "resources": fields({"requests": NAMES, "limits": NAMES}),
                        "securityContext": fields(
                            {
                                "runAsNonRoot": {"const": True},
                                "runAsUser": {"type": "integer"},
                                "allowPrivilegeEscalation": {"const": False},
                                "capabilities": fields({"drop": {"const": ["ALL"]}}),
                                "seccompProfile": fields({"type": {"const": "RuntimeDefault"}}),
                            }
                        ),
                    }
                ),
                "supportedUriFormats": items({**fields({}, prefix=STRING, regex=STRING), "minProperties": 1}),
                "workloadType": {"const": "initContainer"},
            }
        )
    ),
}


@functools.cache
def kserve_schema(kind: str, version: str) -> dict[str, Any]:
    for path in CRDS.glob("*.yaml"):
        for crd in yaml_documents(path.read_text()):
            if crd and crd["spec"]["names"]["kind"] == kind:
                return kserve_rules.schema(crd, version)
    raise AssertionError(f"no definition of {kind} in {CRDS}")


# The schemas allow any key in maps; these are the keys that are in use.
READ = {
    "labels": {
        "app.kubernetes.io/name",
        "app.kubernetes.io/part-of",
        "grafana_dashboard",
        "pod-security.kubernetes.io/enforce",
        "pod-security.kubernetes.io/warn",
        "serving.kserve.io/inferenceservice",
        "severity",
    },
    "annotations": {
        "description",
        "eks.amazonaws.com/role-arn",
        "goemotions-version",
        "prometheus.kserve.io/path",
        "prometheus.kserve.io/port",
        "runbook",
        "serving.kserve.io/autoscalerClass",
        "serving.kserve.io/deploymentMode",
        "serving.kserve.io/s3-endpoint",
        "serving.kserve.io/s3-usehttps",
        "summary",
    },
    "matchLabels": {
        "app.kubernetes.io/name",
        "app.kubernetes.io/part-of",
        "kubernetes.io/metadata.name",
        "serving.kserve.io/inferenceservice",
    },
    "selector": {"app.kubernetes.io/name", "app.kubernetes.io/part-of", "matchLabels"},
    "nodeSelector": {pool.label for pool in node_pools.PRESETS.values()},
    "requests": {"cpu", "memory", "nvidia.com/gpu", "storage"},
    "limits": {"cpu", "memory", "nvidia.com/gpu"},
    "data": {
        *("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"),
        *("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_FLASK_SERVER_SECRET_KEY", "WEED_JWT_FILER_SIGNING_KEY"),
        *("WEED_JWT_FILER_SIGNING_READ_KEY", "basic_auth.ini", "dashboard.json", "s3.json", "trusted.pub"),
    },
}


def unread(value: Any) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if name in READ:
            yield from (f"nobody reads {key} of {name}" for key in inner if key not in READ[name])
        yield from unread(inner)


def faults(document: dict[str, Any]) -> list[str]:
    """The errors that a cluster would report for a document, and fields that nothing reads."""
    return [*refused(document), *unread(document)]


def refused(document: dict[str, Any]) -> list[str]:
    kind, version = document.get("kind", ""), document.get("apiVersion", "")
    if not (kind and version):
        return ["apiVersion and kind are needed"]
    if kind in OTHERS:
        return [error.message for error in jsonschema.Draft202012Validator(OTHERS[kind]).iter_errors(document)]
    if version.startswith("serving.kserve.io/"):
        checker = jsonschema.Draft7Validator(kserve_schema(kind, version.partition("/")[2]))
        errors = [error.message for error in checker.iter_errors(document)]
        return errors or (kserve_rules.violations(document) if kind == "InferenceService" else [])
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
        return [str(error)]
    return []


def of(folder: str, kinds: str) -> list[dict[str, Any]]:
    """The documents that KServe's CRDs define, or all others."""
    return [one for one in rendered(folder) if (one["kind"] in ("InferenceService", "ServingRuntime")) == (kinds == "kserve")]


KINDS = pytest.mark.parametrize("kinds", ["others", pytest.param("kserve", marks=needs_crds)])


@KINDS
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_document_is_admitted(folder: str, kinds: str) -> None:
    assert [(one["kind"], one["metadata"]["name"], errors) for one in of(folder, kinds) if (errors := faults(one))] == []


@needs_crds
def test_the_file_that_users_apply_is_self_contained() -> None:
    documents = yaml_documents((MANIFESTS / "isvc.yaml").read_text())
    assert [fault for one in documents for fault in faults(one)] == []
    runtimes = {one["metadata"]["name"] for one in documents if one["kind"] == "ServingRuntime"}
    services = [one for one in documents if one["kind"] == "InferenceService"]
    assert {one["metadata"]["name"] for one in services} == {"goemotions-gpu", "goemotions-cpu"}
    assert (MANIFESTS / "isvc.yaml").read_text().startswith("# The layout of the demo")
    for service in services:
        predictor = service["spec"]["predictor"]
        assert predictor["model"]["runtime"] in runtimes
        assert re.fullmatch(r"s3://goemotions/models/goemotions/[0-9a-f]{32}/(cpu|gpu)/", predictor["model"]["storageUri"])
        assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    (account,) = (one for one in documents if one["kind"] == "ServiceAccount")
    assert {one["spec"]["predictor"]["serviceAccountName"] for one in services} == {account["metadata"]["name"]}


def on_nodes(predictor: dict[str, Any]) -> dict[str, Any]:
    """Where the pods of an InferenceService may run."""
    return {name: predictor[name] for name in ("nodeSelector", "affinity", "tolerations") if name in predictor}


def test_the_predictor_for_gpus_tolerates_the_taint_of_their_nodes() -> None:
    for folder in ("base", "overlays/gpu", "overlays/production"):
        services = every("InferenceService", folder)
        assert on_nodes(services["goemotions-gpu"]["spec"]["predictor"]) == {"tolerations": [node_pools.NVIDIA_TAINT]}
        assert on_nodes(services["goemotions-cpu"]["spec"]["predictor"]) == {}


@needs_crds
@pytest.mark.parametrize("preset", ["gke-l4", "eks-l4", "aks-a100-80gb"])
def test_every_overlay_has_the_node_pool_that_is_written_into_the_manifest(tmp_path: Path, preset: str) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests", symlinks=True)
    for other in ("generic-h100", preset):
        lines = manifest.write(tmp_path / "manifests" / "isvc.yaml", {}, preset=other)
    assert lines == [f"goemotions-gpu: nodes of {preset}"]
    pool = node_pools.get(preset)
    expected = {"nodeSelector": pool.node_selector, "tolerations": pool.tolerations}
    expected |= {"affinity": {"nodeAffinity": pool.node_affinity}} if pool.node_affinity else {}
    for folder in ("base", "overlays/gpu", "overlays/production"):
        finished = kustomize(tmp_path / "manifests" / folder)
        services = {one["metadata"]["name"]: one for one in finished if one["kind"] == "InferenceService"}
        assert on_nodes(services["goemotions-gpu"]["spec"]["predictor"]) == {name: one for name, one in expected.items() if one}
        assert on_nodes(services["goemotions-cpu"]["spec"]["predictor"]) == {}
        assert [fault for one in services.values() for fault in faults(one)] == []


def test_a_process_knows_whether_its_pod_has_a_gpu() -> None:
    for name, runtime in every("ServingRuntime").items():
        (container,) = runtime["spec"]["containers"]
        given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        assert given == ({"GOEMOTIONS_DEVICE": "gpu"} if name == "goemotions-gpu" else {"NVIDIA_VISIBLE_DEVICES": "void"})
        assert (node_pools.GPU in container["resources"]["limits"]) == (name == "goemotions-gpu")


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(name, str):
            yield (*path, name)
        yield from keys(inner, (*path, name))


@KINDS
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_typo_in_any_field_is_found(folder: str, kinds: str) -> None:
    documents = of(folder, kinds)
    places = [(number, path) for number, one in enumerate(documents) for path in keys(one)]
    missed = []
    for number, path in random.Random(folder).sample(places, min(120, len(places))):
        document = copy.deepcopy(documents[number])
        parent = functools.reduce(lambda value, name: value[name], path[:-1], document)
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        if not faults(document):
            missed.append((document.get("kind"), path))
    assert missed == []


def service(**predictor: Any) -> dict[str, Any]:
    predictor_spec = {"model": {"modelFormat": {"name": "goemotions"}, "storageUri": "s3://bucket/v1/"}, **predictor}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "mine", "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": predictor_spec},
    }


CANARY = {"trafficPercent": 20, "predictor": {"name": "canary", "model": {"storageUri": "s3://bucket/v2/"}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["metadata"].update(name="Mine"), "name 'Mine'"),
        (lambda one: one["metadata"].update(name="9lives"), "name '9lives'"),
        (lambda one: one["spec"]["predictor"].update(minReplicas=3, maxReplicas=2), "minReplicas 3 and maxReplicas 2"),
        (lambda one: one["spec"]["predictor"].update(minReplicas=-1), "minReplicas -1"),
        (lambda one: one["spec"]["predictor"].update(sklearn={}), "exactly one implementation"),
        (lambda one: one["spec"]["predictor"].pop("model"), "exactly one implementation"),
        (lambda one: one["spec"]["predictor"]["model"].update(name="x"), "a model has no name"),
        (lambda one: one["spec"]["predictor"]["model"].update(storageUri="bucket/v1"), "storageUri 'bucket/v1'"),
        (lambda one: one["spec"]["predictor"].update(storageUris=[{"uri": "s3://b/"}]), "storageUri and storageUris"),
        (lambda one: one["spec"]["predictor"]["model"].update(env=[{"name": "PYTHONPATH"}]), "PYTHONPATH"),
        (lambda one: one["spec"]["predictor"].update(scaleMetric="cpu", scaleTarget=101), "scaleTarget 101"),
        (
            lambda one: (one["metadata"].update(annotations={}), one["spec"]["predictor"].update(deploymentStrategy={})),
            "deploymentStrategy needs",
        ),
        (
            lambda one: (
                one["spec"]["predictor"]["model"].pop("storageUri"),
                one["spec"]["predictor"].update(storageUris=[{"uri": "s3://b/", "mountPath": "/mnt/../etc"}]),
            ),
            "mountPath '/mnt/../etc'",
        ),
        (
            lambda one: (one["metadata"].update(annotations={}), one["spec"].update(canary=[CANARY])),
            "canary needs the annotation",
        ),
        (
            lambda one: (
                one["metadata"]["annotations"].update({kserve_rules.AUTOSCALER: "keda"}),
                one["spec"]["predictor"].update(scaleMetric="cpu"),
            ),
            "KEDA takes no scaleMetric",
        ),
        (lambda one: one["spec"].update(canary=[CANARY, CANARY]), "names of canaries"),
        (lambda one: one["spec"].update(canary=[{**CANARY, "trafficPercent": 101}]), "more than 100"),
        (
            lambda one: one["spec"].update(canary=[{**CANARY, "predictor": {**CANARY["predictor"], "maxReplicas": 2}}]),
            "a canary has no maxReplicas",
        ),
        (
            lambda one: one["spec"].update(canary=[{**CANARY, "predictor": {**CANARY["predictor"], "minReplicas": 2}}]),
            "more replicas",
        ),
    ],
)
def test_the_stand_in_refuses_what_the_webhook_refuses(change: Any, message: str) -> None:
    assert kserve_rules.violations(service()) == []
    bad = service()
    change(bad)
    assert any(message in violation for violation in kserve_rules.violations(bad))


@pytest.mark.parametrize(
    ("autoscaler", "metric", "message"),
    [
        ("hpa", {"type": "External", "external": {"metric": {"query": "q"}, "target": {"value": "1"}}}, "Resource metrics"),
        ("hpa", {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue"}}}, "Utilization"),
        ("keda", {"type": "External", "external": {"metric": {}, "target": {"value": "1"}}}, "query"),
        ("keda", {"type": "External", "external": {"metric": {"query": "q"}, "target": {}}}, "value"),
    ],
)
def test_the_stand_in_refuses_autoscaling_that_the_webhook_refuses(
    autoscaler: str, metric: dict[str, Any], message: str
) -> None:
    bad = service(autoScaling={"metrics": [metric]})
    bad["metadata"]["annotations"][kserve_rules.AUTOSCALER] = autoscaler
    assert any(message in violation for violation in kserve_rules.violations(bad))


def pods() -> list[tuple[str, str]]:
    return [(folder, name) for folder in OVERLAYS for name in every("InferenceService", folder)]


def test_the_memory_of_the_object_store_is_bounded_below_its_limit_and_its_health_is_asked_of_s3() -> None:
    (container,) = every("Deployment", "overlays/local")["seaweedfs"]["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert store.mebibytes(variables["GOMEMLIMIT"]) <= 0.75 * store.mebibytes(container["resources"]["limits"]["memory"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "s3"}


def restricted(spec: dict[str, Any]) -> list[str]:
    """The violations of the `restricted` profile of Kubernetes' pod security standards."""
    kinds = {"name", "configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    violations = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    violations += [f"volume {volume['name']}" for volume in spec.get("volumes", []) if not set(volume) <= kinds]
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        rules = {
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") != 0,
            "privileged": not context.get("privileged"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "seccompProfile": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "procMount": context.get("procMount", "Default") == "Default",
            "hostPort": not any("hostPort" in port for port in container.get("ports", [])),
        }
        violations += [f"{rule} of {container['name']}" for rule, holds in rules.items() if not holds]
    return violations


def hardened(spec: dict[str, Any]) -> list[str]:
    """The violations of this project's own rules, which are stricter."""
    violations = [] if spec.get("automountServiceAccountToken") is False else ["automountServiceAccountToken"]
    for container in spec["containers"]:
        rules = {
            # A number, because the kubelet cannot check a name, and above the ids that distributions give to users.
            "runAsUser": {**spec.get("securityContext", {}), **container["securityContext"]}.get("runAsUser", 0) > 10000,
            "readOnlyRootFilesystem": container["securityContext"].get("readOnlyRootFilesystem") is True,
            "requests": {"cpu", "memory"} <= set(container["resources"]["requests"]),
            "limits": "memory" in container["resources"]["limits"],
            "probes": {"readinessProbe", "livenessProbe"} <= set(container),
        }
        violations += [f"{rule} of {container['name']}" for rule, holds in rules.items() if not holds]
    return violations + [f"no limit of {volume['name']}" for volume in spec["volumes"] if volume.get("emptyDir") == {}]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_a_restricted_namespace_admits_the_pods_of_the_predictors(folder: str) -> None:
    for isvc in every("InferenceService", folder).values():
        predictor_pod = pod(isvc, folder)
        assert faults(predictor_pod) == []
        assert restricted(predictor_pod["spec"]) == []
        # KServe defines the volume of the model.
        assert hardened(predictor_pod["spec"]) == ["no limit of kserve-provision-location"]


def test_a_restricted_namespace_admits_the_pods_of_the_store_and_the_tracking_server() -> None:
    deployments = every("Deployment", "overlays/local")
    assert set(deployments) == {"mlflow", "seaweedfs"}
    specs = [one["spec"]["template"]["spec"] for one in deployments.values()]
    assert [fault for spec in specs for fault in (*restricted(spec), *hardened(spec))] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update(hostNetwork=True), "hostNetwork"),
        (lambda spec: spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}}), "volume node"),
        (lambda spec: spec["containers"][0]["securityContext"].update(runAsUser=0), "runAsUser of kserve-container"),
        (lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"), "capabilities of kserve-container"),
        (lambda spec: spec["initContainers"][0].pop("securityContext"), "capabilities of storage-initializer"),
    ],
)
def test_the_check_refuses_pods_that_a_restricted_namespace_refuses(change: Any, message: str) -> None:
    spec = pod(every("InferenceService")["goemotions-cpu"], "base")["spec"]
    change(spec)
    assert message in restricted(spec)


def test_a_namespace_with_a_quota_admits_every_pod() -> None:
    """A quota of requests and limits refuses containers that lack one of them, KServe's storage initializer included."""
    for folder in OVERLAYS:
        specs = [pod(isvc, folder)["spec"] for isvc in every("InferenceService", folder).values()]
        specs += [one["spec"]["template"]["spec"] for one in every("Deployment", folder).values()]
        for container in (one for spec in specs for one in (*spec.get("initContainers", []), *spec["containers"])):
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), (folder, container["name"])


UNCHECKED = {
    "CKV_K8S_43": "images are named by the tag of a commit, which is never moved",
    "CKV_K8S_15": "so an image that is there need not be pulled again",
    "CKV_K8S_22": "KServe's storage initializer needs a writable root; that of every other container is read-only, asserted above",
    "CKV_K8S_35": "MLflow and boto3 read their keys from the environment",
}


def test_checkov_reports_nothing(tmp_path: Path) -> None:
    program = ROOT / ".venv" / "checkov" / "bin" / "checkov"
    assert program.exists(), "checkov is not installed: `make .venv/checkov/bin/checkov`"
    for folder in OVERLAYS:
        # Knative refuses a security context of the whole pod, which a check wants; that of every container is asserted above.
        services = {} if folder == "overlays/knative" else every("InferenceService", folder)
        predictor_pods = [pod(isvc, folder) for isvc in services.values()]
        (tmp_path / f"{folder.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all([*rendered(folder), *predictor_pods]))
    command = [program, "--directory", tmp_path, "--framework", "kubernetes", "--compact", "--quiet", "--output", "json"]
    command += ["--skip-check", ",".join(UNCHECKED), "--skip-download"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(finished.stdout)
    failed = [f"{one['check_id']} {one['check_name']} {one['resource']}" for one in report["results"]["failed_checks"]]
    assert failed == []
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] >= 50 * len(pods())


@pytest.mark.parametrize("folder", OVERLAYS)
def test_references_between_documents_resolve(folder: str) -> None:
    services, runtimes = every("InferenceService", folder), every("ServingRuntime", folder)
    accounts = every("ServiceAccount", folder)
    for name, isvc in services.items():
        predictor = isvc["spec"]["predictor"]
        assert predictor["model"]["runtime"] in runtimes
        assert predictor["serviceAccountName"] in accounts
        for spread in predictor.get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": name}
    budgets = every("PodDisruptionBudget", folder)
    assert {one["spec"]["selector"]["matchLabels"]["serving.kserve.io/inferenceservice"] for one in budgets.values()} == set(
        services
    )
    for isvc in services.values():
        label = every("NetworkPolicy", folder)["predictor"]["spec"]["podSelector"]["matchLabels"]
        assert label.items() <= isvc["spec"]["predictor"]["labels"].items()
    for one in every("Service", folder).values():
        assert any(one["spec"]["selector"].items() <= labels.items() for labels in pod_labels(folder))
    for name, monitor in every("ServiceMonitor", folder).items():
        (target,) = (
            one
            for one in every("Service", folder).values()
            if one["metadata"].get("labels") == monitor["spec"]["selector"]["matchLabels"]
        )
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in target["spec"]["ports"]}, name
    for role in every("RoleBinding", folder).values():
        assert role["roleRef"]["name"] in every("Role", folder)
        assert [subject["namespace"] for subject in role["subjects"]] != ["goemotions"]
    for deployment in every("Deployment", folder).values():
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in every("PersistentVolumeClaim", folder)


def test_the_local_overlay_needs_no_secret_but_its_own() -> None:
    secrets = every("Secret", "overlays/local")
    (account,) = every("ServiceAccount", "overlays/local").values()
    assert {one["name"] for one in account["secrets"]} <= set(secrets)
    (server,) = every("Deployment", "overlays/local")["mlflow"]["spec"]["template"]["spec"]["containers"]
    assert {one["secretRef"]["name"] for one in server["envFrom"]} <= set(secrets)
    host, _, port = secrets["goemotions-s3"]["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"].partition(":")
    store = every("Service", "overlays/local")[host.partition(".")[0]]
    assert (host.partition(".")[2], int(port)) == (store["metadata"]["namespace"], store["spec"]["ports"][0]["port"])


def test_the_keys_of_the_local_overlay_are_private_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    result = click.testing.CliRunner().invoke(cli.commands, ["keys", "cluster", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "trusted.pub"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len({path.read_text() for path in files if "KEY" in path.name}) >= 10
    assert not any(line in result.output for path in files for line in path.read_text().splitlines() if len(line) > 15)
    again = click.testing.CliRunner().invoke(cli.commands, ["keys", "cluster", "--output", str(folder)])
    assert "keys are never overwritten" in str(again.exception)


def test_each_secret_of_the_local_overlay_has_the_keys_of_its_role_alone() -> None:
    keys = with_keys() / "overlays" / "local" / "keys"
    for name, role in (("goemotions-s3", "predictor"), ("mlflow", "mlflow")):
        data = every("Secret", "overlays/local")[name]["data"]
        assert {key: base64.b64decode(value).decode() for key, value in data.items()} == {
            path.name: path.read_text() for path in (keys / role).iterdir()
        }
    everything = json.dumps([one for one in rendered("overlays/local") if one["kind"] == "Secret"])
    signing = base64.b64encode((keys / "register" / "GOEMOTIONS_SIGNING_KEY").read_bytes()).decode()
    assert signing not in everything


def test_mlflow_asks_for_a_login() -> None:
    (server,) = every("Deployment", "overlays/local")["mlflow"]["spec"]["template"]["spec"]["containers"]
    assert "--app-name=basic-auth" in server["args"]
    variables = {one["name"]: one.get("value") for one in server["env"]}
    settings = configparser.ConfigParser()
    settings.read_string(every("ConfigMap", "overlays/local")["mlflow-auth"]["data"]["basic_auth.ini"])
    mounts = {one["mountPath"]: one["name"] for one in server["volumeMounts"]}
    assert mounts[str(Path(variables["MLFLOW_AUTH_CONFIG_PATH"] or "").parent)] == "auth"
    assert settings["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    # The root of the container is read-only, and /data a volume.
    assert settings["mlflow"]["database_uri"].startswith("sqlite:////data/")


@pytest.mark.parametrize("folder", OVERLAYS)
def test_egress_is_named(folder: str) -> None:
    for policy in every("NetworkPolicy", folder).values():
        for rule in policy["spec"].get("egress", []):
            assert rule["ports"], policy["metadata"]["name"]
            assert rule["to"], policy["metadata"]["name"]
            cidrs = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            assert not cidrs or [port["port"] for port in rule["ports"]] == [443]


def test_cluster_wide_objects_have_no_namespace_and_a_name_of_their_own() -> None:
    for folder in OVERLAYS:
        cluster_wide = {
            (one["kind"], one["metadata"]["name"]) for one in rendered(folder) if "namespace" not in one["metadata"]
        }
        admission = {
            ("ValidatingAdmissionPolicy", "goemotions-deployer"),
            ("ValidatingAdmissionPolicyBinding", "goemotions-deployer"),
        }
        has_role = bool(every("Role", folder))
        expected = {("Namespace", "goemotions"), ("ClusterStorageContainer", "goemotions")}
        assert cluster_wide == expected | (admission if has_role else set())


@pytest.mark.parametrize(
    ("location", "is_ours"),
    [
        ("s3://bucket/models/goemotions/0123456789abcdef0123456789abcdef/cpu/", True),
        ("s3://bucket/a/team/models/mine/0123456789abcdef0123456789abcdef/gpu/", True),
        ("s3://bucket/models/iris/v1/", False),
        ("s3://bucket/models/iris/v1/cpu/", False),
        ("gs://bucket/models/mine/0123456789abcdef0123456789abcdef/gpu/", False),
        ("https://bucket/s3://bucket/models/mine/0123456789abcdef0123456789abcdef/gpu/", False),
    ],
)
def test_the_storage_container_matches_bundles_and_nothing_of_others(location: str, is_ours: bool) -> None:
    (container,) = every("ClusterStorageContainer").values()
    (uri_format,) = container["spec"]["supportedUriFormats"]
    assert bool(re.search(uri_format["regex"], location)) == is_ours
    if is_ours:
        assert str(bundle.BundleLocation.parse(location)) == location


def test_the_local_overlay_fits_a_machine_with_two_cpus_and_6_gib() -> None:
    (isvc,) = every("InferenceService", "overlays/local").values()
    assert isvc["metadata"]["annotations"][kserve_rules.AUTOSCALER] == "none"
    assert isvc["spec"]["predictor"]["deploymentStrategy"]["rollingUpdate"]["maxSurge"] == 0
    deployed = [one["spec"]["template"]["spec"] for one in every("Deployment", "overlays/local").values()]
    containers = [one for spec in (*deployed, pod(isvc, "overlays/local")["spec"]) for one in spec["containers"]]
    requests = [one["resources"]["requests"] for one in containers]
    # kind's own pods request about one CPU; a canary is a second pod of the predictor.
    assert sum(cores(one["cpu"]) for one in [*requests, requests[-1]]) <= 1
    assert sum(store.mebibytes(one["memory"]) for one in [*requests, requests[-1]]) <= 3 * 1024


def cores(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


def test_the_namespace_is_restricted() -> None:
    for folder in OVERLAYS:
        (namespace,) = every("Namespace", folder).values()
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_traffic_to_pods_is_denied_unless_a_policy_allows_it() -> None:
    deny = every("NetworkPolicy")["default-deny"]["spec"]
    assert (deny["podSelector"], set(deny["policyTypes"])) == ({}, {"Ingress", "Egress"})
    assert not {"ingress", "egress"} & set(deny)


def test_the_deploy_step_may_change_the_two_services_and_nothing_else() -> None:
    (role,) = every("Role", "overlays/production").values()
    services = every("InferenceService", "overlays/production")
    allowed = {
        (resource, verb, name)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["any"])
    }
    assert allowed == {
        ("inferenceservices", "list", "any"),
        *(("inferenceservices", verb, name) for verb in ("get", "update") for name in services),
        *(("deployments", "get", f"{name}{part}-predictor") for name in services for part in ("", "-canary")),
        *((resource, "list", "any") for resource in ("pods", "events", "httproutes")),
        *(("horizontalpodautoscalers", "delete", f"{name}-canary-predictor") for name in services),
    }


def test_the_admission_policy_is_for_the_account_of_the_deploy_step() -> None:
    """What its expressions allow is tried in ``test_admission.py``."""
    (policy,) = every("ValidatingAdmissionPolicy", "overlays/production").values()
    (binding,) = every("ValidatingAdmissionPolicyBinding", "overlays/production").values()
    (role,) = every("RoleBinding", "overlays/production").values()
    (account,) = role["subjects"]
    (condition,) = policy["spec"]["matchConditions"]
    assert f"'system:serviceaccount:{account['namespace']}:{account['name']}'" in condition["expression"]
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert (rule["operations"], rule["resources"], rule["apiVersions"]) == (["UPDATE"], ["inferenceservices"], ["*"])
    assert (policy["spec"]["failurePolicy"], binding["spec"]["validationActions"]) == ("Fail", ["Deny"])
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    text = yaml.safe_dump(policy)
    variables = {variable["name"] for variable in policy["spec"]["variables"]}
    assert {*re.findall(r"variables\.(\w+)", text)} == variables
    assert all(f"'{name}'" in text for name in (inference_service.NUMBER, inference_service.BUNDLE_SOURCE))
    changed = {inference_service.VERSION, inference_service.CANARY_VERSION, inference_service.RESTARTED}
    assert all(name.startswith("goemotions-") for name in changed)
    assert all(f"'{name}'" in text for name in inference_service.STABLE_ONLY)
    compared = {field for field in ("labels", "ownerReferences", "finalizers") if f"oldObject.metadata.{field}" in text}
    assert compared == {"labels", "ownerReferences", "finalizers"}


def test_one_gpu_is_enough_to_roll_out_a_new_version() -> None:
    strategy = every("InferenceService")["goemotions-gpu"]["spec"]["predictor"]["deploymentStrategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("name", ["goemotions-cpu", "goemotions-gpu"])
def test_the_server_takes_the_arguments_of_its_runtime(name: str, tmp_path: Path) -> None:
    container = every("ServingRuntime")[name]["spec"]["containers"][0]
    predictor = every("InferenceService")[name]["spec"]["predictor"]
    # KServe fills in the placeholders of both.
    given = [one.replace("{{.Name}}", name) for one in (*container["args"], *predictor["model"]["args"])]
    arguments = [one.replace("/mnt/models", str(tmp_path / "none")) for one in given]
    result = click.testing.CliRunner().invoke(cli.commands, arguments)
    assert result.exit_code != 2, result.output
    assert "none" in str(result.exception)
    assert {
        f"--{kind}={port['containerPort']}" for kind, port in zip(["port", "grpc-port"], container["ports"], strict=True)
    } <= set(arguments)
    # Draining and the longest request fit into the termination grace period of the pod.
    assert predictor["terminationGracePeriodSeconds"] > 5 + 30


# What the scraper adds: as the ServiceMonitor names it, and of the target itself.
TARGET_LABELS = {"serving_kserve_io_inferenceservice", "job", "namespace", "pod", "instance"}


def unknown_labels(query: str) -> set[str]:
    """The labels by which a query selects, groups or joins, and which neither the server's metrics nor a scraper have."""
    wrappers = (one for one in vars(exported).values() if isinstance(one, MetricWrapperBase))
    labels = {wrapper._name: set(wrapper._labelnames) | {"le"} for wrapper in wrappers}
    unknown: set[str] = set()
    for part in re.findall(r"(goemotions_\w+?)(?:_total|_bucket|_count|_sum)?\{([^}]*)\}", query):
        unknown |= set(re.findall(r"(\w+) *[=!]~?\"", part[1])) - labels[part[0]] - TARGET_LABELS
    measured = set().union(*(labels[name] for name in re.findall(r"(goemotions_\w+?)(?:_total|_bucket|_count|_sum)?\b", query)))
    grouped = {name for group in re.findall(r"(?:by|on) \(([^)]*)\)", query) for name in re.split(r", *", group)}
    return unknown | grouped - measured - TARGET_LABELS


def test_alerts_and_dashboard_query_metrics_that_the_server_has() -> None:
    (rule,) = every("PrometheusRule", "overlays/production").values()
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    dashboard = json.loads(every("ConfigMap", "overlays/production")["goemotions-dashboard"]["data"]["dashboard.json"])
    queries = [alert["expr"] for alert in alerts] + [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    families = [family for one in vars(exported).values() if isinstance(one, MetricWrapperBase) for family in one.describe()]
    for query in queries:
        promql_parser.parse(query.replace("$__rate_interval", "5m"))
    names = {
        f"{family.name}{suffix}"
        for family in families
        for suffix in {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
    }
    queried = {name for query in queries for name in re.findall(r"goemotions_\w+", query)}
    assert queried - names == set()
    assert len(queried) >= 10
    for query in queries:
        assert unknown_labels(query.replace("$__rate_interval", "5m")) == set()
    reasons = {reason for query in queries for value in re.findall(r'reason=~?"([^"]+)"', query) for reason in value.split("|")}
    assert reasons <= set(exported.REASONS.values())
    services = set(every("InferenceService", "overlays/production"))
    assert set(re.findall(r'serving_kserve_io_inferenceservice="([^"]+)"', " ".join(queries))) == services
    assert (
        set(re.findall(r'job="([^"]+)"', " ".join(queries)))
        == {"goemotions-metrics"}
        <= set(every("Service", "overlays/production"))
    )
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def drift_rule() -> str:
    """The expression of the alert on drift."""
    (rule,) = every("PrometheusRule", "overlays/production").values()
    (drift,) = (one for group in rule["spec"]["groups"] for one in group["rules"] if one["alert"] == "GoEmotionsDrift")
    return str(drift["expr"])


def drift_rule_fires(predicted: float, rows: float, reference: float, reference_rows: float, labels: int = 28) -> bool:
    """Whether the alert on drift fires for one of the labels with these counts, by arithmetic on its expression."""
    values = {
        "goemotions_predictions_total": predicted,
        "goemotions_scored_texts_total": rows,
        "goemotions_reference_predictions": reference,
        "goemotions_reference_texts": reference_rows,
    }
    expression = re.sub(r" on \([^)]*\) group_left \(\)", "", drift_rule())
    expression = re.sub(r"count by \([^)]*\) \(max by \([^)]*\) \(\w+\)\)", str(labels), expression)
    for name, value in values.items():
        expression = re.sub(rf"max by \([^)]*\) \((increase\()?{name}(\[1d\]\))?\)", str(value), expression)
    expression = re.sub(r"sum by \([^)]*\) ", "", expression)
    functions = {"abs": abs, "ln": math.log, "sqrt": math.sqrt, "clamp_min": max}
    return bool(eval(" ".join(expression.split()), {"__builtins__": {}}, functions))


@pytest.mark.parametrize(
    ("predicted", "rows", "fires"),
    [
        (54, 5426, False),  # as in validation
        (165, 5500, True),  # three times as many, which is two points
        (0, 5500, True),  # none at all
        (2, 100, False),  # twice as many, of few texts
        (12_000, 1_000_000, False),  # 1.2 times as many, of many texts
        (8500, 1_000_000, False),
    ],
)
def test_the_alert_on_drift_fires_for_a_rare_label(predicted: int, rows: int, fires: bool) -> None:
    assert drift_rule_fires(predicted, rows, 54, 5426) is fires


def standard_errors_of_an_alarm(labels: int) -> float:
    """From how many standard errors on the rule fires, so that it has the false alarms per month that a report has.

    The rule compares the square roots of two rates, whose standard error is half the root of the sum of the inverse numbers of texts,
    whatever the rates are (Anscombe 1948, "The transformation of Poisson, binomial and negative-binomial data"). It looks all the time
    at the day until now: per day, the difference rises over z standard errors z times the normal density at z times (Aldous 1989,
    "Probability Approximations via the Poisson Clumping Heuristic"), and falls below them as often, for each label.
    """
    days = comparison.MONTH_SECONDS / comparison.WINDOW_SECONDS
    return float(brentq(lambda z: 2 * labels * days * z * norm.pdf(z) - defaults.FALSE_ALARMS_PER_MONTH, 1.5, 9))


@pytest.mark.parametrize("labels", [1, 3, 28, 200, 1000])
def test_the_alert_on_drift_has_the_figures_of_the_library_for_any_number_of_labels(labels: int) -> None:
    assert f"{math.log(drift.LEAST_RATIO) / 2:.5f}" in drift_rule()
    rows, reference = 10_000, 20
    root, error = math.sqrt((reference + 0.375) / rows), math.sqrt(2 / rows) / 2
    for standard_errors, fires in ((0.99, False), (1.01, True)):
        predicted = rows * (root + standard_errors * standard_errors_of_an_alarm(labels) * error) ** 2 - 0.375
        assert drift_rule_fires(predicted, rows, reference, rows, labels) is fires


@pytest.mark.parametrize(
    ("rows", "dropped", "files", "fires"),
    [(0, 0, 0, False), (1000, 0, 0, False), (1000, 9, 0, False), (1000, 11, 0, True), (0, 3, 0, True), (1000, 0, 1, True)],
)
def test_the_alert_on_the_request_log_fires_for_rows_and_files_that_are_lost(
    rows: int, dropped: int, files: int, fires: bool
) -> None:
    (rule,) = every("PrometheusRule", "overlays/production").values()
    (lost,) = (one for group in rule["spec"]["groups"] for one in group["rules"] if one["alert"] == "GoEmotionsRequestLog")
    expression = lost["expr"]
    for name, value in (("rows", rows), ("dropped_rows", dropped), ("dropped_files", files)):
        expression = re.sub(
            rf"sum by \([^)]*\) \(increase\(goemotions_request_log_{name}_total\[1h\]\)\)", str(value), expression
        )
    assert bool(eval(" ".join(expression.split()), {"__builtins__": {}})) is fires


@pytest.mark.slow
def test_alerts_fire_and_do_not_in_a_real_prometheus(tmp_path: Path) -> None:
    promtool = tools.program("promtool", why="the package prometheus of Debian and Ubuntu has it")
    (rule,) = every("PrometheusRule", "overlays/production").values()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    shutil.copy(Path(__file__).with_name("alerts.yaml"), tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    (rule,) = every("PrometheusRule", "overlays/production").values()
    for alert in (alert for group in rule["spec"]["groups"] for alert in group["rules"]):
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in anchors
