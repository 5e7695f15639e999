"""A command of ``goemotions`` as a Job in the cluster, without a connection from here to the registry, or one to Kubernetes that lasts.

The Job runs the trainer's image with the secret and the config map of the steps. It is followed to its end and then deleted. What the
command writes into a manifest, it hands over as the message of its container: the file is where the command was called.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from goemotions import defaults, strict_json
from goemotions.deployment import problems
from goemotions.deployment.cluster import Cluster
from goemotions.errors import BadJson, ClusterUnavailable, DeploymentError
from goemotions.registry.model_registry import Version

POLL_SECONDS = 2.0
# How long the API may be unavailable while a Job is followed.
UNAVAILABLE_SECONDS = 300.0
TIMEOUT_SECONDS = 3600
# A finished Job that nobody follows any more is deleted by Kubernetes.
KEPT_SECONDS = 3600
MESSAGE = "/dev/termination-log"
MESSAGE_VARIABLE = "GOEMOTIONS_MANIFEST_CHANGE"
CONTAINER = "goemotions"


@dataclass(frozen=True)
class ManifestChange:
    """What a command writes into a manifest.

    Attributes:
        model_name: name of the registered model.
        versions: the version of each InferenceService, by its name.
        file: the manifest; empty for that of the model.
        is_complete: whether the manifest gets these versions and options in any case; otherwise only one that has the services.
        options: as ``isvc.write`` takes them.
    """

    model_name: str
    versions: dict[str, Version]
    file: str = ""
    is_complete: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def hand_over(self) -> bool:
        """Writes the change where ``run`` finds it; returns False outside a Job."""
        path = os.environ.get(MESSAGE_VARIABLE)
        if path:
            # A message has at most 4096 bytes: of the tags, the history is left out.
            named = {name: asdict(_short(version)) for name, version in self.versions.items()}
            Path(path).write_text(json.dumps({**asdict(self), "versions": named}), encoding="utf-8")
        return bool(path)

    @classmethod
    def parse(cls, text: str) -> ManifestChange | None:
        """The change that a command handed over; None if there is none.

        Raises:
            BadJson: it is none.
        """
        if not text.startswith("{"):
            return None
        name = "the message of the Job"
        content = strict_json.parse(text, name)
        strict_json.require(content, cls, name)
        try:
            versions = {service: Version(**version) for service, version in content["versions"].items()}
            return cls(**{**content, "versions": versions})
        except TypeError as error:
            raise BadJson(f"{name} has unknown fields: use images of one version of this package") from error


def _short(version: Version) -> Version:
    return replace(version, tags={name: tag for name, tag in version.tags.items() if name in ("variant", "profile")})


@dataclass(frozen=True)
class Settings:
    """How a Job runs.

    Attributes:
        image: the trainer's.
        namespace: empty for that of the current context.
        secret: name of the secret, and of the config map, with the variables of registry and store.
        signing_secret: name of the secret of the step ``register``, if there is one.
        service_account: of the pod, for commands that use Kubernetes; empty: it gets no token.
        timeout_seconds: longest duration of the command.
    """

    image: str
    namespace: str = ""
    secret: str = defaults.CREDENTIALS_SECRET
    signing_secret: str = defaults.SIGNING_SECRET
    service_account: str = ""
    timeout_seconds: int = TIMEOUT_SECONDS


def run(command: Sequence[str], settings: Settings, show: Callable[[str], None]) -> tuple[int, ManifestChange | None]:
    """Runs a command of ``goemotions`` as a Job, and shows its log.

    Returns:
        Its exit code, and what it would write into a manifest.

    Raises:
        DeploymentError: the Job is refused, does not start, is deleted or takes too long; or it is no longer followed.
    """
    cluster = Cluster(settings.namespace)
    job = Job(cluster, f"goemotions-{secrets.token_hex(4)}", show)
    try:
        with job.described():
            job.retry(lambda: cluster.create_job(manifest(job.name, command, settings)))
            show(f"job {cluster.namespace}/{job.name}: goemotions {shlex.join(command)}")
            ended = job.follow()
    except ClusterUnavailable:
        raise
    except DeploymentError:
        cluster.delete_job(job.name)
        raise
    job.retry(lambda: cluster.delete_job(job.name))
    return int(ended["exitCode"]), ManifestChange.parse(ended.get("message", ""))


def manifest(name: str, command: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The Job, which a ``restricted`` namespace admits."""
    container = {
        "name": CONTAINER,
        "image": settings.image,
        "args": list(command),
        "env": [{"name": MESSAGE_VARIABLE, "value": MESSAGE}],
        # Of a variable that two of them have, the last one counts: the keys that may write bundles and locks.
        "envFrom": [
            {"configMapRef": {"name": settings.secret, "optional": True}},
            *({"secretRef": {"name": name, "optional": True}} for name in (settings.secret, settings.signing_secret)),
        ],
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # nosec B108 # the mount of a container
    }
    account = {"serviceAccountName": settings.service_account} if settings.service_account else {}
    pod = {
        **account,
        "automountServiceAccountToken": bool(settings.service_account),
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "8Gi"}}],
    }
    labels = {"app.kubernetes.io/name": "goemotions-command"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            # A second attempt would run a command again that has failed for a reason.
            "backoffLimit": 0,
            "activeDeadlineSeconds": settings.timeout_seconds,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            # With a sidecar of Istio, which goes on, the pod would not end.
            "template": {"metadata": {"labels": {**labels, "sidecar.istio.io/inject": "false"}}, "spec": pod},
        },
    }


class Job:
    """A Job that is followed. Requests to an API that does not respond are repeated for ``UNAVAILABLE_SECONDS``."""

    def __init__(self, cluster: Cluster, name: str, show: Callable[[str], None]) -> None:
        self.cluster, self.name, self.show = cluster, name, show
        self._lines = 0
        self._watch = problems.Watch()

    def retry(self, request: Callable[[], Any]) -> Any:
        """What a request returns.

        Raises:
            ClusterUnavailable: the API does not respond for too long.
        """
        deadline = time.monotonic() + UNAVAILABLE_SECONDS
        while True:
            try:
                return request()
            except ClusterUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def follow(self) -> Mapping[str, Any]:
        """Shows the log until the container has ended, and returns the state in which it has."""
        while True:
            pods = self.retry(lambda: self.cluster.pods_of_job(self.name))
            status = pods[-1]["status"] if pods else {}
            # A service mesh may add containers.
            states = {one["name"]: one.get("state", {}) for one in status.get("containerStatuses") or ()}
            state = states.get(CONTAINER, {})
            ended: Mapping[str, Any] | None = state.get("terminated")
            if "running" in state or ended:
                self._show_log(pods[-1]["metadata"]["name"], is_complete=bool(ended))
            if ended:
                if ended.get("reason") == "OOMKilled":
                    raise DeploymentError(f"job {self.name}: the command needs more than its memory of 8Gi: run it elsewhere")
                return ended
            self._require_progress(pods)
            time.sleep(POLL_SECONDS)

    def _show_log(self, pod: str, *, is_complete: bool) -> None:
        # All of it each time, so that a connection that breaks loses nothing: the log of a command is short.
        lines = self.retry(lambda: self.cluster.log(pod, CONTAINER)).split("\n")
        whole = lines if is_complete and lines[-1] else lines[:-1]
        for line in whole[self._lines :]:
            self.show(line)
        self._lines = max(self._lines, len(whole))

    def _require_progress(self, pods: list[dict[str, Any]]) -> None:
        """Raises DeploymentError if the Job has failed, or something stops it that does not pass by waiting."""
        job = self.retry(lambda: self.cluster.job(self.name))
        failed = [one for one in (job or {}).get("status", {}).get("conditions") or [] if one["type"] == "Failed"]
        if failed or job is None:
            reason = failed[0].get("message", "") if failed else "it was deleted"
            raise DeploymentError(f"job {self.name} ended without its command ({reason}): run it again; what was done is kept")
        if problem := self._watch.lasting(self._problem(pods)):
            raise DeploymentError(f"job {self.name} does not start ({problem.text}): fix that, then run it again")

    def _problem(self, pods: list[dict[str, Any]]) -> problems.Problem | None:
        if pods:
            problem: problems.Problem | None = self.retry(lambda: problems.of_pod(self.cluster, pods[-1]))
            return problem
        events = self.retry(lambda: self.cluster.warnings(self.name))
        return problems.Problem("pods", f"pods are refused: {events[-1]}") if events else None

    @contextmanager
    def described(self) -> Iterator[None]:
        """Says of a Job that is no longer followed that it goes on, and how to see it."""
        advice = f"job {self.name} goes on: `kubectl -n {self.cluster.namespace} logs -f job/{self.name}` shows it"
        try:
            yield
        except KeyboardInterrupt:
            raise ClusterUnavailable(f"stopped waiting, {advice}") from None
        except ClusterUnavailable as error:
            raise ClusterUnavailable(f"{error}; {advice}") from error
