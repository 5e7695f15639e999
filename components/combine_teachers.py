"""Combine the scores of the teachers."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components import component


@component
def combine_teachers(dataset: Input[Dataset], scores: Input[list[Artifact]], taught: Output[Dataset]) -> None:
    """Writes a taught Dataset: the dataset, and the mean of the teachers' scores, which every student learns from."""
    from pathlib import Path

    from goemotions.training import teachers

    records = teachers.combine(Path(dataset.path), [Path(one.path) for one in scores], Path(taught.path))
    taught.metadata.update(dataset.metadata, teachers="+".join(record.name for record in records))
