"""Versions on InferenceServices, against a Kubernetes API in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from goemotions.deployment import inference_service, isvc, kserve, live_service, node_pools, status
from goemotions.deployment.cluster import Cluster
from goemotions.errors import BadArgument, DeploymentError, ModelError
from goemotions.registry import changes, model_registry, retirement, tracking
from goemotions.registry.retirement import Policy
from tests.support import kserve_rules
from tests.support.documents import yaml_documents
from tests.support.kubernetes_process import Kubernetes, kubeconfig, running
from tests.support.kubernetes_server import NAMESPACE

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests" / "isvc.yaml"


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with running(MANIFEST, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def versions(stack: Path) -> dict[str, str]:
    """Locations of two versions for cpu, and of some that never become ready, registered as `goemotions-k8s`."""
    faults = {"3": "broken", "4": "refused", "5": "no-image", "6": "no-node", "7": "no-store"}
    locations = {str(n): f"s3://goemotions/models/k8s/{n:032x}/cpu/" for n in (1, 2)}
    locations |= {number: f"s3://goemotions/models/k8s/{fault}/cpu/" for number, fault in faults.items()}
    run = tracking.get_or_create_run("k8s").run_id
    for number, location in locations.items():
        assert (
            model_registry.get_or_create_version("k8s", run, location, {"variant": "cpu", "profile": "minilm"}).number == number
        )
    model_registry.set_alias("k8s", "champion-cpu", "2")
    return locations


def deploy(reference: str, **options: Any) -> inference_service.ServiceStatus:
    return kserve.deploy(reference, "goemotions-cpu", "", **{"model_name": "k8s", "wait_seconds": 10, **options})


def test_deploy_waits_until_the_new_version_is_served(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deployed = deploy("champion-cpu")
    assert (deployed.version, deployed.source, deployed.canary_percent, deployed.is_ready) == ("2", versions["2"], 0, True)
    (written,) = kubernetes.writes()
    assert written["metadata"]["generation"] == 2
    assert written["spec"]["predictor"]["minReplicas"] == 2
    last = changes.history(model_registry.get_version("k8s", "2"), f"{NAMESPACE}/goemotions-cpu")[-1]
    assert (last.action, last.after, last.percent) == ("deploy", "2", 0)


def test_deploying_the_served_version_again_writes_nothing(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    before = model_registry.get_version("k8s", "1").tags
    deploy("1")
    assert len(kubernetes.writes()) == 1
    assert model_registry.get_version("k8s", "1").tags == before


@pytest.fixture
def two(stack: Path, request: pytest.FixtureRequest) -> str:
    """A model of two versions; the second one is champion."""
    name = request.node.name.partition("[")[0].replace("_", "-")[:60]
    for number in ("1", "2"):
        run = tracking.get_or_create_run(f"{name}-{number}").run_id
        location = f"s3://goemotions/models/{name}/{run}/cpu/"
        model_registry.get_or_create_version(name, run, location, {"variant": "cpu", "profile": "minilm"})
    model_registry.set_alias(name, "champion-cpu", "2")
    return name


@pytest.mark.fault("retired-while-deployed")
def test_a_version_that_is_deployed_while_versions_are_retired_is_kept(
    kubernetes: Kubernetes, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served was read before; the deploy step has no keys to lock the bundles."""
    replace, retired = Cluster.replace, []

    def replaced(cluster: Cluster, name: str, service: Any) -> bool:
        done = replace(cluster, name, service)
        retired.extend(one.version.number for one in retirement.retire(two, Policy(0, 0)) if not one.kept)
        return done

    monkeypatch.setattr(Cluster, "replace", replaced)
    assert deploy("1", model_name=two).version == "1"
    assert retired == []
    assert not model_registry.get_version(two, "1").is_retired


@pytest.mark.fault("retired-while-deployed")
def test_a_version_that_is_retired_while_it_is_deployed_is_not_set(
    kubernetes: Kubernetes, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = kserve.trust.check

    def checked(*arguments: Any) -> str:
        assert [one.version.number for one in retirement.retire(two, Policy(0, 0)) if not one.kept] == ["1"]
        return check(*arguments)

    monkeypatch.setattr(kserve.trust, "check", checked)
    with pytest.raises(ModelError, match="version 1 is retired"):
        deploy("1", model_name=two)
    assert kubernetes.writes() == []


def test_a_canary_is_served_beside_the_version_and_then_replaces_it(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    deployed = deploy("2", canary_percent=20)
    assert (deployed.version, deployed.canary_version, deployed.canary_percent) == ("1", "2", 20)
    assert (deployed.source, deployed.canary_source) == (versions["1"], versions["2"])
    assert kserve_rules.violations(kubernetes.writes()[-1]) == []
    over = deploy("2")
    assert (over.version, over.source, over.canary_percent, over.canary_version) == ("2", versions["2"], 0, "")
    assert "canary" not in kubernetes.writes()[-1]["spec"]


def test_deploying_the_served_version_removes_the_canary(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    deploy("2", canary_percent=50)
    assert deploy("1").canary_percent == 0
    assert kubernetes.writes()[-1]["spec"]["predictor"]["model"]["storageUri"] == versions["1"]


def test_each_part_of_a_service_knows_the_number_and_the_location_of_its_version(versions: dict[str, str]) -> None:
    service = inference_service.with_version(gpu_service(), model_registry.get_version("k8s", "1"), 0)
    service = inference_service.with_version(service, model_registry.get_version("k8s", "2"), 10)
    variables = [one["predictor"]["model"]["env"] for one in (service["spec"], service["spec"]["canary"][0])]
    assert variables == [
        [
            {"name": "GOEMOTIONS_SERVE_VERSION_NUMBER", "value": number},
            {"name": "GOEMOTIONS_SERVE_BUNDLE_SOURCE", "value": one["predictor"]["model"]["storageUri"]},
        ]
        for number, one in (("1", service["spec"]), ("2", service["spec"]["canary"][0]))
    ]


STEPS = pytest.mark.parametrize(("version", "steps"), [("2", 3), ("1", 2)], ids=["taken over", "taken back"])


@pytest.mark.fault("canary-removed")
@STEPS
def test_a_canary_is_removed_without_a_lost_request(
    kubernetes: Kubernetes, versions: dict[str, str], version: str, steps: int
) -> None:
    deploy("1")
    deploy("2", canary_percent=20)
    before = len(kubernetes.writes())
    assert deploy(version).source == versions[version]
    assert kubernetes.errors() == 0
    written = [one["spec"] for one in kubernetes.writes()[before:]]
    assert [one["predictor"]["model"]["storageUri"] for one in written] == [versions[version]] * steps
    assert [[canary["trafficPercent"] for canary in one.get("canary", [])] for one in written] == [[20], [0], []][-steps:]
    assert kubernetes.state("autoscalers") == ["goemotions-cpu-predictor", "goemotions-gpu-predictor"]


def test_the_stand_in_loses_requests_if_a_canary_is_removed_in_one_step(
    kubernetes: Kubernetes, versions: dict[str, str]
) -> None:
    deploy("1")
    deploy("2", canary_percent=20)
    cluster = Cluster("")
    cluster.replace("goemotions-cpu", inference_service.without_canary(cluster.service("goemotions-cpu")))
    for _ in range(5):
        cluster.services()
    assert kubernetes.errors() == 5
    assert "goemotions-cpu-canary-predictor" in kubernetes.state("autoscalers")


@pytest.mark.parametrize("wait", ["wait_for_predictor", "wait_until_canary_is_idle", "wait_until_canaries_are_gone"])
def test_a_deployment_that_is_killed_goes_on_where_it_was(
    kubernetes: Kubernetes, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    deploy("1")
    deploy("2", canary_percent=20)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(live_service.LiveService, wait, killed)
        with pytest.raises(KeyboardInterrupt):
            deploy("2")
    over = deploy("2")
    assert (over.version, over.canary_version, kubernetes.errors()) == ("2", "", 0)
    assert "goemotions-cpu-canary-predictor" not in kubernetes.state("autoscalers")


def test_another_canary_replaces_one_without_a_lost_request(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    deploy("2", canary_percent=20)
    deploy("2", canary_percent=50)
    assert deploy("1", canary_percent=10).canary_percent == 10
    shares = [[canary["trafficPercent"] for canary in one["spec"].get("canary", [])] for one in kubernetes.writes()]
    assert shares == [[], [20], [50], [0], [], [10]]
    assert kubernetes.errors() == 0


def test_a_canary_is_not_removed_without_waiting(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    deploy("2", canary_percent=20)
    with pytest.raises(DeploymentError, match="goemotions-cpu has a canary, which is removed in several steps"):
        deploy("2", wait_seconds=0)
    assert len(kubernetes.writes()) == 2


@pytest.mark.parametrize("percent", [0, 20])
def test_a_restart_replaces_the_pods_of_the_same_versions(
    kubernetes: Kubernetes, versions: dict[str, str], percent: int, caplog: pytest.LogCaptureFixture
) -> None:
    deploy("1")
    deploy("2", canary_percent=percent)
    with caplog.at_level("INFO"):
        served = kserve.restart("", "", wait_seconds=10)
    assert (served.service, served.source, served.canary_percent) == (
        "goemotions-cpu",
        versions["1" if percent else "2"],
        percent,
    )
    assert "waiting for the predictor: KServe has not updated it yet" in caplog.text
    before, after = (one["spec"] for one in kubernetes.writes()[-2:])
    assert inference_service.RESTARTED in json.dumps(after["predictor"])
    for part in (after, *after.get("canary", [])):
        del part["predictor"]["annotations"]
    assert before == after
    deploy("1")
    assert kubernetes.errors() == 0


@pytest.mark.fault("canary-not-split")
def test_a_canary_that_gets_no_traffic_is_a_named_error(
    kubernetes: Kubernetes, versions: dict[str, str], tmp_path: Path
) -> None:
    kubernetes.switch(splits=0)
    deploy("1")
    with pytest.raises(
        DeploymentError, match=r"the traffic is not split: .*canary-predictor': 20.*after 0.20.0, which accepts"
    ):
        deploy("2", canary_percent=20)
    assert deploy("1").canary_version == ""
    assert kubernetes.errors() == 0


@pytest.mark.fault("canary-broken")
def test_status_shows_a_canary_that_does_not_serve_although_the_service_is_ready(
    kubernetes: Kubernetes, versions: dict[str, str], tmp_path: Path
) -> None:
    deploy("1")
    with pytest.raises(
        DeploymentError, match=r"CrashLoopBackOff of storage-initializer: EndpointConnectionError.*stable version"
    ):
        deploy("7", canary_percent=10)
    (served,) = kserve.list_services(["goemotions-cpu"], "")
    assert served.is_ready
    champion = model_registry.get_version("k8s", "1")
    champions = {"cpu": champion, "gpu": None}
    state = status.ModelStatus("goemotions", champions, {"cpu": None, "gpu": None}, {}, {"goemotions-cpu": served})
    assert "7 (10%, not serving)" in state.table()
    (line,) = state.disagreements()
    assert line.startswith("the canary of goemotions-cpu does not serve its share (pod goemotions-cpu-canary-predictor-")
    assert "EndpointConnectionError" in line


@pytest.mark.fault("pods-stopped")
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("4", "pods are refused: .*violates PodSecurity"),
        ("5", "ImagePullBackOff of kserve-container: .*goemotions-predictor:x: not found"),
        ("6", "Unschedulable: 0/1 nodes: 1 Insufficient cpu"),
        ("7", "CrashLoopBackOff of storage-initializer: EndpointConnectionError: seaweedfs:8333"),
    ],
)
def test_a_deployment_ends_early_if_its_pods_cannot_start(
    kubernetes: Kubernetes, versions: dict[str, str], version: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO"),
        pytest.raises(DeploymentError, match=rf"by waiting \(.*{message}.*the former version still serves"),
    ):
        deploy(version, wait_seconds=600)
    assert "goemotions-cpu: waiting for the predictor: 2 pods, 1 of them new, 2 available" in caplog.text


@pytest.mark.fault("no-gateway")
def test_a_predictor_that_serves_is_told_apart_from_a_gateway_that_does_not_respond(
    kubernetes: Kubernetes, versions: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    kubernetes.switch(gateway=0)
    message = "gateway: no controller responds to HTTPRoute goemotions-cpu.*the predictor serves the new version to pods of the cluster"
    with caplog.at_level("INFO"), pytest.raises(DeploymentError, match=message):
        deploy("1", wait_seconds=600)
    assert "waiting for the route; the predictor serves: Ready: False; IngressReady: HTTPRouteStatusNotAvailable" in caplog.text


def test_without_permission_to_see_pods_a_deployment_waits_until_its_time_ends(
    kubernetes: Kubernetes, versions: dict[str, str]
) -> None:
    kubernetes.switch(refuse=403, refuse_path="/api/v1/")
    assert deploy("1").is_ready
    with pytest.raises(DeploymentError, match=r"not ready after 1.5 s \(2 pods, 1 of them new"):
        deploy("7", wait_seconds=1.5)


def gpu_service() -> dict[str, Any]:
    documents = yaml_documents(MANIFEST.read_text())
    return next(one for one in documents if one["metadata"]["name"] == "goemotions-gpu" and "predictor" in one["spec"])


def test_a_version_and_its_canary_run_on_the_node_pool_that_is_named(versions: dict[str, str]) -> None:
    version, pool = model_registry.get_version("k8s", "2"), node_pools.get("eks-l4")
    canary = inference_service.with_version(gpu_service(), version, 10, pool)
    assert kserve_rules.violations(canary) == []
    for predictor in (canary["spec"]["predictor"], canary["spec"]["canary"][0]["predictor"]):
        assert predictor["affinity"] == {"nodeAffinity": pool.node_affinity}
        assert "nodeSelector" not in predictor
    moved = inference_service.with_version(canary, version, 0, node_pools.get("gke-l4"))["spec"]["predictor"]
    assert moved["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert "affinity" not in moved
    assert inference_service.with_version(canary, version, 0)["spec"]["predictor"]["affinity"] == {
        "nodeAffinity": pool.node_affinity
    }


def test_a_node_pool_for_the_predictor_on_cpus_is_refused(versions: dict[str, str]) -> None:
    with pytest.raises(BadArgument, match="version 1 is for CPUs: a preset names a node pool with GPUs"):
        deploy("1", preset="gke-l4")


def test_knative_splits_the_traffic_by_its_own_field(versions: dict[str, str]) -> None:
    service = gpu_service()
    service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Knative"
    version = model_registry.get_version("k8s", "2")
    canary = inference_service.with_version(service, version, 10)
    assert canary["spec"]["predictor"]["canaryTrafficPercent"] == 10
    assert canary["spec"]["predictor"]["model"]["storageUri"] == versions["2"]
    assert "canary" not in canary["spec"]
    parsed = inference_service.ServiceStatus.of(canary)
    assert (parsed.canary_version, parsed.canary_percent, parsed.source) == ("2", 10, "")
    over = inference_service.with_version(canary, version, 0)
    assert "canaryTrafficPercent" not in over["spec"]["predictor"]
    assert inference_service.ServiceStatus.of(over).version == "2"


@pytest.fixture
def knative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    documents = yaml_documents(MANIFEST.read_text())
    for document in documents:
        if document["kind"] == "InferenceService":
            document["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Knative"
            # As manifests/overlays/knative leaves it out.
            document["spec"]["predictor"].pop("deploymentStrategy", None)
    (tmp_path / "isvc.yaml").write_text(yaml.safe_dump_all(documents))
    with running(tmp_path / "isvc.yaml", tmp_path, monkeypatch) as server:
        yield server


def served(kubernetes: Kubernetes) -> tuple[str, str]:
    return inference_service.revisions(Cluster(NAMESPACE).service("goemotions-cpu"))


def test_knative_waits_for_the_revision_of_the_change(knative: Kubernetes, versions: dict[str, str]) -> None:
    """The controller sees a change some time after it: until then the service is ready, with the revision from before."""
    deploy("1")
    assert served(knative) == ("goemotions-cpu-predictor-00002",) * 2
    deploy("2", canary_percent=10)
    assert served(knative) == ("goemotions-cpu-predictor-00003",) * 2
    deploy("2", canary_percent=50)
    assert served(knative) == ("goemotions-cpu-predictor-00003",) * 2
    kserve.restart("goemotions-cpu", "", wait_seconds=10)
    assert served(knative) == ("goemotions-cpu-predictor-00004",) * 2
    with pytest.raises(DeploymentError, match=r"goemotions-cpu is not ready after 0\.5 s \(MANIFEST.json does not match\)"):
        deploy("3", wait_seconds=0.5)


def test_a_canary_that_does_not_load_is_a_named_error(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    deploy("1")
    with pytest.raises(DeploymentError, match=r"after 0.5 s \(goemotions-cpu-canary-predictor: MANIFEST.json does not match\)"):
        deploy("3", canary_percent=10, wait_seconds=0.5)


def test_the_bucket_of_the_service_is_kept(kubernetes: Kubernetes, versions: dict[str, str], tmp_path: Path) -> None:
    service = next(one for one in yaml_documents(MANIFEST.read_text()) if one["kind"] == "InferenceService")
    service["spec"]["predictor"]["model"]["storageUri"] = "s3://theirs/models/x/cpu/"
    parsed = inference_service.ServiceStatus.of(
        inference_service.with_version(service, model_registry.get_version("k8s", "2"), 0)
    )
    assert parsed.source == versions["2"].replace("s3://goemotions/", "s3://theirs/")


def test_a_pipeline_deploys_new_champions_and_continues_after_a_failure(
    kubernetes: Kubernetes, stack: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracking.get_or_create_run("goemotions-deploys").run_id
    name = "goemotions"
    gpu = model_registry.get_or_create_version(
        name, run, "s3://goemotions/models/goemotions/broken-deploys/gpu/", {"variant": "gpu"}
    )
    cpu = model_registry.get_or_create_version(name, run, f"s3://goemotions/models/{name}/{run}/cpu/", {"variant": "cpu"})
    registered = {
        "gpu": {"version": gpu.number, "alias": "champion-gpu"},
        "cpu": {"version": cpu.number, "alias": "champion-cpu"},
    }
    with pytest.raises(DeploymentError, match="goemotions-gpu is not ready"):
        kserve.deploy_registered(registered, "", name, 0, 0.5)
    assert [one["metadata"]["name"] for one in kubernetes.writes()] == ["goemotions-gpu", "goemotions-cpu"]
    registered["cpu"]["alias"] = "challenger-cpu"
    kserve.deploy_registered({"cpu": registered["cpu"]}, "", name, 0)
    assert len(kubernetes.writes()) == 2
    with caplog.at_level("WARNING"):
        kserve.deploy_registered({"cpu": registered["cpu"]}, "", "elsewhere", 10)
    assert "there is no InferenceService elsewhere-cpu" in caplog.text


def test_a_concurrent_change_is_kept(kubernetes: Kubernetes, versions: dict[str, str]) -> None:
    kubernetes.switch(conflicts=2)
    assert deploy("1").version == "1"
    kubernetes.switch(conflicts=99)
    with pytest.raises(DeploymentError, match="changed by another process"):
        deploy("2")
    # Recorded before it is made, as a move of an alias: until the next deployment both bundles are kept.
    last = changes.history(model_registry.get_version("k8s", "2"), f"{NAMESPACE}/goemotions-cpu")[-1]
    assert (last.before, last.after) == ("1", "2")


def test_the_error_of_a_version_that_never_becomes_ready_has_the_reason_of_kserve(
    kubernetes: Kubernetes, versions: dict[str, str]
) -> None:
    with pytest.raises(DeploymentError, match=r"not ready after 0.3 s \(MANIFEST.json does not match\): the former version"):
        deploy("3", wait_seconds=0.3)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "the account lacks permissions.*rbac"),
        (404, "apply manifests/isvc.yaml first"),
        (401, "log in"),
        (500, "fix the reported cause"),
    ],
)
def test_a_refused_request_is_a_named_error(
    kubernetes: Kubernetes, versions: dict[str, str], status: int, message: str
) -> None:
    kubernetes.switch(refuse=status)
    with pytest.raises(DeploymentError, match=rf"goemotions-cpu in namespace {NAMESPACE} \({status}.*{message}"):
        deploy("1")


def test_an_impossible_deployment_is_a_named_error(kubernetes: Kubernetes, versions: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"none-cpu.*not found.*apply manifests/isvc.yaml first"):
        kserve.deploy("1", "none-cpu", "", model_name="k8s")
    with pytest.raises(ModelError, match="'77'"):
        deploy("77")
    with pytest.raises(DeploymentError, match="1 to 99 percent"):
        deploy("1", canary_percent=100)
    kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    with pytest.raises(DeploymentError, match="does not respond"):
        deploy("1")


def test_without_a_cluster_deploying_is_a_named_error(
    versions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(DeploymentError, match="no Kubernetes cluster is configured: set KUBECONFIG"):
        deploy("1")


def test_the_manifest_is_written_from_the_champions(versions: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(MANIFEST.read_text().replace("scaleTarget: 60", "scaleTarget: 42"))
    champion = model_registry.get_version("k8s", "champion-cpu")
    lines = isvc.write(path, {"goemotions-cpu": champion}, bucket="mine", registry="registry.example/team/", image_tag="abc")
    assert lines == [f"goemotions-cpu: version 2, {versions['2'].replace('goemotions', 'mine', 1)}"]
    text = path.read_text()
    assert text.startswith("# Written from the registry's champions. goemotions-cpu: version 2")
    assert "The layout of the demo" not in text
    assert "# With one GPU, a second pod could not start" in text
    assert "scaleTarget: 42" in text
    documents = yaml_documents(text)
    assert [one["spec"]["containers"][0]["image"] for one in documents if one["kind"] == "ServingRuntime"] == [
        "registry.example/team/goemotions-predictor:abc-cpu",
        "registry.example/team/goemotions-predictor:abc-gpu",
    ]
    before = yaml_documents(MANIFEST.read_text())
    assert documents[1]["spec"]["containers"][0]["args"] == before[1]["spec"]["containers"][0]["args"]
    assert isvc.read(path)["goemotions-cpu"] == ("2", versions["2"].replace("goemotions", "mine", 1))
    isvc.write(path, {"goemotions-cpu": champion}, bucket="mine", registry="registry.example/team/", image_tag="abc")
    assert path.read_text() == text
    isvc.write(path, {"goemotions-cpu": model_registry.get_version("k8s", "1")})
    assert 'GOEMOTIONS_SERVE_VERSION_NUMBER\n          value: "1"' in path.read_text()
    assert "registry.example/team/goemotions-predictor:abc-cpu" in path.read_text()


def test_the_manifest_names_the_node_pool_of_the_predictor_for_gpus_or_says_that_it_has_none(
    versions: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(MANIFEST.read_text())
    champion = {"goemotions-gpu": model_registry.get_version("k8s", "1")}
    assert isvc.write(path, champion)[1] == (
        "goemotions-gpu: any node with a GPU; --preset (PRESET=gke-l4) writes the selector of a node pool"
    )
    assert isvc.write(path, champion, preset="gke-l4")[1:] == ["goemotions-gpu: nodes of gke-l4"]
    written = path.read_text()
    assert "nodeSelector:\n      cloud.google.com/gke-accelerator: nvidia-l4" in written
    # A later version keeps them, and the comments around them.
    assert len(isvc.write(path, champion)) == 1
    assert path.read_text() == written
    assert "- {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}" in written
    with pytest.raises(BadArgument, match="there is no preset 'l4': choose from gke-a100"):
        isvc.write(path, champion, preset="l4")
    assert path.read_text() == written


def test_a_manifest_without_the_service_is_a_named_error(versions: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "isvc.yaml"
    path.write_text(MANIFEST.read_text())
    with pytest.raises(DeploymentError, match=r"has no InferenceService k8s-cpu: it has goemotions-cpu, goemotions-gpu"):
        isvc.write(path, isvc.champions("k8s"))
    with pytest.raises(DeploymentError, match="cannot be read"):
        isvc.read(tmp_path / "none.yaml")
    with pytest.raises(ModelError, match="no champion"):
        isvc.champions("nothing-here")


def test_status_shows_differences_between_registry_manifest_and_cluster(
    kubernetes: Kubernetes, versions: dict[str, str], tmp_path: Path
) -> None:
    # The services are named after the model.
    text = MANIFEST.read_text().replace("name: goemotions-cpu\n  annotations", "name: k8s-cpu\n  annotations")
    (tmp_path / "isvc.yaml").write_text(text)
    collected = status.collect("k8s", "", tmp_path / "isvc.yaml")
    assert "k8s-cpu  2 (minilm)  -           2         -       -" in collected.table().splitlines()
    demo = "s3://goemotions/models/goemotions/0123456789abcdef0123456789abcdef/cpu/"
    assert collected.disagreements() == [f"the manifest has {demo} on k8s-cpu, the champion's is {versions['2']}: `make isvc`"]
    isvc.write(tmp_path / "isvc.yaml", {"k8s-cpu": model_registry.get_version("k8s", "champion-cpu")})
    assert status.collect("k8s", "", tmp_path / "isvc.yaml").disagreements() == []


def test_status_without_a_cluster_shows_the_rest(
    versions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    collected = status.collect("k8s", "", tmp_path / "none.yaml")
    assert "served: no Kubernetes cluster is configured" in collected.table()
    assert "2 (minilm)" in collected.table()
