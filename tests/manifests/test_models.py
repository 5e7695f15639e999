"""Models of other names: their manifests beside the shipped ones, in every overlay."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from goemotions.cli import main as cli
from goemotions.errors import BadArgument
from goemotions.registry import model_registry, promotion
from goemotions.registry.model_registry import Version
from tests.manifests.test_manifests import faults, needs_crds
from tests.support.documents import yaml_documents
from tests.support.network import Pod, reaches
from tests.support.rendering import OVERLAYS, kustomize, with_keys

VERSIONS = {
    variant: Version(number, f"s3://store/models/mine/{number * 32}/{variant}/", "r", {"variant": variant})
    for variant, number in (("cpu", "7"), ("gpu", "4"))
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the manifests as the working directory; the model ``mine`` has champions."""
    shutil.copytree(with_keys(), tmp_path / "manifests", symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(promotion, "champion", lambda model_name, variant: VERSIONS.get(variant))
    return tmp_path


def write(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.commands, ["model", "isvc", "--model-name", "mine", *arguments])
    assert result.exception is None, result.exception
    return result


def by_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def with_model(checkout: Path, folder: str, *resources: str) -> list[dict[str, Any]]:
    """An overlay that names the folder of the model in its resources."""
    file = checkout / "manifests" / folder / "kustomization.yaml"
    content = yaml.safe_load(file.read_text())
    content["resources"] += [f"{'../' * (folder.count('/') + 1)}{resource}" for resource in resources]
    file.write_text(yaml.safe_dump(content))
    return kustomize(file.parent)


@needs_crds
def test_a_model_gets_services_runtimes_budgets_and_paths_of_its_name(checkout: Path) -> None:
    shown = write("--registry", "registry.example/team", "--image-tag", "abc").output
    assert "mine-cpu: version 7, s3://store/models/mine/" in shown
    assert shown.endswith("kubectl apply -k manifests/models/mine\n")
    documents = kustomize(checkout / "manifests" / "models" / "mine")
    assert [(one["metadata"]["name"], errors) for one in documents if (errors := faults(one))] == []
    services, runtimes = by_kind(documents, "InferenceService"), by_kind(documents, "ServingRuntime")
    assert set(services) == set(runtimes) == set(by_kind(documents, "PodDisruptionBudget")) == {"mine-cpu", "mine-gpu"}
    for name, service in services.items():
        predictor = service["spec"]["predictor"]
        assert predictor["model"]["storageUri"] == VERSIONS[name[-3:]].source
        assert predictor["model"]["args"] == ["--model_name=mine"]
        assert (predictor["model"]["runtime"], predictor["serviceAccountName"]) == (name, "mine-predictor")
        assert predictor["storageContainerName"] == "goemotions"
        assert runtimes[name]["spec"]["containers"][0]["image"] == f"registry.example/team/goemotions-predictor:abc-{name[-3:]}"
    assert not re.search(r"goemotions-(cpu|gpu)\b", yaml.safe_dump_all(documents))
    (rule,) = kustomize(checkout / "manifests" / "models" / "mine" / "alerts")
    assert faults(rule) == []
    (alert,) = rule["spec"]["groups"][0]["rules"]
    assert re.findall(r'inferenceservice="([^"]+)"', alert["expr"]) == ["mine-cpu", "mine-gpu"]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_overlay_takes_a_second_model_with_its_patches_and_policies(checkout: Path, folder: str) -> None:
    write()
    documents = with_model(checkout, folder, "models/mine", "models/mine/alerts")
    services = by_kind(documents, "InferenceService")
    assert {name.replace("mine", "goemotions") for name in services if name.startswith("mine")} == {
        name for name in services if name.startswith("goemotions")
    }
    ours, theirs = (dict(services[f"{model}-cpu"]["spec"]["predictor"]) for model in ("goemotions", "mine"))
    for one in (ours, theirs):
        one.pop("model")
    assert yaml.safe_dump(theirs) == yaml.safe_dump(ours).replace("goemotions-", "mine-")
    policies = by_kind(documents, "NetworkPolicy").values()
    pod = Pod("goemotions", theirs["labels"])
    assert reaches(policies, Pod("monitoring"), pod, 8080)
    assert not reaches(policies, Pod("default"), pod, 8080)
    budgets = by_kind(documents, "PodDisruptionBudget")
    assert set(budgets) == set(services)


def test_what_was_changed_by_hand_is_kept_and_a_new_variant_is_added(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "champion", lambda model_name, variant: VERSIONS[variant] if variant == "cpu" else None)
    write()
    file = checkout / "manifests" / "models" / "mine" / "isvc.yaml"
    assert {one["metadata"]["name"] for one in yaml_documents(file.read_text())} == {"mine-cpu", "mine-predictor"}
    file.write_text(file.read_text().replace("maxReplicas: 8", "maxReplicas: 5  # by hand"))
    monkeypatch.setattr(promotion, "champion", lambda model_name, variant: VERSIONS[variant])
    write()
    written = file.read_text()
    assert "maxReplicas: 5  # by hand" in written
    documents = kustomize(file.parent)
    assert set(by_kind(documents, "InferenceService")) == {"mine-cpu", "mine-gpu"}
    write()
    assert file.read_text() == written


def test_status_and_promote_use_the_manifest_of_the_model(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setattr(model_registry, "find_version", lambda model_name, reference: None)
    monkeypatch.setattr(model_registry, "versions", lambda model_name: [*VERSIONS.values()])
    result = CliRunner().invoke(cli.commands, ["model", "status", "--model-name", "mine", "--no-cluster"])
    assert re.search(r"^mine-cpu +7 .* 7 ", result.output, re.MULTILINE), result.output


def test_a_name_that_no_service_can_have_is_refused_before_anything_is_written(checkout: Path) -> None:
    result = CliRunner().invoke(cli.commands, ["model", "isvc", "--model-name", "Mine_1"])
    assert isinstance(result.exception, BadArgument)
    assert "'Mine_1'" in str(result.exception)
    assert not (checkout / "manifests" / "models").exists()
