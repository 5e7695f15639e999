"""How the steps run in a cluster: image, credentials, resources, retries and node pool of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

# The environment variables that the steps get from the secret; a key that the secret lacks is left unset.
CREDENTIALS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "HF_TOKEN",
)
# A preempted node takes minutes to come back; each attempt continues from the last checkpoint.
RETRIES, BACKOFF_SECONDS = 3, 60


def place(
    task: dsl.PipelineTask,
    step: str,
    resources: Mapping[str, str],
    *,
    image: Any,
    secret: Any,
    node_selector: Any = None,
    tolerations: Any = None,
    name: str = "",
) -> dsl.PipelineTask:
    """Gives a task its image, credentials, resources and retries, and a GPU node pool if the step requests GPUs.

    Args:
        task: the task.
        step: its name in ``resources``.
        resources: ``resources.TRAINING`` or ``resources.SCORING``, with changes.
        image, secret: of every step, values or pipeline parameters.
        node_selector, tolerations: of the GPU node pool, values or pipeline parameters.
        name: what the UI shows; empty for the step's name.
    """
    requested = {field: value for key, value in resources.items() for owner, field in [key.split(".")] if owner == step}
    task.set_display_name(name or step).set_container_image(image)
    # The cache compares names, not contents: other data or another model under the same name would get the old output.
    task.set_caching_options(False)
    kubernetes.use_secret_as_env(task, secret, {key: key for key in CREDENTIALS}, optional=True)
    task.set_cpu_request(requested["cpu"]).set_memory_request(requested["memory"]).set_memory_limit(requested["memory"])
    _set_retries(task, int(requested["timeout"]))
    if int(requested.get("gpus", 0)):
        task.set_accelerator_type(requested["accelerator"]).set_accelerator_limit(int(requested["gpus"]))
        kubernetes.add_node_selector_json(task, node_selector)
        kubernetes.add_toleration_json(task, tolerations)
        # The training processes of a pod communicate through /dev/shm; by default it has 64 MB.
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=requested["shared_memory"])  # nosec B108 # a mount
    return task


def _set_retries(task: dsl.PipelineTask, timeout: int) -> None:
    # Argo measures the longest backoff from the first start to the end of the last attempt, not between two attempts.
    longest = (RETRIES + 1) * timeout + 3600
    task.set_retry(RETRIES, backoff_duration=f"{BACKOFF_SECONDS}s", backoff_factor=2.0, backoff_max_duration=f"{longest}s")
    kubernetes.set_timeout(task, timeout)
