"""Text that spells a special token, such as a literal `[Hu3]` or `<|end_of_text|>`, stays text.

The string form of prompts and answers holds special tokens and text in one string. In it, a literal in a text carries a
mark after its first character, so that neither the tokenizer nor the rules for answers take it for a token. The mark is
a lone surrogate, which no text that can be encoded holds.
"""

import itertools
import re
from collections.abc import Iterable

import numpy as np

from spirit_jax.vocabulary import TEXT_TOKEN, TOKEN_KINDS, Vocabulary

MARK = "\udc00"

_TEXT_KIND = TOKEN_KINDS.index("text")
_LIKE_A_TOKEN = re.compile(r"\[(?=Text\]|Speech\]|Hu|Pi|St)")  # what the rules for answers take for a token


def mark(text: str, vocabulary: Vocabulary) -> str:
    """Return a text with its literals marked."""
    return vocabulary.specials.sub(lambda match: match[0][0] + MARK + match[0][1:], text)


def unmark(string: str) -> str:
    """Return a string without marks."""
    return string.replace(MARK, "")


def cut(string: str, length: int | None) -> str:
    """Return the start of a marked string that has `length` characters besides marks; None keeps all of it."""
    if length is None or MARK not in string:
        return string[:length]
    kept = itertools.accumulate(character != MARK for character in string)
    return "".join(character for character, count in zip(string, kept, strict=True) if count <= length)


def encode(vocabulary: Vocabulary, string: str) -> list[int]:
    """Return the ids of a string form, `<s>` first. Marked literals become text, in two parts."""
    first, *rest = string.split(MARK)
    ids = vocabulary.encode(first)
    skip = len(vocabulary.prefix) + 1
    for part in rest:
        ids += vocabulary.encode(TEXT_TOKEN + part)[skip:]
    return ids


def decode(vocabulary: Vocabulary, ids: Iterable[int | np.integer]) -> str:
    """Return the string form of ids as `Vocabulary.decode` does, with the literals in its text marked."""
    outside = (vocabulary.bos_id, *vocabulary.end_ids)
    ids = [int(index) for index in ids if index < vocabulary.size and index not in outside]
    string, is_text = vocabulary.decode(ids), vocabulary.token_kinds[ids] == _TEXT_KIND
    if string.count("[") == np.count_nonzero(~is_text):  # none in the text
        return string
    parts: list[str] = []
    for text, run in itertools.groupby(zip(is_text.tolist(), ids, strict=True), key=lambda pair: pair[0]):
        tokens = [index for _, index in run]
        if not text:
            parts.append(vocabulary.decode(tokens))
            continue
        # After a token, so that a leading space is kept. At the start there is the tokenizer's dummy space, if any.
        opening = [vocabulary.text_id] if parts else []
        decoded = vocabulary.decode([*opening, *tokens])[len(TEXT_TOKEN) * len(opening) :]
        parts.append(_LIKE_A_TOKEN.sub("[" + MARK, decoded))
    return "".join(parts)
