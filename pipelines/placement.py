"""How the steps run in a cluster: image, credentials, resources, retries and node pool of each task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from goemotions import defaults, outages
from goemotions.deployment.node_pools import PRESETS
from goemotions.errors import BadArgument
from goemotions.models import devices
from goemotions.monitoring import prometheus_api
from goemotions.registry import trust
from goemotions.storage import signature
from pipelines.resources import TRAINING, changed, gpu_steps

RUN = dsl.PIPELINE_JOB_ID_PLACEHOLDER
# The environment variables that the steps get from the secret and from the config map of the same name; a key that neither has is left
# unset. KFP has no envFrom, so each is named.
NAMES = """
MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_AUTH
MLFLOW_TRACKING_AWS_SIGV4 MLFLOW_TRACKING_INSECURE_TLS MLFLOW_TRACKING_SERVER_CERT_PATH MLFLOW_TRACKING_CLIENT_CERT_PATH
MLFLOW_HTTP_REQUEST_TIMEOUT MLFLOW_HTTP_REQUEST_MAX_RETRIES MLFLOW_S3_ENDPOINT_URL MLFLOW_S3_IGNORE_TLS
AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_DEFAULT_REGION
AWS_REQUEST_CHECKSUM_CALCULATION AWS_RESPONSE_CHECKSUM_VALIDATION AWS_CA_BUNDLE AWS_ROLE_ARN AWS_WEB_IDENTITY_TOKEN_FILE
AWS_EC2_METADATA_DISABLED HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE
"""
VARIABLES = (*NAMES.split(), trust.STORE, signature.TRUSTED_KEYS, prometheus_api.HEADERS)
# Those that only the step has that registers: the key that signs, and keys of the store that may write bundles, in place of the others.
REGISTER_VARIABLES = (signature.SIGNING_KEY, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# A preempted node takes minutes to come back; each attempt continues from the last checkpoint.
RETRIES, BACKOFF_SECONDS = 3, 60
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def step(
    component: dsl.base_component.BaseComponent,
    parameters: Mapping[str, Any],
    resources: Mapping[str, str],
    *,
    resources_of: str = "",
    name: str = "",
    labels: Mapping[str, str] | None = None,
    signing_secret: Any = None,
    **inputs: Any,
) -> dsl.PipelineTask:
    """A task with image, credentials, resources and retries, and a GPU node pool if its step requests GPUs.

    Args:
        component: what it runs. An input that is not given is the pipeline's parameter of the same name.
        parameters: of the pipeline; ``image`` and ``credentials_secret`` are those of every step, ``node_selector``,
            ``node_affinity`` and ``tolerations`` those of the GPU node pool. A config map has the name of the secret, too.
        resources: ``resources.TRAINING``, ``SCORING`` or ``MONITORING``, with changes.
        resources_of, name: the step in ``resources``, and what the UI shows; empty for the component's name.
        labels: of the pods that request GPUs.
        signing_secret: the secret with the variables of the step that registers; None for every other step.
    """
    given = {"pipeline_run": RUN, **parameters, **inputs}
    task = component(**{input: given[input] for input in component.component_spec.inputs or () if input in given})
    step_name = resources_of or component.name.replace("-", "_")
    requested = {field: value for key, value in resources.items() for owner, field in [key.split(".")] if owner == step_name}
    # For the name of the method in an error that no step here can have, KFP inspects every frame and module, at each setting:
    # seconds per pipeline.
    task._ensure_container_spec_exists = lambda: None
    task.set_display_name(name or step_name).set_container_image(parameters["image"])
    # The cache compares names, not contents: other data or another model under the same name would get the old output.
    task.set_caching_options(False)
    variables = {name: name for name in VARIABLES}
    kubernetes.use_secret_as_env(task, parameters["credentials_secret"], variables, optional=True)
    kubernetes.use_config_map_as_env(task, parameters["credentials_secret"], variables, optional=True)
    if signing_secret is not None:
        kubernetes.use_secret_as_env(task, signing_secret, {name: name for name in REGISTER_VARIABLES}, optional=True)
    task.set_cpu_request(requested["cpu"]).set_memory_request(requested["memory"]).set_memory_limit(requested["memory"])
    task.set_env_variable(outages.VARIABLE, str(defaults.OUTAGE_SECONDS))
    _set_retries(task, int(requested["timeout"]))
    if int(requested.get("gpus", 0)):
        task.set_accelerator_type(requested["accelerator"]).set_accelerator_limit(int(requested["gpus"]))
        task.set_env_variable(devices.VARIABLE, requested["device"])
        kubernetes.add_node_selector_json(task, parameters["node_selector"])
        kubernetes.add_node_affinity_json(task, parameters["node_affinity"])
        kubernetes.add_toleration_json(task, parameters["tolerations"])
        for label, value in (labels or {}).items():
            kubernetes.add_pod_label(task, label, value)
        if size := requested.get("shared_memory"):
            # The training processes of a pod communicate through /dev/shm; by default it has 64 MB.
            kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=size)  # nosec B108 # a mount
    else:
        # On a node with GPUs, NVIDIA's runtime would show all of them to a container that has the image's `all`.
        task.set_env_variable("NVIDIA_VISIBLE_DEVICES", "void")
    return task


def queue_labels(queue: str = "", priority: str = "") -> dict[str, str]:
    """The labels by which Kueue queues a pod, and by which it orders pods of a queue; empty names set none.

    KFP cannot set a pod's ``priorityClassName``: the priority is that of a WorkloadPriorityClass.

    Raises:
        BadArgument: a priority without a queue, or a name that no label can have.
    """
    if priority and not queue:
        raise BadArgument(f"the priority class {priority} orders a queue of Kueue: name the queue too (QUEUE=)")
    for name in filter(None, (queue, priority)):
        if not LABEL_VALUE.fullmatch(name):
            raise BadArgument(
                f"{name!r} is not the name of a queue or priority class: letters, digits, '-', '_' and '.', at most 63"
            )
    labels = {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}
    return {label: value for label, value in labels.items() if value}


def require_gpu_nodes(overrides: str, arguments: Mapping[str, Any]) -> None:
    """Raises a BadArgument if steps request GPUs, and the given parameters of the pipeline do not say on which nodes."""
    steps = gpu_steps({**TRAINING, **changed(overrides, TRAINING)})
    if steps and not {"node_selector", "node_affinity"} & set(arguments):
        without = " ".join(f"{step}.gpus=0" for step in steps)
        raise BadArgument(
            f"{' and '.join(steps)} request GPUs, and it is not said on which nodes: give PRESET= ({', '.join(PRESETS)}), "
            f"or SET='node_selector={{\"label\": \"value\"}}' ({{}} for any node with a GPU); on CPUs: RESOURCES='{without}'"
        )


def gpu_pods(
    resources: Mapping[str, str], arguments: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Per step that requests GPUs what its pod requests, and the nodes that the parameters of a run allow."""
    nodes = {name: arguments[name] for name in ("node_selector", "node_affinity", "tolerations") if name in arguments}
    return {
        step: {
            resources[f"{step}.accelerator"]: resources[f"{step}.gpus"],
            **{name: resources[f"{step}.{name}"] for name in ("cpu", "memory")},
            **nodes,
            **({"labels": dict(labels)} if labels else {}),
        }
        for step in gpu_steps(resources)
    }


def _set_retries(task: dsl.PipelineTask, timeout: int) -> None:
    # Argo measures the longest backoff from the first start to the end of the last attempt, not between two attempts.
    longest = (RETRIES + 1) * timeout + 3600
    task.set_retry(RETRIES, backoff_duration=f"{BACKOFF_SECONDS}s", backoff_factor=2.0, backoff_max_duration=f"{longest}s")
    kubernetes.set_timeout(task, timeout)
