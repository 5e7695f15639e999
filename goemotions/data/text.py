"""What a text is: the form that is kept, and the form in which two texts count as the same."""

from __future__ import annotations

import re


def clean(text: str) -> str:
    """A text the tokenizer and Parquet both accept: lone surrogates and NUL become U+FFFD, the rest stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


def normalized(text: str) -> str:
    """A text without case, punctuation and spacing: two texts that agree in it are counted as the same."""
    return re.sub(r"\W+", " ", text.casefold()).strip() or text
