"""A data set of the Hugging Face hub: its card, and the files of rows that the card names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from goemotions import addresses, outages
from goemotions.data import card, layout, tables
from goemotions.errors import DataError, SourceUnreachable

# At once.
DOWNLOADS = 8


def configuration(source: str) -> str:
    """The configuration that a source names; empty if it leaves that to the card."""
    return _parts(source)[1]


def fetch(source: str) -> Path:
    """The files of rows and the card of a data set, in a folder named by its commit; from the cache if the hub cannot be reached.

    A loading script or a pickle is not even downloaded.

    Raises:
        DataError: the hub has no such data set, its card has no such configuration, or no file is one of rows.
        SourceUnreachable: the hub cannot be reached, and the data set is not cached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, config, revision = _parts(source)
    described = [card.NAME, card.HEAD_ALONE, layout.LABEL_NAMES]
    snapshot = functools.partial(
        huggingface_hub.snapshot_download, name, repo_type="dataset", revision=revision, allow_patterns=described
    )

    def describe() -> tuple[Path, list[str]]:
        # Without this request and its timeout, an unreachable hub would be retried for half a minute.
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=outages.HUB_TIMEOUT_SECONDS)
        return Path(snapshot()), [file.rfilename for file in info.siblings or ()]

    try:
        folder, listed = outages.retry(describe, outages.is_unavailable, "the hub")
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"the hub has no data set {name} at revision {revision}: check both names, and HF_TOKEN if it is private or gated"
        ) from error
    except Exception as error:
        try:
            return Path(snapshot(local_files_only=True))
        except Exception:
            raise _unreachable(name) from error
    if not any(map(tables.holds_rows, listed)):
        raise DataError(
            f"{source} has no file of rows that is read, and pickles and loading scripts are refused: prepare a folder instead"
        )
    rows = _chosen(folder, source, config, listed)
    download = functools.partial(huggingface_hub.hf_hub_download, name, repo_type="dataset", revision=folder.name)
    try:
        with ThreadPoolExecutor(DOWNLOADS) as downloads:
            outages.retry(lambda: list(downloads.map(download, rows)), outages.is_unavailable, "the hub")
    # What is in the cache then lacks files.
    except Exception as error:
        raise _unreachable(name) from error
    return folder


def _parts(source: str) -> tuple[str, str, str]:
    """Name, configuration (maybe empty) and revision."""
    name, _, revision = source.removeprefix(addresses.HUB).partition("@")
    name, _, config = name.partition(":")
    return name, config, revision or "main"


def _unreachable(name: str) -> SourceUnreachable:
    return SourceUnreachable(
        f"the hub cannot be reached for {name}: use DATA=sample, a local folder (DATA=path/to/folder) or DATA=s3://bucket/prefix/"
    )


def _chosen(folder: Path, source: str, config: str, listed: Sequence[str]) -> list[str]:
    """Of the files of a data set, those to download: what its card names, or Parquet if it has any, since others may say the same."""
    named = card.named(folder, source, config, listed)
    rows = [file for file in (listed if named is None else named) if tables.holds_rows(file)]
    return [file for file in rows if named or file.endswith(".parquet")] or rows
