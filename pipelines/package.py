"""A pipeline of the current checkout, compiled and named after its commit."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from goemotions import addresses, defaults
from goemotions.errors import WorkflowError
from goemotions.models import profiles
from pipelines import monitoring, placement, resources, scoring, training

TRAINING_FILE, SCORING_FILE, MONITORING_FILE = (Path(f".local/{name}.yaml") for name in ("training", "scoring", "monitoring"))
CHECKOUT = Path(__file__).parents[1]
# As in images/image.sh: a commit that changes none of them builds no new image.
IMAGE_CONTENT = ("images", "pyproject.toml", "constraints.txt", "LICENSE", "NOTICE", "goemotions", "components", "pipelines")
# `make promote` rewrites them; that does not change what runs.
NOT_COUNTED = ("manifests/isvc.yaml", "manifests/base/isvc.yaml", "manifests/models/")


class PackageError(WorkflowError):
    """The checkout cannot be named by a commit."""


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: the file to upload.
        version: the commit and a digest of the file, so that the same file is uploaded once and another file gets another name.
        arguments, changed_resources: parameters of a run, and resources of the steps, that differ from the defaults.
        gpu_pods: per step that requests GPUs what its pod requests and where it may run.
    """

    path: Path
    name: str
    description: str
    version: str
    image: str
    arguments: dict[str, Any]
    changed_resources: dict[str, str]
    gpu_pods: dict[str, dict[str, Any]] = field(default_factory=dict)


def pack_training(
    registry: str,
    overrides: str,
    arguments: dict[str, Any],
    *,
    gpu_labels: Mapping[str, str] | None = None,
    on_reason: bool = False,
    force: bool = False,
    path: Path | None = None,
) -> Package:
    """The training pipeline as a package.

    Args:
        registry: prefix of the image; may be empty.
        overrides: changed resources, as ``resources.changed`` takes them.
        gpu_labels: labels of the pods that request GPUs, as ``placement.queue_labels`` returns them.
        on_reason: train only if there is a reason to.
        force: package a checkout with uncommitted changes, too.

    Raises:
        BadResource: a resource is unknown or wrong.
        PackageError: the checkout has uncommitted changes, or there is none.
    """
    teachers = profiles.teachers(arguments.get("teachers", ()))
    trained = [
        *arguments.get("models", defaults.CLUSTER_PROFILES),
        *(teacher.profile for teacher in teachers if teacher.profile),
    ]
    fitting = resources.for_models(trained)
    changed = resources.changed(overrides, fitting)
    requested = {**fitting, **changed}
    pipeline = training.pipeline(requested, gpu_labels, has_teachers=bool(arguments.get("teachers")), on_reason=on_reason)
    packed = _pack(path or TRAINING_FILE, registry, pipeline, arguments, changed, force)
    return replace(packed, gpu_pods=placement.gpu_pods(requested, arguments, gpu_labels or {}))


def pack_scoring(registry: str, overrides: str, arguments: dict[str, Any], *, force: bool = False) -> Package:
    """The scoring pipeline as a package; arguments and errors as of ``pack_training``."""
    changed = resources.changed(overrides, resources.SCORING)
    pipeline = scoring.pipeline({**resources.SCORING, **changed})
    return _pack(SCORING_FILE, registry, pipeline, arguments, changed, force)


def pack_monitoring(registry: str, overrides: str, arguments: dict[str, Any], *, force: bool = False) -> Package:
    """The monitoring pipeline as a package; arguments and errors as of ``pack_training``."""
    changed = resources.changed(overrides, resources.MONITORING)
    pipeline = monitoring.pipeline({**resources.MONITORING, **changed})
    return _pack(MONITORING_FILE, registry, pipeline, arguments, changed, force)


def _pack(
    path: Path, registry: str, pipeline: BaseComponent, arguments: dict[str, Any], changed: dict[str, str], force: bool
) -> Package:
    addresses.image_prefix(registry)
    revision = commit()
    if not force:
        _refuse_uncommitted(revision)
    image = "/".join(filter(None, [registry.rstrip("/"), f"{defaults.TRAINER_IMAGE}:{revision}"]))
    compile_pipeline(path, image, revision, pipeline)
    version = f"{revision[:12]}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    return Package(path, pipeline.name, pipeline.description or "", version, image, arguments, changed)


def compile_pipeline(path: Path, image: str, commit: str, pipeline: BaseComponent = training.training) -> None:
    """Writes a pipeline as YAML; image and commit become the defaults of its parameters of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters={"image": image, "commit": commit})
    # The comment that KFP writes lists the keys of a default in an order that differs between processes; the definition is sorted.
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"^# Inputs:\n(#    .*\n)+", "", text, flags=re.MULTILINE), encoding="utf-8")


def commit() -> str:
    """The last commit that changed the content of the images, which are tagged by it; ``unknown`` if this is no git checkout."""
    return _git("log", "-1", "--format=%H", "--", *IMAGE_CONTENT) or _git("rev-parse", "HEAD") or "unknown"


def _refuse_uncommitted(revision: str) -> None:
    if revision == "unknown":
        raise PackageError("this is not a git checkout, so no commit names the image: clone the repository, or use FORCE=1")
    changed = [line[3:] for line in _git("status", "--porcelain").splitlines() if not line[3:].startswith(NOT_COUNTED)]
    if changed:
        raise PackageError(f"the checkout has uncommitted changes ({', '.join(changed[:3])}): commit them, or use FORCE=1")


def _git(*arguments: str) -> str:
    # An installed package has no checkout, even if its environment lies within that of another project.
    command = ["git", "-C", str(CHECKOUT), "--git-dir", ".git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.rstrip()
