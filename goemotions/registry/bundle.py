"""A bundle: everything one model version is, in one immutable folder that its manifest closes.

Opening one needs neither torch nor the training libraries: the server does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError
from goemotions.metrics import thresholds
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import manifest, store

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
        raise ModelError(f"{folder} is not a bundle of this workflow: give one that `goemotions register` made")
    fitted, content = thresholds.read(folder / thresholds.FILE)
    return Bundle(folder, facts, Taxonomy(tuple(content["thresholds"])), fitted, TextEncoder.load(folder))


def taxonomy(location: str) -> Taxonomy:
    """The labels of a bundle, by one small file of it.

    Raises:
        ModelError: no bundle is there.
    """
    if not store.has(location, manifest.NAME):
        raise ModelError(f"{location} is not a bundle: give one that `goemotions register` made")
    _, content = thresholds.parse(store.read(location, thresholds.FILE) or b"", f"{location}: {thresholds.FILE}")
    return Taxonomy(tuple(content["thresholds"]))
