"""The sections on drift: on a page of their own, and in the performance report."""

import html
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from goemotions.cli.main import commands
from goemotions.errors import DataError
from goemotions.evaluation.drift import DriftReport, DriftTest, LabelQuality
from goemotions.report import drift
from goemotions.report.document import to_html, to_markdown

REPORT = DriftReport(
    "goemotions",
    "7",
    "2026-01-01T00:00:00+00:00",
    "2026-01-02T00:00:00+00:00",
    900,
    True,
    [DriftTest("tokens", "", 90.0, 1e-9, 0.01, 0.4, True), DriftTest("predictions", "calm", 3.1, 0.2, 0.01, 0.5, False)],
    [LabelQuality("calm", 0.1, 0.2, 0.8, 0.7, 0.75, 0.76, 0.74)],
)


def test_the_performance_report_has_the_page_as_a_section() -> None:
    page, part = to_html("Drift", drift.sections(REPORT)), to_markdown("Model performance", drift.of_performance_report(REPORT))
    headings = [line for line in part.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Drift since the deployment", "### Alarms", "### Expected quality", "### All tests"]
    for text in (drift.summary(REPORT), "0.400", "0.50 times", "10.0%", "0.7500"):
        assert text in page
        assert text in part


def test_the_option_of_report_adds_the_figures_of_the_file_to_both_forms_of_the_report(
    tmp_path: Path, candidate: Path, dataset: Path
) -> None:
    REPORT.write(str(tmp_path / "drift"))
    arguments = [
        "report",
        "--dataset",
        dataset,
        "--candidate",
        candidate,
        "--output",
        tmp_path / "out",
        "--drift",
        tmp_path / "drift",
    ]
    ended = CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    for name in ("report.md", "report.html"):
        content = html.unescape((tmp_path / "out" / name).read_text(encoding="utf-8"))
        _, _, part = content.rpartition("Drift since the deployment")
        assert drift.summary(REPORT) in part
        cells = [re.sub(r"\s*<[^>]+>\s*|\s*\|\s*", "|", line).strip("|") for line in part.splitlines()]
        rows = re.sub(r"\|+", "|", "|".join(cells))
        for figures in (
            "tokens|–|0.400|1e-09|0.0100|yes",
            "predictions|calm|0.50 times|0.2000|0.0100|no",
            "calm|10.0%|20.0%|0.7500|0.7600|0.7400",
        ):
            assert figures in rows, rows[:3000]
    without = CliRunner().invoke(commands, list(map(str, arguments[:-2])), catch_exceptions=False)
    assert without.exit_code == 0
    assert "Drift since the deployment" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_report_on_drift_that_is_not_there_is_a_named_error(tmp_path: Path, candidate: Path, dataset: Path) -> None:
    arguments = ["report", "--dataset", dataset, "--candidate", candidate, "--output", tmp_path / "report", "--drift", tmp_path]
    with pytest.raises(DataError, match=r"has no readable drift\.json: run `goemotions monitor` again"):
        CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
