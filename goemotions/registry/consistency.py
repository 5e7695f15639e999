"""Whether the files of a bundle fit each other: a manifest proves that none changed, not that they are of one model.

Checked once, when a bundle is loaded or assembled. Otherwise each prediction would fail, or would be another model's without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError
from goemotions.evaluation import reference
from goemotions.evaluation.reference import Reference
from goemotions.metrics import thresholds
from goemotions.metrics.thresholds import ThresholdsFile
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.models.records import TRAINING_FILE, read_json
from goemotions.models.tokenizer import TextEncoder, positions


def check_files(
    folder: Path, taxonomy: Taxonomy, fitted: ThresholdsFile, encoder: TextEncoder, compared: Reference | None = None
) -> None:
    """Compares what the files of a bundle say of its labels and of the longest text.

    Args:
        folder: the bundle.
        taxonomy: its labels.
        fitted: its thresholds.
        encoder: its tokenizer.
        compared: its reference; None if it has none.

    Raises:
        ModelError: two of them do not fit each other.
    """
    config, names = read_json(folder / "config.json"), taxonomy.names
    check_names(folder, thresholds.FILE, fitted.names, names)
    if compared:
        check_names(folder, reference.FILE, compared.traffic.names, names)
    # transformers leaves out names that are its defaults.
    if isinstance(stored := config.get("id2label"), dict):
        check_names(folder, "config.json", tuple(stored.get(str(index)) for index in range(len(stored))), names)
    calibrator = read_json(folder / TRAINING_FILE).get("calibration")
    for name, values in calibrator.items() if isinstance(calibrator, dict) else ():
        if name in ("slope", "intercept") and isinstance(values, list) and len(values) != len(names):
            raise _misfit(folder, f"{TRAINING_FILE} has a calibration of {len(values)} labels, but there are {len(names)}")
    most = positions(config, encoder.pad_id)
    if most is not None and encoder.max_length > most:
        raise _misfit(folder, f"{TRAINING_FILE} has a max_length of {encoder.max_length}, but the model reads {most} tokens")


def check_names(folder: Path, file: str, found: tuple[Any, ...], names: tuple[str, ...]) -> None:
    """Checks that a file of a bundle has its labels, in their order.

    Raises:
        ModelError: it has others.
    """
    if found == names:
        return
    if len(found) != len(names):
        raise _misfit(folder, f"{file} has {len(found)} labels, but there are {len(names)}")
    position = next(position for position, pair in enumerate(zip(found, names, strict=True)) if pair[0] != pair[1])
    raise _misfit(folder, f"{file} calls label {position} {found[position]!r:.100}, but it is {names[position]!r:.100}")


def check_engine(folder: Path, engine: Engine, taxonomy: Taxonomy) -> None:
    """Checks that an engine returns one score per label; that its tokenizer fits, ``engines.load`` has checked.

    Raises:
        ModelError: it does not.
    """
    width = engines.score_ids(engine, [[engine.encoder.pad_id]]).shape[1]
    if width != len(taxonomy):
        raise _misfit(folder, f"the model has {width} outputs, but there are {len(taxonomy)} labels")


def _misfit(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"the files of {folder} are not of one model: {what}. Register the model again, or fetch the bundle whole"
    )
