"""The trial of a cluster, dry: its commands against stand-in servers, and what it applies against the rules of a cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from benchmarks import cluster
from benchmarks.trial import Failed, Tools, Trial
from goemotions.cli import main as cli
from goemotions.registry import mlflow_client, model_registry, tracking
from pipelines import resources
from pipelines.cli import pipeline, submit
from pipelines.parameters import training_arguments
from tests.deployment.test_kserve import Kubernetes, kubernetes
from tests.manifests.test_manifests import needs_crds, refused
from tests.support.kubernetes_server import NAMESPACE
from tests.support.rendering import MANIFESTS

__all__ = ["kubernetes"]
POD = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}
LISTS = {
    "httproutes": [{"spec": {"hostnames": ["goemotions-cpu-models.example.com"]}}],
    "gateways": [{"status": {"addresses": [{"value": "10.0.0.1"}]}}],
    "nodes": [{"metadata": {"name": name}, "spec": {}} for name in ("n", "m")],
    "pods": [POD],
}


class DryTools(Tools):
    """Commands on the registry run here, on the stand-in for Kubernetes; what kubectl would apply is checked and kept."""

    def __init__(self, server: Kubernetes) -> None:
        super().__init__("none")
        self.server = server
        self.applied: list[dict[str, Any]] = []
        self.called: list[tuple[str, ...]] = []
        self.deployed = threading.Event()

    def kubectl(self, *arguments: str, text: str = "") -> str:
        self.called.append(arguments)
        if "apply" in arguments:
            self.applied += yaml.safe_load_all(text)
        if "version" in arguments:
            return json.dumps({"serverVersion": {"gitVersion": "v1"}})
        if "get" in arguments:
            return json.dumps({"items": LISTS.get(arguments[1], [])})
        # Clients that send requests for some time do so during a deployment.
        if "wait" in arguments and arguments[-1] == f"--timeout={cluster.LOAD_SECONDS + 180}s":
            assert self.deployed.wait(60)
        if "logs" in arguments:
            traffic = self.server.state("traffic")
            return json.dumps({"sent": traffic["requests"] + 1, "lost": traffic["errors"]})
        return ""

    def goemotions(self, *arguments: str) -> str:
        assert arguments[:2] == ("pipeline", "submit")
        given = submit.make_context("submit", list(arguments[2:]), parent=pipeline.make_context("pipeline", ["submit"])).params
        training_arguments(*(given[name] for name in ("data", "models", "weights", "epochs", "others")))
        assert not resources.gpu_steps({**resources.TRAINING, **resources.changed(given["resources"], resources.TRAINING)})
        return "run r-1 SUCCEEDED: its outputs are there\n"

    def registry(self, *arguments: str, image: str, secret: str) -> str:
        self.deployed.clear()
        result = CliRunner().invoke(cli.commands, ["model", *arguments])
        self.deployed.set()
        if result.exception:
            raise Failed(str(result.exception))
        return result.output


@pytest.fixture
def trial(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow_client.client.cache_clear()
    run = tracking.get_or_create_run("trial").run_id
    for number, alias in ((1, "champion-cpu"), (2, "challenger-cpu")):
        location = f"s3://goemotions/models/goemotions/{number:032x}/cpu/"
        model_registry.get_or_create_version("goemotions", run, location, {"variant": "cpu", "profile": "minilm"})
        model_registry.set_alias("goemotions", alias, str(number))
    shutil.copytree(MANIFESTS, tmp_path / "manifests", symlinks=True)
    yield Trial(DryTools(kubernetes), "registry.example", "abc", tmp_path, NAMESPACE)
    monkeypatch.undo()
    mlflow_client.client.cache_clear()


@needs_crds
def test_every_check_runs_and_everything_is_removed(trial: Trial) -> None:
    outcomes = cluster.run(trial, print)
    results = {one.check: one.result for one in outcomes}
    assert list(results) == [title for title, *_ in cluster.CHECKS]
    assert {check: result for check, result in results.items() if not result.startswith("ok: ")} == {
        "pod deleted in training": "skipped: run r-1 SUCCEEDED, but its training was over before a pod was deleted"
    }
    assert "none lost" in results["canary taken over under load"]
    assert "canary version 2 with 20%" in results["canary"]
    tools = trial.tools
    assert isinstance(tools, DryTools)
    assert [(one["kind"], one["metadata"]["name"], errors) for one in tools.applied if (errors := refused(one))] == []
    places = {one["metadata"].get("namespace") for one in tools.applied} - {"default", "kubeflow"}
    assert places == {None, NAMESPACE}
    (store,) = {one["metadata"]["name"] for one in tools.applied if one["kind"] == "ClusterStorageContainer"}
    assert store == NAMESPACE
    assert f".{NAMESPACE}:5000" in str(tools.applied)
    assert ".goemotions:" not in str(tools.applied)
    removed = [arguments[1:3] for arguments in tools.called if arguments[0] == "delete"]
    assert removed == [("namespace", NAMESPACE), ("clusterstoragecontainer", NAMESPACE), ("--namespace", "kubeflow")]
    lines = cluster.table(outcomes).splitlines()
    assert lines[0].split() == ["check", "result", "seconds"]
    assert len(lines) == len(outcomes) + 1


def test_a_failed_check_leaves_out_those_that_need_it_and_the_rest_is_removed(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise Failed("step train failed")

    monkeypatch.setattr(trial.tools, "goemotions", fail)
    results = {one.check: one.result for one in cluster.run(trial, lambda line: None)}
    assert results["pipeline on the sample"] == "FAILED: step train failed"
    assert results["canary"] == "left out: pipeline on the sample failed"
    assert isinstance(trial.tools, DryTools)
    assert any(arguments[0] == "delete" for arguments in trial.tools.called)


def test_a_lost_request_is_a_failure() -> None:
    with pytest.raises(Failed, match="1 of 10 requests lost"):
        cluster._none_lost({"sent": 10, "lost": 1})
    with pytest.raises(Failed, match="no of 0 requests"):
        cluster._none_lost({})


def test_the_versions_of_the_kind_cluster_are_in_one_file() -> None:
    script, versions = ((MANIFESTS / "kind" / name).read_text() for name in ("up.sh", "versions.env"))
    names = dict(line.split("=") for line in versions.splitlines() if not line.startswith("#"))
    assert set(names) == set(re.findall(r"\$(\w+_VERSION)", script))
    workflow = (MANIFESTS.parent / ".github" / "workflows" / "cluster.yml").read_text()
    pages = [page.read_text() for page in (MANIFESTS.parent / "docs").glob("*.md")]
    assert not [version for version in names.values() for text in (script, workflow, *pages) if version in text]
    assert "make kind-up" in workflow
    assert "make cluster-test KUBE_CONTEXT=kind-goemotions" in workflow
    assert subprocess.run(["bash", "-n", MANIFESTS / "kind" / "up.sh"], check=False).returncode == 0
