"""Audio in chunks while units arrive."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from spirit_jax.speech.released.synthesis import DURATION_CONTEXT, PositionRange, Synthesizer
from spirit_jax.speech.released.vocoder_input import VocoderInput, VoiceRows


class AudioStream:
    """Speaks the units of one utterance as they are pushed.

    Units wait until the units after them that their durations depend on are there. They then become frames, which wait
    until the frames after them that their audio depends on are there. What later units or frames depend on is kept.
    """

    def __init__(self, synthesizer: Synthesizer, voice: VoiceRows, *, predict_durations: bool, chunk_frames: int):
        """Start without units.

        Args:
            synthesizer: the vocoder network.
            voice: who speaks.
            predict_durations: whether durations are predicted; otherwise a unit is a frame.
            chunk_frames: frames of a chunk.
        """
        self._synthesizer, self._chunk_frames = synthesizer, chunk_frames
        self._predict_durations = predict_durations
        self._units = VocoderInput.empty(voice)
        self._timed = 0  # how many of the units are already among the frames
        self._frames = VocoderInput.empty(voice)
        self._spoken = 0  # how many of the frames have been spoken

    def push(self, units: VocoderInput) -> Iterator[Float[np.ndarray, " R"]]:
        """Add units, and yield the chunks that can be spoken now."""
        self._units = self._units.join(units)
        self._add_frames(len(self._units) - (DURATION_CONTEXT if self._predict_durations else 0))
        yield from self._speak(self._synthesizer.network.context[1], self._chunk_frames)

    def finish(self) -> Iterator[Float[np.ndarray, " R"]]:
        """Yield the rest, after the last units."""
        self._add_frames(len(self._units))
        yield from self._speak(0, 1)

    def _add_frames(self, stop: int) -> None:
        """Turn the units before `stop` into frames."""
        if stop <= self._timed:
            return
        fresh = self._units.cut(self._timed, stop)
        if self._predict_durations:
            (counts,) = self._synthesizer.durations([PositionRange(self._units, self._timed, stop)])
            fresh = fresh.repeat(counts)
        self._frames = self._frames.join(fresh)
        drop = max(stop - DURATION_CONTEXT, 0)
        self._units, self._timed = self._units.cut(drop), stop - drop

    def _speak(self, ahead: int, fewest: int) -> Iterator[Float[np.ndarray, " R"]]:
        """Speak frames while at least `fewest` of them have `ahead` frames after them."""
        context = self._synthesizer.network.context
        while (count := len(self._frames) - self._spoken - ahead) >= fewest:
            stop = self._spoken + min(count, self._chunk_frames)
            frames = PositionRange(self._frames, self._spoken, stop)
            yield from self._synthesizer.audio([frames], context=context, windows=(self._chunk_frames,))
            drop = max(stop - context[0], 0)
            self._frames, self._spoken = self._frames.cut(drop), stop - drop
