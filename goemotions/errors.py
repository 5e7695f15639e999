"""Named errors: each message is one line that says what is wrong, where, and what to do next."""

from __future__ import annotations


class WorkflowError(Exception):
    """Base of every error that a user can act on. The command line prints its message and exits with 1."""


class DataError(WorkflowError):
    """A source, file or row does not have the documented form."""


class SourceUnreachable(WorkflowError):
    """A hub, bucket or server that holds data or weights did not answer."""


class ModelError(WorkflowError):
    """A profile, its weights or a model folder cannot be used."""


class TrainingError(WorkflowError):
    """Training cannot go on."""


class Interrupted(WorkflowError):
    """Training was told to stop; a checkpoint was written where one was asked for."""


class StorageError(WorkflowError):
    """The object store refused, failed for longer than the retries, or lacks an object."""


class IntegrityError(WorkflowError):
    """A folder does not match its manifest."""


class TrackingError(WorkflowError):
    """The MLflow server cannot be reached or refused a request."""


class DeploymentError(WorkflowError):
    """A cluster cannot be reached, refuses, or does not get a version ready."""


class PromotionRefused(WorkflowError):
    """A version does not pass the gate, or there is none to go back to."""


class RequestError(WorkflowError):
    """A prediction request is not answered. ``status`` is the HTTP status, ``retry_after`` the seconds to wait first."""

    def __init__(self, message: str, status: int = 400, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
