"""Which texts count as the same one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goemotions.data.text import normalized


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Thanks!!", "thanks"),
        ("wait… what", "wait...  what"),
        ("don't", "don’t"),
        ("*sigh*", "_sigh_"),
        ("café", "cafe\u0301"),
        ("ＨＩ", "hi"),
        ("straße", "STRASSE"),
        ("soft\u00adhyphen", "softhyphen"),
        ("well done 👍🏽", "well done 👍"),
        ("with ❤️", "with ❤"),
    ],
)
def test_case_punctuation_spacing_and_the_way_of_writing_a_character_make_no_other_text(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("so good 😂", "so good 😢"), ("की", "का"), ("ที่", "ทา"), ("كَتَبَ", "كُتِبَ"), ("50", "60"), ("!!!", "...")],
)
def test_an_emoji_a_vowel_sign_and_a_digit_make_another_text(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_text_has_a_normal_form_that_is_not_empty(text: str) -> None:
    assert normalized(text)
