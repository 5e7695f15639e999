"""A taxonomy: names in order, refused if they are empty or repeated, and the matrix of label indices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError

NAMES = st.lists(st.text(min_size=1, max_size=6).filter(lambda name: name.strip()), min_size=1, max_size=8, unique=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "the taxonomy has no label: list one name per line in emotions.txt"),
        (("",), "label 0 of the taxonomy has no name: remove the empty line or name it"),
        (("calm", " \t"), "label 1 of the taxonomy has no name: remove the empty line or name it"),
        (("glee", "calm", "glee", "calm"), "label 'calm' is twice in the taxonomy: give each label a unique name"),
    ],
    ids=["no name", "empty name", "blank name", "name twice"],
)
def test_a_bad_list_of_names_is_a_named_error(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError) as raised:
        Taxonomy(names)
    assert str(raised.value) == message


def test_any_number_of_labels_is_a_taxonomy() -> None:
    assert [len(Taxonomy(tuple(f"label {i}" for i in range(count)))) for count in (1, 2, 28, 500)] == [1, 2, 28, 500]


def test_taxonomies_are_equal_if_names_and_order_are() -> None:
    assert Taxonomy(("calm", "glee")) == Taxonomy(("calm", "glee"))
    assert Taxonomy(("calm", "glee")) != Taxonomy(("glee", "calm"))


def test_indices_become_a_matrix() -> None:
    matrix = Taxonomy(("calm", "dread", "glee")).multi_hot([[2, 0], [], [1]])
    assert matrix.dtype == bool
    assert matrix.tolist() == [[True, False, True], [False, False, False], [False, True, False]]


def test_no_rows_become_an_empty_matrix() -> None:
    assert Taxonomy(("calm", "dread", "glee")).multi_hot([]).shape == (0, 3)


def test_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError):
        Taxonomy(("calm", "glee")).multi_hot([[2]])


@settings(max_examples=50, deadline=None)
@given(names=NAMES, data=st.data())
def test_the_matrix_is_converted_back_to_indices(names: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sets(st.integers(0, len(names) - 1)), max_size=6))
    matrix = Taxonomy(tuple(names)).multi_hot(rows)
    assert matrix.shape == (len(rows), len(names))
    assert [set(np.flatnonzero(row).tolist()) for row in matrix] == rows
