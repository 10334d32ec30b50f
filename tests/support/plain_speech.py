"""A speech tokenizer without networks: a unit is the loudness of a frame, and a unit sounds as a tone. It compiles
nothing, and it speaks while units arrive."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.protocols import VoiceError
from spirit_jax.units import SpeechUnits

_FRAME = 640


class LoudnessEncoder:
    """Phonetic units from the loudness of each frame."""

    unit_count = 500

    def encode_batch(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Units of each clip, int32 [(R - 720) // 640 + 1]."""
        return [
            np.array(
                [int(1000 * np.abs(clip[at : at + _FRAME]).mean()) % 500 for at in range(0, clip.size - 719, _FRAME)],
                np.int32,
            )
            for clip in clips
        ]


class ToneVocoder:
    """Each phonetic unit is a tone of 40 ms; there are two voices."""

    speakers = ("low", "high", "default")

    def speaker_index(self, speaker: int | str) -> int:
        """The number of a voice."""
        if isinstance(speaker, int) and 0 <= speaker < len(self.speakers):
            return speaker
        if speaker in self.speakers:
            return self.speakers.index(str(speaker))
        raise VoiceError(f"speaker {speaker!r}: this vocoder has {', '.join(self.speakers)}")

    def decode(
        self,
        units: SpeechUnits,
        speaker: int | str = 2,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> np.ndarray:
        """The tones of all units."""
        steps = (1 + self.speaker_index(speaker)) * np.repeat(0.002 * (units.hubert + 20), _FRAME)
        return (0.5 * np.sin(np.tile(np.arange(_FRAME), units.hubert.size) * steps)).astype(np.float32)

    def decode_batch(
        self,
        batch: Sequence[SpeechUnits],
        speaker: int | str = 2,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> list[np.ndarray]:
        """The tones of each utterance."""
        return [self.decode(units, speaker) for units in batch]

    def stream(
        self,
        pieces: Iterable[SpeechUnits],
        speaker: int | str = 2,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Iterator[np.ndarray]:
        """The tones of each piece."""
        for piece in pieces:
            yield self.decode(piece, speaker)

    def latency(self, predict_durations: bool = True) -> tuple[int, int]:
        """No unit waits for another."""
        return 0, 0


def plain_speech_tokenizer() -> SpeechTokenizer:
    """The tokenizer of Spirit LM Base."""
    return SpeechTokenizer(LoudnessEncoder(), None, None, ToneVocoder(), "")
