"""Named errors: each message is one line that says what is wrong, where, and what to do next."""

from __future__ import annotations

import re

MAX_CHARACTERS = 4000
# Escape sequences of terminals, and marks that change the direction of the text after them.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class WorkflowError(Exception):
    """Base class of the errors that a user can act on. The command line prints the message and exits with code 1.

    A message may hold a value of a file, a server or a client: it is bounded, on one line, and has no control characters.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > MAX_CHARACTERS:
            half = MAX_CHARACTERS // 2 - 50
            text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"
        super().__init__(printable(text).replace("\n", " "))


def printable(text: str) -> str:
    """A text that a terminal shows, and obeys in nothing: line feeds and tabs stay."""
    return CONTROLS.sub("\ufffd", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class BadArgument(WorkflowError):
    """An option or parameter has an unknown name, or a value that cannot be used."""


class BadAddress(BadArgument):
    """The address of files, data, a bundle, a server or an image has an unknown form."""


class DataError(WorkflowError):
    """A source, file or row does not have the documented form."""


class BadJson(DataError, ValueError):
    """A JSON document is missing or damaged, or beyond the bounds of ``strict_json``."""


class SourceUnreachable(WorkflowError):
    """The hub with data or weights cannot be reached."""


class ModelError(WorkflowError):
    """A profile, its weights or a model folder cannot be used."""


class DeviceError(WorkflowError):
    """A GPU was requested and cannot be used; the message begins with the cause: driver, runtime, device plugin or torch."""


class TrainingError(WorkflowError):
    """Training cannot continue."""


class Interrupted(WorkflowError):
    """Training was stopped by a signal; if checkpoints are configured, one was written."""


class StorageError(WorkflowError):
    """A file cannot be read or written, in S3 or on disk: no access, no space, no such object, or a failure after all retries."""


class FileChanged(DataError):
    """A file is not the one that was listed or planned before."""


class StorageUnavailable(StorageError):
    """The store does not respond, or fails for now: the same request may succeed later."""


class LockLost(StorageError):
    """Another process has taken over a lock, or may have: what it protects must not be changed any more."""


class IntegrityError(WorkflowError):
    """A folder does not match its manifest."""


class UntrustedBundle(IntegrityError):
    """A bundle is not signed by a trusted key, is not the one that the registry names, or lies where others than `register` write."""


class TrackingError(WorkflowError):
    """The MLflow server cannot be reached or rejected a request."""


class TrackingUnavailable(TrackingError):
    """The MLflow server does not respond, or fails for now."""


class DeploymentError(WorkflowError):
    """A cluster cannot be reached, rejects a request, or a version does not become ready."""


class ClusterUnavailable(DeploymentError):
    """The Kubernetes API, or the proxy of one machine, does not respond now; it may later."""


class NoCluster(DeploymentError):
    """This machine has no configuration of a cluster."""


class PromotionRefused(WorkflowError):
    """A version does not pass the gate, or there is no earlier champion to roll back to."""


class TrafficChanged(DeploymentError):
    """Somebody else changed the traffic of a service during a rollout."""


class MonitoringUnavailable(WorkflowError):
    """The metrics of servers cannot be read now; they may be later."""


class RolloutHeld(WorkflowError):
    """A rollout stopped undecided: both versions serve, and running it again goes on."""


class RolledBack(WorkflowError):
    """A rollout gave all the traffic back to the champion."""


class RequestError(WorkflowError):
    """A prediction request is rejected. ``status`` is the HTTP status, ``retry_after`` the seconds to wait before a retry."""

    def __init__(self, message: str, status: int = 400, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
