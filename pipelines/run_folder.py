"""The folder of a local run, as kfp.local lays it out (``candidates.of_folder``)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from goemotions import defaults
from goemotions.errors import WorkflowError
from goemotions.registry.bundle import Variant

if TYPE_CHECKING:
    from goemotions.registry.candidates import CandidateArtifacts
    from goemotions.registry.registered_versions import RegisteredVersion

# Files of the report that may be published, and their names in the documentation.
PUBLISHED = {"report.md": "model-performance.md", "dataset.md": "dataset-analysis.md"}


class NoRun(WorkflowError):
    """There is no finished local run."""


@dataclass(frozen=True)
class RunFolder:
    """What the steps of one local run wrote."""

    path: Path

    @classmethod
    def parent(cls, stack_folder: Path) -> Path:
        """The folder with all local runs, below the folder of the local stack."""
        return stack_folder / "runs"

    @classmethod
    def newest(cls, stack_folder: Path) -> RunFolder:
        """The newest run that has a report.

        Raises:
            NoRun: there is none.
        """
        reports = list(cls.parent(stack_folder).glob("*/report"))
        if not reports:
            raise NoRun("there is no finished run to report on: run `make run` first")
        return cls(max(reports, key=lambda report: report.stat().st_mtime).parent)

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.path / "report" / "folder"

    @property
    def dataset(self) -> Path:
        """The Dataset folder; with teachers the taught one, which also has what the steps of the teachers used."""
        taught = self.path / "combine-teachers" / "taught"
        return taught if taught.exists() else self.path / "ingest" / "dataset"

    def registered(self) -> dict[Variant, RegisteredVersion]:
        """The versions that the register step registered."""
        from goemotions.registry import registered_versions

        return registered_versions.read(self.path / "register" / "registered")

    @property
    def has_trained(self) -> bool:
        """Whether it registered versions; a run that had no reason to train did not."""
        return (self.path / "register").exists()

    def candidates(self) -> dict[Variant, list[CandidateArtifacts]]:
        """The artifacts of every profile, by variant."""
        from goemotions.registry.candidates import of_folder

        return of_folder(self.path)

    def publish(
        self, whole: Path, output: Path, model_name: str = defaults.MODEL_NAME, large: tuple[RunFolder, str] | None = None
    ) -> Path:
        """Writes the report again with the current code and measurements.

        Args:
            whole: folder for the whole report; it is replaced.
            output: folder for the figures, the tables and the files of ``PUBLISHED``.
            large: a run on the same data and a profile, whose model of that run the report has in place of this run's.

        Returns:
            The HTML page, below ``whole``.
        """
        from goemotions.registry import costs
        from goemotions.report import performance
        from pipelines import package

        shutil.rmtree(whole, ignore_errors=True)
        candidates, registered = self.candidates(), self.registered()
        if large:
            run, profile = large
            candidates = {
                variant: [
                    *(one for one in run.candidates()[variant] if one.profile == profile),
                    *(one for one in listed if one.profile != profile),
                ]
                for variant, listed in candidates.items()
            }
            # Only a winner is registered: without it, the version of this run is shown.
            if (version := run.registered()["gpu"])["profile"] == profile:
                registered["gpu"] = version
        performance.write(
            self.dataset,
            candidates,
            whole,
            registered,
            model_name=model_name,
            used=costs.of_run(self.dataset, candidates, self.path / "register" / "registered"),
            commit=package.commit(),
        )
        for folder in ("figures", "tables"):
            shutil.rmtree(output / folder, ignore_errors=True)
            shutil.copytree(whole / folder, output / folder)
        for name, published in PUBLISHED.items():
            shutil.copyfile(whole / name, output / published)
        return whole / "report.html"

    def summary(self) -> str:
        """The registered versions and the report, as lines for the terminal."""
        from goemotions.registry import registered_versions

        lines = [registered_versions.describe(variant, version) for variant, version in self.registered().items()]
        page = self.report / "report.html"
        return "\n".join([*lines, f"report: {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}"])
