"""Forms of a text: the one that is stored, the one that is compared, those in a Markdown document and in a CSV; and its script."""

from __future__ import annotations

import contextlib
import functools
import html
import re
import unicodedata

# The scripts that are distinguished, by the first word of the Unicode names of their letters; ``none`` for a text without a letter.
SCRIPTS = (
    *("none", "other", "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "bengali", "tamil", "thai"),
    *("cjk", "hiragana", "katakana", "hangul"),
)
# Scripts whose words no blanks separate: Chinese characters and Japanese syllables; then the letters of Thai, Lao, Burmese and Khmer,
# and their signs for vowels and tones.
_CHARACTERS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# What belongs to the character before it: the marks of voiced syllables, and selectors of a variant of a Chinese character.
_MARKS = r"\u3099\u309a\uff9e\uff9f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_LETTERS = r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"
_SIGNS = (
    r"\u0e30-\u0e3a\u0e45\u0e47-\u0e4e\u0eb0-\u0ebd\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d"
    r"\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd"
)
UNSPACED_CHARACTERS = _CHARACTERS + _LETTERS
# What a reader sees as one of them: a letter with its signs, with the vowel before it, and with the letters that are stacked below it.
UNSPACED = re.compile(
    rf"[{_CHARACTERS}][{_MARKS}]*|[\u0e40-\u0e44\u0ec0-\u0ec4]?[{_LETTERS}](?:[\u1039\u17d2][{_LETTERS}]|[{_SIGNS}])*"
)
# Beside blanks, the points between the syllables of Tibetan and between the words of Ethiopic scripts.
SEPARATORS = r"\u0f0b\u0f0c\u1361"
_BETWEEN_WORDS = re.compile(rf"[\s{SEPARATORS}]+")
FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
ASCII_LETTERS, NOT_ASCII = re.compile("[A-Za-z]+"), re.compile("[^\x00-\x7f]")


def clean(text: str) -> str:
    """A text that the tokenizer and Parquet accept: lone surrogates and NUL become U+FFFD, the rest is unchanged."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


def normalized(text: str) -> str:
    """A text without case, punctuation and spacing: texts with equal results count as the same text.

    Letters keep their marks, which are the vowels of many scripts, and emoji stay, without the color of their skin.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_COMPARED).split()) or text


class _Compared(dict[int, int | str]):
    """What each character becomes, by its general category; found once."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        if code in _SELECTORS or category == "Cf":
            self[code] = ""
        else:
            self[code] = code if category[0] in "LNM" or category == "So" else " "
        return self[code]


# How the character before them is drawn.
_SELECTORS = range(0xFE00, 0xFE10)
_COMPARED = _Compared()


def as_markdown(text: str) -> str:
    """Plain text as one line of Markdown, which can neither end a table cell or a link nor be read as HTML."""
    return " ".join(re.sub(r"([\\|\[\]])", r"\\\1", html.escape(text, quote=False)).split())


def as_cell(value: object) -> object:
    """A cell of a CSV for people: a text that begins like a formula gets an apostrophe: no spreadsheet computes it then (CWE-1236)."""
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def count_words(text: str) -> int:
    """The number of words between blanks; in scripts without blanks, each character with its signs counts as one."""
    if text.isascii():
        return len(text.split())
    return sum(max(1, len(UNSPACED.findall(word))) for word in _BETWEEN_WORDS.split(text) if word)


def script(text: str) -> str:
    """The script, one of ``SCRIPTS``, that most letters of a text have.

    It separates languages that are written differently, such as English and Russian, but not English and Spanish.
    """
    letters = {"latin": sum(map(len, ASCII_LETTERS.findall(text)))}
    for character in NOT_ASCII.findall(text):
        if name := _script_of(character):
            letters[name] = letters.get(name, 0) + 1
    most = max(letters, key=letters.__getitem__)
    return most if letters[most] else "none"


@functools.lru_cache(maxsize=2**14)
def _script_of(character: str) -> str:
    """The script of a letter; empty for another character."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").partition(" ")[0].lower()
    return name if name in SCRIPTS else "other"
