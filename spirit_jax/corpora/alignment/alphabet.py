"""Transcripts as the symbols of a CTC network, with a wildcard for what the network has no symbol for."""

import dataclasses
import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from spirit_jax.corpora.alignment.spelling import SpelledWord


class LabelSequence(NamedTuple):
    """The symbols of a transcript in order."""

    symbols: list[int]
    """Symbol of each label; `Alphabet.star` is the wildcard."""
    words: list[int]
    """Index of the word that each label belongs to, -1 for separators and wildcards."""
    pauses: list[bool]
    """Whether a pause may stand before each label, and after the last one."""


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The output symbols of a CTC network."""

    symbols: tuple[str, ...]
    """Text of each symbol. Only symbols of one character are used to spell words."""
    blank: int = 0
    """The blank symbol."""
    separator: int | None = None
    """The symbol between words, if the network has one."""

    @property
    def star(self) -> int:
        """The wildcard: a further column after those of the network."""
        return len(self.symbols)

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        special = {self.blank, self.separator}
        return {text: i for i, text in enumerate(self.symbols) if len(text) == 1 and i not in special}

    def spell(self, word: str) -> list[int]:
        """The symbols of a word. A character that the network lacks is tried in the other case and without its accent,
        and is otherwise left out."""
        found = []
        for character in word:
            for form in (character, character.upper(), character.lower(), *unicodedata.normalize("NFKD", character)):
                index = self._indices.get(form)
                if index is None:
                    index = self._indices.get(form.upper())
                if index is not None:
                    found.append(index)
                    break
        return found

    def label(self, words: Sequence[SpelledWord]) -> LabelSequence:
        """The symbols of a transcript.

        A word with letters or digits of which the network knows none becomes a wildcard, which takes its stretch of
        audio; neighbors share one. Punctuation alone gets no symbol.
        """
        labels = LabelSequence([], [], [])

        def add(symbol: int, word: int, pause: bool) -> None:
            labels.symbols.append(symbol)
            labels.words.append(word)
            labels.pauses.append(pause)

        for index, word in enumerate(words):
            parts = [part for part in map(self.spell, word.spoken) if part]
            if not parts and (labels.symbols[-1:] == [self.star] or not any(map(str.isalnum, word.text))):
                continue
            for part in parts or [[self.star]]:
                if labels.symbols and self.separator is not None:
                    add(self.separator, -1, True)
                for place, symbol in enumerate(part):
                    add(symbol, index if parts else -1, place == 0)
        labels.pauses.append(True)
        return labels
