"""The scoring pipeline: plan the shards, score them in several pods, and check that every row was scored."""

import functools
from collections.abc import Mapping

from kfp import dsl
from kfp.dsl import Collected, ParallelFor

from components.finish_scoring import finish_scoring
from components.plan_scoring import plan_scoring
from components.score import score
from goemotions import defaults
from pipelines import placement
from pipelines import resources as resource_tables


def pipeline(resources: Mapping[str, str] = resource_tables.SCORING) -> dsl.base_component.BaseComponent:
    """The pipeline, with these resources for its steps."""

    @dsl.pipeline(name="goemotions-scoring", display_name="GoEmotions scoring")
    def scoring(
        input: str,
        output: str,
        version: str = defaults.REFERENCE,
        model_name: str = defaults.MODEL_NAME,
        column: str = defaults.TEXT_COLUMN,
        all_scores: bool = True,
        shard_rows: int = defaults.SHARD_ROWS,
        pods: int = 4,
        threads: int = 4,
        image: str = f"{defaults.TRAINER_IMAGE}:latest",
        commit: str = "unknown",
        credentials_secret: str = defaults.CREDENTIALS_SECRET,
    ) -> None:
        """Labels the rows of files with a registered model: one output row per input row, in order.

        Args:
            input: S3 prefix with files of rows (.csv, .tsv, .jsonl, .parquet), or one such file.
            output: S3 prefix for the scored shards; a run that is started again continues there.
            version: Alias, version number or location of the bundle.
            model_name: Name of the registered model in MLflow.
            column: Column with the texts.
            all_scores: Add the probability of each label.
            shard_rows: Most rows per shard; a shard is one file of the output.
            pods: Pods that share the shards.
            threads: Threads per pod; 0: every core that it may use.
            image: Trainer image of every step, tagged by commit.
            commit: Git commit of the pipeline.
            credentials_secret: Kubernetes secret with MLFLOW_TRACKING_URI and the S3 variables, and config map with what is no secret.
        """

        step = functools.partial(placement.step, parameters={**locals()}, resources=resources)
        planned = step(plan_scoring, resources_of="plan")
        with ParallelFor(planned.output, name="shares") as share:
            done = step(score, share=share)
        step(finish_scoring, resources_of="finish", shares=Collected(done.output))

    return scoring


scoring = pipeline()
