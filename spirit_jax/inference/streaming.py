"""Streaming: segments of text and audio while tokens arrive."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.voice import NEUTRAL_PITCH, NEUTRAL_STYLE, Voice
from spirit_jax.speech.protocols import Vocoder
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary

_TokenClass = Literal["text", "unit", "control"]
_TOKEN_CLASSES: dict[str, _TokenClass] = {
    "text": "text",
    "hubert": "unit",
    "pitch": "unit",
    "style": "unit",
    "control": "control",
}

_REPLACEMENT = "\ufffd"  # what the first bytes of a character decode to


def stream_segments(
    arrivals: Iterable[Sequence[int]], vocabulary: Vocabulary, voice: Voice, context: str = ""
) -> Iterator[Segment]:
    """Yield text pieces, and audio or units, as ids arrive.

    A vocoder that streams yields audio while a run of speech arrives; otherwise a run is spoken when it is complete.
    Speech comes with its unit tokens.

    Args:
        arrivals: new ids, in lists as they come.
        context: string form of the prompt.
    """
    tokens = _TokenRuns(arrivals, vocabulary)
    vocoder = voice.vocoder
    while (token_class := tokens.peek()) is not None:
        stretches = tokens.take(token_class)
        if token_class == "text":
            yield from (Segment("text", piece) for piece in _text_pieces(stretches, vocabulary))
        elif token_class == "control":
            for _ in stretches:
                pass
        elif vocoder is None or vocoder.latency() is None:
            run = vocabulary.decode([token for stretch in stretches for token in stretch])
            yield Segment("speech", voice.speak(run, context), run)
        else:
            yield from _speak_as_it_comes(stretches, vocabulary, vocoder, voice.speaker)


def _speak_as_it_comes(
    stretches: Iterable[list[int]], vocabulary: Vocabulary, vocoder: Vocoder, speaker: int | str
) -> Iterator[Segment]:
    """Yield the audio of a run of units while it arrives. Each piece has the unit tokens that came since the last one.

    A run without a phonetic unit gives its tokens without samples.
    """
    arrived: list[int] = []

    def noted() -> Iterator[list[int]]:
        for stretch in stretches:
            arrived.extend(stretch)
            yield stretch

    units = _aligned_units(noted(), vocabulary)
    first = next(units, None)
    if first is not None:
        for audio in vocoder.stream(itertools.chain([first], units), speaker=speaker):
            yield Segment("speech", audio, vocabulary.decode(arrived))
            arrived.clear()
    if arrived:
        yield Segment("speech", np.zeros(0, np.float32), vocabulary.decode(arrived))


class _TokenRuns:
    """Arriving ids, split into runs of one class: "text", "unit", or "control", which separates the others."""

    def __init__(self, arrivals: Iterable[Sequence[int]], vocabulary: Vocabulary):
        self._arrivals = iter(arrivals)
        self._pending: list[int] = []
        self._kinds = vocabulary.token_kinds

    def peek(self) -> _TokenClass | None:
        """Return the class of the next token, or None at the end."""
        while not self._pending:
            arrived = next(self._arrivals, None)
            if arrived is None:
                return None
            self._pending = list(arrived)
        return self._class(self._pending[0])

    def take(self, token_class: _TokenClass) -> Iterator[list[int]]:
        """Yield the current run as it arrives, up to the first token of another class."""
        while self.peek() == token_class:
            ends = (i for i, token in enumerate(self._pending) if self._class(token) != token_class)
            count = next(ends, len(self._pending))
            stretch, self._pending = self._pending[:count], self._pending[count:]
            yield stretch

    def _class(self, token: int) -> _TokenClass:
        return _TOKEN_CLASSES[TOKEN_KINDS[self._kinds[token]]] if token < len(self._kinds) else "control"


def _aligned_units(stretches: Iterable[list[int]], vocabulary: Vocabulary) -> Iterator[SpeechUnits]:
    """Yield the units of each stretch. Pitch and style carry over from one stretch to the next and start neutral."""
    carried: list[int] = []
    pitch_offset, style_offset = vocabulary.pitch_offset, vocabulary.style_offset
    if pitch_offset is not None and style_offset is not None:
        carried = [pitch_offset + NEUTRAL_PITCH, style_offset + NEUTRAL_STYLE]
    for stretch in stretches:
        units = vocabulary.units_of([*carried, *stretch])
        if pitch_offset is not None and style_offset is not None:
            pitch = [token for token in stretch if pitch_offset <= token < style_offset]
            style = [token for token in stretch if token >= style_offset]
            carried = [[carried[0], *pitch][-1], [carried[1], *style][-1]]
        if units.hubert.size:
            yield units


def _text_pieces(stretches: Iterable[list[int]], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield what each stretch adds to the text. A character waits until all of its bytes have arrived."""
    ids: list[int] = []
    yielded = ""
    opening = [vocabulary.text_id]  # text after a token, so that a leading space is kept
    skip = len(vocabulary.decode(opening))
    for stretch in stretches:
        ids += stretch
        text = vocabulary.decode([*opening, *ids])[skip:]
        if not text.endswith(_REPLACEMENT) and text != yielded:
            yield text[len(yielded) :]
            yielded = text
    text = vocabulary.decode([*opening, *ids])[skip:]
    if text != yielded:
        yield text[len(yielded) :]
