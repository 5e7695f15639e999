"""What is claimed of a cluster, tried on one: a table of checks, results and seconds.

python -m benchmarks.cluster --context kind-goemotions

It works in a namespace of its own, which it removes at the end. It needs kubectl, KServe, Kubeflow Pipelines without profiles, and
images that the nodes have or can pull. The sample is trained on CPUs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.trial import CPU, PIPELINES, ROOT, Failed, Skipped, Tools, Trial, client_pod, execute
from goemotions import defaults
from goemotions.errors import WorkflowError

CANARY_PERCENT, LOAD_SECONDS = 20, 60
ON_CPUS = " ".join(
    [
        "train.gpus=0 train.cpu=1 train.memory=3Gi evaluate_gpu.gpus=0 evaluate_gpu.cpu=1 evaluate_gpu.memory=2Gi evaluate_cpu.cpu=1",
        *(f"{step}.cpu=500m {step}.memory=2Gi" for step in ("ingest", "export", "register", "report")),
    ]
)


@dataclass(frozen=True)
class Outcome:
    check: str
    result: str
    seconds: float


def requirements(trial: Trial) -> str:
    server = json.loads(trial.tools.kubectl("version", "--output", "json"))["serverVersion"]["gitVersion"]
    trial.get("crd", "inferenceservices.serving.kserve.io")
    trial.get("deployment", "ml-pipeline", "--namespace", PIPELINES)
    return f"Kubernetes {server}"


def overlay(trial: Trial) -> str:
    documents = trial.rendered()
    trial.apply([one for one in documents if one["kind"] != "InferenceService"])
    client = {"matchLabels": {"app": "cluster-test"}}
    metadata = {"name": "cluster-test", "namespace": trial.namespace}
    spec = {"podSelector": client, "policyTypes": ["Egress"], "egress": [{}]}
    trial.apply([{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}])
    for server in ("seaweedfs", "mlflow"):
        trial.kubectl("rollout", "status", f"deployment/{server}", "--timeout=600s")
    for role, name in (("pipeline", trial.namespace), ("register", f"{trial.namespace}-signing")):
        data = {path.name: path.read_text(encoding="utf-8") for path in (trial.keys / role).iterdir()}
        metadata = {"name": name, "namespace": PIPELINES}
        trial.apply([{"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}])
    return "restricted namespace, store and MLflow run"


def train(trial: Trial, *others: str) -> str:
    secrets = (f"credentials_secret={trial.namespace}", f"signing_secret={trial.namespace}-signing")
    options = [part for setting in (*secrets, f"image={trial.trainer}", *others) for part in ("--set", setting)]
    arguments = ("--data", "sample", "--models", "minilm", "--epochs", "1", "--resources", ON_CPUS, *options)
    shown = trial.tools.goemotions("pipeline", "submit", *arguments, "--experiment", trial.namespace, "--force", "--wait")
    return next(line for line in shown.splitlines() if "SUCCEEDED:" in line).partition(":")[0]


def pipeline(trial: Trial) -> str:
    return train(trial)


def deleted_pod(trial: Trial) -> str:
    """Trains another version, whose training pod is deleted once."""
    deleted: list[str] = []
    ended = threading.Event()

    def delete() -> None:
        while not ended.wait(2):
            for pod in trial.get("pods", "--namespace", PIPELINES, "--field-selector=status.phase=Running").get("items", []):
                node = pod["metadata"].get("annotations", {}).get("workflows.argoproj.io/node-name", "")
                if ".train" in node and "driver" not in node:
                    trial.tools.kubectl("--namespace", PIPELINES, "delete", "pod", pod["metadata"]["name"], "--wait=false")
                    deleted.append(pod["metadata"]["name"])
                    return

    killer = threading.Thread(target=delete)
    killer.start()
    try:
        result = train(trial, "seed=7")
    finally:
        ended.set()
        killer.join()
    if not deleted:
        raise Skipped(f"{result}, but its training was over before a pod was deleted")
    return f"{result} although its training pod was deleted"


def services(trial: Trial) -> str:
    images = ("--registry", trial.registry, "--image-tag", trial.tag)
    shown = trial.ask("isvc", "--file", str(trial.manifest), "--bucket", defaults.BUCKET, *images)
    trial.apply(trial.rendered())
    trial.wait_until_ready()
    return next(line for line in shown.splitlines() if line.startswith(f"{CPU}: version")).partition(",")[0]


def by_service(trial: Trial) -> str:
    return _none_lost(trial.requests(f"http://{CPU}-predictor.{trial.namespace}/v1/models/goemotions:predict"))


def by_gateway(trial: Trial) -> str:
    return _none_lost(trial.requests(*trial.gateway()))


def canary(trial: Trial) -> str:
    trial.gateway()
    return trial.deploy("challenger-cpu", "--canary-percent", str(CANARY_PERCENT)).strip().splitlines()[-1]


def take_over(trial: Trial) -> str:
    with trial.load(LOAD_SECONDS) as counts:
        trial.deploy("challenger-cpu")
    return _none_lost(counts)


def roll_back(trial: Trial) -> str:
    with trial.load(LOAD_SECONDS) as counts:
        trial.deploy("champion-cpu")
    return _none_lost(counts)


def policies(trial: Trial) -> str:
    """A pod of another namespace does not reach the predictor, if the cluster enforces policies."""
    name = f"{trial.namespace}-stranger"
    url = f"http://{CPU}-predictor.{trial.namespace}/v2/health/live"
    script = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=10)"
    pod = client_pod(name, "default", trial.trainer, ["python3", "-c", script])
    trial.tools.kubectl("apply", "--filename", "-", text=json.dumps(pod))
    try:
        trial.tools.kubectl(
            "--namespace", "default", "wait", "--for=jsonpath={.status.phase}=Failed", f"pod/{name}", "--timeout=60s"
        )
    except Failed as error:
        raise Skipped("the cluster does not enforce network policies") from error
    finally:
        trial.tools.kubectl("--namespace", "default", "delete", "pod", name, "--ignore-not-found", "--wait=false")
    return "a stranger is kept out"


def drain(trial: Trial) -> str:
    nodes = [one["metadata"]["name"] for one in trial.get("nodes")["items"] if not one["spec"].get("taints")]
    if len(nodes) < 2:
        raise Skipped("one node")
    pods = trial.get("pods", "--namespace", trial.namespace, "--selector", f"serving.kserve.io/inferenceservice={CPU}")["items"]
    node = pods[0]["spec"]["nodeName"]
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
    try:
        trial.tools.kubectl("drain", node, "--pod-selector=serving.kserve.io/inferenceservice", *options)
        trial.wait_until_ready()
    finally:
        trial.tools.kubectl("uncordon", node)
    return "the predictor runs on another node"


def _none_lost(counts: dict[str, int]) -> str:
    if not counts.get("sent") or counts["lost"]:
        raise Failed(f"{counts.get('lost', 'no')} of {counts.get('sent', 0)} requests lost")
    return f"{counts['sent']} requests, none lost"


def clean_up(trial: Trial) -> None:
    """Removes everything that the trial made; what is missing already is no error."""
    for arguments in (
        ("namespace", trial.namespace),
        ("clusterstoragecontainer", trial.namespace),
        ("--namespace", PIPELINES, "secret", trial.namespace, f"{trial.namespace}-signing"),
    ):
        with contextlib.suppress(Failed):
            trial.tools.kubectl("delete", *arguments, "--ignore-not-found", "--wait=false")


Check = Callable[[Trial], str]
# Each with the number of those before it that it needs.
CHECKS: tuple[tuple[str, Check, int], ...] = (
    ("requirements", requirements, 0),
    ("overlay", overlay, 1),
    ("pipeline on the sample", pipeline, 2),
    ("services", services, 3),
    ("requests by Service", by_service, 4),
    ("requests by gateway", by_gateway, 4),
    ("pod deleted in training", deleted_pod, 3),
    ("canary", canary, 4),
    ("canary taken over under load", take_over, 4),
    ("rolled back under load", roll_back, 4),
    ("network policies", policies, 4),
    ("node drained", drain, 4),
)


def run(trial: Trial, show: Callable[[str], None]) -> list[Outcome]:
    """Runs the checks, and removes what they made. One whose requirements failed is left out."""
    outcomes: list[Outcome] = []
    try:
        for title, check, needed in CHECKS:
            began = time.monotonic()
            broken = [one.check for one in outcomes[:needed] if one.result.startswith(("FAILED", "left out"))]
            try:
                result = f"left out: {broken[0]} failed" if broken else f"ok: {check(trial)}"
            except Skipped as reason:
                result = f"skipped: {reason}"
            except (Failed, WorkflowError, KeyError, ValueError, StopIteration) as error:
                result = f"FAILED: {error or type(error).__name__}"
            outcomes.append(Outcome(title, result, time.monotonic() - began))
            show(f"{title}: {result}")
    finally:
        clean_up(trial)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    rows = [("check", "result", "seconds"), *((one.check, one.result, f"{one.seconds:.0f}") for one in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


@click.command()
@click.option("--context", required=True, help="Context of the kubeconfig.")
@click.option("--registry", default="", help="Prefix of the images.")
def main(context: str, registry: str) -> None:
    """Try on a cluster what is claimed of one."""
    tag = execute(["images/image.sh", "commit"]).strip()
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "manifests", Path(name, "manifests"), symlinks=True)
        outcomes = run(Trial(Tools(context), registry, tag, Path(name)), click.echo)
    click.echo(f"\n{table(outcomes)}")
    sys.exit(any(one.result.startswith(("FAILED", "left out")) for one in outcomes))


if __name__ == "__main__":
    main()
