"""`SpeechTokenizer`: audio to units and back, with the parts of a checkpoint directory."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError, local_directory
from spirit_jax.core.constants import MINIMUM_SAMPLES
from spirit_jax.speech.features import CHUNK_SAMPLES, check_length
from spirit_jax.speech.loading import (
    ENCODER_PARTS,
    check_f0,
    fingerprint,
    has_vocoder,
    load_phonetic_encoder,
    load_pitch_encoder,
    load_style_encoder,
    load_vocoder,
    variant_of,
)
from spirit_jax.speech.protocols import (
    DEFAULT_SPEAKER,
    F0Extractor,
    PhoneticEncoder,
    PitchEncoder,
    StyleEncoder,
    Vocoder,
    VoiceError,
)
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Variant

_Value = TypeVar("_Value")


class SpeechTokenizer:
    """Turns audio into the units that Spirit LM reads, and units into audio.

    Phonetic units run at 25 Hz. The "expressive" variant adds pitch units at 12.5 Hz and style units at 1 Hz.

    Example:
        >>> from spirit_jax import SpeechTokenizer, load_audio
        >>> tokenizer = SpeechTokenizer.from_pretrained("checkpoint", variant="expressive")
        >>> units = tokenizer.encode(load_audio("two_seconds.wav"))
        >>> len(units.hubert), len(units.pitch), len(units.style)
        (49, 25, 2)
        >>> units.to_string()  # such as [St71][Pi39][Hu99][Hu49]  # doctest: +ELLIPSIS
        '[St...][Pi...][Hu...]'
        >>> audio = tokenizer.decode(units, speaker=2)  # float32 [R] at 16 kHz
        >>> len(audio) == 49 * 640
        True

    Parts of a checkpoint are loaded when they are first needed, so that one without encoders can speak, and one without
    a vocoder can hear. `load_encoders` loads what `encode` needs at once.

    Attributes:
        expressive: whether units have pitch and style.
        has_vocoder: whether `decode` can speak.
    """

    def __init__(
        self,
        phonetic: PhoneticEncoder,
        pitch: PitchEncoder | None,
        style: StyleEncoder | None,
        vocoder: Vocoder | None,
        fingerprint: str,
    ):
        """Compose a tokenizer from loaded parts; most callers use `from_pretrained`."""
        self.expressive, self.has_vocoder = pitch is not None, vocoder is not None
        self._phonetic: Callable[[], PhoneticEncoder] = _always(phonetic)
        self._pitch: Callable[[], PitchEncoder | None] = _always(pitch)
        self._style: Callable[[], StyleEncoder | None] = _always(style)
        self._vocoder: Callable[[], Vocoder | None] = _always(vocoder)
        self._fingerprint: Callable[[], str] = _always(fingerprint)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, variant: Variant | None = None, f0: F0Extractor | None = None
    ) -> Self:
        """Open the parts of a variant in a checkpoint directory. Each is loaded when it is first needed.

        The checkpoint may be converted from released weights, or be a training run or one of its steps.

        Args:
            directory: a checkpoint directory with `speech_tokenizer/`; `~` is expanded.
            variant: "base" or "expressive"; None takes "base" if there is neither a pitch nor a style encoder.
            f0: how a released pitch encoder finds F0. "fcpe", the default, is a network and runs on the accelerator.
                "pyaapt" is what the paper used; it runs on the host and is slow.

        Raises:
            CheckpointError: there is no `speech_tokenizer/`, or it has no released pitch encoder that could use `f0`.
            BucketError, BucketJobError: the directory is in a bucket and cannot be copied to this machine.
            ValueError: an unknown variant or F0 extractor.
        """
        directory = local_directory(directory, "checkpoint")
        if variant is None:
            variant = variant_of(directory)
        if variant not in ENCODER_PARTS:
            raise ValueError(f"variant must be one of {', '.join(ENCODER_PARTS)}, found {variant!r}")
        if f0 is not None:
            check_f0(directory, variant, f0)
        extractor = f0 or "fcpe"
        expressive, has_voice = variant == "expressive", has_vocoder(directory, variant)
        tokenizer = cls.__new__(cls)
        tokenizer.expressive, tokenizer.has_vocoder = expressive, has_voice
        tokenizer._phonetic = functools.cache(lambda: load_phonetic_encoder(directory))
        tokenizer._pitch = functools.cache(lambda: load_pitch_encoder(directory, extractor) if expressive else None)
        tokenizer._style = functools.cache(lambda: load_style_encoder(directory) if expressive else None)
        tokenizer._vocoder = functools.cache(lambda: load_vocoder(directory, variant) if has_voice else None)
        tokenizer._fingerprint = functools.cache(lambda: fingerprint(directory, variant, extractor))
        return tokenizer

    def load_encoders(self) -> Self:
        """Load the encoders now, so that a missing or damaged one is an error before any work, and return `self`.

        Raises:
            CheckpointError: an encoder is missing, damaged or of an unknown kind; the message names it.
        """
        _ = self.phonetic, self.pitch, self.style
        return self

    @property
    def phonetic(self) -> PhoneticEncoder:
        """The encoder of phonetic units; errors as in `load_encoders`."""
        return self._phonetic()

    @property
    def pitch(self) -> PitchEncoder | None:
        """The encoder of pitch units; None for the "base" variant. Errors as in `load_encoders`."""
        return self._pitch()

    @property
    def style(self) -> StyleEncoder | None:
        """The encoder of style units; None for the "base" variant. Errors as in `load_encoders`."""
        return self._style()

    @property
    def vocoder(self) -> Vocoder | None:
        """Vocoder of `decode`; None if the checkpoint has none.

        Raises:
            CheckpointError: it is damaged or of an unknown kind.
        """
        return self._vocoder()

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the encoders' files. Units of equal fingerprints can be mixed in training.

        Raises:
            CheckpointError: an encoder is missing or of an unknown kind.
        """
        return self._fingerprint()

    def encode(
        self, audio: Float[np.ndarray, "*channels R"], channel_id: int | None = None, speaker: str | None = None
    ) -> SpeechUnits:
        """Encode one clip into units at their frame rates.

        Audio longer than 100 s is encoded in chunks of 100 s, and the units of the chunks are joined. A last chunk
        shorter than 80 ms gives no units (docs/formats.md, "Audio").

        Args:
            audio: floating point [R] in [-1, 1] at 16 kHz (`spirit_jax.load_audio`), or [2, R], whose channels are
                averaged.
            channel_id: 0 or 1, to encode only that channel of [2, R].
            speaker: a speaker whose mean F0 the released pitch encoder stores. Pitch is then relative to that mean
                instead of the mean of each chunk.

        Returns:
            Units at their frame rates. For up to 100 s of audio, `hubert` is int32 [(R - 720) // 640 + 1]. The
            expressive variant also has `pitch`, one unit every 80 ms, and `style`, one unit a second.

        Raises:
            AudioError: the clip is shorter than 1280 samples (80 ms), holds samples that are not finite, or has
                another shape or type.
            CheckpointError: an encoder is missing or damaged; the message names it.
            VoiceError: an unknown speaker.
        """
        return self.encode_batch([audio], channel_id, speaker)[0]

    def encode_batch(
        self,
        audios: Sequence[Float[np.ndarray, "*channels R"]],
        channel_id: int | None = None,
        speaker: str | None = None,
    ) -> list[SpeechUnits]:
        """Encode many clips; the units equal those of `encode` on each clip.

        Clips of similar length share a batch, which is faster than encoding one clip at a time. Arguments and errors
        are those of `encode`.
        """
        if speaker is not None and self.pitch is None:
            raise VoiceError(f"speaker {speaker!r}: this tokenizer has no pitch encoder that could use a speaker")
        chunks = [_chunks(_mono(audio, channel_id)) for audio in audios]
        flat = [chunk for clip in chunks for chunk in clip]
        counts = [len(clip) for clip in chunks]
        nothing = [None] * len(audios)
        hubert = _join(self.phonetic.encode_batch(flat), counts)
        pitch = nothing if self.pitch is None else _join(self.pitch.encode_batch(flat, speaker), counts)
        style = nothing if self.style is None else _join(self.style.encode_batch(flat), counts)
        return [SpeechUnits(*units) for units in zip(hubert, pitch, style, strict=True)]

    def unit_counts(self) -> tuple[int, ...]:
        """Number of different phonetic units, and of pitch and style units if the variant has them."""
        return tuple(part.unit_count for part in (self.phonetic, self.pitch, self.style) if part is not None)

    def decode(
        self,
        units: SpeechUnits | str,
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Float[np.ndarray, " R"]:
        """Turn units into audio.

        Args:
            units: units, or their string form (`SpeechUnits.to_string`).
            speaker: number or name of a voice of the vocoder.
            style: number or name of a style for the whole utterance. None takes the style of the units (expressive) or
                the vocoder's default (base).
            predict_durations: let the vocoder choose how long each unit lasts, as the string form needs. Units at the
                frame rate that carry pitch keep their own durations. For units at the frame rate without pitch, pass
                False: each unit is then one frame of 40 ms.

        Returns:
            float32 [R] in [-1, 1] at 16 kHz.

        Raises:
            CheckpointError: the checkpoint has no vocoder for the variant that was loaded, or it is damaged.
            UnitError: a malformed string, no units, or units that the vocoder cannot speak.
            VoiceError: an unknown speaker or style.
        """
        if self.vocoder is None:
            raise CheckpointError("this checkpoint has no vocoder for the variant that was loaded")
        if isinstance(units, str):
            units = SpeechUnits.from_string(units)
        return self.vocoder.decode(units, speaker=speaker, style=style, predict_durations=predict_durations)


def _always(value: _Value) -> Callable[[], _Value]:
    return lambda: value


def _mono(audio: Float[np.ndarray, "*channels R"], channel_id: int | None) -> Float[np.ndarray, " R"]:
    """One checked channel, float32: the only one, the one asked for, or the mean of two."""
    audio = np.asarray(audio)
    if not np.issubdtype(audio.dtype, np.floating):
        raise AudioError(f"audio must be floating point in [-1, 1], found {audio.dtype}")
    audio = audio.astype(np.float32, copy=False)
    if channel_id is not None and (audio.ndim != 2 or not 0 <= channel_id < audio.shape[0] <= 2):
        raise AudioError(
            f"channel_id {channel_id}: audio must be [2, R] and have that channel, found shape {audio.shape}"
        )
    if audio.ndim == 2 and audio.shape[0] <= 2:
        audio = audio.mean(axis=0) if channel_id is None else audio[channel_id]
    check_length(audio)
    return audio


def _chunks(audio: Float[np.ndarray, " R"]) -> list[Float[np.ndarray, " C"]]:
    """Chunks of 100 s. The last one is dropped if it is too short for a unit of each stream."""
    chunks = [audio[start : start + CHUNK_SAMPLES] for start in range(0, audio.size, CHUNK_SAMPLES)]
    return [chunk for chunk in chunks if chunk.size >= MINIMUM_SAMPLES]


def _join(units: Sequence[Int[np.ndarray, " N"]], counts: Sequence[int]) -> list[Int[np.ndarray, " M"]]:
    """The units of each clip, given the units of all chunks and the number of chunks of each clip."""
    rest = iter(units)
    return [np.concatenate(list(itertools.islice(rest, count))) for count in counts]
