"""`make audit`: it fails on secrets, dangerous code and packages that cannot be audited. `make lint` scans this repository."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = ("Makefile", "pyproject.toml", "constraints.txt", ".secrets.baseline")
PACKAGES = ("goemotions", "components", "pipelines", "benchmarks")
# Not published anywhere, so that no source can audit it.
UNKNOWN = "goemotions-audit-probe==0.1.0\n"


def audit(folder: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    # The environment is the one that runs this test: nothing is installed.
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", "audit", *settings]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's settings, next to no code, and one unpublished package."""
    for name in SETTINGS:
        shutil.copy(ROOT / name, tmp_path)
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('"""Nothing."""\n')
    (tmp_path / "constraints.txt").write_text(UNKNOWN)
    return tmp_path


def test_lint_scans_what_audit_scans() -> None:
    command = ["make", "-n", "-o", ".venv/.installed", "--no-print-directory"]
    lint, scan, audit = (
        subprocess.run([*command, target], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        for target in ("lint", "scan", "audit")
    )
    assert ["bandit" in scan[0], "detect-secrets" in scan[1], len(scan)] == [True, True, 2]
    assert set(scan) <= set(lint) & set(audit)


def test_a_clean_project_passes_and_the_last_line_lists_what_was_not_checked(project: Path) -> None:
    finished = audit(project, "AUDIT_OFFLINE=1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "advisories were NOT checked" in finished.stdout.splitlines()[-1]
    content = json.loads((project / ".local" / "sbom.json").read_text())
    versions = {component["name"].lower(): component["version"] for component in content["components"]}
    assert content["bomFormat"] == "CycloneDX"
    assert content["metadata"]["component"]["name"] == "goemotions"
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert {name: versions[name] for name in ("kfp", "mlflow", "numpy")} == {
        name: pins[name] for name in ("kfp", "mlflow", "numpy")
    }


# Split in two, because the audit reads this file, too.
@pytest.mark.parametrize(
    "line",
    ['KEY = "AKIA' + '3XMPL7QWERTY2UIO"', 'password = "' + 'vK8#mQ2$wZ9!pL"', "-----BEGIN RSA " + "PRIVATE KEY-----"],
    ids=["a key of AWS", "a password", "a private key"],
)
def test_a_secret_in_a_file_fails(line: str, project: Path) -> None:
    (project / "notes.py").write_text(f"# Notes.\n{line}\n")
    finished = audit(project, "AUDIT_OFFLINE=1")
    assert finished.returncode != 0
    assert "Location:    notes.py:2" in finished.stdout


@pytest.mark.parametrize(
    ("package", "code", "test"),
    [
        ("goemotions", "import subprocess\n\n\ndef run(name):\n    subprocess.run('ls ' + name, shell=True)\n", "B602"),
        ("components", "import pickle\n\n\ndef read(file):\n    return pickle.load(file)\n", "B301"),
        ("pipelines", "import torch\n\n\ndef read(path):\n    return torch.load(path)\n", "B614"),
        ("benchmarks", "import yaml\n\n\ndef read(text):\n    return yaml.load(text, Loader=yaml.Loader)\n", "B506"),
    ],
    ids=["shell", "pickle", "torch.load", "yaml"],
)
def test_dangerous_code_fails(package: str, code: str, test: str, project: Path) -> None:
    (project / package / "planted.py").write_text(code)
    finished = audit(project, "AUDIT_OFFLINE=1")
    assert finished.returncode != 0
    assert f"[{test}:" in finished.stdout
    assert f"{package}/planted.py" in finished.stdout


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no result for it"),
        pytest.param({"HTTPS_PROXY": "http://127.0.0.1:9"}, id="no connection", marks=pytest.mark.slow),
    ],
)
def test_a_package_that_cannot_be_audited_fails(environment: dict[str, str], project: Path) -> None:
    finished = audit(project, **environment)
    assert finished.returncode != 0
    assert finished.stdout.splitlines()[-1] == (
        "audit: a package has an advisory or could not be audited, see above; AUDIT_OFFLINE=1 leaves advisories out"
    )
