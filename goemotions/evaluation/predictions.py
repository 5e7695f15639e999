"""Predictions: the scored rows of one split and one engine, as a Parquet file from which all later metrics are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions.data import columnar, memory
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError
from goemotions.models.engine_names import Computation, canonical_name

# The file in the folder of a scored split.
FILE = "predictions.parquet"
# The metadata of the file; those of before lack the optional ones.
REQUIRED = ("split", "engine", "digest")
OPTIONAL = ("device", "precision", "profile")


@dataclass(frozen=True)
class Predictions:
    """A scored split: ids [n], labels bool [n, labels], probabilities float32 [n, labels].

    Attributes:
        engine: the engine that computed the probabilities, with ``device`` and ``precision`` as in ``Computation``.
        digest: of the data.
        profile: of the model; empty in files from before it was recorded.
    """

    names: tuple[str, ...]
    ids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    split: str
    engine: str
    digest: str
    device: str = ""
    precision: str = ""
    profile: str = ""

    @property
    def computation(self) -> Computation:
        return Computation(self.engine, self.device, self.precision)

    def write(self, path: Path) -> None:
        columns = {"id": pa.array(self.ids, pa.string())}
        columns["labels"] = pa.array([np.flatnonzero(row).tolist() for row in self.labels], pa.list_(pa.int32()))
        # The prefix distinguishes a label called "id" or "labels" from the columns of that name.
        columns |= {f"p/{name}": pa.array(self.probabilities[:, i], pa.float32()) for i, name in enumerate(self.names)}
        metadata = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL)}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Reads a Predictions file, or that of the folder of a scored split.

        Raises:
            DataError: the file is missing, damaged, or of another kind.
        """
        path = path / FILE if path.is_dir() else path
        try:
            table = columnar.read_parquet(path)
            names = tuple(name.removeprefix("p/") for name in table.column_names if name.startswith("p/"))
            probabilities = columnar.probabilities(table, [f"p/{name}" for name in names], str(path))
            with memory.bounded(str(path), path.stat().st_size):
                ids, labels = table["id"].cast(pa.string()).to_pylist(), table["labels"].to_pylist()
                truth = Taxonomy(names).multi_hot(labels)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            split, engine, digest = (metadata[name] for name in REQUIRED)
        except (KeyError, ValueError, TypeError, IndexError, pa.ArrowException, DataError) as error:
            raise DataError(f"{path} is not a Predictions file: run `goemotions evaluate` again") from error
        others = {name: metadata.get(name, "") for name in OPTIONAL}
        return cls(names, ids, truth, probabilities, split, canonical_name(engine), digest, **others)
