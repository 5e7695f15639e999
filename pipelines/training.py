"""The training pipeline: the order of the steps, and every parameter with its default."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from kfp import dsl
from kfp.dsl import Collected, If, ParallelFor

from components.combine_teachers import combine_teachers
from components.decide_retraining import decide_retraining
from components.deploy import deploy
from components.evaluate import evaluate
from components.export import export
from components.ingest import ingest
from components.register import register
from components.report import report
from components.teach import teach
from components.train import train
from components.tune_thresholds import tune_thresholds
from goemotions import defaults
from goemotions.deployment.node_pools import NVIDIA_TAINT
from goemotions.registry.bundle import ENGINES
from pipelines import placement
from pipelines import resources as resource_tables

# The last ones of the pipeline, of which only the variant has them that trains on reason.
RETRAINING_PARAMETERS = ("manual_reason", "max_age_days", "drift_cooldown_days")
Function = TypeVar("Function", bound=Callable[..., None])


def pipeline(
    resources: Mapping[str, str] = resource_tables.TRAINING,
    gpu_labels: Mapping[str, str] | None = None,
    *,
    has_teachers: bool = False,
    on_reason: bool = False,
) -> dsl.base_component.BaseComponent:
    """The pipeline.

    Args:
        resources: of its steps.
        gpu_labels: labels for the pods that request GPUs.
        has_teachers: whether it has the steps that train the teachers; KFP is not known to run a loop over an empty list.
        on_reason: whether it trains only if there is a reason to, as a schedule does.
    """

    name = "retraining" if on_reason else "training"

    @dsl.pipeline(name=f"goemotions-{name}", display_name=f"GoEmotions {name}")
    @_without(*(() if on_reason else RETRAINING_PARAMETERS))
    def training(
        data: str = defaults.CLUSTER_SOURCE,
        models: list[str] = [*defaults.CLUSTER_PROFILES],  # noqa: B006 - KFP reads it, nothing changes it
        weights: dict[str, str] = {},  # noqa: B006
        settings: dict[str, dict[str, Any]] = {},  # noqa: B006
        teachers: list[str] = [],  # noqa: B006
        transfer_texts: float = 0.0,
        epochs: int = defaults.EPOCHS,
        seed: int = defaults.SEED,
        precision: str = defaults.PRECISION,
        checkpoint_minutes: float = defaults.CHECKPOINT_MINUTES,
        text_column: str = defaults.TEXT_COLUMN,
        labels_column: str = defaults.LABELS_COLUMN,
        split_share: float = defaults.SPLIT_SHARE,
        split_seed: int = defaults.SPLIT_SEED,
        drop_leaked: bool = False,
        unlabelled: str = defaults.UNLABELLED,
        max_quarantined: float = defaults.MAX_QUARANTINED,
        threshold_strategy: str = defaults.THRESHOLD_STRATEGY,
        target_precision: float = defaults.TARGET_PRECISION,
        target_recall: float = defaults.TARGET_RECALL,
        store: str = defaults.STORE,
        model_name: str = defaults.MODEL_NAME,
        latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
        quality_tolerance: float = defaults.QUALITY_TOLERANCE,
        cpu_hour_price: float = defaults.CPU_HOUR_PRICE,
        gpu_hour_price: float = defaults.GPU_HOUR_PRICE,
        auto_promote: bool = False,
        keep_checkpoints: bool = False,
        deploy_namespace: str = "",
        canary_percent: int = 0,
        image: str = f"{defaults.TRAINER_IMAGE}:latest",
        commit: str = "unknown",
        credentials_secret: str = defaults.CREDENTIALS_SECRET,
        signing_secret: str = defaults.SIGNING_SECRET,
        node_selector: dict[str, str] = {},  # noqa: B006
        node_affinity: dict[str, Any] = {},  # noqa: B006
        tolerations: list[dict[str, Any]] = [NVIDIA_TAINT],  # noqa: B006
        mlflow_address: str = "",
        manual_reason: str = "",
        max_age_days: float = defaults.MAX_AGE_DAYS,
        drift_cooldown_days: float = defaults.DRIFT_COOLDOWN_DAYS,
    ) -> None:
        """Ingests a multi-label data set, trains and compares models, and registers the best for GPU and for CPU.

        Args:
            data: Source of the data: sample, hub:<dataset>[:<config>][@<revision>], a folder or file, or s3://bucket/prefix/.
            models: Model profiles to train: roberta-large, distilbert, minilm, minilm-3l, mpnet.
            weights: Other weights for a profile, as {"distilbert": "s3://bucket/prefix/"}; empty for those that each profile names.
            settings: Hyperparameters to change in a profile, as {"minilm": {"learning_rate": 1e-4}}.
            teachers: Networks that teach every model: profile and seed, such as ["mpnet@1", "minilm@1"], or s3:// of a trained model.
            transfer_texts: Texts that teachers label for their students, made of those of train; per text of train. 0 for none.
            epochs: Epochs of every model; 0 for those of each profile.
            seed: Seed of the heads, the order of the rows and the dropout.
            precision: fp32, bf16, or auto for bf16 if the hardware supports it.
            checkpoint_minutes: Minutes between two checkpoints; a retried or preempted step continues from the last one.
            text_column: Column with the texts; a number for files that do not name their columns.
            labels_column: Column with the labels, or one per label, separated by commas; empty: labels, label, or columns of 0 and 1.
            split_share: Share of the rows of train that each split gets that the source lacks.
            split_seed: Seed of the rows that are drawn for those splits.
            drop_leaked: Remove texts from train that are also in validation or test.
            unlabelled: What to do with rows without a label: quarantine or keep.
            max_quarantined: Largest share of blank or unlabelled rows per split; more is an error.
            threshold_strategy: best (by cross-fitted macro F1), precision, recall, or a strategy by name, such as per-label.
            target_precision: Micro precision that the threshold strategy precision meets.
            target_recall: Share of a text's labels that the threshold strategy recall keeps.
            store: Bucket and prefix for bundles and checkpoints, with the final slash.
            model_name: Name of the registered model in MLflow.
            latency_budget_ms: Largest latency of the CPU winner, in ms, for one text of 20 tokens on one thread.
            quality_tolerance: Micro AUC and macro F1 on validation that a clearly faster CPU model may lose and still win; 0 for none.
            cpu_hour_price: Price of an hour of a core, for the costs in MLflow, the model cards and the report.
            gpu_hour_price: Price of an hour of a GPU.
            auto_promote: Move the champion aliases if the gate passes; otherwise winners become challengers.
            keep_checkpoints: Keep the checkpoints after the models are registered; otherwise they are removed.
            deploy_namespace: Namespace of the InferenceServices that get the new champions; empty: nothing is deployed.
            canary_percent: Share of the traffic for the new versions, challengers too; 0: champions only, with all of the traffic.
            image: Trainer image of every step, tagged by commit.
            commit: Git commit of the pipeline, for the tags of what it registers.
            credentials_secret: Kubernetes secret with MLFLOW_TRACKING_URI and the S3 variables, and config map with what is no secret.
            signing_secret: Secret of the step register alone, if there is one: GOEMOTIONS_SIGNING_KEY, keys that may write bundles.
            node_selector: Labels of the nodes with GPUs, such as {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}; empty: any.
            node_affinity: Their node affinity, as Kubernetes writes it, where a label may have several values.
            tolerations: Tolerations for the taints of those nodes, as Kubernetes writes them.
            mlflow_address: Address of MLflow for a browser, for links; empty: MLFLOW_TRACKING_URI.
            manual_reason: A reason to train in words, such as "new guidelines for raters"; the same words train once. Empty: none.
            max_age_days: A champion that is older is a reason to train; 0: age is none.
            drift_cooldown_days: Days after a training on the same data in which drift is no reason to train.
        """

        # An input of a step that is not named below is the parameter of the same name.
        step = functools.partial(placement.step, parameters={**locals()}, resources=resources, labels=gpu_labels)
        ingested = step(ingest, source=data)
        dataset = ingested.outputs["dataset"]
        gate: AbstractContextManager[Any] = nullcontext()
        if on_reason:
            decided = step(decide_retraining, name="decide retraining", digest=ingested.outputs["Output"])
            gate = If(decided.output != "", name="reasons")
        with gate:
            to_learn = _taught(step, dataset, teachers) if has_teachers else dataset
            with ParallelFor(models, name="models") as profile:
                candidate = _candidate(step, dataset, to_learn, profile, threshold_strategy)

            def candidates() -> dict[str, Collected]:
                # New objects for each task, because KFP changes them.
                return {name: Collected(output) for name, output in candidate.items()}

            registered = step(register, dataset=to_learn, signing_secret=signing_secret, **candidates())
            of_run = {"registered": registered.outputs["registered"]}
            step(report, dataset=to_learn, **candidates(), **of_run)
            with If(deploy_namespace != "", name="deploy"):
                step(deploy, namespace=deploy_namespace, **of_run)

    return training


def _taught(step: Callable[..., dsl.PipelineTask], dataset: Any, teachers: Any) -> Any:
    """The dataset with the scores of the teachers."""
    with ParallelFor(teachers, name="teachers") as teacher:
        taught = step(teach, resources_of="train", name="teach", dataset=dataset, teacher=teacher)
    return step(combine_teachers, dataset=dataset, scores=Collected(taught.outputs["scores"])).outputs["taught"]


def _candidate(
    step: Callable[..., dsl.PipelineTask], dataset: Any, to_learn: Any, profile: Any, strategy: Any
) -> dict[str, Any]:
    """The outputs of a profile that ``register`` and ``report`` take, by the names of their inputs."""
    model = step(train, dataset=to_learn, profile=profile).outputs["model"]
    onnx = step(export, dataset=dataset, model=model, profile=profile).outputs["onnx"]
    candidate = {"models": model, "onnx": onnx}
    for variant, engine in ENGINES.items():
        of_model = {"variant": variant, "profile": profile}
        scored = step(
            evaluate,
            resources_of=f"evaluate_{variant}",
            name=f"evaluate ({variant})",
            dataset=dataset,
            model=model,
            onnx=onnx,
            engine=engine,
            **of_model,
        ).outputs
        validation = scored["validation"]
        name = f"tune thresholds ({variant})"
        tuned = step(tune_thresholds, name=name, validation=validation, strategy=strategy, **of_model).outputs
        outputs = {"validation": validation, "test": scored["test"], "thresholds": tuned["thresholds"]}
        candidate |= {f"{variant}_{output}": value for output, value in outputs.items()}
    return candidate


def _without(*names: str) -> Callable[[Function], Function]:
    """A decorator that hides parameters of a function from KFP; the function keeps their defaults."""

    def hide(function: Function) -> Function:
        signature = inspect.signature(function)
        kept = [parameter for parameter in signature.parameters.values() if parameter.name not in names]
        function.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return function

    return hide


training = pipeline()


@functools.cache
def for_run(*, has_teachers: bool, on_reason: bool = False) -> dsl.base_component.BaseComponent:
    """The pipeline of a run on this machine."""
    return pipeline(has_teachers=has_teachers, on_reason=on_reason) if has_teachers or on_reason else training
