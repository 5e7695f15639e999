"""Exceptions of the libraries that read data: whichever one they raise, a named error reaches the user."""

import builtins
import contextlib
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import huggingface_hub.errors
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goemotions.data import columnar, sources
from goemotions.data.dataset import ingest, load_dataset
from goemotions.errors import DataError, SourceUnreachable


def exceptions(*modules: Any) -> list[Exception]:
    """One exception of every class of these modules that takes a message."""
    made = []
    for kind in [kind for module in modules for kind in vars(module).values()]:
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ITERATION):
            with contextlib.suppress(TypeError, AttributeError):
                made.append(kind("the first line\nthe second line"))
    return made


ITERATION = (Warning, StopIteration, StopAsyncIteration)
BUILT_IN = [OSError("x"), ValueError("x"), KeyError("x"), TypeError("x"), RuntimeError("x"), AttributeError("x")]


def raises(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)


def one_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1, str(error)


def test_whatever_datasets_raises_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [*exceptions(datasets.exceptions, pa.lib), *BUILT_IN]
    assert len(made) > 25
    for error in made:
        raises(monkeypatch, datasets.Dataset, "load_from_disk", error)
        with pytest.raises(DataError, match="is not a Dataset folder") as raised:
            load_dataset(dataset)
        one_line(raised.value)


def test_whatever_the_hub_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [*exceptions(huggingface_hub.errors, builtins), *BUILT_IN]
    assert len(made) > 50
    for error in made:
        raises(monkeypatch, huggingface_hub, "snapshot_download", error)
        raises(monkeypatch, huggingface_hub.HfApi, "dataset_info", error)
        with pytest.raises((DataError, SourceUnreachable)) as raised:
            sources.open_source("hub:owner/data", tmp_path)
        one_line(raised.value)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_whatever_pyarrow_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    pq.write_table(pa.table({"text": ["a"], "labels": [["calm"]]}), tmp_path / f"train.{ending}")
    own = [error for error in exceptions(pa.lib) if isinstance(error, pa.ArrowException)]
    assert len(own) > 8
    for error in [*own, OSError("x"), ValueError("x")]:
        if ending == "parquet":
            raises(monkeypatch, columnar, "Parquet", error)
        else:
            raises(monkeypatch, pa.ipc, "open_stream", error)
        expected = "takes too much memory" if isinstance(error, MemoryError) else "is not a complete"
        with pytest.raises(DataError, match=f"train.{ending} {expected}") as raised:
            ingest(str(tmp_path), tmp_path / "dataset")
        one_line(raised.value)
