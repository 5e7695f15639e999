"""What people pass to a loaded model becomes texts, or is refused by name."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from goemotions.errors import DataError
from goemotions.prediction.texts import as_texts

PAIR = ["a text", "another"]


@pytest.mark.parametrize(
    "given",
    [
        PAIR,
        tuple(PAIR),
        [["a text"], ["another"]],
        pd.Series(PAIR),
        pd.Series(PAIR, index=[7, 3], dtype="string"),
        pd.Series(PAIR, dtype="category"),
        pd.Index(PAIR),
        pd.DataFrame({"text": PAIR, "id": [1, 2]}),
        pd.DataFrame({"comment": PAIR}),
        pd.DataFrame([[text] for text in PAIR]),
        [{"text": text, "id": 1} for text in PAIR],
        [{"comment": text} for text in PAIR],
        {"text": PAIR, "id": [1, 2]},
        {"comment": np.array(PAIR)},
        {"text": pd.Series(PAIR)},
        np.array(PAIR),
        np.array(PAIR, dtype=object),
        np.array([PAIR]).T,
    ],
    ids=lambda given: type(given).__name__,
)
def test_every_usual_form_holds_the_same_texts(given: Any) -> None:
    texts = as_texts(given)
    assert texts == PAIR
    assert {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    "given", ["a text", np.str_("a text"), np.array("a text"), {"text": "a text"}, [{"text": "a text"}], ["a text"]], ids=repr
)
def test_a_single_string_is_one_text(given: Any) -> None:
    assert as_texts(given) == ["a text"]


@pytest.mark.fault("python-not-a-text")
@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "NoneType"),
        (b"a text", "bytes"),
        (3, "int"),
        ({"a text"}, "set"),
        ([], "no text"),
        (pd.Series([], dtype=object), "no text"),
        ({}, "which of the columns"),
        ([{}], "which of the columns"),
        ({"a": PAIR, "b": PAIR}, "which of the columns a, b"),
        (pd.DataFrame({"a": PAIR, "b": PAIR}), "which of the columns a, b"),
        (pd.DataFrame([PAIR], columns=["text", "text"]), "which of the columns"),
        ([{"a": "x"}, {"b": "y"}], "different columns, a, b"),
        (["a", {"text": "b"}], "item 1 .* dict"),
        (["a", None], "item 1 is no text but missing"),
        (pd.Series(["a", np.nan]), "item 1 is no text but missing"),
        (pd.DataFrame({"text": ["a", pd.NA]}), "item 1 is no text"),
        (["a", 5], "item 1 .* int"),
        (["a", b"b"], "item 1 .* bytes"),
        ([PAIR], "item 0 .* list"),
        (np.array([1.0]), "item 0 .* float"),
        (np.array([b"a"]), "item 0 .* bytes"),
        (np.array([PAIR]), r"shape \(1, 2\)"),
        ({"text": 5}, "int"),
    ],
    ids=lambda given: repr(given)[:30],
)
def test_what_is_not_a_text_is_refused_by_name(given: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        as_texts(given)
