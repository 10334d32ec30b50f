"""`SpeechTokenizer`: audio to units and back, with the parts of a checkpoint directory."""

import itertools
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.constants import MINIMUM_SAMPLES
from spirit_jax.speech.features import CHUNK_SAMPLES, check_length
from spirit_jax.speech.loading import (
    ENCODER_PARTS,
    fingerprint,
    has_vocoder,
    load_phonetic_encoder,
    load_pitch_encoder,
    load_style_encoder,
    load_vocoder,
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

    Attributes:
        phonetic: the encoder of phonetic units.
        pitch: the encoder of pitch units; None for the "base" variant.
        style: the encoder of style units; None for the "base" variant.
        vocoder: what `decode` speaks with; None if the checkpoint has none.
        fingerprint: sha256 (hex) of the encoders' files. Units of equal fingerprints can be mixed in training.
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
        self.phonetic, self.pitch, self.style, self.vocoder = phonetic, pitch, style, vocoder
        self.fingerprint = fingerprint

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, variant: Variant = "expressive", f0: F0Extractor = "fcpe"
    ) -> Self:
        """Load the parts of a variant from a checkpoint directory.

        The checkpoint may be converted from released weights, or be a training run or one of its steps. A missing
        vocoder is not an error until `decode` is called.

        Args:
            directory: a checkpoint directory with `speech_tokenizer/`.
            variant: "base" or "expressive".
            f0: how a released pitch encoder finds F0. "fcpe" is a network and runs on the accelerator. "pyaapt" is
                what the paper used; it runs on the host and is slow.

        Raises:
            CheckpointError: an encoder is missing, damaged or of an unknown kind; the message names it.
            ValueError: an unknown variant or F0 extractor.
        """
        if variant not in ENCODER_PARTS:
            raise ValueError(f"variant must be one of {', '.join(ENCODER_PARTS)}, found {variant!r}")
        expressive = variant == "expressive"
        return cls(
            phonetic=load_phonetic_encoder(directory),
            pitch=load_pitch_encoder(directory, f0) if expressive else None,
            style=load_style_encoder(directory) if expressive else None,
            vocoder=load_vocoder(directory, variant) if has_vocoder(directory, variant) else None,
            fingerprint=fingerprint(directory, variant, f0),
        )

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
            CheckpointError: the checkpoint has no vocoder for the variant that was loaded.
            UnitError: a malformed string, no units, or units that the vocoder cannot speak.
            VoiceError: an unknown speaker or style.
        """
        if self.vocoder is None:
            raise CheckpointError("this checkpoint has no vocoder for the variant that was loaded")
        if isinstance(units, str):
            units = SpeechUnits.from_string(units)
        return self.vocoder.decode(units, speaker=speaker, style=style, predict_durations=predict_durations)


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
