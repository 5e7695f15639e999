"""Forms of a text: the one that is stored, the one that is compared, and the one in a Markdown document."""

from __future__ import annotations

import html
import re


def clean(text: str) -> str:
    """A text that the tokenizer and Parquet accept: lone surrogates and NUL become U+FFFD, the rest is unchanged."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


def normalized(text: str) -> str:
    """A text without case, punctuation and spacing: texts with equal results count as the same text."""
    return re.sub(r"\W+", " ", text.casefold()).strip() or text


def as_markdown(text: str) -> str:
    """Plain text as one line of Markdown, which can neither end a table cell or a link nor be read as HTML."""
    return " ".join(re.sub(r"([\\|\[\]])", r"\\\1", html.escape(text, quote=False)).split())
