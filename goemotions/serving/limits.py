"""The limits of one server process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each field is an option of ``goemotions serve``, which describes it. Counts, bytes and seconds."""

    body_bytes: int = 2 * 2**20
    texts: int = 512
    requests: int = 512
    queue_texts: int = 4096
    queue_seconds: float = 1.0
    read_seconds: float = 10.0
    answer_seconds: float = 30.0
    drain_seconds: float = 5.0
