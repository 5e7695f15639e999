"""A bundle: everything one model version is, in one immutable folder that its manifest closes.

Opening one needs neither torch nor the training libraries: the server does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from goemotions import manifest, storage, thresholds, tracking
from goemotions.errors import ModelError
from goemotions.labels import Taxonomy
from goemotions.thresholds import Thresholds
from goemotions.tokenization import TextEncoder
from goemotions.tracking import Version

MODEL = "goemotions"
Variant = Literal["gpu", "cpu"]
VARIANTS: tuple[Variant, ...] = ("gpu", "cpu")
ENGINES: dict[str, str] = {"gpu": "torch", "cpu": "onnx-int8"}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, opened. ``facts`` is the content of its manifest."""

    folder: Path
    facts: dict[str, Any]
    taxonomy: Taxonomy
    thresholds: Thresholds
    encoder: TextEncoder


def load(folder: Path) -> Bundle:
    """Verifies a bundle and reads what a predictor needs besides the engine.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ModelError: the folder is whole, but no bundle.
    """
    facts = manifest.verify(folder)
    if facts.get("variant") not in VARIANTS:
        raise ModelError(f"{folder} is no bundle of this workflow: give one that `goemotions register` made")
    fitted, content = thresholds.read(folder / "thresholds.json")
    return Bundle(folder, facts, Taxonomy(tuple(content["thresholds"])), fitted, TextEncoder.load(folder))


def fetch(reference: str, output: Path, model_name: str = MODEL) -> Version | None:
    """Brings a bundle and verifies it.

    Args:
        reference: an alias (``champion-cpu``), a version number, or a location (``s3://...`` or a folder).
        output: where the bundle's files are written.
        model_name: name of the registered model.

    Returns:
        The version, where the reference is an alias or a number.

    Raises:
        ModelError: there is no such alias or version.
        IntegrityError: what arrived does not match its manifest.
    """
    if storage.is_s3(reference) or Path(reference).is_dir():
        storage.fetch(reference, output)
        manifest.verify(output)
        return None
    version = tracking.version(model_name, reference)
    if version is None:
        raise ModelError(f"{model_name} has no version or alias {reference!r}: register one first (`make run`)")
    storage.fetch(version.source, output)
    manifest.verify(output)
    return version
