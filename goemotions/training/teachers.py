"""Teachers of any profile, for students of any profile: each is trained once, and its scores of train and transfer set are kept.

A *taught* Dataset is a Dataset folder with the mean of such scores in ``teachers/``; every student that is trained on it learns from
them. Scores are found again in the store by what determines them: data, weights, recipe and seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import usage
from goemotions.data.dataset import DatasetInfo, load_dataset, taxonomy_of
from goemotions.errors import DataError, IntegrityError, ModelError, TrainingError
from goemotions.evaluation import predictions
from goemotions.evaluation.predictions import Predictions
from goemotions.models import profiles
from goemotions.models.encoder_files import EncoderFiles
from goemotions.models.profiles import Profile
from goemotions.models.records import RunRecord, read_runs
from goemotions.storage import layout, manifest, store
from goemotions.storage.temporary import temporary_folder

log = logging.getLogger(__name__)

FOLDER = "teachers"
RECORDS = "teachers.json"
# Part of the key of the scores: raise it if the same recipe gives other scores.
FORMAT = 1


def key(digest: str, files: EncoderFiles, profile: Profile, seed: int, precision: str, transfer_texts: int = 0) -> str:
    """Returns what the scores of a teacher are found by: a digest of all that determines them."""
    recipe = profile.describe()
    for unused in ("teachers", "teacher_epochs", "distillation_weight"):
        del recipe[unused]
    content = {"digest": digest, "recipe": recipe, "seed": seed, "precision": precision}
    return key_of(files.folder, content | ({"transfer_texts": transfer_texts} if transfer_texts else {}))


def key_of(folder: Path, content: Mapping[str, Any]) -> str:
    """Returns a digest of the files of a network and of what else determines its scores."""
    paths = [path for pattern in ("*.safetensors", "*.json") for path in folder.glob(pattern)]
    weights = {path.name: manifest.sha256(path) for path in paths}
    determining = {**content, "weights": weights, "format": FORMAT}
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]


def write(folder: Path, dataset: Path, name: str, probabilities: np.ndarray, records: Sequence[RunRecord]) -> None:
    """Writes scores, float32 [n + m, labels]: of the n rows of train, and then of the transfer set, by one teacher or several."""
    splits, info = load_dataset(dataset, ("train",))
    taxonomy = taxonomy_of(info)
    folder.mkdir(parents=True, exist_ok=True)
    # The texts of the transfer set have no labels.
    labels = np.zeros(probabilities.shape, dtype=bool)
    labels[: len(splits["train"])] = taxonomy.multi_hot(splits["train"]["labels"][:])
    ids = _ids(splits["train"]["id"][:], len(probabilities))
    scored = Predictions(taxonomy.names, ids, labels, probabilities, "train", "torch", info["digest"], profile=name)
    scored.write(folder / predictions.FILE)
    content = [dataclasses.asdict(record) for record in records]
    (folder / RECORDS).write_text(json.dumps(content, indent=1), encoding="utf-8")
    manifest.write(folder)


@store.raise_on_full_disk
def combine(dataset: Path, scores: Sequence[Path], output: Path) -> list[RunRecord]:
    """Writes a taught Dataset: a copy of the dataset, unless it is written in place, and the mean of the teachers' scores.

    Raises:
        DataError: scores of other data, other labels or other rows.
        TrainingError: there are none.
    """
    if not scores:
        raise TrainingError("there are no scores to combine: name teachers, such as mpnet:2")
    combined = [read(dataset, folder) for folder in scores]
    if len({len(probabilities) for probabilities, _ in combined}) > 1:
        raise DataError("the teachers scored different transfer sets: make their scores with one value of transfer_texts")
    records = [record for _, runs in combined for record in runs]
    if output.resolve() != dataset.resolve():
        shutil.copytree(dataset, output, dirs_exist_ok=True)
    mean = np.mean([probabilities for probabilities, _ in combined], axis=0)
    write(output / FOLDER, dataset, "+".join(record.name for record in records), mean, records)
    for folder in scores:
        usage.write(output, usage.read(folder))
    usage.end_step(output, "combine-teachers")
    return records


def scores_of(dataset: Path, expected: str = "") -> tuple[np.ndarray, list[RunRecord]] | None:
    """Returns the mean scores in a taught Dataset, float32 [n + m, labels], and the teachers' records; None if it has none.

    If teachers are ``expected``, named as ``profiles.teachers`` reads them, their scores and no others must be there.

    Raises:
        DataError: scores of other data, labels, rows or teachers.
    """
    scores = read(dataset, dataset / FOLDER) if (dataset / FOLDER).exists() else None
    names = sorted(record.name for record in scores[1]) if scores else []
    wanted = sorted(map(str, profiles.teachers(expected)))
    if wanted and names != wanted:
        raise DataError(
            f"{dataset} holds scores of {', '.join(names) or 'no teachers'}, but {', '.join(wanted)} are to teach: "
            "make it with `goemotions teach`, or compile the pipeline with these teachers"
        )
    return scores


def from_store(store_location: str, key: str, dataset: Path, output: Path) -> RunRecord | None:
    """Copies one teacher's scores from the store, and returns the record; None if it has none, or if there is no store.

    Those that cannot be used are removed, with a warning.
    """
    if not store_location:
        return None
    store.sweep(store.join(store_location, "teachers"))
    location = layout.teacher(store_location, key)
    if not store.has(location, manifest.NAME):
        return None
    with temporary_folder() as scratch:
        try:
            store.fetch_named(location, scratch)
            (record,) = read(dataset, scratch)[1]
        except (DataError, IntegrityError, ModelError, ValueError) as error:
            log.warning("the scores in %s are not used, and the teacher is trained again: %s", location, error)
            store.remove(location)
            return None
        shutil.copytree(scratch, output, dirs_exist_ok=True)
    log.info("teacher %s: its scores are found in %s", record.name, location)
    return record


def to_store(folder: Path, store_location: str, key: str) -> None:
    """Keeps one teacher's scores in the store, if there is one, and unless another run was faster."""
    if store_location and not store.has(location := layout.teacher(store_location, key), manifest.NAME):
        store.put(folder, location)


def read(dataset: Path, folder: Path) -> tuple[np.ndarray, list[RunRecord]]:
    """Reads a folder of scores of the train split of a Dataset, and of the transfer set.

    Returns:
        The probabilities, float32 [n + m, labels], and the records of the teachers.

    Raises:
        DataError: scores of other data, labels or rows.
        IntegrityError: the folder is not complete.
    """
    manifest.verify(folder)
    splits, info = load_dataset(dataset, ("train",))
    scored = Predictions.read(folder)
    _check(scored, folder, info, splits["train"]["id"][:])
    return scored.probabilities, read_runs(folder / RECORDS)


def _check(scored: Predictions, folder: Path, info: DatasetInfo, ids: list[str]) -> None:
    again = "train the teachers on this dataset (`goemotions teach`)"
    if scored.digest != info["digest"]:
        raise DataError(f"{folder} holds scores of the data {scored.digest[:12]}, but {info['digest'][:12]} is given: {again}")
    if scored.names != taxonomy_of(info).names:
        raise DataError(f"{folder} holds scores of {len(scored.names)} labels that are not those of the data: {again}")
    if list(scored.ids) != _ids(ids, len(scored.ids)):
        raise DataError(f"{folder} holds scores of {len(scored.ids)} rows that are not the {len(ids)} of train: {again}")


def _ids(train: list[str], count: int) -> list[str]:
    """The ids of so many scored rows: those of train, and then of the transfer set."""
    return [*train, *(f"transfer {number}" for number in range(count - len(train)))]
