"""Read, validate and describe the data set."""

from kfp.dsl import Dataset, Output

from components import component


@component
def ingest(
    source: str,
    text_column: str,
    labels_column: str,
    split_share: float,
    split_seed: int,
    drop_leaked: bool,
    unlabelled: str,
    max_quarantined: float,
    pipeline_run: str,
    dataset: Output[Dataset],
) -> str:
    """Writes a Dataset folder and returns its digest."""
    import json
    from pathlib import Path
    from typing import Any

    from goemotions.data.dataset import ingest
    from goemotions.registry import tracking

    options: dict[str, Any] = {
        "text_column": text_column,
        "labels_column": labels_column,
        "split_share": split_share,
        "split_seed": split_seed,
        "drop_leaked": drop_leaked,
        "unlabelled": unlabelled,
        "max_quarantined": max_quarantined,
    }
    info = ingest(source, Path(dataset.path), **options)
    tags = {tracking.SOURCE_TAG: source, tracking.INGEST_TAG: json.dumps(options), "dataset.digest": info["digest"]}
    run = tracking.get_or_create_run(pipeline_run)
    run.set_tags(tags)
    run.log_dataset(info)
    dataset.metadata.update(source=source, revision=info["revision"], digest=info["digest"], **info["rows"])
    return str(info["digest"])
