"""The allowed imports between rooms and the owners of third-party packages, as in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = ("goemotions", "components", "pipelines", "benchmarks")
# Each room may import those of the rows above it and itself.
ORDER = (
    ("errors", "defaults"),
    ("strict_json",),
    ("addresses", "outages", "usage"),
    ("storage", "metrics"),
    ("data",),
    ("models",),
    ("evaluation",),
    ("registry",),
    ("training", "prediction", "deployment", "report"),
    ("monitoring",),
    ("serving",),
    ("cli",),
)
# A package belongs to the places that are listed here; one that is not listed may be imported anywhere.
OWNERS = {
    "boto3": ("goemotions/storage/s3.py",),
    "botocore": ("goemotions/storage/s3.py",),
    "mlflow": (
        "goemotions/registry/mlflow_client.py",
        "goemotions/registry/tracking.py",
        "goemotions/registry/mlflow_model.py",
    ),
    "cryptography": ("goemotions/storage/signature.py",),
    "kubernetes": ("goemotions/deployment/cluster.py", "pipelines/client.py"),
    "kfp": ("components/", "pipelines/"),
    "kfp_server_api": ("pipelines/",),
    "kserve": ("goemotions/serving/", "benchmarks/"),
    "torch": ("goemotions/models/", "goemotions/training/", "benchmarks/"),
    "transformers": ("goemotions/models/", "goemotions/training/", "benchmarks/"),
    "openvino": ("goemotions/models/", "benchmarks/"),
    "datasets": ("goemotions/data/",),
    "tokenizers": ("goemotions/models/", "benchmarks/"),
    "altair": ("goemotions/report/",),
    "jinja2": ("goemotions/report/",),
    "vl_convert": ("goemotions/report/vega.py",),
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(dotted: str) -> str:
    return dotted.split(".")[1]


def level(name: str) -> int:
    """The row of a room; a module that is in no row comes last."""
    return next((row for row, rooms in enumerate(ORDER) if name in rooms), len(ORDER))


def violations(root: Path) -> list[str]:
    """Every import under a root that breaks a rule, as ``file:line: reason``."""
    broken = []
    for top in OUTSIDE:
        for path in sorted((root / top).rglob("*.py")):
            relative = path.relative_to(root)
            for line, name in imports(path):
                package = name.split(".")[0]
                if package in OUTSIDE and OUTSIDE.index(package) > OUTSIDE.index(top):
                    broken.append(f"{relative}:{line}: {top} imports {package}")
                elif package == top == "goemotions":
                    mine = relative.parts[1].removesuffix(".py")
                    if mine != "predictor" and room(name) != mine and level(room(name)) >= level(mine):
                        broken.append(f"{relative}:{line}: {mine} imports {room(name)}")
                elif package in OWNERS and not str(relative).startswith(OWNERS[package]):
                    broken.append(f"{relative}:{line}: {package} belongs to {', '.join(OWNERS[package])}")
    return broken


def test_imports_keep_the_order_of_the_rooms_and_the_owners_of_packages() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "statement", "reason"),
    [
        ("goemotions/storage/store.py", "from goemotions.registry import tracking", "storage imports registry"),
        ("goemotions/training/trainer.py", "def f():\n    import goemotions.report.document", "training imports report"),
        ("goemotions/metrics/thresholds.py", "from pipelines import submit", "goemotions imports pipelines"),
        ("components/train.py", "import pipelines.training", "components imports pipelines"),
        ("pipelines/stack.py", "import boto3", "boto3 belongs to goemotions/storage/s3.py"),
        ("goemotions/report/models.py", "from torch import nn", "torch belongs to"),
        ("goemotions/cli/main.py", "from kfp.dsl import Input", "kfp belongs to"),
    ],
)
def test_a_violation_is_reported_with_file_and_line(tmp_path: Path, file: str, statement: str, reason: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(statement + "\n", encoding="utf-8")
    assert len(reported := violations(tmp_path)) == 1
    assert reported[0].startswith(f"{file}:")
    assert reason in reported[0]


@pytest.mark.parametrize(
    "room",
    [
        "data",
        "models",
        "registry",
        "training",
        "deployment",
        "evaluation",
        "monitoring",
        "monitoring/drift",
        "serving",
        "../pipelines",
    ],
)
def test_the_map_of_a_large_room_names_each_module_once(room: str) -> None:
    folder = ROOT / "goemotions" / room
    table = re.findall(r"^\| ([a-z_, ]+) \|", (folder / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    named = ", ".join(table).split(", ")
    assert sorted(named) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_the_map_of_the_server_names_the_modules_of_its_folders() -> None:
    folder = ROOT / "goemotions" / "serving"
    named = re.findall(r"``([a-z_]+)``", (folder / "__init__.py").read_text(encoding="utf-8"))
    modules = [path.stem for path in folder.glob("*/*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted(modules + [path.parent.name for path in folder.glob("*/__init__.py")])
