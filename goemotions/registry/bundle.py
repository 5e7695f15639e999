"""A bundle: everything that one model version consists of, in one immutable folder. Its manifest is written last.

It holds the weights of the engine of its variant only (``engine_names.WEIGHTS``); bundles of before hold those of all engines.

This module has the location of a bundle in the store, the names of the files that are made when it is assembled, and its reading;
``assembly.assemble`` writes it. Files that earlier steps wrote keep their names, and docs/models.md lists all of them. Reading needs
neither torch nor the training libraries nor pyarrow: the server does it.

The labels have a file of their own, ``labels.json``: a JSON list of names in index order. A server reads it without having to
interpret ``config.json``, whose ``id2label`` is Hugging Face's (keys are strings, absent names become ``LABEL_0``), and thresholds can
be stored in another way without changing the labels. Bundles from before that file have the names as keys of ``thresholds.json``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

from goemotions import strict_json
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError
from goemotions.evaluation import reference
from goemotions.evaluation.latency import Latency
from goemotions.evaluation.reference import Reference
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.engine_names import WEIGHTS, Computation, canonical_name
from goemotions.models.engines import Engine
from goemotions.models.records import EXPORT_FILE, TRAINING_FILE
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import consistency
from goemotions.storage import layout, manifest, signature
from goemotions.storage import store as storage
from goemotions.storage.signature import Signature

log = logging.getLogger(__name__)

Variant = Literal["gpu", "cpu"]
R = TypeVar("R", Computation, Latency)
# What serves each variant.
SERVING: dict[Variant, Computation] = {
    "gpu": Computation("torch", "cuda", "bf16"),
    "cpu": Computation("openvino-int8", "cpu", "int8"),
}
VARIANTS = tuple(SERVING)
ENGINES: dict[str, str] = {variant: computation.engine for variant, computation in SERVING.items()}

LABELS = "labels.json"
CARD = "README.md"
PREDICTIONS = "{split}.parquet"
PER_LABEL = "{split}_per_label.csv"
PER_SLICE = "{split}_per_slice.csv"
# The files of a bundle by kind, as patterns; the first kind that matches counts.
KINDS = {
    "checkpoint": (WEIGHTS["torch"], "config.json", TRAINING_FILE, "*token*", "vocab*", "merges*"),
    "onnx": ("*.onnx", EXPORT_FILE),
    "thresholds": (thresholds.FILE,),
    "labels": (LABELS,),
    "metrics": (METRICS_FILE, reference.FILE, PER_LABEL.format(split="*"), PER_SLICE.format(split="*"), "*_per_label.md"),
    "predictions": (PREDICTIONS.format(split="*"), "*.csv"),
    "mlflow": ("MLmodel", "*input_example.json", "requirements.txt", "*.yaml", "*.whl"),
    "description": ("*",),
}
NOT_A_BUNDLE = "{} is not a bundle of this workflow: give one that `goemotions register` made"


@dataclass(frozen=True)
class BundleLocation:
    """Where a bundle is stored; as a string ``<store>/models/<model name>/<run id>/<variant>/``."""

    store: str
    model_name: str
    run_id: str
    variant: Variant

    def __str__(self) -> str:
        return storage.join(self.model_prefix, self.run_id, self.variant)

    @property
    def model_prefix(self) -> str:
        return layout.models(self.store, self.model_name)

    @classmethod
    def parse(cls, location: str) -> BundleLocation:
        """Raises:
        ModelError: it is not the location of a bundle.
        """
        store, *others = location.rstrip("/").rsplit("/", 4)
        variant = next((one for one in VARIANTS if others[3:] == [one]), None)
        # MLflow looks versions up by their location, and its filters take no quotes.
        if variant is None or others[0] != "models" or not re.fullmatch(r"[\w-]+", others[2]):
            raise ModelError(f"{location} is not <store>/models/<model>/<run>/<variant>/: give a bundle that was registered")
        return cls(storage.join(store), others[1], others[2], variant)


@dataclass(frozen=True)
class BundleMetadata:
    """What the manifest of a bundle says of it besides its files.

    Attributes:
        engine: the engine that serves it.
        run_id: the MLflow run that trained it, on the data with ``dataset_digest``.
        evaluated: what computed its scores, thresholds and metrics; None in bundles from before it was recorded.
        checkpoint_sha256: of the weights that were trained, from which those of the engine were made; empty in bundles of before.
        selection: why this profile won; empty in bundles of before.
        latency: for one text, of variants with a latency budget.
    """

    variant: Variant
    engine: str
    profile: str
    run_id: str
    dataset_digest: str
    evaluated: Computation | None = None
    checkpoint_sha256: str = ""
    selection: str = ""
    latency: Latency | None = None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> BundleMetadata:
        """From the content of a manifest; what bundles of before lack is empty.

        Raises:
            BadJson: a value has another type.
        """
        values = {field.name: content.get(field.name, "") for field in fields(cls)}
        evaluated, latency = (content.get(name) or None for name in ("evaluated", "latency"))
        strict_json.require(values | {"evaluated": evaluated, "latency": latency}, cls, manifest.NAME)
        return cls(
            **values
            | {
                "evaluated": _from_json(Computation, evaluated) if evaluated else None,
                "latency": _from_json(Latency, latency) if latency else None,
            }
        )


def _from_json(record: type[R], content: dict[str, Any]) -> R:
    """A record from the entries that it has fields for."""
    return record(**{field.name: content[field.name] for field in fields(record) if field.name in content})


@dataclass(frozen=True)
class Bundle:
    """A verified bundle and what a predictor needs of it besides the engine.

    ``files`` are those that its manifest names, and ``digest`` is the sha256 of the manifest, which has that of every other file.
    ``reference`` is None in bundles from before they had it.
    """

    folder: Path
    metadata: BundleMetadata
    taxonomy: Taxonomy
    thresholds: Thresholds
    encoder: TextEncoder

    files: frozenset[str]
    digest: str
    signature: Signature
    reference: Reference | None = None

    def has_engine(self, name: str) -> bool:
        """Whether the bundle holds the weights that an engine reads."""
        return WEIGHTS.get(canonical_name(name)) in self.files

    def load_engine(self, name: str = "", *, threads: int | None = None) -> Engine:
        """Loads an engine, by default the bundle's own, which reads no file that the manifest does not name.

        Raises:
            ModelError: as ``engines.load``, or its model has more or fewer outputs than the bundle has labels.
            DeviceError: as ``engines.load``.
        """
        with manifest.only_named(self.folder) as folder:
            engine = engines.load(name or self.metadata.engine, folder, self.encoder, threads=threads)
        consistency.check_engine(self.folder, engine, self.taxonomy)
        return engine


def load(folder: Path, *, is_verified: bool = False) -> Bundle:
    """Verifies a bundle and reads what a predictor needs besides the engine.

    Args:
        folder: the bundle.
        is_verified: every file has been compared with the manifest already; hashing gigabytes takes seconds.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        UntrustedBundle: there are trusted keys, and none of them signed the bundle.
        ModelError: every file is there, but the folder is not a bundle, or its files do not fit each other.
    """
    content = manifest.read(folder) if is_verified else manifest.verify(folder)
    digest = manifest.sha256(folder / manifest.NAME)
    signed = signature.verify_folder(folder)
    if content.get("variant") not in VARIANTS:
        raise ModelError(NOT_A_BUNDLE.format(folder))
    metadata = BundleMetadata.parse(content)
    with manifest.only_named(folder) as named:
        labels = taxonomy(str(folder))
        fitted = thresholds.read(named / thresholds.FILE)
        encoder = TextEncoder.load(named)
        path = named / reference.FILE
        compared = reference.parse(strict_json.read_bytes(path), str(path)) if path.is_file() else None
        consistency.check_files(named, labels, fitted, encoder, compared)
    log.info("the bundle of the run %s (%s) is %s", metadata.run_id, metadata.variant, signed)
    return Bundle(folder, metadata, labels, fitted.thresholds, encoder, frozenset(content["files"]), digest, signed, compared)


def taxonomy(location: str, content: dict[str, Any] | None = None) -> Taxonomy:
    """The labels of a bundle in a folder or in S3.

    Args:
        location: the folder or prefix.
        content: its manifest, if that was read and verified already: what is there now may be another one.

    Raises:
        ModelError: there is no bundle, or its labels are damaged.
        IntegrityError: its labels differ from its manifest.
    """
    if content is None:
        if not storage.has(location, manifest.NAME):
            raise ModelError(NOT_A_BUNDLE.format(location))
        content = manifest.parse(storage.read(location, manifest.NAME), location)
    name = LABELS if LABELS in content["files"] else thresholds.FILE
    stored = manifest.check(content, location, name, storage.read(location, name))
    if name == thresholds.FILE:
        return Taxonomy(thresholds.parse(stored, f"{location}: {thresholds.FILE}").names)
    try:
        names = strict_json.parse(stored, LABELS)
        strict_json.require(names, list[str], LABELS)
        return Taxonomy(tuple(names))
    except ValueError as error:
        raise ModelError(f"{location}: {LABELS} is damaged: download it again, or register the model anew") from error


def by_kind(names: list[str]) -> dict[str, list[str]]:
    """The names of a bundle's files by kind, in the order of ``KINDS``."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        file = name.rpartition("/")[2]
        kinds[next(kind for kind, patterns in KINDS.items() if any(fnmatch(file, pattern) for pattern in patterns))].append(
            name
        )
    return {kind: files for kind, files in kinds.items() if files}
