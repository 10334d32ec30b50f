"""Text and audio out of tokens as they arrive."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spirit_jax.inference.prompts import Segment
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

NEUTRAL_PITCH, NEUTRAL_STYLE = 0, 71
"""What speech is spoken in before any pitch or style is known; the reference draws a missing style from 71, 68 and 98."""

_UNFINISHED = "�"  # what the first bytes of a character decode to


class _Tokens:
    """Arriving ids, a stretch of one kind at a time: "text", "unit", or "other", which only separates."""

    def __init__(self, arrivals: Iterable[list[int]], vocabulary: Vocabulary):
        self._arrivals, self._waiting = iter(arrivals), []
        self._first, self._end, self._text = vocabulary.hubert_offset, vocabulary.size, vocabulary.text_size
        self._control = (vocabulary.bos_id, vocabulary.eos_id)

    def _kind(self, index: int) -> str:
        if self._first <= index < self._end:
            return "unit"
        return "text" if index < self._text and index not in self._control else "other"

    def peek(self) -> str | None:
        """The kind of the next token, None at the end."""
        while not self._waiting:
            self._waiting = next(self._arrivals, None)
            if self._waiting is None:
                self._waiting = []
                return None
        return self._kind(self._waiting[0])

    def take(self, kind: str) -> Iterator[list[int]]:
        """Stretches of a kind, each as much as has arrived, up to the first token of another kind."""
        while self.peek() == kind:
            count = next((i for i, index in enumerate(self._waiting) if self._kind(index) != kind), len(self._waiting))
            stretch, self._waiting = self._waiting[:count], self._waiting[count:]
            yield stretch


def pieces_of(
    arrivals: Iterable[list[int]],
    vocabulary: Vocabulary,
    speak: Callable[[Iterator[SpeechUnits]], Iterator[np.ndarray]] | None,
    voice: Callable[[str], np.ndarray | SpeechUnits],
) -> Iterator[Segment]:
    """Segments of text pieces, and of audio or units.

    Args:
        arrivals: new ids, in lists as they come.
        speak: a vocoder that takes aligned units as they come and yields audio; None: a run is voiced when it is over.
        voice: the sound of a whole run, from its unit string.
    """
    tokens = _Tokens(arrivals, vocabulary)
    while (kind := tokens.peek()) is not None:
        if kind == "text":
            yield from (Segment("text", piece) for piece in _text(tokens.take("text"), vocabulary))
        elif kind == "other":
            for _ in tokens.take("other"):
                pass
        elif speak is None:
            string = vocabulary.decode([index for stretch in tokens.take("unit") for index in stretch])
            yield Segment("speech", voice(string), string)
        else:
            yield from (Segment("speech", audio) for audio in speak(_aligned(tokens.take("unit"), vocabulary)))


def _aligned(stretches: Iterable[list[int]], vocabulary: Vocabulary) -> Iterator[SpeechUnits]:
    """Units of each stretch, with the pitch and style in force; neutral ones before the first."""
    in_force = []
    if vocabulary.variant == "expressive":
        in_force = [vocabulary.pitch_offset + NEUTRAL_PITCH, vocabulary.style_offset + NEUTRAL_STYLE]
    for stretch in stretches:
        units = vocabulary.units_of([*in_force, *stretch])
        if in_force:
            pitch = [index for index in stretch if vocabulary.pitch_offset <= index < vocabulary.style_offset]
            style = [index for index in stretch if index >= vocabulary.style_offset]
            in_force = [(pitch or in_force[:1])[-1], (style or in_force[1:])[-1]]
        if units.hubert.size:
            yield units


def _text(stretches: Iterable[list[int]], vocabulary: Vocabulary) -> Iterator[str]:
    """What each stretch adds to the text; a character whose bytes have not all come waits for them."""
    ids: list[int] = []
    told = ""
    opening = [vocabulary.text_id]  # text after a token, so that a first space is kept
    skip = len(vocabulary.decode(opening))
    for stretch in stretches:
        ids += stretch
        text = vocabulary.decode([*opening, *ids])[skip:]
        if not text.endswith(_UNFINISHED) and text != told:
            yield text[len(told) :]
            told = text
    text = vocabulary.decode([*opening, *ids])[skip:]
    if text != told:
        yield text[len(told) :]
