"""The steps between the training of a model and its registration, as commands of ``goemotions``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from goemotions.registry.bundle import ENGINES


def after_training(dataset: Path, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and arguments of each step, in their order.

    Args:
        dataset: the Dataset folder.
        folder: that of the candidate, with the trained ``model``; the layout is that of ``CandidateArtifacts.below``.
    """
    data = [f"--dataset={dataset}", f"--model={folder / 'model'}"]
    yield "export", ["export", *data, f"--output={folder / 'onnx'}"]
    for variant, engine in ENGINES.items():
        validation, test, thresholds = (folder / variant / name for name in ("validation", "test", "thresholds"))
        scored = [f"--onnx={folder / 'onnx'}", f"--engine={engine}", f"--validation={validation}", f"--test={test}"]
        yield f"evaluate ({variant})", ["evaluate", *data, *scored]
        yield f"tune-thresholds ({variant})", ["tune-thresholds", f"--validation={validation}", f"--output={thresholds}"]
