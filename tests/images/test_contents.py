"""The contents of the images: labels, packages, bytecode and size."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.images import containers

NAMES = ("trainer", "predictor-cpu", "predictor-gpu")
# Name and version of every installed package, one per line.
PACKAGES = "import importlib.metadata as m; [print(d.metadata['Name'] + '==' + d.version) for d in m.distributions()]"


def normalized(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.partition('+')[0]}"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_labels_and_user(name: str) -> None:
    labels = json.loads(containers.inspect("image", containers.image(name), "{{json .Config.Labels}}"))
    for label, command in (("revision", "commit"), ("version", "version")):
        printed = subprocess.run(["images/image.sh", command], capture_output=True, text=True, check=True).stdout.strip()
        assert labels[f"org.opencontainers.image.{label}"] == printed
    assert labels["org.opencontainers.image.title"] == f"goemotions-{name.partition('-')[0]}"
    assert containers.inspect("image", containers.image(name), "{{.Config.User}}") == "10001:0"


def test_every_package_is_pinned(name: str) -> None:
    pins = {normalized(line) for line in Path("constraints.txt").read_text().split()}
    packages = {normalized(line) for line in containers.run(name, "python3", "-c", PACKAGES).splitlines()}
    assert {pin.partition("==")[0] for pin in packages - pins} == {"goemotions"}


def test_the_images_contain_no_build_files(name: str) -> None:
    tools = "for tool in gcc cc g++ clang make; do command -v $tool; done"
    files = "find ~root/.cache /build /opt/code /opt/venv/bin/pip 2>/dev/null"
    assert containers.run(name, "sh", "-c", f"{tools}; {files}; true") == ""


def test_modules_are_compiled_to_bytecode_in_the_image(name: str) -> None:
    """With a read-only root, modules without bytecode would be compiled at every start."""
    output = containers.run(name, "sh", "-c", "python3 -v -c 'import boto3, numpy, yaml, goemotions.cli' 2>&1")
    assert "/opt/venv/lib/python3.11/site-packages/goemotions/cli/__pycache__/main.cpython-311.pyc matches" in output
    assert "bytecode is stale" not in output


def test_the_cpu_predictor_is_small_and_has_no_torch() -> None:
    packages = containers.run("predictor-cpu", "python3", "-c", PACKAGES)
    assert not {"torch", "transformers"} & {line.partition("==")[0] for line in packages.splitlines()}
    assert int(containers.inspect("image", containers.image("predictor-cpu"), "{{.Size}}")) < 1_000_000_000


@pytest.mark.parametrize("name", ["trainer", "predictor-gpu"])
def test_the_other_images_have_torch(name: str) -> None:
    assert containers.run(name, "python3", "-c", "import torch; print(torch.ones(2).sum().item())") == "2.0"
