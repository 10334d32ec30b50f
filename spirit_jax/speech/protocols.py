"""Protocols of the parts of a speech tokenizer, as `SpeechTokenizer` and the commands use them.

A part is a directory under `speech_tokenizer/` of a checkpoint: a `config.json`, whose "kind" names the class, and
arrays. `speech/released` and `speech/scratch` each have a class for every role below and know nothing of each other. A
new kind of part implements `Part` and the protocol of its role, and is listed in `speech/loading.py`.

Clips are float32 [R] in [-1, 1] at 16 kHz, of 1280 samples (80 ms) to 1,600,000 samples (100 s).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.errors import SpiritError
from spirit_jax.units import SpeechUnits

F0Extractor = Literal["fcpe", "pyaapt"]
"""F0 method of a released pitch encoder: the FCPE network, or pYAAPT, as in the paper (slow, on the host)."""

DEFAULT_SPEAKER = 2
"""The voice that speaks where none is named, as in the reference; `ex03` of the released vocoders."""


class VoiceError(SpiritError):
    """A speaker or style that a part does not have; the message lists the ones that it has."""


class Part(Protocol):
    """Stored form of a part."""

    kind: ClassVar[str]
    """The "kind" in its config.json."""

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "Part":
        """Make the part from the content of its config.json and its tree of arrays.

        Raises:
            KeyError, TypeError: an entry or an array is missing.
            CheckpointError: the entries or shapes do not fit together.
        """
        ...

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        ...

    def arrays(self) -> dict[str, Any]:
        """The tree of arrays, as stored."""
        ...


class PhoneticEncoder(Protocol):
    """Turns audio into phonetic units, 25 a second."""

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        ...

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " H"]]:
        """Units of each clip, int32 [(R - 720) // 640 + 1]. A clip's units do not depend on the other clips.

        Raises:
            AudioError: a clip is too short or too long.
        """
        ...


class PitchEncoder(Protocol):
    """Turns audio into pitch units, 12.5 a second."""

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        ...

    def encode_batch(
        self, clips: Sequence[Float[np.ndarray, " R"]], speaker: str | None = None
    ) -> list[Int[np.ndarray, " P"]]:
        """Units of each clip, int32 [(R // 80 + 1) // 16]. A clip's units do not depend on the other clips.

        Args:
            clips: float32 [R] each.
            speaker: the speaker of all clips, if the part stores the speaker's mean F0. Pitch is relative to that mean
                instead of the clip's own.

        Raises:
            AudioError: a clip is too short or too long.
            VoiceError: the part does not store this speaker's mean F0.
        """
        ...


class StyleEncoder(Protocol):
    """Turns audio into style units, one a second."""

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        ...

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " S"]]:
        """Units of each clip, int32, one for every 50 frames of 20 ms or part of them. Clips do not affect each other.

        Raises:
            AudioError: a clip is too short or too long.
        """
        ...


class Vocoder(Protocol):
    """Turns units into audio, float32 [R] in [-1, 1] at 16 kHz."""

    def decode(
        self,
        units: SpeechUnits,
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Float[np.ndarray, " R"]:
        """The audio of one utterance.

        Args:
            units: at the frame rate, or aligned (`SpeechUnits.is_aligned`).
            speaker: number or name of a voice.
            style: number or name of a style for the whole utterance; None for the style of the units, or the default.
            predict_durations: let the vocoder choose how many frames each unit lasts, as units without repetitions
                need. Otherwise a phonetic unit is a frame of 40 ms. Frame-rate units that carry pitch keep their
                frames.

        Raises:
            UnitError: there are no units, or units that the vocoder cannot speak.
            VoiceError: an unknown speaker or style.
        """
        ...

    def decode_batch(
        self,
        batch: Sequence[SpeechUnits],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> list[Float[np.ndarray, " R"]]:
        """`decode` of each utterance. One utterance that cannot be spoken fails the batch."""
        ...

    def stream(
        self,
        pieces: Iterable[SpeechUnits],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Iterator[Float[np.ndarray, " R"]]:
        """Audio in chunks while aligned units arrive. Joined, the chunks are the audio of `decode` on all units."""
        ...

    def latency(self, predict_durations: bool = True) -> tuple[int, int] | None:
        """`(units, frames)` that must arrive after a frame before `stream` yields it; None if it needs all units."""
        ...

    def speaker_index(self, speaker: int | str) -> int:
        """The number of a voice given by number or name.

        Raises:
            VoiceError: an unknown speaker; the message lists the known ones.
        """
        ...
