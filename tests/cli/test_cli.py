"""The command line: every step by hand, and one line for every error."""

import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from goemotions.cli import main as cli
from goemotions.prediction.predictor import Predictor
from goemotions.registry.bundle import ENGINES
from goemotions.storage import manifest
from tests.support import tools

ROOT = Path(__file__).parents[2]
# The entry points of pyproject.toml; the installed ones may be older.
PLUGINS = [
    EntryPoint(name, value, cli.PLUGINS)
    for name, value in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][cli.PLUGINS].items()
]


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its path."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield path + name, command


COMMANDS = dict(leaves(cli.commands))
PLUGIN_COMMANDS = {path: command for plugin in PLUGINS for path, command in leaves(plugin.load(), f"{plugin.name} ")}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_plugins", lambda: PLUGINS)


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
    # `serve` limits the rate of every handler, and pytest keeps its own for all tests.
    filters = {handler: [*handler.filters] for handler in logging.root.handlers}

    def command(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["goemotions", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield command
    for handler, before in filters.items():
        handler.filters[:] = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_the_group_lists_every_step_and_the_commands_of_the_pipelines() -> None:
    result = CliRunner().invoke(cli.commands, ["--help"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.partition("Commands:\n")[2].splitlines()]
    steps = ["ingest", "teach", "train", "export", "evaluate", "tune-thresholds", "register", "report"]
    assert listed == sorted(
        [
            *steps,
            "predict",
            "score",
            "serve",
            "data",
            "monitor",
            "keys",
            "model",
            "export-hf",
            "in-cluster",
            "pipeline",
            "stack",
        ]
    )


def test_the_commands_on_models_pipelines_and_the_stack() -> None:
    paths = [*COMMANDS, *PLUGIN_COMMANDS]
    assert {path for path in paths if " " in path} == {
        *(
            f"model {name}"
            for name in ["status", "promote", "rollback", "rollout", "retire", "isvc", "deploy", "restart", "download"]
        ),
        *(
            f"pipeline {name}"
            for name in ["run", "monitor", "submit", "schedule", "schedule-monitoring", "compile", "score", "report", "demo"]
        ),
        *(f"stack {name}" for name in ("up", "down", "rollout")),
        *(f"keys {name}" for name in ("create", "cluster", "list", "sign")),
        *(f"data {name}" for name in ("from-feedback", "to-label")),
    }


@pytest.mark.parametrize("path", sorted({**COMMANDS, **PLUGIN_COMMANDS}))
def test_every_command_and_option_has_a_help_text(path: str) -> None:
    command = {**COMMANDS, **PLUGIN_COMMANDS}[path]
    result = CliRunner().invoke(cli.commands, [*path.split(), "--help"], terminal_width=300)
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: commands {path} ")
    assert (command.help or "").splitlines()[0] in result.output
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.opts[0] in result.output


@pytest.mark.parametrize(
    "path", sorted(path for path, command in {**COMMANDS, **PLUGIN_COMMANDS}.items() if any(p.required for p in command.params))
)
def test_a_missing_option_is_an_error_with_the_usage(path: str) -> None:
    result = CliRunner().invoke(cli.commands, path.split())
    assert result.exit_code == 2
    assert "Missing" in result.output
    assert "Traceback" not in result.output


def test_help_imports_no_library_that_takes_seconds() -> None:
    """FastAPI stands for kserve, which goemotions.serving leaves unloaded."""
    code = (
        "import sys\n"
        "from goemotions.cli import main as cli\n"
        "from pipelines.cli import pipeline\n"
        "cli.commands.main(['--help'], standalone_mode=False)\n"
        "pipeline.main(['submit', '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'kfp', 'mlflow', 'fastapi', 'datasets', 'boto3', 'numpy'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("entry_points", [[], [EntryPoint("pipeline", "not_installed.cli:pipeline", cli.PLUGINS)]])
def test_without_the_pipeline_extra_its_commands_name_what_to_install(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, entry_points: list[EntryPoint]
) -> None:
    monkeypatch.setattr(cli, "_plugins", lambda: entry_points)
    assert "\n  pipeline " not in run("--help").out
    ended = run("pipeline", "run")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("goemotions: `goemotions pipeline` is not installed: run `make setup` in a checkout, or ")


def test_a_library_of_another_extra_is_named(run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "goemotions.data.dataset", raising=False)
    monkeypatch.delattr("goemotions.data.dataset", raising=False)
    ended = run("ingest", "--source", "sample", "--output", "out")
    assert ended.code == 1
    assert ended.err == "goemotions: the package datasets is not installed: install goemotions with the extra that needs it\n"


def test_the_shell_can_complete_commands() -> None:
    environment = {
        **os.environ,
        "_GOEMOTIONS_COMPLETE": "bash_complete",
        "COMP_WORDS": "goemotions model roll",
        "COMP_CWORD": "2",
    }
    command = [sys.executable, "-m", "goemotions.cli"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "plain,rollback\nplain,rollout\n"


@pytest.mark.parametrize("pair", ["learning_rate", "=1", "learning_rate="])
def test_a_setting_is_a_name_and_a_value(run: Callable[..., Ended], tmp_path: Path, pair: str) -> None:
    ended = run("train", "--dataset", tmp_path, "--output", tmp_path / "out", "--profile", "minilm", "--set", pair)
    assert (ended.code, ended.err) == (1, f"goemotions: {pair!r} is not a name=value pair\n")


def test_the_installed_program_ends_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "goemotions"
    command = [str(program), "model", "download", str(tmp_path), "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"goemotions: {tmp_path} holds no file: check the location and its final /\n"


@pytest.mark.fault("sigterm-at-start")
def test_the_first_process_of_a_container_ends_at_sigterm_before_its_command_has_a_handler() -> None:
    code = (
        "import time\n"
        "from goemotions.cli import main as cli\n"
        "cli.commands = lambda **options: (print('started', flush=True), time.sleep(60))\n"
        "cli.main()\n"
    )
    unshare = [tools.program("unshare", why="it makes a process the first one"), "--pid", "--fork", "--kill-child"]
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run([*unshare, *rights, "true"], check=False).returncode:
        tools.missing("no permission to make a namespace: SIGTERM to a container that starts is not tested")
    command = [*unshare, *rights, sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "started\n"
            (first,) = psutil.Process(started.pid).children()
            first.terminate()
            assert started.wait(timeout=10) == 128 + signal.SIGTERM
        finally:
            started.kill()


def test_the_version_is_shown(run: Callable[..., Ended]) -> None:
    ended = run("--version")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("goemotions, version ")


# By error: the arguments, with {names} of the folders below, and the expected line.
MISTAKES = {
    "no such data": ("ingest --source {gone} --output {out}", "there is no data folder"),
    "a name that is too long": (f"ingest --source {{gone}}{'x' * 300} --output {{out}}", "File name too long: check the path"),
    "data without splits": ("ingest --source {empty} --output {out}", "has no train split"),
    "a bucket without a name": ("ingest --source s3:///x/ --output {out}", "names no bucket"),
    "no data set to train on": ("train --dataset {gone} --output {out} --profile minilm", "is not a Dataset folder"),
    "an unknown profile": ("train --dataset {dataset} --output {out} --profile gpt", "there is no model profile 'gpt'"),
    "weights that are not there": (
        "train --dataset {dataset} --output {out} --profile minilm --weights {gone}",
        "config.json is missing: give a folder",
    ),
    "no model to export": ("export --dataset {dataset} --model {gone} --output {out}", "is missing or damaged"),
    "no model to evaluate": (
        "evaluate --dataset {dataset} --model {gone} --onnx {gone} --engine onnx --validation {out} --test {out}",
        "is missing or damaged",
    ),
    "no graph to evaluate": (
        "evaluate --dataset {dataset} --model {model} --onnx {empty} --engine openvino-int8 --validation {out} --test {out}",
        "is missing or damaged: export the model again",
    ),
    "no predictions to tune on": ("tune-thresholds --validation {empty} --output {out}", "is not a Predictions file"),
    "thresholds from test": ("tune-thresholds --validation {test} --output {out}", "not on test: pass the validation"),
    "no candidate to register": (
        "register --dataset {dataset} --candidate {empty} --store {out} --run r",
        "is missing or damaged",
    ),
    "no candidate to report on": ("report --dataset {dataset} --candidate {empty} --output {out}", "is missing or damaged"),
    "an empty bundle": ("model download {empty} --output {out}", "holds no file"),
    "a bundle without a manifest": ("model download {model} --output {out}", "has no readable MANIFEST.json"),
    "no bundle to predict with": ("predict hello --bundle {empty}", "has no readable MANIFEST.json"),
    "a whole folder that is not a bundle": ("predict hello --bundle {other}", "is not a bundle of this workflow"),
    "a damaged bundle to predict with": ("predict hello --bundle {damaged}", "differs from its manifest"),
    "a damaged bundle to serve": ("serve --bundle {damaged}", "differs from its manifest"),
    "a whole folder to serve that is not a bundle": ("serve --bundle {other}", "is not a bundle of this workflow"),
    "no file to label": ("score --bundle {whole} --input {gone}.csv --output {out}/a.csv", "gone.csv cannot be read"),
    "a file without texts": ("score --bundle {whole} --input {emotions} --output {out}/a.csv", "has no column 'text'"),
    "no folder to label": ("score --bundle {whole} --input {gone} --output {out}", "gone does not exist: check its path"),
    "a file in a store to write": (
        "score --bundle {whole} --input {emotions} --output s3://bucket/a.csv",
        "s3://bucket/a.csv: a single file is labelled on this machine only",
    ),
    "a file in a store to label": (
        "score --bundle {whole} --input s3://bucket/a.parquet --output {out}/a.csv",
        "s3://bucket/a.parquet: a single file is labelled on this machine only",
    ),
    "a folder of other files to download to": ("model download {whole} --output {model}", "holds files but no complete bundle"),
    "a damaged bundle to download": (
        "model download {damaged} --output {out}",
        "damaged/thresholds.json differs from its manifest",
    ),
    "no MLflow server to ask": ("predict hello --bundle champion-cpu", "MLFLOW_TRACKING_URI is not set"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_an_error_is_one_line_and_exit_code_one(
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
    (tmp_path / "emotions.csv").write_text("id,comment\n1,a lake\n")
    folders |= {"whole": whole, "emotions": tmp_path / "emotions.csv"}
    folders |= {"dataset": dataset, "model": candidate / "model", "test": candidate / "cpu" / "test"}
    arguments, expected = MISTAKES[mistake]
    ended = run(*arguments.format(**folders).split())
    assert ended.code == 1
    assert ended.out == ""
    (line,) = [line for line in ended.err.splitlines() if not line.startswith(("INFO ", "WARNING "))]
    assert line.startswith("goemotions: ")
    assert expected in line
    if not arguments.startswith("model download"):
        assert list(folders["out"].rglob("*")) == []


def test_the_steps_of_the_quickstart_produce_a_version_that_predicts(
    run: Callable[..., Ended],
    source: Path,
    weights: Callable[[str], str],
    stack: Path,
    bucket: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Every command of the page runs as it is written, but with the tests' data, weights, folders and names."""
    name, work = request.node.name, tmp_path / "work"
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    block = next(block for block in page.split("```")[1::2] if "goemotions ingest" in block)
    commands = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines() if line.startswith("goemotions ")]
    values = {
        "sample": str(source),
        "s3://goemotions/": bucket,
        "by-hand": name,
        "comments.csv": str(tmp_path / "comments.csv"),
    }
    added = {
        "train": ["--weights", weights("minilm"), "--epochs", "1"],
        "register": ["--model-name", name],
        "predict": ["--model-name", name],
        "score": ["--model-name", name],
    }
    (tmp_path / "comments.csv").write_text("id,text\n1,a balloon over the lake\n2,gravel\n", encoding="utf-8")
    outputs: dict[str, list[str]] = {}
    for step, *arguments in commands:
        moved = (re.sub(r"^(work|labelled.csv)", f"{tmp_path}/\\1", values.get(word, word)) for word in arguments)
        ended = run(step, *moved, *added.get(step, []))
        assert ended.code == 0, (step, ended.err)
        outputs.setdefault(step, []).append(ended.out)
    assert list(outputs) == [
        "ingest",
        "train",
        "export",
        "evaluate",
        "tune-thresholds",
        "register",
        "report",
        "predict",
        "score",
    ]
    assert outputs["ingest"][0].startswith(f"{work / 'dataset'}: 240 train, 80 validation, 80 test rows, 7 labels, digest ")
    expected = f"{work / 'minilm' / 'model'}: minilm, epoch 1 of 1, validation micro AUC 0."
    assert outputs["train"][0].splitlines()[-1].startswith(expected)
    assert "openvino-int8, " in outputs["export"][0]
    for variant, evaluated, tuned in zip(ENGINES, outputs["evaluate"], outputs["tune-thresholds"], strict=True):
        folder = work / "minilm" / variant
        assert [line.split(":")[0] for line in evaluated.splitlines()] == [str(folder / "validation"), str(folder / "test")]
        assert f"{folder / 'thresholds'}/thresholds.json: " in tuned
    assert [line.split(", bundle ")[0] for line in outputs["register"][0].splitlines()[:2]] == [
        "gpu: minilm is version 1 (champion-gpu)",
        "cpu: minilm is version 2 (champion-cpu)",
    ]
    assert {"dataset.html", "dataset.md", "figures", "report.html", "report.md", "tables"} == {
        path.name for path in (work / "report").iterdir()
    }
    downloaded = run("model", "download", "champion-cpu", "--output", tmp_path / "bundle", "--model-name", name).out
    assert downloaded.splitlines()[0] == f"{tmp_path / 'bundle'}: champion-cpu (version 2), every file matches its manifest"
    predictor = Predictor.load(tmp_path / "bundle")
    assert json.loads(outputs["predict"][0]) == predictor.predict(["thank you so much!"])[0]
    assert (tmp_path / "labelled.csv").read_text(encoding="utf-8").count("\n") == 3


def test_a_bundle_in_a_folder_predicts_without_mlflow(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ended = run("predict", "a lake", "жаль 🎈", "", "--bundle", whole)
    assert ended.code == 0
    assert [json.loads(line) for line in ended.out.splitlines()] == Predictor.load(whole).predict(["a lake", "жаль 🎈", ""])


@pytest.mark.parametrize("prefix", ["minilm=", ""])
def test_weights_of_a_training_are_given_as_those_of_a_run(dataset: Path, tmp_path: Path, prefix: str) -> None:
    arguments = ["--dataset", str(dataset), "--output", str(tmp_path / "model"), "--profile", "minilm"]
    ended = CliRunner().invoke(cli.commands, ["train", *arguments, "--weights", f"{prefix}{tmp_path / 'weights'}"])
    assert str(ended.exception).startswith(f"{tmp_path / 'weights'}/config.json is missing")


def test_a_step_prints_its_output_location(run: Callable[..., Ended], candidate: Path, tmp_path: Path) -> None:
    ended = run("tune-thresholds", "--validation", candidate / "cpu" / "validation", "--output", tmp_path / "out")
    assert ended.code == 0
    *strategies, last = ended.out.splitlines()
    content = json.loads((tmp_path / "out" / "thresholds.json").read_text(encoding="utf-8"))
    assert last == f"{tmp_path / 'out'}/thresholds.json: {content['strategy']}"
    assert [line.split()[0] for line in strategies] == [row["strategy"] for row in content["comparison"]]


def test_a_file_is_labelled(run: Callable[..., Ended], whole: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,comment\n1,a lake\n2,\n3,gravel\n")
    arguments = ("score", "--bundle", whole, "--input", tmp_path / "in.csv", "--column", "comment")
    ended = run(*arguments, "--output", tmp_path / "out.csv", "--labels-only")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{tmp_path / 'out.csv'}: 3 rows in ")
    assert ended.out.endswith("per second; 1 without text, 0 truncated\n")
    predictions = Predictor.load(whole).predict(["a lake", "gravel"])
    labels = ["|".join(prediction["labels"]) for prediction in predictions]
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "id,comment,labels,truncated",
        f"1,a lake,{labels[0]},false",
        "2,,,",
        f"3,gravel,{labels[1]},false",
    ]
    assert run(*arguments, "--output", tmp_path / "out.csv").code == 0
    assert (tmp_path / "out.csv").read_text().startswith("id,comment,labels,truncated,p/calm,p/dread,")


def test_a_folder_is_labelled_by_workers_and_their_time_is_summed(
    run: Callable[..., Ended], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a lake", "", "gravel"]}), tmp_path / "in" / "texts.parquet")
    ended = run("score", "--bundle", whole, "--input", tmp_path / "in", "--output", tmp_path / "out", "--shard-rows", "2")
    assert ended.code == 0, ended.err
    assert re.fullmatch(
        r".*: 3 rows in [\d.,]+ s of work, [\d,]+ per second and worker; 1 without text, 0 truncated\n", ended.out
    )


def copied(whole: Path, folder: Path, **metadata: str) -> Path:
    """Another version: the files of a bundle with other metadata, and one file more."""
    shutil.copytree(whole, folder)
    (folder / "vocab.txt").write_text("of this version alone")
    manifest.write(folder, **metadata)
    return folder


def test_a_download_lists_the_files_by_kind(run: Callable[..., Ended], whole: Path, tmp_path: Path) -> None:
    ended = run("model", "download", whole, "--output", tmp_path / "got")
    assert ended.code == 0, ended.err
    first, *kinds = ended.out.splitlines()
    assert first == f"{tmp_path / 'got'}: {whole}, every file matches its manifest"
    listed = {line.split()[0]: line.partition(" kB  ")[2].split(", ") for line in kinds}
    assert "config.json" in listed["checkpoint"]
    assert "tokenizer.json" in listed["checkpoint"]
    assert listed["predictions"] == ["test.parquet", "validation.parquet"]
    tables = ["test_per_label.csv", "test_per_slice.csv", "validation_per_label.csv", "validation_per_slice.csv"]
    assert listed["metrics"] == ["metrics.json", "reference.json", *tables]
    assert listed["onnx"] == ["export.json", "model.int8.onnx"]
    assert listed["thresholds"] == ["thresholds.json"]
    assert {"MLmodel", "requirements.txt"} < set(listed["mlflow"])
    assert listed["description"] == ["README.md", "usage.json"]
    names = {name for names in listed.values() for name in names} | {manifest.NAME}
    assert names == {path.name for path in (tmp_path / "got").iterdir()} == {path.name for path in whole.iterdir()}


def test_a_version_is_downloaded_once_and_changed_files_are_downloaded_again(
    run: Callable[..., Ended], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "got"
    run("model", "download", whole, "--output", folder)
    before = (folder / "model.int8.onnx").stat().st_mtime_ns
    assert run("model", "download", whole, "--output", folder).code == 0
    assert (folder / "model.int8.onnx").stat().st_mtime_ns == before
    (folder / "model.int8.onnx").write_bytes(b"cut")
    assert run("model", "download", whole, "--output", folder).code == 0
    assert manifest.verify(folder) == manifest.verify(whole)


def test_another_version_replaces_the_downloaded_one(run: Callable[..., Ended], whole: Path, tmp_path: Path) -> None:
    older, folder = copied(whole, tmp_path / "older", run_id="older"), tmp_path / "got"
    run("model", "download", older, "--output", folder)
    (folder / "notes.txt").write_text("mine")
    assert run("model", "download", whole, "--output", folder).code == 0
    assert manifest.verify(folder) == manifest.verify(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()} | {"notes.txt"}


def test_a_failed_download_keeps_the_former_version(run: Callable[..., Ended], whole: Path, tmp_path: Path) -> None:
    newer, folder = copied(whole, tmp_path / "newer", run_id="newer"), tmp_path / "got"
    run("model", "download", whole, "--output", folder)
    (newer / "model.int8.onnx").unlink()
    ended = run("model", "download", newer, "--output", folder)
    assert (ended.code, ended.out) == (1, "")
    assert f"{newer} lacks model.int8.onnx: fetch it again" in ended.err
    assert manifest.verify(folder) == manifest.verify(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_killed_download_leaves_no_bundle_and_can_be_repeated(run: Callable[..., Ended], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    script = (
        "import os, shutil, sys\n"
        "from goemotions.cli import main as cli\n"
        "copy = shutil.copyfile\n"
        "shutil.copyfile = lambda path, target: os._exit(9) if path.name == 'model.int8.onnx' else copy(path, target)\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", script, "model", "download", str(whole), "--output", str(folder)]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 9
    assert [path.name for path in folder.iterdir()] == [".partial"]
    assert run("model", "download", whole, "--output", folder).code == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.fault("leftovers")
@pytest.mark.parametrize("moved", [0, 5])
def test_a_download_that_is_killed_while_it_moves_files_up_can_be_repeated(
    run: Callable[..., Ended], whole: Path, tmp_path: Path, moved: int
) -> None:
    """Then the folder has files and no manifest, as one of somebody else, which is never written to."""
    folder = tmp_path / "got"
    run("model", "download", copied(whole, tmp_path / "older", run_id="older"), "--output", folder)
    script = (
        "import os, pathlib\n"
        "from goemotions.cli import main as cli\n"
        f"left, replace = [None] * {moved}, pathlib.Path.replace\n"
        "pathlib.Path.replace = lambda path, target: replace(path, target) if left and not left.pop() else os._exit(9)\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", script, "model", "download", str(whole), "--output", str(folder)]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 9
    assert not (folder / manifest.NAME).exists()
    assert run("model", "download", whole, "--output", folder).code == 0
    assert manifest.verify(folder) == manifest.verify(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("name", ["labelled.xlsx", "labelled.csv.gz", "labelled.json", "labelled.ndjson", "labelled.txt"])
def test_an_output_of_a_format_that_is_not_written_is_no_folder_of_shards(
    run: Callable[..., Ended], tmp_path: Path, name: str
) -> None:
    (tmp_path / "in.csv").write_text("text\na lake\n")
    ended = run("score", "--input", f"{tmp_path}/in.csv", "--output", f"{tmp_path}/{name}")
    assert ended.code == 1
    assert f"{name} has none of the endings .csv, .tsv, .jsonl, .parquet: write one of these formats" in ended.err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("model", "retire", "--days", "nan"),
        ("model", "retire", "--trained-days", "NaN"),
        ("monitor", "--false-alarms", "nan", "--server", "http://127.0.0.1:9"),
        ("model", "rollout", "--false-rollbacks", "nan"),
        ("data", "from-feedback", "--max-quarantined", "nan", "--output", "x"),
        ("serve", "--bundle", "x", "--answer-seconds", "inf"),
    ],
    ids=" ".join,
)
def test_no_limit_is_a_value_that_is_no_number(arguments: tuple[str, ...]) -> None:
    """No comparison with it is true: retire would keep no version because it is young, and no alarm would ever be one."""
    ended = CliRunner().invoke(cli.commands, arguments)
    assert ended.exit_code == 2
    assert "is no finite number" in ended.output
