"""Cuts long recordings into utterances of bounded length: at pauses and sentence ends where words have times, and at
pauses that voice activity shows where there is no transcript.

Both are one problem. A recording is a sequence of spans, words or stretches of voice. A piece is some consecutive
spans. `choose_pieces` finds the pieces with the lowest total cost by dynamic programming: each piece costs one, and a
cut costs more where the speaker does not pause and where no sentence ends.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.voice_activity import ENERGY, VoiceActivity

MARGIN_MS = 150
"""Silence that a piece keeps before its first and after its last span, if there is as much."""

_FRAME_MS = 10
_LONG_PAUSE_MS = 500  # longer pauses are not better places to cut
_CUT_IN_SENTENCE, _CUT_WITHOUT_PAUSE = 1.0, 2.0
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "؟", "۔")
_CLOSING = "\"')]}»”’」』"


def ends_sentence(word: str) -> bool:
    """Whether a word as the transcript has it is the last of a sentence."""
    return word.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)


def voice_pieces(
    audio: Float[np.ndarray, " R"], max_ms: int, activity: VoiceActivity = ENERGY
) -> Int[np.ndarray, "P 2"]:
    """Pieces of a recording without a transcript, in milliseconds: voice with a margin, each at most `max_ms` long.

    A stretch of voice without a pause that is longer is cut at its quietest places.

    Args:
        audio: float32 [R] at 16 kHz.
        max_ms: longest piece.
        activity: finds the stretches of voice.
    """
    duration_ms = audio.size * 1000 // SAMPLE_RATE
    spans = np.concatenate(
        [np.zeros((0, 2), np.int64), *(_parts(audio, start, end, max_ms) for start, end in activity.spans(audio))]
    )
    pieces = choose_pieces(spans, np.ones(len(spans), bool), max_ms)
    return np.array([piece_bounds(spans, first, last, duration_ms, max_ms) for first, last in pieces], int).reshape(
        -1, 2
    )


def choose_pieces(
    spans_ms: Int[np.ndarray, "N 2"], sentence_ends: Bool[np.ndarray, " N"], max_ms: int
) -> list[tuple[int, int]]:
    """The best way to cut a recording into pieces of at most `max_ms`.

    Args:
        spans_ms: start and end of each word or stretch of voice, in order.
        sentence_ends: whether a sentence ends with the span.
        max_ms: longest piece, from the start of its first span to the end of its last one; a single span may be longer.

    Returns:
        First span, and the one after the last span, of each piece.
    """
    count = len(spans_ms)
    pauses_ms = np.append(spans_ms[1:, 0] - spans_ms[:-1, 1], _LONG_PAUSE_MS)
    cuts = 1.0 + np.where(sentence_ends, 0.0, _CUT_IN_SENTENCE)
    cuts += _CUT_WITHOUT_PAUSE * (1 - np.clip(pauses_ms, 0, _LONG_PAUSE_MS) / _LONG_PAUSE_MS)
    best, previous = np.full(count + 1, np.inf), np.zeros(count + 1, int)
    best[0] = 0.0
    for end in range(1, count + 1):
        # the pieces that end here may begin at any span that is near enough
        first = int(np.searchsorted(spans_ms[:, 0], spans_ms[end - 1, 1] - max_ms, "left"))
        first = min(first, end - 1)
        start = first + int(np.argmin(best[first:end]))
        best[end], previous[end] = best[start] + cuts[end - 1], start
    pieces = []
    while count:
        pieces.append((int(previous[count]), count))
        count = int(previous[count])
    return pieces[::-1]


def piece_bounds(
    spans_ms: Int[np.ndarray, "N 2"], first: int, last: int, duration_ms: int, max_ms: int
) -> tuple[int, int]:
    """Start and end of a piece in milliseconds: its spans with a margin, which never reaches into a neighbor.

    Args:
        spans_ms: all spans of the recording.
        first: its first span.
        last: the span after its last one.
        duration_ms: length of the recording.
        max_ms: the margin is shorter where the piece would be longer than this.
    """
    start, end = int(spans_ms[first, 0]), int(spans_ms[last - 1, 1])
    before = start - int(spans_ms[first - 1, 1]) if first else 2 * start
    after = int(spans_ms[last, 0]) - end if last < len(spans_ms) else 2 * (duration_ms - end)
    room = max(0, max_ms - (end - start)) // 2
    return start - min(MARGIN_MS, max(before, 0) // 2, room), end + min(MARGIN_MS, max(after, 0) // 2, room)


def _parts(audio: np.ndarray, start_ms: int, end_ms: int, max_ms: int) -> np.ndarray:
    """A stretch of voice, cut at its quietest frames into parts of at most `max_ms`."""
    hop, shortest = _FRAME_MS * SAMPLE_RATE // 1000, max(max_ms // 4, _FRAME_MS)
    cuts = [start_ms]
    while end_ms - cuts[-1] > max_ms:
        latest = min(cuts[-1] + max_ms, end_ms - min(shortest, (end_ms - cuts[-1]) // 2))
        earliest = min(cuts[-1] + shortest, latest - _FRAME_MS)
        window = audio[earliest * SAMPLE_RATE // 1000 : latest * SAMPLE_RATE // 1000]
        energy = np.square(window[: window.size // hop * hop].reshape(-1, hop)).sum(axis=1)
        cuts.append(earliest + int(np.argmin(energy)) * _FRAME_MS + _FRAME_MS // 2)
    return np.stack([cuts, [*cuts[1:], end_ms]], axis=1)
