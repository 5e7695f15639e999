"""Two forms of a text: the one that is stored, and the one that is compared."""

from __future__ import annotations

import re


def clean(text: str) -> str:
    """A text that the tokenizer and Parquet accept: lone surrogates and NUL become U+FFFD, the rest is unchanged."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


def normalized(text: str) -> str:
    """A text without case, punctuation and spacing: texts with equal results count as the same text."""
    return re.sub(r"\W+", " ", text.casefold()).strip() or text
