"""Names of the images and errors of the script that builds them; `make test-images` tests the images themselves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REGISTRY = "registry.example/team"


def script(*arguments: str, folder: Path = Path(), **variables: str) -> subprocess.CompletedProcess[str]:
    cleared = {name: value for name, value in os.environ.items() if name not in ("REGISTRY", "ENGINE", "FORCE", "BASE_IMAGE")}
    return subprocess.run(
        ["images/image.sh", *arguments], cwd=folder, env=cleared | variables, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ".", str(tmp_path / "checkout")], check=True)
    return tmp_path / "checkout"


def test_an_image_is_named_by_the_commit() -> None:
    commit = script("commit").stdout.strip()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert script("name", "trainer").stdout == f"goemotions-trainer:{commit}\n"
    assert script("name", "predictor-cpu", REGISTRY=REGISTRY).stdout == f"{REGISTRY}/goemotions-predictor:{commit}-cpu\n"


def test_the_version_is_the_tag_or_the_distance_to_it(checkout: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=checkout, check=True, capture_output=True, text=True).stdout

    for tag in git("tag").split():
        git("tag", "--delete", tag)
    commit = script("commit", folder=checkout).stdout.strip()
    assert re.fullmatch(rf"0\.1\.0\.post1\.dev\d+\+g{commit[:9]}\n", script("version", folder=checkout).stdout)
    git("tag", "v1.2.0", commit)
    assert script("version", folder=checkout).stdout == "1.2.0\n"
    git("tag", "--delete", "v1.2.0")
    git("tag", "v1.2.0", f"{commit}~1")
    assert script("version", folder=checkout).stdout.startswith("1.2.0.post1.dev")


def test_the_pipeline_runs_the_image_of_that_name(tmp_path: Path) -> None:
    compiled = tmp_path / "training.yaml"
    command = [sys.executable, "-m", "goemotions.cli", "pipeline", "compile", "--registry", REGISTRY, "--output", str(compiled)]
    subprocess.run(command, check=True)
    assert script("name", "trainer", REGISTRY=REGISTRY).stdout.strip() in compiled.read_text()


def test_a_commit_of_documents_does_not_change_the_image_name(checkout: Path) -> None:
    def committed(changed: str) -> str:
        with (checkout / changed).open("a") as file:
            file.write("\n")
        author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", *author, "commit", "--quiet", "--all", "--message", changed], cwd=checkout, check=True)
        return script("name", "trainer", folder=checkout).stdout

    before = script("name", "trainer", folder=checkout).stdout
    assert committed("README.md") == before
    assert committed("goemotions/data/taxonomy.py") != before


def test_uncommitted_changes_are_not_built(checkout: Path) -> None:
    (checkout / "goemotions" / "data" / "taxonomy.py").write_text("")
    refused = script("build", "trainer", folder=checkout)
    assert refused.returncode == 1
    assert "commit them" in refused.stderr
    assert "goemotions/data/taxonomy.py" in refused.stderr


def test_an_unknown_image_is_a_named_error(checkout: Path) -> None:
    for action in ("name", "push"):
        refused = script(action, "predictor-tpu", folder=checkout, REGISTRY=REGISTRY, ENGINE="true")
        assert refused.returncode == 1
        assert "there is no image predictor-tpu" in refused.stderr


def test_a_missing_container_engine_is_a_named_error(checkout: Path) -> None:
    refused = script("build", "trainer", folder=checkout, ENGINE="no-such-engine")
    assert refused.returncode == 1
    assert "no container engine is running (no-such-engine)" in refused.stderr


def test_a_push_needs_a_registry() -> None:
    refused = script("push", "trainer")
    assert refused.returncode == 1
    assert "REGISTRY=" in refused.stderr


@pytest.mark.parametrize("name", ["trainer", "predictor"])
def test_an_image_sets_what_gke_and_the_nvidia_runtime_need_to_show_a_gpu(name: str) -> None:
    final = Path("images", name, "Dockerfile").read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    pairs = [pair for line in final.splitlines() if line.startswith("ENV ") for pair in line.removeprefix("ENV ").split()]
    variables = dict(pair.split("=", 1) for pair in pairs)
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert variables["LD_LIBRARY_PATH"].split(":") == ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    assert variables["PATH"].split(":") == ["/opt/venv/bin", "$PATH", "/usr/local/nvidia/bin"]
