"""Drift: the stored report, and the tests behind it."""

import json
from pathlib import Path

import pytest

from goemotions.errors import DataError
from goemotions.evaluation import drift
from goemotions.evaluation.drift import DriftReport, DriftTest, LabelQuality


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    tests = [
        DriftTest("predictions", "calm", 3.1, 0.002, 0.001, 0.5, False),
        DriftTest("tokens", "", 90.0, 1e-9, 0.01, 0.4, True),
    ]
    quality = [LabelQuality("calm", 0.1, 0.2, 0.8, 0.7, 0.75, 0.76, 0.74)]
    report = DriftReport("goemotions", "7", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", 900, True, tests, quality)
    report.write(str(tmp_path))
    assert drift.read_report(str(tmp_path)).alarms == tests[1:]
    stored = json.loads((tmp_path / drift.FILE).read_text())
    assert (stored["from"], stored["to"]) == (report.start, report.end)


def test_a_report_of_no_time_is_a_named_error(tmp_path: Path) -> None:
    for end in ("yesterday", "2026-13-01"):
        DriftReport("goemotions", "7", "", end, 900, True, [], []).write(str(tmp_path))
        with pytest.raises(DataError, match="run `goemotions monitor` again"):
            drift.read_report(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"from": "", "to": ""}', '{"from": "", "to": "", "tests": [1]}'])
def test_a_damaged_report_is_a_named_error(tmp_path: Path, content: str) -> None:
    (tmp_path / drift.FILE).write_text(content)
    with pytest.raises(DataError, match="run `goemotions monitor` again"):
        drift.read_report(str(tmp_path))
