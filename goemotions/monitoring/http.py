"""Requests to servers and to Prometheus, with bounds on the time and the size of what they return."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from goemotions.errors import MonitoringUnavailable

TIMEOUT_SECONDS = 10.0
# Of a response.
MOST_BYTES = 2**25
ACCEPT = {"Accept": "text/plain, application/json"}


def get(url: str, body: bytes | None = None, headers: Mapping[str, str] = ACCEPT, seconds: float = TIMEOUT_SECONDS) -> bytes:
    """What a server returns to a GET, or with a body to a POST. User and password in the address are sent as basic authentication.

    Neither they nor the headers are sent again to where a redirect leads.

    Raises:
        MonitoringUnavailable: it does not respond, refuses, takes longer, or returns more than ``MOST_BYTES``.
    """
    parts, deadline, content = urllib.parse.urlsplit(url), time.monotonic() + seconds, bytearray()
    credentials, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl(), body)
    if credentials:
        encoded = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
        headers = {**headers, "Authorization": f"Basic {encoded}"}
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # nosec B310 # the scheme is checked
            while part := response.read1(2**16):
                content += part
                if len(content) > MOST_BYTES or time.monotonic() > deadline:
                    raise MonitoringUnavailable(
                        f"{place} returns more than {MOST_BYTES >> 20} MiB, or for more than {seconds:g} s"
                    )
            # `read1` does not notice that a response is cut.
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
    except urllib.error.HTTPError as error:
        raise MonitoringUnavailable(f"{place} does not accept the request ({error}): check the address") from error
    except (OSError, http.client.HTTPException) as error:
        raise MonitoringUnavailable(f"{place} does not respond ({error}): check the address") from error
    return bytes(content)
