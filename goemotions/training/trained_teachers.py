"""Models that were trained before as teachers: a second generation learns from students of the first (Furlanello et al. 2018).

They may be of any run on the same data. A large one that was trained once teaches smaller ones without being trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from goemotions import addresses, usage
from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.errors import DataError
from goemotions.models import engines
from goemotions.models.records import RunRecord, TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.models.weights_folder import read_config
from goemotions.registry import trust
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder
from goemotions.training import hardware, teachers, transfer
from goemotions.training.options import TrainOptions


@store.raise_on_full_disk
def teach(dataset: Path, output: Path, location: str, options: TrainOptions, store_location: str = "") -> RunRecord:
    """Writes the folder of a trained model's scores of train and the transfer set, or copies it from the store.

    Args:
        dataset, output: the Dataset folder, whose test split is not opened, and the folder to write.
        location: a Model folder, or ``s3://`` prefix of a trained model.
        options: precision, and size of the transfer set.
        store_location: the store that keeps scores; empty for none.

    Raises:
        DataError: the model was trained on other data or has other labels.
        ModelError, IntegrityError, UntrustedBundle: it is damaged or incomplete, or nobody who is trusted has signed it.
    """
    splits, info = load_dataset(dataset, ("train",))
    texts = splits["train"]["text"][:]
    count, precision = round(options.transfer_texts * len(texts)), hardware.resolve_precision(options.precision)
    with _folder(location) as folder, hardware.memory_errors():
        record = TrainingRecord.read(folder)
        if record.dataset_digest != info["digest"]:
            raise DataError(
                f"the teacher {location} was trained on the data {record.dataset_digest[:12]}, not {info['digest'][:12]}: it may have "
                "seen texts of validation and test; train it on this dataset"
            )
        determining = {"digest": info["digest"], "location": location, "precision": precision, "transfer_texts": count}
        key = teachers.key_of(folder, determining)
        if copied := teachers.from_store(store_location, key, dataset, output):
            usage.end_step(output, f"teach {location}")
            return copied
        if tuple(read_config(folder).get("id2label", {}).values()) != taxonomy_of(info).names:
            raise DataError(
                f"the teacher {location} has other labels than the data, or in another order: train it on this dataset"
            )
        # In the precision of training, as other teachers score.
        engine = engines.load("torch", folder, TextEncoder.load(folder), precision=precision)
        texts += transfer.texts(texts, count)
        with tqdm(total=len(texts), desc=f"teacher {location}", unit="text", mininterval=10) as bar:
            scores, _ = engines.score(engine, texts, bar.update)
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(RunRecord)}
    run = RunRecord(**fields | {"location": location})
    teachers.write(output, dataset, location, scores, [run])
    teachers.to_store(output, store_location, key)
    usage.end_step(output, f"teach {location}")
    return run


@contextlib.contextmanager
def _folder(location: str) -> Iterator[Path]:
    """The files of a trained model, verified if they come from a store."""
    if not addresses.is_s3(location):
        yield addresses.local(location)
        return
    with temporary_folder() as scratch:
        trust.fetch(location, scratch)
        yield scratch
