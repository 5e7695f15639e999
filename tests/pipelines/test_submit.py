"""The commands that submit to Kubeflow Pipelines, against a stand-in server with its API in another process."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from click.testing import CliRunner, Result
from kfp.dsl.base_component import BaseComponent
from kubernetes.config import kube_config

from goemotions.deployment import node_pools
from goemotions.errors import WorkflowError
from pipelines import client, package, progress, submit, training
from pipelines.cli import pipeline
from tests.support import http_server
from tests.support.kfp_server import TOKEN

ROOT = Path(__file__).parents[2]
MODELS = ("--models", "minilm,distilbert")


@dataclass(frozen=True)
class Kubeflow:
    url: str

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/tests/state", timeout=10) as response:
            state: dict[str, Any] = json.load(response)
            return state

    def switch(self, **fields: Any) -> None:
        request = urllib.request.Request(f"{self.url}/", json.dumps(fields).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def reset(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/", method="DELETE"), timeout=10).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Kubeflow]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.kfp_server"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield Kubeflow(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.terminate()


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """A pipeline with the same resources, image and commit is compiled once for all tests of this file."""
    pipelines: dict[str, BaseComponent] = {}
    files: dict[tuple[str, str, BaseComponent], bytes] = {}
    make, compile_pipeline = training.pipeline, package.compile_pipeline

    def pipeline(*resources: dict[str, str] | None, **variant: bool) -> BaseComponent:
        key = json.dumps([resources, variant])
        if key not in pipelines:
            pipelines[key] = make(*resources, **variant)
        return pipelines[key]

    def compiled(path: Path, image: str, commit: str, pipeline: BaseComponent) -> None:
        key = (image, commit, pipeline)
        if key not in files:
            compile_pipeline(path, image, commit, pipeline)
            files[key] = path.read_bytes()
        path.write_bytes(files[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "pipeline", pipeline)
        patch.setattr(package, "compile_pipeline", compiled)
        yield


@pytest.fixture
def kubeflow(server: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubeflow:
    """The server, empty, in the environment of the commands."""
    server.reset()
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    for name in ("KF_PIPELINES_NAMESPACE", "KF_PIPELINES_COOKIES", "KUBE_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(package, "TRAINING_FILE", tmp_path / "training.yaml")
    monkeypatch.setattr(package, "SCORING_FILE", tmp_path / "scoring.yaml")
    return server


def run(command: str, *arguments: str) -> Result:
    """A command of ``goemotions pipeline``, with nodes for GPUs; the checkout of the tests may have uncommitted changes."""
    nodes = ("--preset", "gke-a100-80gb") if command in ("submit", "schedule") else ()
    return CliRunner().invoke(pipeline, [command, *nodes, *arguments, "--force"])


def failure(command: str, *arguments: str) -> str:
    result = run(command, *arguments)
    assert isinstance(result.exception, WorkflowError), result.output
    assert TOKEN not in result.output + str(result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_run_of_a_version_named_by_commit_starts_in_the_experiment(kubeflow: Kubeflow) -> None:
    result = run("submit", "--data", "s3://data/ge/", "--models", "roberta-large", "--epochs", "3", "--set", "seed=7")
    assert result.exit_code == 0, result.output
    state = kubeflow.state()
    (version,), (sent,) = state["versions"], state["runs"].values()
    assert version["display_name"].startswith(f"{package.commit()[:12]}-")
    assert version["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "goemotions-training"
    assert "kubernetes" in version["pipeline_spec"]["platform_spec"]["platforms"]
    assert sent["runtime_config"]["parameters"] == {
        **node_pools.get("gke-a100-80gb").placement(),
        "data": "s3://data/ge/",
        "models": ["roberta-large"],
        "epochs": 3,
        "seed": 7,
    }
    assert sent["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert [one["display_name"] for one in state["experiments"]] == ["goemotions"]
    assert f"{kubeflow.url}/#/runs/details/{sent['run_id']}" in result.output
    assert TOKEN not in result.output


def test_the_same_source_is_uploaded_once_and_other_resources_are_another_version(kubeflow: Kubeflow) -> None:
    for arguments in ((), (), ("--resources", "train.gpus=4"), ("--registry", "registry.example/team")):
        assert run("submit", *arguments).exit_code == 0
    state = kubeflow.state()
    assert len(state["runs"]) == 4
    assert len({version["display_name"] for version in state["versions"]}) == len(state["versions"]) == 3
    assert len(state["pipelines"]) == len(state["experiments"]) == 1
    images = [
        one["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["image"] for one in state["versions"]
    ]
    assert images[2]["defaultValue"] == f"registry.example/team/goemotions-trainer:{package.commit()}"


KUBEFLOW_2_17 = "spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: OnError}}}"


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        ({"workflowDefaults": KUBEFLOW_2_17}, ["OnError overrules that of the steps: one that fails is not retried"]),
        ({"config": f"workflowDefaults: {{{KUBEFLOW_2_17}}}"}, ["OnError overrules"]),
        ({"workflowDefaults": 'spec: {templateDefaults: {retryStrategy: {limit: "0", retryPolicy: Always}}}'}, []),
        (
            {"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: Always}}}"},
            ["default limit of retries is 2: it retries groups of steps"],
        ),
        (
            {"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: 3}}}"},
            ["OnFailure retries no step whose pod is deleted", "default limit of retries is 3"],
        ),
        ({}, ["no default retry policy: it retries no step whose pod is deleted"]),
        ({"workflowDefaults": "spec: []"}, ["no default retry policy"]),
        (None, []),
    ],
)
def test_a_configuration_of_argo_that_overrules_the_retries_is_noted(
    kubeflow: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, str] | None, notes: list[str]
) -> None:
    paths = []

    class Api(http_server.Handler):
        def do_GET(self) -> None:
            paths.append(self.path)
            content = {"kind": "ConfigMap", "data": data} if data is not None else {"kind": "Status", "message": "forbidden"}
            body = json.dumps(content).encode()
            self.send(403 if data is None else 200, body, {"Content-Type": "application/json"})

    server = http_server.Server(Api)
    cluster = {"name": "c", "cluster": {"server": server.url}}
    context = {"name": "staging", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "staging", "users": [{"name": "u", "user": {}}]}
    (tmp_path / "config").write_text(json.dumps(config | {"contexts": [context], "clusters": [cluster]}))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    with http_server.running(server):
        result = run("submit")
    assert result.exit_code == 0, result.output
    assert paths == ["/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"]
    shown = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(shown) == len(notes)
    assert all(note in line for note, line in zip(notes, shown, strict=True))


@pytest.mark.parametrize(("end", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_waiting_shows_each_step_with_its_model_and_duration_and_the_final_state(
    kubeflow: Kubeflow, end: str, code: int
) -> None:
    kubeflow.switch(end=end)
    result = run("submit", "--wait", *MODELS)
    assert result.exit_code == code, result.output
    shown = re.findall(r"^  \d\d:\d\d:\d\d  (\w+) +(\S+(?: [a-z]\S+)?)(?: +(\S+))?$", result.output, re.MULTILINE)
    assert [line for line in shown if line[1].startswith("train")] == [
        ("RUNNING", "train minilm", ""),
        ("SUCCEEDED", "train minilm", "1m01s"),
        ("RUNNING", "train distilbert", ""),
        ("SUCCEEDED", "train distilbert", "1m01s"),
    ]
    assert shown[-1] == (end, "register", "1m01s")
    assert {step for _, step, _ in shown} == {"ingest", "train minilm", "train distilbert", "register"}
    table = re.findall(r"^(\w+)  +(\S*) +([A-Z]+) +1m01s$", result.output, re.MULTILINE)
    assert table == [
        ("ingest", "", "SUCCEEDED"),
        ("train", "minilm", "SUCCEEDED"),
        ("train", "distilbert", "SUCCEEDED"),
        ("register", "", end),
    ]
    if code:
        assert f"ended as {end}" in str(result.exception)
    else:
        assert "make promote VERSION=" in result.output.splitlines()[-1]


def test_a_failed_step_is_named_and_the_end_of_its_log_shown(kubeflow: Kubeflow) -> None:
    kubeflow.switch(end="FAILED")
    result = run("submit", "--wait", *MODELS)
    assert "    | goemotions.errors.GateError: the gate refused" in result.output
    assert "ended as FAILED: register failed; the log of a step is in the Kubeflow UI" in str(result.exception)


def test_a_retried_step_is_shown_with_the_reason(kubeflow: Kubeflow) -> None:
    kubeflow.switch(retried=True)
    output = run("submit", "--wait", *MODELS).output
    lines = re.findall(r"^  \d\d:\d\d:\d\d  RETRIED +train (\S+) +(.*)$", output, re.MULTILINE)
    assert lines == [("minilm", "attempt 2: pod deleted"), ("distilbert", "attempt 2: pod deleted")]


def test_steps_that_the_server_reports_after_the_end_of_the_run_are_shown(kubeflow: Kubeflow) -> None:
    kubeflow.switch(details_lag=3)
    output = run("submit", "--wait", *MODELS).output
    assert re.search(r"SUCCEEDED  register +1m01s", output)


def test_steps_are_ordered_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(name: str, start: datetime | None) -> kfp_server_api.V2beta1PipelineTaskDetail:
        return kfp_server_api.V2beta1PipelineTaskDetail(display_name=name, pod_name=name, start_time=start)

    began = datetime(2026, 1, 1, tzinfo=UTC)
    for zone in ("America/New_York", "Asia/Tokyo"):
        with monkeypatch.context() as patched:
            patched.setenv("TZ", zone)
            time.tzset()
            listed = progress.steps([task("train", None), task("ingest", began)], [])
        time.tzset()
        assert [step.name for step in listed] == ["ingest", "train"]


def test_waiting_outlasts_a_restart_of_the_server(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = client.Connection(kubeflow.url, token=TOKEN)
    started = submit.start(connection, package.pack_training("", "", {}, force=True), "e")
    kubeflow.switch(away=12)
    assert progress.Progress(started, lambda line: None).follow() == "SUCCEEDED"
    monkeypatch.setattr(progress, "UNAVAILABLE_SECONDS", 0.2)
    kubeflow.switch(away=10_000)
    with pytest.raises(client.ServerError, match="does not respond"):
        progress.Progress(started, lambda line: None).follow()


def test_interrupting_the_wait_reports_that_the_run_continues(kubeflow: Kubeflow) -> None:
    kubeflow.switch(end="RUNNING")
    command = [sys.executable, "-m", "goemotions.cli", "pipeline", "submit", "--preset", "gke-l4", "--wait", "--force"]
    # If the tests run in the background, SIGINT is ignored in child processes by default.
    interruptible = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        deadline = time.monotonic() + 60
        while not any(count > 1 for count in kubeflow.state()["polls"].values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"^goemotions: stopped waiting: run run-\d+ continues$", errors, re.MULTILINE)
    assert "Traceback" not in errors


def test_a_schedule_is_created_kept_replaced_and_removed(kubeflow: Kubeflow) -> None:
    assert "scheduled: 0 0 3 * * 0" in run("schedule", "--cron", "0 0 3 * * 0", "--models", "minilm").output
    (first,) = kubeflow.state()["recurring"]
    assert first["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 0"
    assert (first["no_catchup"], int(first["max_concurrency"]), first["mode"]) == (True, 1, "ENABLE")
    assert first["runtime_config"]["parameters"]["models"] == ["minilm"]
    assert "nothing changed" in run("schedule", "--cron", "0 0 3 * * 0", "--models", "minilm").output
    assert kubeflow.state()["recurring"] == [first]
    assert "replaced the schedule" in run("schedule", "--cron", "0 30 4 * * *", "--models", "minilm").output
    (second,) = kubeflow.state()["recurring"]
    assert second["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    assert "the schedule goemotions-training would be removed" in run("schedule", "--cron", "off", "--dry-run").output
    assert kubeflow.state()["recurring"] == [second]
    assert "ended 1 schedule" in run("schedule", "--cron", "off").output
    assert kubeflow.state()["recurring"] == []


def test_a_refused_schedule_keeps_the_former_one(kubeflow: Kubeflow) -> None:
    assert run("schedule", "--cron", "0 0 3 * * 0").exit_code == 0
    former = kubeflow.state()["recurring"]
    kubeflow.switch(refused_paths=["POST recurringruns"])
    assert "recurringruns cannot be created" in failure("schedule", "--cron", "0 30 4 * * *")
    assert kubeflow.state()["recurring"] == former


def test_a_cron_expression_without_seconds_is_a_named_error(kubeflow: Kubeflow) -> None:
    assert "has 5 fields: Kubeflow takes six, seconds first" in failure("schedule", "--cron", "0 3 * * 0")


def test_several_users_need_a_namespace(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.switch(multi_user=True)
    assert "is a multi-user Kubeflow: set KF_PIPELINES_NAMESPACE" in failure("submit")
    assert "403" in failure("submit", "--namespace", "others")
    monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "team")
    assert run("submit").exit_code == 0
    state = kubeflow.state()
    assert state["experiments"][0]["namespace"] == state["pipelines"][0]["namespace"] == "team"


@pytest.mark.parametrize(
    ("switched", "message"),
    [
        ({"refuse": 401}, r"refuses \(401, .*set KF_PIPELINES_TOKEN"),
        ({"refuse": 403}, r"refuses \(403, .*no permission for this"),
        ({"refuse": 404}, r"refuses \(404, .*check the endpoint"),
        ({"refuse": 500}, r"refuses \(500, .*fix what it says"),
        ({"login": True}, r"returns a web page .* login: set KF_PIPELINES_TOKEN"),
        ({"away": 1000}, "does not respond at http://127.0.0.1"),
    ],
)
def test_failures_of_the_server_are_named_errors(kubeflow: Kubeflow, switched: dict[str, Any], message: str) -> None:
    kubeflow.switch(**switched)
    began = time.monotonic()
    assert re.search(message, failure("submit"))
    assert time.monotonic() - began < 15


def test_a_wrong_token_is_refused_and_not_shown(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "a-wrong-secret")
    result = run("submit")
    assert "401" in str(result.exception)
    assert "a-wrong-secret" not in result.output + str(result.exception)


def test_a_package_that_the_server_cannot_read_is_refused(kubeflow: Kubeflow) -> None:
    connection = client.Connection(kubeflow.url, token=TOKEN)
    packed = package.pack_training("", "", {}, force=True)
    packed.path.write_text(packed.path.read_text().replace("pipelineInfo:", "pipelineinfo:"))
    with pytest.raises(client.ServerError, match=r"refuses \(400, invalid pipeline spec.*fix what it says"):
        submit.start(connection, packed, "e")


def test_an_unreachable_or_missing_endpoint_is_a_named_error(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not respond at http://127.0.0.1:9" in failure("submit", "--endpoint", "http://127.0.0.1:9")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert "there is no address of Kubeflow Pipelines: set KF_PIPELINES_ENDPOINT" in failure("submit")


def test_a_context_is_one_of_the_kubeconfig(kubeflow: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig = tmp_path / "config"
    context = {"name": "staging", "context": {"cluster": "c", "user": "u"}}
    cluster = {"name": "c", "cluster": {"server": kubeflow.url}}
    content = {"apiVersion": "v1", "kind": "Config", "current-context": "staging", "users": [{"name": "u", "user": {}}]}
    kubeconfig.write_text(json.dumps(content | {"contexts": [context], "clusters": [cluster]}))

    command = [sys.executable, "-m", "goemotions.cli", "pipeline", "submit", "--preset", "gke-l4", "--force", "--endpoint", ""]
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("KF_PIPELINES_")}
    variables = {"KUBE_CONTEXT": "production", "KUBECONFIG": str(kubeconfig)}
    finished = subprocess.run(command, cwd=ROOT, env=cleared | variables, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "has no context 'production': it has staging" in finished.stderr
    # The client of Kubernetes reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.setenv("KUBE_CONTEXT", "staging")
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert "KF_PIPELINES_TOKEN goes with KF_PIPELINES_ENDPOINT" in failure("submit")
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    assert "there is no kubeconfig" in failure("submit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "./here"), "a pod cannot read ./here: put it into S3"),
        (("--weights", "minilm=/disk/w"), "a pod cannot read /disk/w"),
        (("--teachers", "mpnet@1+./model"), "a pod cannot read ./model"),
        (("--set", "epoch=3"), "the pipeline has no parameter 'epoch'"),
        (("--resources", "train.gpu=3"), "there is no resource 'train.gpu'"),
    ],
)
def test_arguments_that_a_cluster_cannot_use_are_refused_before_any_request(
    kubeflow: Kubeflow, arguments: Any, message: str
) -> None:
    assert message in failure("submit", *arguments)
    assert kubeflow.state()["pipelines"] == []


def test_a_dry_run_shows_everything_and_sends_nothing(kubeflow: Kubeflow) -> None:
    result = run("submit", "--dry-run", "--preset", "gke", "--resources", "train.gpus=8", "--registry", "registry.example/team")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output[: result.output.rindex("}") + 1])
    assert shown["arguments"]["node_selector"] == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    assert shown["resources"] == {"train.gpus": "8"}
    assert shown["image"].startswith("registry.example/team/goemotions-trainer:")
    assert TOKEN not in result.output
    assert package.TRAINING_FILE.exists()
    assert kubeflow.state()["pipelines"] == []


def test_scoring_is_submitted_like_training(kubeflow: Kubeflow) -> None:
    arguments = (
        "score",
        "--input",
        "s3://data/comments/",
        "--output",
        "s3://data/labelled/",
        "--set",
        "version=2",
        "--set",
        "pods=8",
    )
    shown = json.loads(run(*arguments, "--dry-run", "--resources", "score.cpu=8").output.rpartition("}")[0] + "}")
    assert (shown["pipeline"], shown["resources"]) == ("goemotions-scoring", {"score.cpu": "8"})
    assert kubeflow.state()["pipelines"] == []
    result = run(*arguments, "--wait")
    assert result.exit_code == 0, result.output
    assert "make promote" not in result.output
    # A turn of its loop is a part of the rows, not a model.
    assert set(re.findall(r"^train +(\S+) +SUCCEEDED", result.output, re.MULTILINE)) == {"1", "2"}
    state = kubeflow.state()
    (uploaded,), (version,), (sent,) = state["pipelines"], state["versions"], state["runs"].values()
    assert uploaded["display_name"] == version["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "goemotions-scoring"
    assert sent["runtime_config"]["parameters"] == {
        "input": "s3://data/comments/",
        "output": "s3://data/labelled/",
        "version": "2",
        "pods": 8,
    }
    assert "a pod cannot reach here: give s3://bucket/prefix/" in failure("score", "--input", "here", "--output", "s3://b/o/")
    assert "the pipeline has no parameter 'pod'" in failure(*arguments, "--set", "pod=3")


def _git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_the_checkout_wherever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images would be named by the commit of another repository, and pulled in vain."""
    here = package.commit()
    assert re.fullmatch("[0-9a-f]{40}", here)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another repository")
    monkeypatch.chdir(tmp_path)
    assert package.commit() == here
    monkeypatch.setattr(package, "CHECKOUT", tmp_path / ".venv")
    package.CHECKOUT.mkdir()
    assert package.commit() == "unknown"


def test_uncommitted_changes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "CHECKOUT", tmp_path)
    with pytest.raises(package.PackageError, match="this is not a git checkout"):
        package.pack_training("", "", {}, path=tmp_path / "p.yaml")
    _git(tmp_path, "init", "-q")
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests", symlinks=True)
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("p.yaml\n")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-q", "-m", "one")
    package.pack_training("", "", {}, path=tmp_path / "p.yaml")
    with (tmp_path / "manifests" / "isvc.yaml").open("a") as file:
        file.write("# promoted\n")
    package.pack_training("", "", {}, path=tmp_path / "p.yaml")
    (tmp_path / "code.py").write_text("a = 2\n")
    with pytest.raises(package.PackageError, match=r"uncommitted changes \(code.py\)"):
        package.pack_training("", "", {}, path=tmp_path / "p.yaml")
    package.pack_training("", "", {}, path=tmp_path / "p.yaml", force=True)


def test_the_responses_of_the_stand_in_match_the_models_of_the_api(kubeflow: Kubeflow) -> None:
    """The models of the API read each response of the stand-in without a lost or unknown field."""
    assert run("submit").exit_code == 0
    assert run("schedule", "--cron", "0 0 3 * * 0").exit_code == 0
    state = kubeflow.state()
    reader = kfp_server_api.ApiClient()
    for name, kind in (
        ("experiments", "V2beta1Experiment"),
        ("pipelines", "V2beta1Pipeline"),
        ("versions", "V2beta1PipelineVersion"),
        ("recurring", "V2beta1RecurringRun"),
        ("runs", "V2beta1Run"),
    ):
        for sent in state[name].values() if isinstance(state[name], dict) else state[name]:
            model = reader.deserialize(type("Answer", (), {"data": json.dumps(sent)}), kind)
            assert reader.sanitize_for_serialization(model) == sent
