"""One report, rendered once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from goemotions.registry.bundle import VARIANTS
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.report import performance
from goemotions.report.result import Result
from tests.conftest import MadeOnce

REGISTERED = {
    "gpu": {
        "profile": "minilm",
        "version": "3",
        "alias": "champion-gpu",
        "run_id": "f00d",
        "source": "s3://b/models/x/gpu/",
        "gate": None,
    },
    "cpu": {
        "profile": "minilm",
        "version": "4",
        "alias": "challenger-cpu",
        "run_id": "f00d",
        "source": "s3://b/models/x/cpu/",
        "gate": {"passes": False, "reasons": ["micro AUC is not higher"], "differences": {}},
    },
}


@pytest.fixture(scope="session")
def candidates(candidate: Path) -> dict[Any, list[CandidateArtifacts]]:
    return {variant: [CandidateArtifacts.below(candidate, variant)] for variant in VARIANTS}


@pytest.fixture(scope="session")
def results(candidates: dict[Any, list[CandidateArtifacts]]) -> list[Result]:
    return [Result.read(variant, folder) for variant, folders in candidates.items() for folder in folders]


@pytest.fixture(scope="session")
def folder(dataset: Path, candidates: dict[Any, list[CandidateArtifacts]], made_once: MadeOnce) -> Path:
    """The folder of a report on registered models."""
    return made_once("report", lambda folder: performance.write(dataset, candidates, folder, REGISTERED, commit="c0ffee"))


@pytest.fixture(scope="session")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tables(markdown: str, markdown_tables: Any) -> dict[str, dict[str, dict[str, str]]]:
    """By the first header cell, a table as rows by their first cell, each a mapping from column to cell."""
    return {
        header[0]: {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
        for header, *rows in markdown_tables(markdown)[::-1]
    }
