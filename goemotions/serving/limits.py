"""The limits of a server process and its request log: defaults and help texts of options of ``goemotions serve``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goemotions import addresses
from goemotions.errors import RequestError

# Words that may be explained, for each text of a request without explanations.
WORDS_PER_TEXT = 16


def _limit(default: float | str, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Limits:
    """Counts, bytes and seconds, and whether texts of several requests share a batch; docs/serving.md lists them."""

    body_bytes: int = _limit(2 * 2**20, "Largest body of a request.")
    texts: int = _limit(512, "Most texts per request.")
    requests: int = _limit(512, "Most concurrent requests.")
    batching: bool = _limit(True, "Batch the texts of several requests together.", flag="--batching/--no-batching")
    queue_texts: int = _limit(4096, "Most texts in the queue.")
    queue_tokens: int = _limit(262_144, "Most tokens in the queue, estimated from the length of the texts.")
    queue_seconds: float = _limit(
        1.0, "Longest wait in the queue; a request that is expected to wait longer, or has waited longer, is rejected."
    )
    total_bytes: int = _limit(128 * 2**20, "Most bytes of all bodies in memory; as many over gRPC.")
    head_bytes: int = _limit(
        32 * 1024, "Largest head of a request; also, what its trailers and the framing of its chunks may take."
    )
    connections: int = _limit(1024, "Most connections; beyond, those that are idle are closed.")
    peer_connections: int = _limit(512, "Most connections from one address; a gateway is one address.")
    read_seconds: float = _limit(10.0, "Longest time for a body to arrive.")
    read_rate: int = _limit(1024, "Fewest bytes per second of a body that takes longer than 2 seconds.")
    write_seconds: float = _limit(10.0, "Longest time for a client to read what was sent.")
    idle_seconds: float = _limit(75.0, "Longest time between two requests of a connection.")
    answer_seconds: float = _limit(30.0, "Longest time to score the texts of a request.")
    drain_seconds: float = _limit(
        5.0, "Time between SIGTERM and the closing of the port, in which requests are still accepted."
    )

    @property
    def values(self) -> int:
        """Most values of a request: two per text, as in a nested tensor, and what parameters and requested outputs may need."""
        return 2 * self.texts + 1000

    def check_texts(self, count: int) -> None:
        """Rejects a request with too many texts.

        Raises:
            RequestError: 413.
        """
        if count > self.texts:
            raise RequestError(f"{count} texts in one request: send at most {self.texts}", 413)

    def check_explained(self, count: int, removals: int) -> None:
        """Rejects a request with too many texts to explain: each counts as one text, and as one per removal.

        Raises:
            RequestError: 413.
        """
        most = self.texts // (1 + removals)
        if count > most:
            raise RequestError(f"{count} texts to explain with {removals} removals each: send at most {most}", 413)

    def check_words(self, count: int) -> None:
        """Rejects a request with too many words to explain, of each of which the response has as many numbers as labels.

        Raises:
            RequestError: 413.
        """
        if count > (most := WORDS_PER_TEXT * self.texts):
            raise RequestError(f"the texts to explain have more than {most:,} words: send fewer", 413)


@dataclass(frozen=True)
class ShadowSettings:
    """Copies of requests to a challenger, whose answers are compared and never returned (``traffic.shadow``)."""

    shadow_url: str = field(
        default="",
        metadata={"help": "Server that gets copies of requests, such as http://host:port; empty: no copies.", "type": "server"},
    )
    shadow_percent: float = field(default=0.0, metadata={"help": "Share of the requests that are copied to it, in percent."})


@dataclass(frozen=True)
class LogSettings:
    """The request log: what is logged, and where; docs/serving.md lists the options."""

    log_share: float = _limit(0.0, "Share of the requests whose answers are logged, redacted; 0: no log and no feedback.")
    log_store: str = _limit("", "Store that the log is uploaded to; empty: it stays in --log-folder.", type="location")
    log_folder: str = _limit("", "Local folder of the log; empty: one for temporary files.")
    log_bytes: int = _limit(64 * 2**20, "Most bytes in that folder; beyond, the oldest files are dropped.", least=2**20)
    log_seconds: float = _limit(300.0, "Longest time until an answer is in a file of the log.")
    peer_feedback: int = _limit(600, "Most feedback from one address per minute; a gateway is one address.")
    answer_feedback: int = _limit(20, "Most feedback to one answer per minute.")

    @property
    def folder(self) -> Path:
        return Path(addresses.path(self.log_folder, "--log-folder") or Path(tempfile.gettempdir(), "request-log-goemotions"))
