"""Where everything is below a store (a bucket with a prefix, or a folder), as prefixes with their final ``/``.

Bundles have a class of their own, ``registry.bundle.BundleLocation``, below ``models``.
"""

from __future__ import annotations

from goemotions.storage.store import join


def models(store: str, model_name: str) -> str:
    """The bundles of a registered model. Whoever changes its versions or aliases locks this prefix."""
    return join(store, "models", model_name)


def checkpoints(store: str, pipeline_run: str, profile: str = "") -> str:
    """The state of a training, from which a retried step resumes; without a profile, that of all trainings of a run."""
    return join(store, "checkpoints", pipeline_run, *filter(None, [profile]))


def teacher(store: str, key: str) -> str:
    """The scores of a teacher, by what determines them (``training.teachers``)."""
    return join(store, "teachers", key)


def monitoring(store: str, model_name: str) -> str:
    """The newest drift report of a registered model (``evaluation.drift``)."""
    return join(store, "monitoring", model_name)


def trained(store: str, pipeline_run: str, profile: str) -> str:
    """A trained model with its metrics and predictions, whether it won or not (``registry.trained``)."""
    return join(store, "trained", pipeline_run, profile)


def requests(store: str, model_name: str) -> str:
    """The request log of a model, by version and hour (``data.request_log``)."""
    return join(store, "requests", model_name)


def rollout(store: str, model_name: str, service: str) -> str:
    """The state and the history of the rollouts of a service (``monitoring.rollout.state``)."""
    return join(store, "rollouts", model_name, service)
