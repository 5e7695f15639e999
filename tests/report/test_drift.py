"""The sections on drift: on a page of their own, and in the performance report."""

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


def test_a_report_on_drift_that_is_not_there_is_a_named_error(tmp_path: Path, candidate: Path, dataset: Path) -> None:
    arguments = ["report", "--dataset", dataset, "--candidate", candidate, "--output", tmp_path / "report", "--drift", tmp_path]
    with pytest.raises(DataError, match=r"has no readable drift\.json: run `goemotions monitor` again"):
        CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
