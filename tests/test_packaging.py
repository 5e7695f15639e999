"""The package's metadata, and the files by which other tools run the project's make targets."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
EXTRAS = PROJECT["project"]["optional-dependencies"].values()
REQUIREMENTS = [*PROJECT["project"]["dependencies"], *(requirement for extra in EXTRAS for requirement in extra)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("requirement", sorted({*REQUIREMENTS}))
def test_a_lower_bound_is_the_minor_version_that_is_pinned(requirement: str) -> None:
    name, bound = requirement.split(";")[0].split(">=")
    pinned = {canonical(package): version for package, version in PINS.items()}[canonical(name)]
    assert pinned.split(".")[:2] == bound.split(".")


def test_the_installed_metadata_is_that_of_pyproject() -> None:
    """Bundles name the requirements of the installed package. A folder goemotions.egg-info in the checkout is read before it."""
    installed = metadata.distribution("goemotions")
    requirements = {requirement for requirement in installed.requires or () if "extra ==" not in requirement}
    assert requirements == {*PROJECT["project"]["dependencies"]}, f"{installed.locate_file('')} is out of date: `make setup`"


def test_the_package_is_typed_and_licensed() -> None:
    assert (ROOT / "goemotions" / "py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["goemotions"]
    assert PROJECT["project"]["license"] == "Apache-2.0"
    for name in (*PROJECT["project"]["license-files"], PROJECT["project"]["readme"]):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize(
    "file",
    [
        ".github/workflows/ci.yml",
        ".github/workflows/slow-tests.yml",
        ".pre-commit-config.yaml",
        ".devcontainer/devcontainer.json",
    ],
)
def test_other_tools_run_targets_of_the_makefile(file: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"(?:run: |entry: |Command\": \")make ([a-z -]+)", (ROOT / file).read_text(encoding="utf-8"))
    assert commands
    for target in " ".join(commands).split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{file}: there is no target {target}"
