"""Personal data in texts, replaced by masks such as the data set's own ``[NAME]``.

Patterns, no model: docs/security.md says what is recognized and what is not.
"""

from __future__ import annotations

import re

# Longer texts are cut before: no model reads more, and it bounds the time of every pattern.
MAX_CHARACTERS = 1000
INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
# Scripts in which a word follows another one without a space: Thai to Khmer, kana, ideographs, Hangul.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
BETWEEN_WORDS = re.compile(rf"[\s{UNSPACED}]")
# Where a text changes between such a script and what may be an address: there the patterns find this mark, which is invisible.
BORDER = re.compile(rf"(?<=[{UNSPACED}])(?=[@＠/]?[A-Za-z0-9_])|(?<=[A-Za-z0-9_])(?=[{UNSPACED}])")
BORDER_MARK = "\u200b"
# Blanks beside the usual ones, such as those that do not break a line: in their place the patterns find a space.
BLANKS = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
DOMAINS = (
    "com|org|net|edu|gov|info|io|co|me|dev|app|ai|xyz|uk|us|ca|au|nz|ie|de|fr|es|it|nl|eu|ch|at|pl|pt|cz|dk|fi|se|gr|hu|ro|ua|ru|tr|"
    "in|jp|cn|kr|tw|hk|sg|za|br|mx"
)
LOCAL, DOTTED = r"(?<![\w.%+-])[\w.%+-]{1,64}", r"[\w-]{1,63}(?:[.．][\w-]{1,63}){1,8}"
# Written so that no program finds an address: the words, or either sign in brackets or dashes.
AT_IN_BRACKETS = r" ?(?:[(\[{<] ?(?:ät|at?|@) ?[)\]}>]|[*-](?:at|@)[*-]) ?"
AT, DOT = rf"(?: ?\bat\b ?|{AT_IN_BRACKETS}|@)", r"(?: ?[(\[{<*-] ?(?:dot|\.) ?[)\]}>*-] ?| ?\bdot\b ?)"
IPV6 = r"(?:(?:[0-9a-f]{1,4}:){3,7}|(?:[0-9a-f]{1,4}:){1,6}:)(?:[0-9a-f]{1,4}:?){0,6}"
# A ratio or a time of day is none.
BETWEEN_DIGITS = r"[ ().,/:\u2010-\u2013\uff08\uff09\uff0d\uff0e\ufe0f\u20e3-]{0,3}"
# Also those above, below and in circles.
DIGIT = (
    r"[\d\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089\u2460-\u2468\u24ea\u24f5-\u24ff\u2776-\u277e\u2780-\u2788\u278a-\u2792]"
)
NUMBER = rf"(?!\d{{1,2}}[/:]\d{{1,2}}(?![\d/:.-]))(?<![\d/:])[+(]{{0,2}}{DIGIT}(?:{BETWEEN_DIGITS}{DIGIT}){{3,}}[\ufe0f\u20e3]*"
IBAN = r"(?<!\w)(?:(?-i:[A-Z]{2}\d{2}(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,3})?)|[a-z]{2}\d{2}(?=[a-z]*\d)[a-z0-9]{11,30})(?!\w)"
# Documents, accounts and keys: a UUID, a word with letters and four digits, or a long one with both.
IDENTIFIER = (
    r"(?<!\w)(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=\d*[a-z_])(?:[a-z_]{0,40}\d){4}[a-z0-9_]*"
    r"|(?=[a-z_]{0,40}\d)(?=\d{0,40}[a-z_])[a-z0-9_]{16,})(?!\w)"
)
MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.?"
DATE = rf"(?<!\w)(?:\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {MONTH},?|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,?) \d{{4}}(?!\d)"
DATE += "".join(
    rf"|\d{{1,4}}[ \u200b]?[{year}][ \u200b]?\d{{1,2}}[ \u200b]?[{month}][ \u200b]?\d{{1,2}}[ \u200b]?[{day}]"
    for year, month, day in ("年月日", "년월일")
)
# A house number and a street: in English a capitalized name or one word of any case, in French and German with their own words.
STREET = r"(?:street|st|avenue|ave|road|rd|lane|ln|boulevard|blvd)\b\.?"
ADDRESS = (
    rf"(?<![\w/])\d{{1,5}}[a-z]? (?:(?:(?-i:[A-Z])[\w'.-]* ){{1,3}}(?:{STREET}|(?:drive|dr|court|ct|place|square|way)\b\.?)"
    rf"|(?!way )[a-z'-]+ {STREET})|(?<![\w/])\d{{1,5}},? (?:rue|avenue|place) (?:d[eu]s? |la |l['’])*[\w-]+"
    r"|(?<![\w-])[\w-]{1,40}(?:stra(?:ß|ss)e|str\.|weg|platz|gasse) \d{1,4}[a-z]?(?!\w)"
)
# In this order, since a URL may hold an address. Each pattern is tried on texts in which its mark, in lower case, is found first.
PATTERNS = tuple(
    (re.compile(mark).search, re.compile(pattern, re.IGNORECASE), replacement)
    for mark, pattern, replacement in (
        (r"://|www\.", r"(?<!\w)(?:[a-z][a-z0-9+.-]{1,15}://|www\.)[^\s<>\"']+", "[URL]"),
        (
            "[@＠]|%40|&#64;",
            rf"{LOCAL}\u200b?(?:(?:[@＠]|%40|&#64;){DOTTED}| ?[@＠] (?:[\w-]{{1,63}}[.．]){{1,8}}[a-z]{{2,24}}(?!\w))",
            "[EMAIL]",
        ),
        (AT_IN_BRACKETS, rf"{LOCAL}{AT_IN_BRACKETS}{DOTTED}", "[EMAIL]"),
        (r"dot|[(\[{<] ?\.", rf"{LOCAL}{AT}(?:[\w-]{{1,63}}(?:{DOT}|\.)){{0,4}}[\w-]{{1,63}}{DOT}(?:{DOMAINS})\b", "[EMAIL]"),
        (
            r"\.[a-z]",
            rf"(?<![\w.-])(?:[a-z0-9-]{{1,63}}\.){{1,4}}(?:{DOMAINS})\b(?::\d{{1,5}})?(?:/[^\s<>\"']*|[?#]\w[^\s<>\"']*)?",
            "[URL]",
        ),
        # Of other domains, or without one, only with a path.
        ("/", r"(?<![\w.-])(?:(?:[\w-]{1,63}\.){1,4}[a-z]{2,24}(?::\d{1,5})?|[a-z][\w-]{1,62}:\d{2,5})/[^\s<>\"']+", "[URL]"),
        (r"\.\d", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)", "[IP]"),
        (":", rf"(?<![\w:]){IPV6}(?![\w:])", "[IP]"),
        ("/", r"(?<![\w/])/?(?:u|user|r)/[\w-]{2,64}", "[HANDLE]"),
        ("[@＠]", r"(?<!\w)[@＠][\w.-]{1,64}", "[HANDLE]"),
        (r"#\d", r"(?<!\w)\w{2,32}#\d{4}(?!\d)", "[HANDLE]"),
        (r"\d", ADDRESS, "[ADDRESS]"),
        (r"\d", IBAN, "[NUMBER]"),
        (r"\d", IDENTIFIER, "[NUMBER]"),
        (r"\d", DATE, "[NUMBER]"),
        (DIGIT, NUMBER, "[NUMBER]"),
    )
)

# Letters of Latin, Greek and Cyrillic. In a word, a mark that combines with the letter before it counts as a small one.
CASED = [chr(code) for code in (*range(0x41, 0x530), *range(0x1E00, 0x2000)) if chr(code).isalpha()]
UPPER = "".join(letter for letter in CASED if letter.isupper())
LOWER = "".join(letter for letter in CASED if letter.islower()) + "\u0300-\u036f"
# An apostrophe within a name, as in Ukrainian ones, is followed by more letters than one in 'll or 've.
NAME = rf"(?:[{UPPER}dl]['’])?[{UPPER}][{LOWER}]+(?:[-'’ʼ]?[{UPPER}][{LOWER}]+|['’ʼ][{LOWER}]{{3,}})*"
NAMES = re.compile(rf"(?<![\w\['’]){NAME}(?:[ \t](?:(?:van|von|de|der|del|da|di|bin|al) )?{NAME}|[ \t][{UPPER}]\.)*")
OWN_NAME = re.compile(r"\b(my name(?:['’]?s| is)) (?!\[)[^\W\d_]+", re.IGNORECASE)
WITHIN_SENTENCE = re.compile(rf"[{LOWER}\d,;][ \t]$")
RELATIVES = "brother|sister|mother|father|son|daughter|wife|husband|friend|boyfriend|girlfriend|cousin|boss|coworker|neighbou?r"
CUE = re.compile(
    rf"(?<!\w)(?:name(?:['’]?s| is| was)|(?:name|contact|from|to|cc|signed|sender|author|client|customer|patient):|"
    rf"call(?:ed)? me|called|named|mrs?\.?|ms\.?|miss|dr\.?|prof\.?|sir|madam|uncle|aunt(?:ie)?|"
    rf"grandma|grandpa|(?:{RELATIVES}),?|dear|hi|hey|hello|thanks,?|thank you,?|cheers,?|regards,?|sincerely,?|love,|signed,?|"
    r"i['’]?m|i am|this is)(?:[ \t]|(?P<line>[ \t]*[\r\n]\s*))$",
    re.IGNORECASE,
)
END_OF_LINE = re.compile(r"[ \t]*(?:[\r\n]|$)")
# What follows a word that begins a sentence if it is a name: who is spoken to, who owns, or a verb of a third person.
BEGINS_SENTENCE = re.compile(r"(?:^|[.!?\n][\"'”’)]*\s)[\"'“‘(]?$")
AFTER_NAME = re.compile(
    r"(?:, (?:you|your|i|please|can|could|what|why|how|come|stop|thanks?)\b|['’]s \w|"
    r" (?:(?:is|was|has|does|did)(?:n['’]t)?|and (?:i|he|she|his|her|my)|(?!need|feed|speed|weed|seed)[a-z]{2,}ed|"
    r"says|said|thinks|thought|wants|likes|loves|hates|looks|makes|made|gets|got|goes|went|came|took|told|gave|needs|deserves)\b)",
    re.IGNORECASE,
)
# Endings of nouns, adverbs and pronouns that name no person.
NO_NAME = re.compile(r"(?:ing|ly|tion|ness|ment|ity|ism|thing|body|one|ever|self|ence|ance|ship|day|hood|logy)$")
# Words that are capitalized, also within sentences, and name no person.
ORDINARY_WORDS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August September October "
    "November December Christmas Easter Halloween Thanksgiving Birthday God Jesus Lord Reddit Google Facebook Twitter Youtube "
    "Instagram Internet English Spanish French German American British Canadian European Asian African Indian Chinese Japanese Russian "
    "Mexican America Europe Canada China Year Day World Man People Mom Dad Mother Father Bro Dude Guy Guys Buddy Friend "
    "The This That These Those It He She They We You My Your His Her Our Their What Who Why How When Where There Here If But And Or So "
    "Not No Yes Yeah Oh Ok Okay Well Just Please Thanks Thank Sorry Good Great Happy Nice Love Lol Wow Mr Mrs Ms Dr Is Are Was Do Does "
    "Did Can Could Will Would Should All Every Some Any One To In On At Of For From With As By Be Have Has Had Get Go Let Stop Edit "
    "Hi Hey Hello Dear Cheers Regards Sincerely Signed Especially Seriously Honestly Maybe Never Always Also Again Now First Most Same "
    "Very Too Up Which Neither Except However Therefore Life Time Food Wait Talk Got Me Mine Yours Hes Kid Girl Daddy Op Haha "
    "Ah Aha Ow Eh Nah Naw Ya Welp Omg Wtf Idk Lmfao Damn Congrats Alright Cool Funny Brilliant Epic Careful"
)
ORDINARY = frozenset(ORDINARY_WORDS.split())


def redact(text: str) -> str:
    """A text of at most ``MAX_CHARACTERS`` with masks in place of what looks like personal data."""
    text = INVISIBLE.sub("", text[: 2 * MAX_CHARACTERS])
    if len(text) > MAX_CHARACTERS:
        # Between words: half an address would not be recognized.
        text = text[:MAX_CHARACTERS]
        unfinished = BETWEEN_WORDS.search(text[::-1])
        text = text[: len(text) - unfinished.start()] if unfinished else text
    text = text if text.isascii() else BORDER.sub(BORDER_MARK, BLANKS.sub(" ", text))
    lowered = text.lower()
    for is_marked, pattern, replacement in PATTERNS:
        if is_marked(lowered):
            text = pattern.sub(replacement, text)
    text = NAMES.sub(_mask_name, text)
    text = OWN_NAME.sub(r"\1 [NAME]", text) if "name" in lowered else text
    return text.replace(BORDER_MARK, "")


def _mask_name(match: re.Match[str]) -> str:
    """Capitalized words, with a mask for a name: within a sentence or after a cue one word is taken for a name, elsewhere two are."""
    words, start = match[0].split(" "), match.start()
    names = [at for at, word in enumerate(words) if word not in ORDINARY]
    before = match.string[max(start - 24, 0) : start]
    is_cued = names and (
        names[0] or WITHIN_SENTENCE.search(before) or _is_cued(match, before) or _begins_with_name(match, before)
    )
    if not names or (len(names) == 1 and not is_cued):
        return match[0]
    return " ".join([*words[: names[0]], "[NAME]", *words[names[-1] + 1 :]])


def _is_cued(match: re.Match[str], before: str) -> bool:
    """Whether a cue precedes a name; at the end of the line before it, one has the line for itself: a letter that is signed."""
    cue = CUE.search(before)
    return bool(cue and (cue["line"] is None or END_OF_LINE.match(match.string, match.end())))


def _begins_with_name(match: re.Match[str], before: str) -> bool:
    """Whether a capitalized word that begins a sentence is followed by what follows names."""
    follows = AFTER_NAME.match(match.string, match.end())
    return bool(follows and BEGINS_SENTENCE.search(before) and not NO_NAME.search(match[0]))
