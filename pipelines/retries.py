"""Whether Argo retries steps as the pipelines need: the defaults of its own configuration are merged into every step."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.client import Connection, workflow_controller

PAGE = "docs/installation.md#retries-after-preemption"


def warnings(connection: Connection) -> list[str]:
    """What to say about the configuration of Argo before a run; nothing if it may not be read."""
    data = workflow_controller(connection)
    if data is None:
        return []
    strategy = retry_strategy(data)
    if not strategy:
        return [f"Argo has no default retry policy: it retries no step whose pod is deleted, such as by preemption ({PAGE})"]
    policy, limit = str(strategy.get("retryPolicy", "OnFailure")), str(strategy.get("limit", ""))
    if policy not in ("Always", "OnFailure"):
        return [
            f"Argo's default retry policy {policy} overrules that of the steps: one that fails is not retried. What steps wait for "
            f"themselves, they still do ({PAGE})"
        ]
    notes = []
    if policy == "OnFailure":
        notes.append(
            f"Argo's default retry policy OnFailure retries no step whose pod is deleted, such as by preemption ({PAGE})"
        )
    if limit != "0":
        notes.append(
            f"Argo's default limit of retries is {limit or 'none'}: it retries groups of steps as well, so that one that fails runs "
            f'many times; set it to "0", the steps have their own ({PAGE})'
        )
    return notes


def retry_strategy(data: dict[str, str]) -> dict[str, Any]:
    """The default retry strategy of every step in the data of the workflow controller's ConfigMap; empty if there is none."""
    try:
        # An older Argo has everything under one key.
        whole = _yaml(data.get("config") or "") or {}
        defaults = _yaml(data["workflowDefaults"]) if data.get("workflowDefaults") else whole.get("workflowDefaults")
        strategy = ((defaults or {}).get("spec") or {}).get("templateDefaults", {}).get("retryStrategy")
    except (YAMLError, AttributeError):
        return {}
    return dict(strategy) if isinstance(strategy, dict) else {}


def _yaml(text: str) -> Any:
    return YAML(typ="safe").load(text)
