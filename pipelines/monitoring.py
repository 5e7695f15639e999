"""The monitoring pipeline: one step that compares the traffic of a served version with its reference."""

from collections.abc import Mapping

from kfp import dsl

from components.monitor import monitor
from goemotions import defaults
from pipelines import placement
from pipelines import resources as resource_tables


def pipeline(resources: Mapping[str, str] = resource_tables.MONITORING) -> dsl.base_component.BaseComponent:
    """The pipeline, with these resources for its step."""

    @dsl.pipeline(name="goemotions-monitoring", display_name="GoEmotions monitoring")
    def monitoring(
        server: str = "",
        prometheus: str = "",
        service: str = "",
        scored: str = "",
        window: str = defaults.MONITORING_WINDOW,
        version: str = defaults.REFERENCE,
        model_name: str = defaults.MODEL_NAME,
        store: str = defaults.STORE,
        image: str = f"{defaults.TRAINER_IMAGE}:latest",
        commit: str = "unknown",
        credentials_secret: str = defaults.CREDENTIALS_SECRET,
    ) -> None:
        """Compares the traffic of a served version with its reference: one of server, prometheus and scored.

        Args:
            server: Address of a predictor server, whose traffic since its start is compared.
            prometheus: Address of a Prometheus that has the metrics of the predictors.
            service: With a Prometheus the InferenceService, such as goemotions-cpu or serving/goemotions-cpu; empty for all.
            scored: S3 prefix with Parquet files that a batch run scored.
            window: With a Prometheus the time until now that is compared, such as 1d.
            version: Alias, version number or location of the bundle.
            model_name: Name of the registered model in MLflow.
            store: Bucket and prefix for the newest drift report, with the final slash.
            image: Trainer image of the step, tagged by commit.
            commit: Git commit of the pipeline.
            credentials_secret: Kubernetes secret with MLFLOW_TRACKING_URI and the S3 variables, and config map with what is no secret.
        """
        placement.step(monitor, {**locals()}, resources)

    return monitoring


monitoring = pipeline()
