"""The make targets: aliases of commands, with the defaults in the commands; and the installation."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from goemotions.cli import main as cli
from pipelines.cli import pipeline, stack_commands

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "DATA",
    "MODELS",
    "EPOCHS",
    "VERSION",
    "PORT",
    "UV",
    "TORCH_INDEX",
    "PIP_OPTIONS",
    "MLFLOW_TRACKING_URI",
    "MAKEFLAGS",
)
# Replaces python and uv: records its arguments, creates the environment, and fails on request.
STUB = """#!/usr/bin/env bash
echo "$*" >> calls
case "$*" in
"-m venv .venv") mkdir -p .venv/bin && cp stub .venv/bin/python ;;
*--torch-backend* | *fails*) exit 1 ;;
esac
"""


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    cleared = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=cleared, capture_output=True, text=True, timeout=60, check=False)


def command_of(target: str, *settings: str) -> list[str]:
    """The last command that a target would run, split into words."""
    finished = make("-n", "-o", ".venv/.installed", target, *settings)
    assert finished.returncode == 0, finished.stderr
    line = finished.stdout.replace("\\\n", " ").splitlines()[-1]
    return shlex.split(line.removeprefix(". .local/env && "))


@pytest.mark.parametrize(
    ("target", "settings", "command"),
    [
        ("rollout", (), "stack rollout challenger-cpu"),
        ("rollout", ("VERSION=4", "FAULT=slow"), "stack rollout 4 --fault slow"),
        ("rollout", ("VERSION=4", "NAMESPACE=models", "STEPS=10,100"), "model rollout 4 --namespace models --steps 10,100"),
        ("run", (), "pipeline run"),
        (
            "run",
            ("DATA=a folder", "EPOCHS=3", "WEIGHTS=minilm=w", "SET=seed=1 unlabelled=keep"),
            "pipeline run --data 'a folder' --epochs 3 --weights minilm=w --set 'seed=1 unlabelled=keep'",
        ),
        ("run", ('SET=settings={"a": {"b": 3}} seed=1',), """pipeline run --set 'settings={"a": {"b": 3}} seed=1'"""),
        ("run", ("WEIGHTS=minilm=it's here distilbert=b",), """pipeline run --weights "minilm=it's here distilbert=b" """),
        ("demo", (), "pipeline demo --epochs 2"),
        ("demo", ("EPOCHS=1", "MODEL_NAME=mine"), "pipeline demo --epochs 1 --model-name mine"),
        ("serve", (), "serve --grpc-port 8081"),
        ("serve", ("VERSION=3", "PORT=9000"), "serve --bundle 3 --port 9000 --grpc-port 9001"),
        ("score", ("INPUT=a", "OUTPUT=b", "WORKERS=2"), "score --input a --output b --workers 2"),
        ("promote", ("VERSION=challenger-cpu",), "model promote challenger-cpu"),
        ("promote", ("VERSION=3", "DATASET=s3://b/d/"), "model promote 3 --dataset s3://b/d/"),
        ("rollback", ("VARIANT=gpu",), "model rollback --variant gpu"),
        ("rollback", ("TO=2",), "model rollback --to 2"),
        ("retire", ("KEEP=2", "DAYS=30", "YES=1"), "model retire --keep 2 --days 30 --yes"),
        ("restart", ("VARIANT=gpu", "NAMESPACE=n"), "model restart --variant gpu --namespace n"),
        ("deploy", ("VERSION=3", "CANARY=10", "NAMESPACE=n"), "model deploy 3 --namespace n --canary-percent 10"),
        ("download-model", ("VERSION=3", "OUT=o"), "model download 3 --output o"),
        ("download-model", ("RUN=r", "PROFILE=minilm"), "model download --run r --profile minilm"),
        ("status", (), "model status"),
        (
            "submit-pipeline",
            ("PRESET=gke-a100-80gb", "QUEUE=team", "PRIORITY=high", "WAIT=1"),
            "pipeline submit --preset gke-a100-80gb --queue team --priority high --wait",
        ),
        (
            "submit-scoring",
            ("INPUT=s3://b/i/", "OUTPUT=s3://b/o/", "PODS=8"),
            "pipeline score --input s3://b/i/ --output s3://b/o/ --set pods=8",
        ),
        ("schedule", ("CRON=0 0 3 * * 0", "MODEL_NAME=m"), "pipeline schedule --set model_name=m --cron '0 0 3 * * 0'"),
        (
            "schedule-monitoring",
            ("CRON=0 0 2 * * *", "PROMETHEUS=http://prometheus:9090", "MODEL_NAME=m"),
            "pipeline schedule-monitoring --prometheus http://prometheus:9090 --set model_name=m --cron '0 0 2 * * *'",
        ),
        ("monitor", ("SCORED=s3://b/o/",), "pipeline monitor --scored s3://b/o/"),
        ("monitor", ("DATA=sample", "REASON=it's time"), "pipeline monitor --data sample --reason 'it'\"'\"'s time'"),
        ("compile", ("REGISTRY=r",), "pipeline compile --registry r"),
        ("report", (), "pipeline report"),
        ("stack-up", (), "stack up"),
    ],
)
def test_a_target_passes_on_only_the_variables_that_are_set(target: str, settings: tuple[str, ...], command: str) -> None:
    program, *arguments = command_of(target, *settings)
    assert program == ".venv/bin/goemotions"
    assert arguments == shlex.split(command)
    parse(arguments)


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("score", "--input"),
        ("submit-scoring", "--input"),
        ("export-hf", "--output"),
        ("schedule", "--cron"),
        ("schedule-monitoring", "--cron"),
    ],
)
def test_a_variable_that_is_needed_is_a_missing_option_without_it(target: str, option: str) -> None:
    with pytest.raises(click.MissingParameter) as raised:
        parse(command_of(target)[1:])
    assert raised.value.param is not None
    assert option in raised.value.param.opts


def parse(arguments: list[str]) -> None:
    """Parses the arguments of `goemotions` without running anything."""
    command: click.Command = click.Group(commands={**cli.commands.commands, "pipeline": pipeline, "stack": stack_commands})
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    command.make_context("goemotions", arguments)


def test_a_command_on_the_registry_runs_in_the_cluster_without_the_stack_of_this_machine() -> None:
    command = command_of("promote", "VERSION=3", "IN_CLUSTER=1", "REGISTRY=r.example")
    image = "r.example/goemotions-trainer:$(images/image.sh commit)"
    assert command == [".venv/bin/goemotions", "in-cluster", "--image", image, "model", "promote", "3"]
    assert "stack up" not in make("-n", "-o", ".venv/.installed", "promote", "VERSION=3", "IN_CLUSTER=1").stdout


QUOTED = {
    "monitor": ("DATA", "MODELS", "MODEL_NAME", "SET", "REASON", "SERVER", "PROMETHEUS", "SCORED"),
    "schedule-monitoring": ("CRON", "SERVER", "PROMETHEUS", "SCORED"),
    "run": ("DATA", "MODELS", "EPOCHS", "MODEL_NAME", "WEIGHTS", "SET"),
    "demo": ("DATA", "MODELS", "EPOCHS", "MODEL_NAME"),
    "score": ("INPUT", "OUTPUT", "VERSION", "MODEL_NAME", "WORKERS"),
    "serve": ("VERSION", "MODEL_NAME", "PORT", "GRPC_PORT"),
    "bench-serving": ("VERSION", "MODEL_NAME", "DATA"),
    "bench": ("DATA", "VERSION", "MODEL_NAME", "ONLY"),
    "compile": ("REGISTRY", "RESOURCES"),
    "submit-pipeline": (
        "DATA",
        "MODELS",
        "PRESET",
        "QUEUE",
        "PRIORITY",
        "MODEL_NAME",
        "SET",
        "RESOURCES",
        "REGISTRY",
        "EXPERIMENT",
    ),
    "submit-scoring": ("INPUT", "OUTPUT", "VERSION", "PODS"),
    "schedule": ("DATA", "CRON"),
    "status": ("MODEL_NAME", "NAMESPACE"),
    "promote": ("VERSION", "MODEL_NAME", "DATASET"),
    "rollback": ("VARIANT", "MODEL_NAME", "TO"),
    "retire": ("MODEL_NAME", "KEEP", "DAYS", "NAMESPACE"),
    "isvc": ("MODEL_NAME", "BUCKET", "PRESET", "REGISTRY"),
    "deploy": ("VERSION", "MODEL_NAME", "NAMESPACE", "CANARY", "PRESET"),
    "download-model": ("VERSION", "MODEL_NAME", "OUT", "RUN", "PROFILE"),
    "export-hf": ("VERSION", "MODEL_NAME", "OUT", "RUN", "PROFILE", "DATA"),
    "report": ("MODEL_NAME",),
}


@pytest.mark.parametrize("target", QUOTED)
def test_a_value_with_quotes_reaches_the_command_as_it_is(target: str) -> None:
    value = 'it\'s "here"; `x` & y\\z'
    words = command_of(target, *(f"{name}={value}" for name in QUOTED[target]))
    assert sum(value in word for word in words) == len(QUOTED[target])


def test_every_target_is_listed_by_help() -> None:
    targets = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    listed = {line.split()[0] for line in make("help").stdout.split("\n\n")[0].splitlines()}
    assert listed == set(targets[1].replace("\\\n", " ").split())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project to set up, with a program that replaces python and uv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    return tmp_path


def setup(project: Path, *settings: str) -> tuple[str, list[str]]:
    """The output of `make setup`, and the installations that it runs."""
    (project / "calls").unlink(missing_ok=True)
    finished = make("setup", "PYTHON=./stub", *settings, folder=project)
    assert finished.returncode == 0, finished.stderr
    calls = (project / "calls").read_text().splitlines() if (project / "calls").exists() else []
    return finished.stdout, [call for call in calls if " install " in call]


def test_setup_prints_its_needs_first_and_installs_once(project: Path) -> None:
    printed, installed = setup(project, "UV=")
    assert "3 GB with a CPU build of torch" in printed.splitlines()[0]
    assert len(installed) == 1
    assert installed[0].startswith("-m pip install --constraint constraints.txt --editable .[")
    assert setup(project, "UV=")[1] == []
    (project / "pyproject.toml").touch()
    assert setup(project, "UV=") == ("", [])


def test_setup_takes_torch_from_the_index_that_is_named(project: Path) -> None:
    assert "--extra-index-url http://index/cpu" in setup(project, "UV=", "TORCH_INDEX=http://index/cpu")[1][0]


def test_uv_falls_back_to_the_torch_of_the_package_index(project: Path) -> None:
    printed, installed = setup(project, "UV=./stub")
    assert [call.endswith("--torch-backend auto") for call in installed] == [True, False]
    assert "taking the one of the package index" in printed


def test_a_failed_setup_is_repeated(project: Path) -> None:
    finished = make("setup", "PYTHON=./stub", "UV=", "PIP_OPTIONS=fails", folder=project)
    assert finished.returncode != 0
    assert not (project / ".venv" / ".installed").exists()
    assert len(setup(project, "UV=")[1]) == 1
