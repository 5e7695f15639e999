"""The command line: every step by hand, and one line for every mistake."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from goemotions import cli, evaluation, manifest
from goemotions.bundle import ENGINES, Variant
from goemotions.predictor import Predictor
from goemotions.registration import Parts, assemble

COMMANDS = sorted(cli.commands.commands)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """A function that runs ``goemotions`` with arguments, as the installed program does."""
    levels = {name: logging.getLogger(name).level for name in ("", "httpx", "botocore", "urllib3")}

    def command(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["goemotions", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield command
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def whole(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in a folder, never registered."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    variant: Variant = "cpu"
    assemble(folder, variant, Parts.below(candidate, variant), {"profile": "minilm", "run_id": "r1", "dataset_digest": "d1"})
    return folder


def test_the_group_lists_every_step() -> None:
    result = CliRunner().invoke(cli.commands, ["--help"])
    assert result.exit_code == 0
    for name in (
        "ingest",
        "train",
        "export",
        "evaluate",
        "tune-thresholds",
        "register",
        "report",
        "download",
        "predict",
        "serve",
    ):
        assert f"  {name} " in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_explains_itself_and_each_of_its_options(name: str) -> None:
    result = CliRunner().invoke(cli.commands, [name, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: commands {name} ")
    assert (cli.commands.commands[name].help or "") in result.output
    for parameter in cli.commands.commands[name].params:
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in result.output


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("predict", "serve")])
def test_a_missing_option_is_said_with_the_usage(name: str) -> None:
    result = CliRunner().invoke(cli.commands, [name])
    assert result.exit_code == 2
    assert "Missing" in result.output
    assert "Traceback" not in result.output


def test_the_installed_program_ends_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "goemotions"
    command = [str(program), "download", str(tmp_path), "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"goemotions: {tmp_path} holds no file: check the location and its final /\n"


def test_the_version_is_shown(run: Callable[..., Ended]) -> None:
    ended = run("--version")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("goemotions, version ")


# Each mistake: the arguments, with {names} of the folders below, and what its line says.
MISTAKES = {
    "no such data": ("ingest --source {gone} --output {out}", "there is no data folder"),
    "data without splits": ("ingest --source {empty} --output {out}", "has no train split"),
    "a bucket without a name": ("ingest --source s3:///x/ --output {out}", "names no bucket"),
    "no data set to train on": ("train --dataset {gone} --output {out} --profile minilm", "is no Dataset folder"),
    "an unknown profile": ("train --dataset {dataset} --output {out} --profile gpt", "there is no model profile 'gpt'"),
    "weights that are not there": (
        "train --dataset {dataset} --output {out} --profile minilm --weights {gone}",
        "is missing or damaged",
    ),
    "no model to export": ("export --dataset {dataset} --model {gone} --output {out}", "is missing or damaged"),
    "no model to evaluate": (
        "evaluate --dataset {dataset} --model {gone} --onnx {gone} --engine onnx --validation {out} --test {out}",
        "is missing or damaged",
    ),
    "no graph to evaluate": (
        "evaluate --dataset {dataset} --model {model} --onnx {empty} --engine onnx-int8 --validation {out} --test {out}",
        "is missing or damaged: export the model again",
    ),
    "no predictions to tune on": ("tune-thresholds --validation {empty} --output {out}", "is no Predictions file"),
    "thresholds from test": ("tune-thresholds --validation {test} --output {out}", "not on test: pass the validation"),
    "no candidate to register": (
        "register --dataset {dataset} --candidate {empty} --store {out} --run r",
        "is missing or damaged",
    ),
    "no candidate to report on": ("report --dataset {dataset} --candidate {empty} --output {out}", "is missing or damaged"),
    "an empty bundle": ("download {empty} --output {out}", "holds no file"),
    "a bundle without a manifest": ("download {model} --output {out}", "has no readable MANIFEST.json"),
    "no bundle to predict with": ("predict hello --bundle {empty}", "has no readable MANIFEST.json"),
    "a whole folder that is no bundle": ("predict hello --bundle {other}", "is no bundle of this workflow"),
    "a damaged bundle to predict with": ("predict hello --bundle {damaged}", "differs from its manifest"),
    "a damaged bundle to serve": ("serve --bundle {damaged}", "differs from its manifest"),
    "a whole folder to serve that is no bundle": ("serve --bundle {other}", "is no bundle of this workflow"),
    "no MLflow server to ask": ("predict hello --bundle champion-cpu", "MLFLOW_TRACKING_URI is not set"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dataset: Path,
    candidate: Path,
    whole: Path,
    mistake: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folders = {name: tmp_path / name for name in ("gone", "out", "empty", "other", "damaged")}
    folders["empty"].mkdir()
    folders["other"].mkdir()
    (folders["other"] / "state.json").write_text("{}")
    manifest.write(folders["other"], step=7)
    folders["damaged"].mkdir()
    for path in whole.iterdir():
        (folders["damaged"] / path.name).write_bytes(path.read_bytes() + (b" " if path.name == "thresholds.json" else b""))
    folders |= {"dataset": dataset, "model": candidate / "model", "test": candidate / "cpu" / "test"}
    arguments, expected = MISTAKES[mistake]
    ended = run(*arguments.format(**folders).split())
    assert ended.code == 1
    assert ended.out == ""
    (line,) = [line for line in ended.err.splitlines() if not line.startswith(("INFO ", "WARNING "))]
    assert line.startswith("goemotions: ")
    assert expected in line
    if arguments.split()[0] != "download":
        assert list(folders["out"].rglob("*")) == []


def test_every_step_by_hand_ends_with_a_version_that_answers(
    run: Callable[..., Ended],
    source: Path,
    weights: Callable[[str], str],
    stack: Path,
    bucket: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    dataset, folder, name = tmp_path / "dataset", tmp_path / "minilm", request.node.name
    model, onnx = ("--model", folder / "model"), ("--onnx", folder / "onnx")

    def done(*arguments: str | Path) -> str:
        ended = run(*arguments)
        assert ended.code == 0, ended.err
        assert ended.out.strip()
        return ended.out

    told = done("ingest", "--source", source, "--output", dataset)
    assert told.startswith(f"{dataset}: 240 train, 80 validation, 80 test rows, 7 labels, digest ")
    training = ("--profile", "minilm", "--weights", weights("minilm"), "--epochs", "1", "--run", name)
    told = done("train", "--dataset", dataset, "--output", folder / "model", *training)
    assert told.splitlines()[-1].startswith(f"{folder / 'model'}: minilm, epoch 1 of 1, validation AUC micro 0.")
    assert "onnx-int8, " in done("export", "--dataset", dataset, *model, "--output", folder / "onnx")
    for variant, engine in ENGINES.items():
        splits = ("--validation", folder / variant / "validation", "--test", folder / variant / "test")
        told = done("evaluate", "--dataset", dataset, *model, *onnx, "--engine", engine, *splits)
        assert [line.split(":")[0] for line in told.splitlines()] == [str(splits[1]), str(splits[3])]
        told = done("tune-thresholds", "--validation", splits[1], "--output", folder / variant / "thresholds")
        assert f"{folder / variant / 'thresholds'}/thresholds.json: " in told
    candidates = ("--dataset", dataset, "--candidate", folder)
    told = done("register", *candidates, "--store", bucket, "--run", name, "--model-name", name)
    assert [line.split(", bundle ")[0] for line in told.splitlines()] == [
        "gpu: minilm is version 1 (champion-gpu)",
        "cpu: minilm is version 2 (champion-cpu)",
    ]
    done("report", *candidates, "--output", tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["per_label.csv", "report.html", "report.md"]
    told = done("download", "champion-cpu", "--output", tmp_path / "bundle", "--model-name", name)
    assert told == f"{tmp_path / 'bundle'}: champion-cpu (version 2), every file matches its manifest\n"
    texts = ("a balloon over the lake", "gravel")
    answers = [json.loads(line) for line in done("predict", *texts, "--model-name", name).splitlines()]
    assert answers == Predictor.load(tmp_path / "bundle").predict(texts)


def test_a_bundle_in_a_folder_answers_without_mlflow(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ended = run("predict", "a lake", "жаль 🎈", "", "--bundle", whole)
    assert ended.code == 0
    assert [json.loads(line) for line in ended.out.splitlines()] == Predictor.load(whole).predict(["a lake", "жаль 🎈", ""])


def test_a_step_says_where_it_wrote(run: Callable[..., Ended], candidate: Path, tmp_path: Path) -> None:
    ended = run("tune-thresholds", "--validation", candidate / "cpu" / "validation", "--output", tmp_path / "out")
    assert ended.code == 0
    *strategies, last = ended.out.splitlines()
    content = json.loads((tmp_path / "out" / "thresholds.json").read_text(encoding="utf-8"))
    assert last == f"{tmp_path / 'out'}/thresholds.json: {content['strategy']}"
    assert [line.split()[0] for line in strategies] == list(evaluation.thresholds.STRATEGIES)
