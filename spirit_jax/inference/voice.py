"""Speaking generated units: from unit tokens to audio, for one speaker of a checkpoint's vocoder."""

import dataclasses

import numpy as np
from jaxtyping import Float

from spirit_jax.inference.prompts import unit_tokens
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, Vocoder
from spirit_jax.units import SpeechUnits

NEUTRAL_PITCH = 0
"""Pitch unit of speech that has none yet."""
NEUTRAL_STYLE = 71
"""Style unit of speech that has none yet; the released code draws one from 71, 68 and 98."""


@dataclasses.dataclass(frozen=True)
class Voice:
    """Speaks unit tokens. Without a vocoder, the units themselves are the answer."""

    vocoder: Vocoder | None
    expressive: bool
    """Whether the vocoder needs pitch and style units."""
    speaker: int | str = DEFAULT_SPEAKER
    """Number or name of one of the vocoder's speakers."""

    def check(self) -> None:
        """Check the speaker, before anything is generated.

        Raises:
            VoiceError: the vocoder has no such speaker.
        """
        if self.vocoder is not None:
            self.vocoder.speaker_index(self.speaker)

    def speak(self, tokens: str, context: str = "") -> Float[np.ndarray, " R"] | SpeechUnits:
        """Return the audio of a run of unit tokens, float32 [R] at 16 kHz; without a vocoder, its units.

        A run without a phonetic unit is silent. An expressive run without pitch takes the first pitch of the context or
        the neutral one, and a run without style the neutral style.

        Args:
            context: string form of the prompt and the answer that the run is part of.
        """
        units = SpeechUnits.from_string(unit_tokens(tokens))
        if self.vocoder is None:
            return units
        if not units.hubert.size:
            return np.zeros(0, np.float32)
        if self.expressive:
            # Aligned units keep only the pitch that a phonetic unit carries, so one is added at the end.
            heard = SpeechUnits.from_string(unit_tokens(context) + "[Hu0]").pitch
            pitch = NEUTRAL_PITCH if heard is None else heard[0]
            units = SpeechUnits(
                units.hubert,
                np.full_like(units.hubert, pitch) if units.pitch is None else units.pitch,
                np.full_like(units.hubert, NEUTRAL_STYLE) if units.style is None else units.style,
            )
        return self.vocoder.decode(units, speaker=self.speaker)
