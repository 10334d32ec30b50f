"""Forced alignment of English by pocketsphinx, whose acoustic model and dictionary are inside its wheel.

pocketsphinx aligns hidden Markov models of phones; frames are 10 ms. Words that its dictionary lacks get a
pronunciation from their letters, which is rough but holds their place.
"""

import importlib.metadata
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.aligner import AlignmentError, WordTime, check_sound, fill_gaps
from spirit_jax.corpora.alignment.spelling import SpelledWord

_FRAME_MS = 10
_BEAM = 1e-120  # wide: the default beams lose the path of one clip in twenty

_SCORE_SCALE = 256
"""pocketsphinx gives the log-likelihood ratio to each frame's best senone, divided by 1024. A temperature of 4 spreads
a word's mean over (0, 1): words that fit have a median near 0.6, words of another transcript near 0.2."""

_LETTERS = {
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V",
    "w": "W", "x": "K S", "y": "IY", "z": "Z", "ch": "CH", "ck": "K", "ee": "IY", "ea": "IY", "ng": "NG", "oo": "UW",
    "ou": "AW", "ph": "F", "qu": "K W", "sh": "SH", "th": "TH", "ai": "EY", "ay": "EY", "ow": "OW", "er": "ER",
}  # fmt: skip
"""A phone for each letter or pair of letters."""


class SphinxAligner:
    """The aligner that needs no download; English only."""

    def __init__(self) -> None:
        """
        Raises:
            AlignmentError: pocketsphinx is not installed.
        """
        try:
            import pocketsphinx
        except ImportError as error:
            raise AlignmentError("pocketsphinx is not installed; run: pip install 'spirit_jax[align]'") from error
        self.name = f"pocketsphinx {importlib.metadata.version('pocketsphinx')}"
        # cmn=batch: features are normalized over one clip; the default adapts from clip to clip
        options = {"bestpath": False, "cmn": "batch", "beam": _BEAM, "wbeam": _BEAM, "pbeam": _BEAM}
        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", **options)

    def align(
        self, clips: Sequence[Float[np.ndarray, " R"]], transcripts: Sequence[Sequence[SpelledWord]]
    ) -> list[list[WordTime] | AlignmentError]:
        """As `Aligner.align`; one clip after the other."""
        results: list[list[WordTime] | AlignmentError] = []
        for clip, words in zip(clips, transcripts, strict=True):
            try:
                results.append(self._align(clip, words))
            except AlignmentError as error:
                results.append(error)
        return results

    def _align(self, clip: np.ndarray, words: Sequence[SpelledWord]) -> list[WordTime]:
        check_sound(clip)
        spoken = [(i, one) for i, word in enumerate(words) for one in word.spoken if self._pronounce(one)]
        duration_ms = clip.size * 1000 // SAMPLE_RATE
        if not spoken:
            raise AlignmentError("the transcript has no word that can be pronounced")
        self._decoder.set_align_text(" ".join(word for _, word in spoken))
        self._decoder.reinit_feat()  # forgets what it adapted to the clip before
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(clip, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = [segment for segment in self._decoder.seg() or () if segment.word[0] not in "<[("]
        if len(found) != len(spoken):
            raise AlignmentError("pocketsphinx finds no path through the transcript: it does not fit the audio")
        pieces: dict[int, list] = {}
        for (index, _), segment in zip(spoken, found, strict=True):
            pieces.setdefault(index, []).append(segment)
        times = [self._word_time(pieces[i], duration_ms) if i in pieces else None for i in range(len(words))]
        return fill_gaps(times, duration_ms)

    @staticmethod
    def _word_time(segments: Sequence, duration_ms: int) -> WordTime:
        first, last = segments[0].start_frame, segments[-1].end_frame + 1
        mean = sum(math.log(max(segment.ascore, 1e-300)) for segment in segments) / (last - first)
        end_ms = min(last * _FRAME_MS, duration_ms)
        return WordTime(min(first * _FRAME_MS, end_ms), end_ms, min(1.0, math.exp(_SCORE_SCALE * mean)))

    def _pronounce(self, word: str) -> bool:
        """Make sure that the dictionary has a word; false if it has no letter that pocketsphinx can pronounce."""
        if self._decoder.lookup_word(word) is not None:
            return True
        phones, rest = [], word
        while rest:
            size = 2 if rest[:2] in _LETTERS else 1
            phones += _LETTERS.get(rest[:size], "").split()
            rest = rest[size:]
        if phones:
            self._decoder.add_word(word, " ".join(phones), True)
        return bool(phones)
