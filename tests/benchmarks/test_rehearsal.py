"""The rehearsal in its small form, the table that it writes, and the limits of the steps that follow from the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from benchmarks import random_weights, rehearsal, sections
from benchmarks.rehearsal import Rehearsal, Step, StepFailed
from pipelines import resources

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.slow
@pytest.mark.fault("training-killed")
def test_a_small_model_goes_from_the_hub_folder_to_the_answers_of_a_server(stack: Path, tmp_path: Path) -> None:
    ended = CliRunner().invoke(rehearsal.main, ["--small", "--models", "distilbert", "--folder", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ended.output.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == [
        "ingest",
        "train, killed after a checkpoint",
        "train, resumed",
        "export",
        "evaluate (gpu)",
        "tune-thresholds (gpu)",
        "evaluate (cpu)",
        "tune-thresholds (cpu)",
        "register",
        "report",
        "serve (gpu), until it has answered",
        "serve (cpu), until it has answered",
    ]
    assert all(int(row[3].replace(",", "")) > 50 for row in rows[2:])


@pytest.mark.parametrize("model", random_weights.MODELS)
def test_the_folders_are_those_of_the_hub(model: str, tmp_path: Path) -> None:
    random_weights.write(tmp_path, model, random_weights.sample_texts(), small=True)
    vocabulary = {"roberta-large": {"vocab.json", "merges.txt"}, "distilbert": {"vocab.txt"}}[model]
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == files | vocabulary
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (content["padding"], content["truncation"]) == (None, None)
    assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    special = {
        "roberta-large": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3},
        "distilbert": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101},
    }
    assert {token: tokenizer.token_to_id(token) for token in special[model]} == special[model]
    assert tokenizer.get_vocab_size() == json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def test_a_step_that_fails_is_named_with_the_end_of_its_output(tmp_path: Path) -> None:
    steps: list[Step] = []
    with pytest.raises(StepFailed, match=r"export of distilbert ended with 2: (?s:.*)Missing option '--dataset'"):
        Rehearsal(tmp_path, small=True, on_step=steps.append).step("export", "distilbert", "export")
    assert steps == []


def test_the_peak_memory_is_that_of_the_step_alone(tmp_path: Path) -> None:
    code = "import time; held = bytearray(300 * 2**20); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.5)"
    with (tmp_path / "log").open("wb") as log:
        process = rehearsal.Process(subprocess.Popen([sys.executable, "-c", code], stderr=log), tmp_path / "log")
    # getrusage would count the memory of this process, too.
    held = np.ones(700 * 2**20, dtype=np.uint8)
    assert process.wait() == 0
    assert held.nbytes > 2 * 300 * 2**20
    assert 300 * 2**20 < process.peak < 2 * 300 * 2**20
    assert not Path(f"/proc/{process.popen.pid}").exists()


def test_rows_of_the_source_are_as_long_as_a_model_reads(tmp_path: Path) -> None:
    rehearsal.write_rows(tmp_path)
    lengths = [len(line.split("\t")[0].split()) for line in (tmp_path / "train.tsv").read_text(encoding="utf-8").splitlines()]
    assert len(lengths) == rehearsal.SPLITS["train"]
    assert sum(length == rehearsal.LONG_WORDS for length in lengths) == rehearsal.LONG_ROWS


def test_peaks_are_read_from_the_table_that_is_written(tmp_path: Path) -> None:
    steps = [
        Step("ingest", "", 5, 100 * 2**20),
        Step("train, killed after a checkpoint", "distilbert", 918, 3 * 2**30),
        Step("train, resumed", "distilbert", 918, 4 * 2**30),
        Step("evaluate (cpu)", "distilbert", 9, 2**30),
        Step("tune-thresholds (gpu)", "distilbert", 9, 2**29),
    ]
    sections.write_one(tmp_path / "b.md", rehearsal.TITLE, rehearsal.body(steps, "python -m benchmarks.rehearsal", load=1.5))
    assert rehearsal.peaks(tmp_path / "b.md") == {
        ("distilbert", "train"): 4.0,
        ("distilbert", "evaluate_cpu"): 1.0,
        ("distilbert", "tune_thresholds"): 0.5,
    }


def test_the_limits_of_the_steps_are_at_least_a_third_above_the_measured_peaks() -> None:
    measured = rehearsal.peaks(DOCUMENT)
    assert {model for model, _ in measured} == set(rehearsal.MODELS)
    for (model, step), peak in measured.items():
        if limit := resources.for_models([model]).get(f"{step}.memory"):
            assert gib(limit) >= 4 / 3 * peak, f"{step} of {model}: {limit} is too little for a peak of {peak:.1f} GiB"


def test_the_peaks_of_the_resources_are_those_of_the_table() -> None:
    measured = rehearsal.peaks(DOCUMENT)
    assert {(model, step): peak for model, steps in resources.PEAKS.items() for step, peak in steps.items()} == {
        key: pytest.approx(peak, abs=0.06) for key, peak in measured.items() if f"{key[1]}.memory" in resources.TRAINING
    }


def gib(quantity: str) -> float:
    assert quantity.endswith(("Gi", "Mi"))
    return float(quantity[:-2]) / (1024 if quantity.endswith("Mi") else 1)
