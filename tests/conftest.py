"""Fixtures of the tests: tiny models of the real architectures, a small data set with seven labels, and the local stack."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tests.support.environment  # noqa: F401

# isort: split

import filelock
import pytest
import torch
import xdist.scheduler

from goemotions.data.dataset import ingest
from goemotions.data.taxonomy import Taxonomy
from goemotions.models import profiles
from goemotions.registry import mlflow_client, trust
from goemotions.storage import s3
from pipelines.run_folder import RunFolder
from tests.support import repositories
from tests.support.bundles import assemble

if TYPE_CHECKING:
    from goemotions.prediction.predictor import Predictor

# One word determines each label, so that even a tiny model learns within seconds.
CUES = {
    "calm": "lake",
    "dread": "storm",
    "glee": "balloon",
    "longing": "harbour",
    "pity": "sparrow",
    "scorn": "gravel",
    "plain": "table",
}
SENTENCE = "the a old green near under we they saw found left kept one two quiet loud small again today there"
FILLERS = SENTENCE.split()
WORDS = [*CUES.values(), *FILLERS]


def faults_of(item: pytest.Item) -> list[str]:
    """The faults and bad inputs of docs/faults.md that a test covers."""
    return [str(name) for mark in item.iter_markers("fault") for name in mark.args]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", action="store_true", help="Run only the slow tests and those of faults and bad inputs, and list the faults."
    )


def order(item: pytest.Item) -> int:
    return next((place for place, start in enumerate(EARLY) if item.nodeid.startswith(start)), len(EARLY))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def selected(item: pytest.Item) -> bool:
        slow = item.get_closest_marker("slow") is not None
        return slow or bool(faults_of(item)) if config.getoption("--faults") else not slow

    config.hook.pytest_deselected(items=[item for item in items if not selected(item)])
    items[:] = sorted(filter(selected, items), key=order)


# Training comes first in every process: torch can crash in training after OpenVINO has run in the same process.
TRAINING = "tests/training/"
# The run of the pipeline that they search takes a minute: one worker makes it.
SHARE_A_RUN = ("tests/pipelines/test_end_to_end.py", "tests/test_secrets.py")
SHARE_A_STORE = ("tests/training/test_checkpoints.py", "tests/training/test_trainer.py")
# What takes longest begins early, so that no worker has to wait for another at the end.
LONG = ("tests/registry/", "tests/prediction/", "tests/models/", "tests/serving/test_load.py")
EARLY = (TRAINING, *SHARE_A_RUN, *LONG)


class Scheduling(xdist.scheduler.LoadFileScheduling):
    """The tests of one file go to one worker, and those of files that share what takes long to make, too; in the order above."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "run" if file in SHARE_A_RUN else "store" if file in SHARE_A_STORE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


MadeOnce = Callable[[str, Callable[[Path], Any]], Path]
OUTCOMES: dict[str, list[str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for name in faults_of(item):
            OUTCOMES.setdefault(name, []).append(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--faults"):
        for name, outcomes in sorted(OUTCOMES.items()):
            counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
            terminalreporter.write_line(f"{name}: {counts}")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, also for the processes of the steps: with several, models this small are slower, most of all on a busy machine."""
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def write_split(path: Path, rows: int, seed: int, prefix: str) -> None:
    """A split in the official three-column layout; every fourth row has two labels."""
    generator = random.Random(seed)
    names = list(CUES)
    lines = []
    for row in range(rows):
        labels = sorted(generator.sample(range(len(names)), 2 if row % 4 == 0 else 1))
        words = [*(CUES[names[label]] for label in labels), *generator.choices(FILLERS, k=generator.randrange(2, 9))]
        generator.shuffle(words)
        lines.append(f"{' '.join(words)}\t{','.join(map(str, labels))}\t{prefix}{row}\n")
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A function from a name and a maker to the folder that it made, once for all workers; tests only read such a folder.

    With MADE_ONCE in the environment, in that folder, which later runs of pytest use again.
    """
    base = tmp_path_factory.getbasetemp()
    root = Path(os.environ.get("MADE_ONCE") or (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once")
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], Any]) -> Path:
        folder = root / name
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = root / f"{name}.unfinished"
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in the official layout with a taxonomy of seven labels."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "emotions.txt").write_text("\n".join(CUES) + "\n", encoding="utf-8")
    for name, rows, seed in (("train", 240, 1), ("dev", 80, 2), ("test", 80, 3)):
        write_split(folder / f"{name}.tsv", rows, seed, name)
    return folder


@pytest.fixture(scope="session")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That data as a Dataset folder."""
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    ingest(str(source), folder)
    return folder


@pytest.fixture(scope="session")
def taxonomy() -> Taxonomy:
    return Taxonomy(tuple(CUES))


@pytest.fixture(scope="session")
def weights(made_once: MadeOnce) -> Callable[[str], str]:
    """A function from a profile's name to its encoder's repository as published, but tiny and with random weights."""

    def make(profile: str) -> str:
        encoder = profiles.get(profile).encoder
        return str(made_once(f"weights-{encoder.model_type}", lambda folder: repositories.write(encoder.base, folder, WORDS)))

    return make


@pytest.fixture(scope="session")
def model_folder(dataset: Path, weights: Callable[[str], str], made_once: MadeOnce) -> Path:
    """A Model folder: the tiny MiniLM, trained for some epochs."""
    from goemotions.training import trainer
    from goemotions.training.options import TrainOptions

    options = TrainOptions(weights=weights("minilm"), epochs=6)
    return made_once("model", lambda folder: trainer.train(dataset, folder, "minilm", options))


@pytest.fixture(scope="session")
def onnx_folder(dataset: Path, model_folder: Path, made_once: MadeOnce) -> Path:
    """That model as an Onnx folder."""
    from goemotions.models import export

    return made_once("onnx", lambda folder: export.export(dataset, model_folder, folder))


@pytest.fixture(scope="session")
def candidate(dataset: Path, model_folder: Path, onnx_folder: Path, made_once: MadeOnce) -> Path:
    """A profile's folder as the steps leave it: model, onnx, and for each variant validation, test and thresholds."""
    from goemotions.evaluation import evaluate, tuning
    from goemotions.registry.bundle import ENGINES

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "model").symlink_to(model_folder)
        (folder / "onnx").symlink_to(onnx_folder)
        for variant, engine in ENGINES.items():
            outputs = {split: folder / variant / split for split in ("validation", "test")}
            evaluate.evaluate(dataset, model_folder, onnx_folder, engine, outputs)
            tuning.tune(folder / variant / "validation", folder / variant / "thresholds")

    return made_once("candidate", make)


@pytest.fixture(scope="session")
def markdown_tables() -> Callable[[str], list[list[list[str]]]]:
    """A function from a Markdown text to its tables: rows of cells, the header first."""

    def read(text: str) -> list[list[list[str]]]:
        tables: list[list[list[str]]] = []
        before = ""
        for line in text.splitlines():
            if line.startswith("|") and not line.startswith("|---"):
                if not before.startswith("|"):
                    tables.append([])
                tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            before = line
        return tables

    return read


@pytest.fixture(scope="session")
def whole(candidate: Path, made_once: MadeOnce) -> Path:
    """A bundle in a folder, never registered."""
    return made_once("bundle", lambda folder: assemble(folder, candidate))


@pytest.fixture(scope="session")
def predictor(whole: Path) -> Predictor:
    """That bundle with its int8 engine on one thread."""
    from goemotions.prediction.predictor import Predictor

    return Predictor.load(whole, threads=1)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a local stack (SeaweedFS and MLflow) for the tests; it is running, and its variables are set."""
    from pipelines import stack as local_stack

    folder = tmp_path_factory.mktemp("stack")
    before = dict(os.environ)
    try:
        # The tests register in stores of their own.
        os.environ.update({name: value for name, value in local_stack.up(folder).items() if name != trust.STORE})
        s3.client.cache_clear()
        mlflow_client.client.cache_clear()
        yield folder
    finally:
        local_stack.down(folder)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def planted(stack: Path) -> dict[str, str]:
    """Recognizable credentials: the keys of the running stack, a token of the hub, and a user and password of MLflow."""
    user, phrase = "planted-user", "planted/password+" + "7f1d0c"
    credentials = {"HF_TOKEN": "hf_planted" + "Zk3Wq8Rt5", "MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": phrase}
    return {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")} | credentials


@pytest.fixture(scope="session")
def run(stack: Path, source: Path, weights: Callable[[str], str], planted: dict[str, str]) -> RunFolder:
    """A finished run of the pipeline, with one profile and those credentials in its environment: each step takes seconds."""
    from pipelines import local

    with pytest.MonkeyPatch.context() as environment:
        for name, value in planted.items():
            environment.setenv(name, value)
        return local.run(
            stack,
            data=str(source),
            models=["minilm"],
            weights={"minilm": weights("minilm")},
            epochs=3,
            checkpoint_minutes=0.0,
            auto_promote=True,
        )


@pytest.fixture
def configure_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that sets S3's variables for this test alone."""

    def configure(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3.client.cache_clear()

    yield configure
    monkeypatch.undo()
    s3.client.cache_clear()


@pytest.fixture
def bucket(stack: Path, request: pytest.FixtureRequest) -> str:
    """An S3 location that only this test uses, with its final slash."""
    return f"s3://goemotions/tests/{request.node.name.replace('[', '-').replace(']', '')}/"
