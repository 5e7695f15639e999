"""MLflow's client for the server in ``MLFLOW_TRACKING_URI``: its retries, its named errors, and creation without duplicates."""

from __future__ import annotations

import functools
import http.client
import importlib.util
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from goemotions import addresses, outages
from goemotions.errors import TrackingError, TrackingUnavailable, WorkflowError, first_line

# MLflow reads this when it is imported; without it, MLflow reports each use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

HEALTH_SECONDS = 5
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
WAIT_SECONDS = (1, 2, 4)

Created = TypeVar("Created")


class Absent(TrackingError):
    """MLflow has no such run, model, version or alias."""


class Exists(TrackingError):
    """MLflow has a model of this name already."""


CODES = {"RESOURCE_DOES_NOT_EXIST": Absent, "INVALID_PARAMETER_VALUE": Absent, "RESOURCE_ALREADY_EXISTS": Exists}


def connect() -> str:
    """The tracking URI, after its server has responded.

    Raises:
        BadAddress: MLFLOW_TRACKING_URI has an unknown form.
        TrackingError: MLFLOW_TRACKING_URI is not set, or no server responds there.
    """
    if not importlib.util.find_spec("mlflow"):
        raise TrackingError("MLflow's client is not installed: give a location instead of an alias, or install mlflow-skinny")
    uri = addresses.tracking(_uri())
    if not uri:
        raise TrackingError("MLFLOW_TRACKING_URI is not set: `make stack-up` starts a server and prints its address")
    # With MLflow's own number of retries a run would hang for minutes if the server is down.
    os.environ.setdefault(RETRIES, "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if uri.startswith(("http://", "https://")):
        _require_response(uri)
    return uri


@outages.retried(TrackingUnavailable, "MLflow")
def _require_response(uri: str) -> None:
    health = f"{uri.rstrip('/')}/health"
    try:
        urllib.request.urlopen(health, timeout=HEALTH_SECONDS).close()  # nosec B310 # http or https, as the caller has checked
    except urllib.error.HTTPError:
        pass  # The server responds; a proxy in front of it may protect /health.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TrackingUnavailable(
            f"MLflow does not respond at {uri}: start it (`make stack-up`) or fix MLFLOW_TRACKING_URI"
        ) from error


def _uri() -> str:
    """MLFLOW_TRACKING_URI without user and password, which move to MLflow's variables for them.

    Otherwise MLflow's errors, the links and the logs would show them.
    """
    # Up to the last @: a password may contain an unquoted slash.
    match = re.fullmatch(r"(https?://)(.*)@(.*)", os.environ.get("MLFLOW_TRACKING_URI", ""))
    if match:
        user, _, password = match[2].partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = match[1] + match[3]
    return os.environ.get("MLFLOW_TRACKING_URI", "")


@functools.cache
def client() -> Any:
    """An ``MlflowClient``, which retries little and raises its own errors: for requests that must not be repeated."""
    from mlflow import MlflowClient

    return MlflowClient(_uri())


class _RetryingClient:
    """The client, whose requests are repeated while the server is unavailable, and whose errors are a TrackingError.

    For requests that change nothing when they are repeated.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        @translate_errors()
        def request(*arguments: Any, **options: Any) -> Any:
            return outages.retry(lambda: getattr(client(), name)(*arguments, **options), _is_unavailable, "MLflow")

        return request


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raises every error of MLflow, and of the libraries that it uses, as TrackingError."""
    try:
        yield
    except WorkflowError:
        raise
    except ModuleNotFoundError as error:
        scheme = _uri().partition(":")[0]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={scheme}: needs the package {error.name}: install it, or give the address of an MLflow server"
        ) from error
    except Exception as error:
        # The address in a message may hold a password.
        reason = re.sub(r"//\S*@", "//***@", first_line(error))[:200]
        kind = CODES.get(getattr(error, "error_code", ""), TrackingError)
        raise kind(f"MLflow refused the request or did not respond: {reason}") from error


retrying: Any = _RetryingClient()


@translate_errors()
def create_once(find: Callable[[], Created | None], create: Callable[[], Created]) -> Created:
    """What ``find`` returns, or else what ``create`` returns, which calls ``client``.

    If the response to ``create`` is lost, ``find`` runs before a retry.
    """
    from mlflow.exceptions import MlflowException

    waits, deadline = list(WAIT_SECONDS), time.monotonic() + outages.seconds()
    while (existing := find()) is None:
        retries = os.environ[RETRIES]
        try:
            # A retry by MLflow's client would create a second one.
            os.environ[RETRIES] = "0"
            return create()
        except MlflowException as error:
            if not _is_unavailable(error) or not (waits or time.monotonic() < deadline):
                raise
            time.sleep(waits.pop(0) if waits else outages.LONGEST_SECONDS)
            outages.guard()
        finally:
            os.environ[RETRIES] = retries
    return existing


def _is_unavailable(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return status >= 500 or status == outages.TOO_MANY_REQUESTS
    return outages.is_unavailable(error)
