"""Interface of every aligner: transcripts and clips in, a time for each word out."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from spirit_jax.core.errors import SpiritError
from spirit_jax.corpora.alignment.spelling import SpelledWord

SILENT = 1e-4
"""Clips without a sample above this amplitude (-80 dB) hold no speech."""


class AlignmentError(SpiritError):
    """A clip that cannot be aligned, or an aligner that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class WordTime:
    """Where a word was found."""

    start_ms: int
    """Milliseconds from the start of the audio to the start of the word."""
    end_ms: int
    """Milliseconds to its end, at least `start_ms`."""
    score: float
    """From 0 to 1: how well the audio fits the word; comparable only between words of one aligner."""
    interpolated: bool = False
    """Whether the aligner could not pronounce the word, so that its times were filled in between its neighbors'."""


class Aligner(Protocol):
    """Finds the words of transcripts in clips."""

    @property
    def name(self) -> str:
        """Name and version, for manifests and result files; work done under another name is done again."""
        ...

    def align(
        self, clips: Sequence[Float[np.ndarray, " R"]], transcripts: Sequence[Sequence[SpelledWord]]
    ) -> list[list[WordTime] | AlignmentError]:
        """Align each clip with its transcript.

        Args:
            clips: float32 [R] in [-1, 1] at 16 kHz, of any lengths.
            transcripts: the words of each clip in order (`spelling.spell`).

        Returns:
            For each clip one `WordTime` a word, in order and without overlap, or the error that says why it has none.
        """
        ...


def check_sound(clip: Float[np.ndarray, " R"]) -> None:
    """Raise unless a clip holds sound; an aligner would find words in silence too.

    Raises:
        AlignmentError: the clip is empty or silent.
    """
    if not clip.size:
        raise AlignmentError("the clip is empty")
    if np.abs(clip).max() < SILENT:
        raise AlignmentError("the clip is silent")


def fill_gaps(times: Sequence[WordTime | None], duration_ms: int) -> list[WordTime]:
    """Give words without times the gap between their neighbors, shared evenly and flagged as interpolated.

    Args:
        times: the time of each word, None where there is none.
        duration_ms: length of the audio, the end of the gap after the last word with a time.
    """
    filled = list(times)
    position = 0
    while position < len(filled):
        if filled[position] is not None:
            position += 1
            continue
        end = next((i for i in range(position, len(filled)) if filled[i] is not None), len(filled))
        before, after = filled[position - 1] if position else None, filled[end] if end < len(filled) else None
        start_ms = before.end_ms if before else 0
        stop_ms = after.start_ms if after else duration_ms
        edges = np.linspace(start_ms, max(start_ms, stop_ms), end - position + 1).round().astype(int).tolist()
        for i in range(position, end):
            filled[i] = WordTime(edges[i - position], edges[i - position + 1], 0.0, interpolated=True)
        position = end
    return [time for time in filled if time is not None]
