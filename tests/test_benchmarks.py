"""The computations and tables of the benchmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import ablations, everything, frontier, growth, measuring, overhead, reproduce, sections, store
from benchmarks.frontier import Tier
from goemotions.report import measurements
from pipelines.run_folder import RunFolder

LOG = """
23:59:58.500 - INFO - Executing task \x1b[96m'ingest'\x1b[0m
23:59:59.000 - INFO - Streamed logs
00:00:01.500 - INFO - Task \x1b[96m'ingest'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
00:00:01.600 - INFO - Executing task \x1b[96m'tune-thresholds-2'\x1b[0m
00:00:02.100 - INFO - Task \x1b[96m'tune-thresholds-2'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
"""


def test_the_seconds_of_each_step_are_read_from_a_log_past_midnight() -> None:
    assert overhead.seconds(LOG) == {"ingest": 3.0, "tune-thresholds-2": pytest.approx(0.5)}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_fitted(power: float) -> None:
    sizes = [10_000, 100_000, 1_000_000]
    assert growth.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-6)


def test_a_ratio_is_the_median_over_consecutive_runs() -> None:
    value, text = measuring.ratio([10.0, 30.0, 8.0], [5.0, 10.0, 8.0])
    assert value == 2.0
    assert text == "2.00 times (1.00 to 3.00)"


def test_runs_take_turns() -> None:
    order: list[str] = []
    rates = measuring.by_turns(2, {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}, warm=False)
    assert (order, rates) == (["a", "b", "a", "b"], {"a": [1.0, 1.0], "b": [1.0, 1.0]})


def test_a_row_shows_whether_its_target_is_met() -> None:
    assert measuring.Row("x", "1", "2", is_met=False).markdown() == "| x | 1 | 2 | **no** |"


@pytest.mark.parametrize(("f1", "rate", "pays"), [(0.548, 210.0, True), (0.546, 210.0, False), (0.55, 190.0, False)])
def test_a_cascade_meets_its_target_if_it_is_twice_as_fast_and_loses_little(f1: float, rate: float, pays: bool) -> None:
    tiers = [Tier("int8", 0.55, [100.0, 101.0]), Tier("bag", 0.4, [9000.0, 9100.0]), Tier("cascade", f1, [rate, rate])]
    assert frontier.rows_of(tiers)[-1].is_met is pays


def test_measuring_one_section_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    bodies = {"Training": "`one`\n\n| a |\n|---|\n| 1 |", "Growth": "`two`"}
    sections.write(path, bodies)
    assert sections.read(path) == bodies
    ended = CliRunner().invoke(everything.main, ["--only", "Training at night", "--output", str(path)])
    assert ended.exit_code == 2
    assert "choose from Training, Batch scoring" in ended.output
    assert sections.read(path) == bodies
    assert sections.read(tmp_path / "none.md") == {}
    sections.write_one(path, "Growth", "`three`")
    assert list(sections.read(path).items()) == [("Training", bodies["Training"]), ("Growth", "`three`")]


def test_a_recorded_frontier_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "FRONTIER", tmp_path / "frontier.csv")
    frontier.record([Tier("int8", 0.55, [100.0, 102.0, 90.0]), Tier("cascade", 0.5, [1.0])], "of the data")
    (first, _) = measurements.read(tmp_path / "frontier.csv", "of the data")
    assert (first["predictor"], first["f1_macro"], first["texts_per_second"]) == ("int8", "0.55000", "100")
    assert measurements.read(tmp_path / "frontier.csv", "of other data") == []


@pytest.mark.slow
def test_the_object_store_stays_below_the_limits_of_its_manifest() -> None:
    rows = store.measure(0.3, checkpoint_gb=0.1)
    assert rows[0].measured.startswith("0.3 GB in ")
    assert [row.is_met for row in rows[1:]] == [True, True, True]


def test_a_recipe_is_measured_once_per_seed(
    candidate: Path,
    dataset: Path,
    weights: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reproduce, "SEEDS", tmp_path / "seeds.csv")
    monkeypatch.setattr(reproduce, "WORK", tmp_path / "work")
    for name in ("model", "onnx", "gpu"):
        (tmp_path / name).symlink_to(candidate / name)
    (tmp_path / "combine-teachers").mkdir()
    (tmp_path / "combine-teachers" / "taught").symlink_to(dataset)
    arguments = {"weights": {"minilm": weights("minilm")}, "settings": {"minilm": {"teachers": 0, "epochs": 1}}}
    for seed in (0, 1, 1):
        reproduce.measure_seed(RunFolder(tmp_path), "minilm", seed, "minilm, taught by none", arguments)
    with (tmp_path / "seeds.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"]) for row in rows] == [("minilm, taught by none", "0"), ("minilm, taught by none", "1")]
    # The run has trained the model of its own seed for six epochs.
    assert float(rows[0]["test/auc_micro"]) == pytest.approx(
        ablations.final_metrics(dataset, candidate / "model")["test/auc_micro"], abs=1e-5
    )
    assert rows[0]["test/auc_micro"] != rows[1]["test/auc_micro"]
    assert capsys.readouterr().out.splitlines()[-1] == "minilm, taught by none, seed 1: is measured"
    assert not (tmp_path / "work" / "minilm-1").exists()


def test_a_finished_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "WORK", tmp_path)
    arguments = {"data": "sample", "teachers": ["mpnet@1"]}
    (tmp_path / "second.json").write_text(json.dumps({"arguments": arguments, "folder": str(tmp_path)}))
    assert reproduce.finished_run("second", arguments).path == tmp_path
