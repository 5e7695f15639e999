"""Outages of what a step needs: the store, the registry, the hub. A step waits for them itself, since not every Argo retries a step.

How long is in ``GOEMOTIONS_OUTAGE_SECONDS``, which the pipelines set on their steps. Without it, as on the command line, only the
clients try again, each by its own rules.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from goemotions.errors import BadArgument

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "GOEMOTIONS_OUTAGE_SECONDS"
_CHECK: ContextVar[Callable[[], object] | None] = ContextVar("check", default=None)
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 30.0
# Of the first request to the hub, which shows whether it responds.
HUB_TIMEOUT_SECONDS = 5
TOO_MANY_REQUESTS = 429
# Statuses from 400 to 499 of a server that may answer the same request later.
TRANSIENT = {408, 425, TOO_MANY_REQUESTS}
# Exceptions of requests, httpx, urllib3 and Python for a server that does not respond.
UNAVAILABLE = {"ConnectionError", "Timeout", "TimeoutException", "TransportError", "ProtocolError", "TimeoutError", "URLError"}
# Derived from ConnectionError, but no outage.
NO_OUTAGE = {"OfflineModeIsEnabled", "SSLError"}


def seconds() -> float:
    """How long an outage is waited for.

    Raises:
        BadArgument: the variable is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, "") or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadArgument(f"{VARIABLE} is a number of seconds from 0, not {text!r}")
    return value


def retry(request: Callable[[], R], is_transient: Callable[[Exception], bool], what: str) -> R:
    """What a request returns, which is repeated while it fails for a transient reason. The time counts from its first failure.

    Args:
        request: a request that changes nothing when it is repeated.
        is_transient: whether an exception of it has such a reason.
        what: does not respond, in words.

    Raises:
        Exception: the last one, after ``seconds``; any other at once.
    """
    deadline, wait = math.nan, FIRST_SECONDS
    while True:
        try:
            return request()
        except Exception as error:
            if not is_transient(error):
                raise
            if math.isnan(deadline):
                deadline = time.monotonic() + seconds()
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            log.warning("%s does not respond, tried again for %.0f s: %s", what, left, error)
        time.sleep(min(wait * (0.5 + random.random()), max(left, 0)))
        guard()
        wait = min(2 * wait, LONGEST_SECONDS)


@contextlib.contextmanager
def guarded(check: Callable[[], object]) -> Iterator[None]:
    """Within the block, a request is repeated, or the next deletion sent, only if this check does not raise: a lock may be lost."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def guard() -> None:
    """Runs the check of ``guarded``, whose own requests are not guarded."""
    check = _CHECK.get()
    if check:
        with guarded(lambda: None):
            check()


def retried(error: type[Exception], what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that may be repeated: this exception of it is an outage."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def repeated(*arguments: P.args, **options: P.kwargs) -> R:
            return retry(lambda: function(*arguments, **options), lambda raised: isinstance(raised, error), what)

        return repeated

    return decorate


def is_unavailable(error: BaseException) -> bool:
    """Whether an exception of an HTTP client, or one that it was raised from, says that a server does not respond, or fails for now."""
    for one in causes(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status >= 500 or status == TOO_MANY_REQUESTS
        names = {kind.__name__ for kind in type(one).__mro__}
        if names & NO_OUTAGE:
            return False
        if names & UNAVAILABLE:
            return True
    return False


def is_refusal(status: int) -> bool:
    """Whether a status of HTTP says that the server does not accept the request, now or later."""
    return 400 <= status < 500 and status not in TRANSIENT


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from; botocore keeps that of its last retry in an attribute."""
    while error is not None:
        yield error
        error = getattr(error, "last_exception", None) or error.__cause__ or error.__context__
