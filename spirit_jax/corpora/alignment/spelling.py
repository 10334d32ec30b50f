"""Transcripts as people write them, turned into words that can be spoken: numbers, abbreviations, punctuation, case.

>>> [word.spoken for word in spell("Dr. Lee owes $5, she said.")]
[('doctor',), ('lee',), ('owes',), ('five', 'dollars'), ('she',), ('said',)]
"""

import dataclasses
import re
import unicodedata

_ABBREVIATIONS = {
    "en": {
        "&": "and", "@": "at", "%": "percent", "+": "plus", "=": "equals", "dr.": "doctor", "etc.": "et cetera",
        "jr.": "junior", "mr.": "mister", "mrs.": "missus", "ms.": "miss", "no.": "number", "prof.": "professor",
        "sr.": "senior", "st.": "saint", "vs.": "versus",
    }
}  # fmt: skip
"""Written forms that are spoken as other words, by language; all in lower case."""

_CURRENCIES = {"en": {"$": ("dollar", "dollars"), "£": ("pound", "pounds"), "€": ("euro", "euros")}}
"""Singular and plural of a currency sign, by language."""

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
_YEAR = re.compile(r"1[1-9]\d\d|20[1-9]\d")
_ORDINAL = re.compile(r"(\d[\d,]*)(?:st|nd|rd|th)")
_INITIALS = re.compile(r"(?:[^\W\d_]\.){2,}")


@dataclasses.dataclass(frozen=True)
class SpelledWord:
    """One word of a transcript."""

    text: str
    """The word as the transcript has it, with its punctuation and case."""
    spoken: tuple[str, ...]
    """Lower-case words to pronounce, of letters, marks and apostrophes only; empty for punctuation alone and for what
    has no spoken form, such as digits in a language that num2words does not know."""


def spell(transcript: str, language: str = "en") -> list[SpelledWord]:
    """Split a transcript at white space and find the spoken form of every word.

    Args:
        transcript: text of any script.
        language: code that num2words knows, such as `en` or `de`; it decides how numbers and abbreviations are read.
    """
    return [SpelledWord(word, tuple(_spoken(word, language))) for word in transcript.split()]


def _spoken(word: str, language: str) -> list[str]:
    word = unicodedata.normalize("NFKC", word).lower().replace("’", "'")
    abbreviations, currencies = _ABBREVIATIONS.get(language, {}), _CURRENCIES.get(language, {})
    for candidate in (word, word.strip("\"'([{“”«»,;:!?)]}…")):
        if candidate in abbreviations:
            return abbreviations[candidate].split()
    core = word.strip("\"'([{“”«»,;:!?)]}….-–—")
    if _INITIALS.fullmatch(core + "."):
        return [letter for letter in core if letter.isalpha()]
    if core[:1] in currencies and _NUMBER.fullmatch(core[1:]):
        one, many = currencies[core[0]]
        return [*_number(core[1:], language), one if core[1:] == "1" else many]
    if core.endswith("%") and "%" in abbreviations and _NUMBER.fullmatch(core[:-1]):
        return [*_number(core[:-1], language), *abbreviations["%"].split()]
    words = []
    for part in re.split(r"[-–—/_]+", core) if not _NUMBER.fullmatch(core) else [core]:
        for piece in re.findall(r"\d[\d,.]*(?:st|nd|rd|th)\b|\d[\d,]*(?:\.\d+)?|[^\d]+", part):
            if piece[0].isdigit():
                words += _number(piece, language)
            else:
                letters = "".join(c for c in piece if unicodedata.category(c)[0] in "LM" or c == "'").strip("'")
                words += [letters] if letters else []
    return words


def _number(text: str, language: str) -> list[str]:
    """A number in words; none where num2words does not know the language or the number."""
    import num2words

    ordinal = _ORDINAL.fullmatch(text)
    digits = (ordinal.group(1) if ordinal else text).replace(",", "").rstrip(".")
    kind = "ordinal" if ordinal else "year" if _YEAR.fullmatch(text) else "cardinal"
    try:
        value = float(digits) if "." in digits else int(digits)
        words = num2words.num2words(value, lang=language, to=kind)
    except (NotImplementedError, OverflowError, ValueError, KeyError, IndexError):
        return []
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", words).lower())
