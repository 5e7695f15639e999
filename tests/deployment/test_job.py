"""Commands on the registry as Jobs, against a Kubernetes API that runs their pods as processes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
from click.testing import CliRunner, Result

from goemotions.cli import main as cli
from goemotions.deployment import isvc, job
from goemotions.errors import BadArgument, ClusterUnavailable, DeploymentError
from goemotions.registry import mlflow_client, model_registry
from tests.deployment.test_kserve import MANIFEST, Kubernetes, kubernetes, versions
from tests.manifests.test_manifests import restricted

__all__ = ["kubernetes", "versions"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_SECONDS", 0.02)


def in_cluster(*command: str) -> Result:
    return CliRunner().invoke(cli.commands, ["in-cluster", "--image", "registry.example/goemotions-trainer:abc", *command])


def failure(*command: str) -> str:
    result = in_cluster(*command)
    assert isinstance(result.exception, DeploymentError), result.output
    return str(result.exception)


def test_a_registry_command_runs_beside_the_registry_and_writes_the_manifest_here(
    versions: dict[str, str], kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MANIFEST.parent, tmp_path / "manifests", symlinks=True)
    monkeypatch.chdir(tmp_path)
    # Nothing here reaches the registry, and connections to Kubernetes break while the Job runs.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mlflow_client.client.cache_clear()
    kubernetes.switch(away=7)
    result = in_cluster("model", "isvc", "--model-name", "k8s", "--bucket", "theirs", "--registry", "registry.example")
    assert result.exit_code == 0, (result.output, result.exception)
    assert re.match(r"job models/goemotions-[0-9a-f]{8}: goemotions model isvc --model-name k8s", result.output)
    location = versions["2"].replace("goemotions", "theirs", 1)
    assert f"k8s-cpu: version 2, {location}\n" in result.output
    assert isvc.read(Path("manifests/models/k8s/isvc.yaml")) == {"k8s-cpu": ("2", location)}
    assert kubernetes.state("jobs") == []
    (sent,) = kubernetes.state("finished")
    kubernetes_validate.validate(sent, "1.32", strict=True)
    assert restricted(sent["spec"]["template"]["spec"]) == []
    (container,) = sent["spec"]["template"]["spec"]["containers"]
    names = [ref["name"] for source in container["envFrom"] for ref in source.values()]
    assert names == ["goemotions", "goemotions", "goemotions-signing"]
    assert sent["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert sent["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_the_exit_code_and_the_error_of_the_command_are_passed_on(kubernetes: Kubernetes) -> None:
    result = in_cluster("model", "promote", "99", "--model-name", "a/b")
    assert result.exit_code == 1
    assert "goemotions: the parameter model_name is a name of letters" in result.output
    assert kubernetes.state("jobs") == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no-image", r"does not start \(pod goemotions-\w+-x: ImagePullBackOff of goemotions"),
        ("no-node", "does not start .*Unschedulable: 0/1 nodes"),
        ("refused", "does not start .*pods are refused: Error creating: .*violates PodSecurity"),
        ("deleted", r"ended without its command \(Job has reached the backoff limit\): run it again"),
    ],
)
def test_a_job_that_does_not_start_or_is_deleted_is_a_named_error(kubernetes: Kubernetes, fault: str, message: str) -> None:
    kubernetes.switch(job_fault=fault)
    assert re.search(message, failure("model", "--help"))
    assert kubernetes.state("jobs") == []


def test_a_refused_job_is_a_named_error(kubernetes: Kubernetes) -> None:
    kubernetes.switch(refuse=403, refuse_path="/jobs")
    assert "the account lacks permissions" in failure("model", "--help")


def test_a_job_that_cannot_be_followed_goes_on_and_is_named(kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "UNAVAILABLE_SECONDS", 0.1)
    started: list[str] = []

    def show(line: str) -> None:
        started.append(line)
        kubernetes.switch(away=1000)

    with pytest.raises(
        ClusterUnavailable, match=r"does not respond.*; job goemotions-\w+ goes on: `kubectl -n models logs -f job/"
    ):
        job.run(["model", "--help"], job.Settings("image"), show)
    kubernetes.switch(away=0)
    assert len(kubernetes.state("jobs")) == 1


def test_other_commands_are_refused_here(kubernetes: Kubernetes) -> None:
    result = in_cluster("serve", "--port", "80")
    assert isinstance(result.exception, BadArgument)
    assert kubernetes.state("finished") == []


def test_a_change_of_a_manifest_fits_into_the_message_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = {f"goemotions.history.{number}": "x" * 200 for number in range(100)}
    version = model_registry.Version("7", "s3://b/models/m/" + "0" * 32 + "/cpu/", "0" * 32, {"variant": "cpu", **history})
    change = job.ManifestChange("mine", {"mine-cpu": version, "mine-gpu": version}, is_complete=True, options={"bucket": "b"})
    assert not change.hand_over()
    monkeypatch.setenv(job.MESSAGE_VARIABLE, str(tmp_path / "message"))
    assert change.hand_over()
    text = (tmp_path / "message").read_text()
    assert len(text) <= 4096
    parsed = job.ManifestChange.parse(text)
    assert parsed is not None
    assert (parsed.versions["mine-cpu"].number, parsed.options) == ("7", {"bucket": "b"})
