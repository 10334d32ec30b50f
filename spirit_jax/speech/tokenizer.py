"""SpeechTokenizer: audio to units and back, out of the parts of a checkpoint directory."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import (
    CONFIG,
    SPEECH_TOKENIZER,
    CheckpointError,
    find,
    load_arrays,
    save_arrays,
    write_file,
)
from spirit_jax.core.constants import MINIMUM_SAMPLES
from spirit_jax.core.files import atomic_directory
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech.scratch.features import check_length
from spirit_jax.speech.scratch.griffin_lim import GriffinLim
from spirit_jax.speech.scratch.kmeans import KMeansEncoder
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics
from spirit_jax.units import SpeechUnits

CHUNK = 1_600_000
"""Samples (100 s) that are encoded on their own, as the reference does; units of the chunks are joined."""

PARTS = {
    "base": ("phonetic", "vocoder_base"),
    "expressive": ("phonetic", "pitch", "style", "vocoder_expressive"),
}
"""The directories under `speech_tokenizer/` that each variant consists of."""

_FROM_SCRATCH = (KMeansEncoder, F0Quantiles, VoiceStatistics, GriffinLim)
_RELEASED = (HubertEncoder, VQVAEPitch, Wav2Vec2Style, HifiGanVocoder)

KINDS = {part.kind: part for part in (*_FROM_SCRATCH, *_RELEASED)}
"""What the "kind" of a part's config.json stands for."""


class Encoder(Protocol):
    """A part that makes one stream of units: int32 [frames] out of float32 [R] at 16 kHz."""

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " frames"]: ...


class Vocoder(Protocol):
    """A part that makes float32 [R] at 16 kHz out of units."""

    def decode(
        self, units: SpeechUnits, *, speaker: int | str, style: int | str | None, predict_durations: bool
    ) -> Float[np.ndarray, " R"]: ...

    def speaker_index(self, speaker: int | str) -> int: ...


class SpeechTokenizer:
    """Encoders of the phonetic (25 Hz) and, for "expressive", pitch (12.5 Hz) and style (1 Hz) streams, and a vocoder.

    Made by `from_pretrained`. A vocoder may be missing: encoding works, decoding says so.
    """

    def __init__(
        self, phonetic: Encoder, pitch: Encoder | None, style: Encoder | None, vocoder: Vocoder | None, fingerprint: str
    ):
        self.phonetic, self.pitch, self.style, self.vocoder = phonetic, pitch, style, vocoder
        self.fingerprint = fingerprint
        """sha256 (hex) of the encoders' files: what units depend on."""

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        variant: Literal["base", "expressive"] = "expressive",
        f0: Literal["fcpe", "pyaapt"] = "fcpe",
    ) -> "SpeechTokenizer":
        """Load the parts of `variant` from a checkpoint directory.

        Args:
            f0: the extractor of a released pitch part; other kinds have one of their own.

        Raises:
            CheckpointError: an encoder is missing or damaged, or of a kind that this version does not know; names it.
        """
        if variant not in PARTS:
            raise ValueError(f"variant must be one of {', '.join(PARTS)}, found {variant!r}")
        *encoders, vocoder = PARTS[variant]
        parts = {name: load_part(directory, name, f0) for name in encoders}
        try:
            find(directory, f"{SPEECH_TOKENIZER}/{vocoder}")
        except CheckpointError:
            voice = None
        else:
            voice = load_part(directory, vocoder)
        return cls(
            parts["phonetic"], parts.get("pitch"), parts.get("style"), voice, _fingerprint(directory, variant, f0)
        )

    def encode(
        self, audio: Float[np.ndarray, " R"], channel_id: int | None = None, speaker: str | None = None
    ) -> SpeechUnits:
        """Units at the frame rate of mono audio, float32 [R] at 16 kHz; the channels of [2, R] are averaged.

        Audio beyond 100 s is encoded in chunks of 100 s; a rest shorter than 80 ms has no units (FORMATS section 1).

        Args:
            channel_id: 0 or 1, to hear that channel of [2, R] alone.
            speaker: one whose mean F0 a released pitch part holds: pitch is then relative to that instead of to the chunk's own.

        Raises:
            AudioError: fewer than 1280 samples (80 ms), not floating point of these shapes, no such channel, or not finite.
            ValueError: an unknown speaker.
        """
        return self.encode_batch([audio], channel_id, speaker)[0]

    def encode_batch(
        self,
        audios: Sequence[Float[np.ndarray, " R"]],
        channel_id: int | None = None,
        speaker: str | None = None,
    ) -> list[SpeechUnits]:
        """Units of each clip, the same as `encode` of each, in batches where a part can."""
        clips = [_mono(audio, channel_id) for audio in audios]
        pieces = [[clip[start : start + CHUNK] for start in range(0, clip.size, CHUNK)] for clip in clips]
        pieces = [[chunk for chunk in chunks if chunk.size >= MINIMUM_SAMPLES] for chunks in pieces]
        flat = [chunk for chunks in pieces for chunk in chunks]
        streams = []
        for encoder in (self.phonetic, self.pitch, self.style):
            known = {"speaker": speaker} if encoder is self.pitch and speaker is not None else {}
            if known and not isinstance(encoder, VQVAEPitch):
                raise ValueError(f"speaker {speaker!r}: this tokenizer's pitch units know no speakers")
            units = None if encoder is None else iter(_encode_all(encoder, flat, **known))
            streams.append([units and np.concatenate([next(units) for _ in chunks]) for chunks in pieces])
        return [SpeechUnits(*units) for units in zip(*streams, strict=True)]

    def decode(
        self,
        units: SpeechUnits | str,
        speaker: int | str = 2,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Float[np.ndarray, " R"]:
        """The sound of units, float32 [R] at 16 kHz.

        Args:
            units: units, or their string form.
            speaker: index or name of a voice of the vocoder.
            style: index or name that overrides the style of the whole utterance; None takes that of the units, or the vocoder's default.
            predict_durations: lengthen deduplicated units by the vocoder's durations; frame-rate units that carry pitch keep theirs.

        Raises:
            CheckpointError: the checkpoint has no vocoder for this variant.
            UnitError: a malformed string, or no units.
        """
        if self.vocoder is None:
            raise CheckpointError("this checkpoint has no vocoder for the variant that was loaded")
        if isinstance(units, str):
            units = SpeechUnits.from_string(units)
        return self.vocoder.decode(units, speaker=speaker, style=style, predict_durations=predict_durations)


def _mono(audio: Float[np.ndarray, " R"], channel_id: int | None = None) -> Float[np.ndarray, " R"]:
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


def _encode_all(encoder: Encoder, clips: Sequence[np.ndarray], **known: str) -> list[np.ndarray]:
    """In batches where the part can."""
    if hasattr(encoder, "encode_batch"):
        return encoder.encode_batch(clips, **known)
    return [encoder.encode(clip) for clip in clips]


def speech_fingerprints(directory: str | os.PathLike) -> set[str]:
    """Every `SpeechTokenizer.fingerprint` that the encoders of a checkpoint directory can have; none where there is none.

    They differ by variant and by the F0 extractor of a released pitch part.
    """
    found = set()
    for variant, f0 in itertools.product(PARTS, ("fcpe", "pyaapt")):
        with contextlib.suppress(CheckpointError):
            found.add(_fingerprint(directory, variant, f0))
    return found


def _fingerprint(directory: str | os.PathLike, variant: str, f0: str) -> str:
    digest = hashlib.sha256()
    for name in PARTS[variant][:-1]:
        path = find(directory, f"{SPEECH_TOKENIZER}/{name}")
        digest.update(name.encode())
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
        if name == "pitch" and _read_config(path)["kind"] == VQVAEPitch.kind:
            digest.update(f0.encode())
    return digest.hexdigest()


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config.json of a part, of a kind that is known."""
    try:
        config = json.loads((path / CONFIG).read_text())
        KINDS[config["kind"]]
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path / CONFIG}: cannot be read ({error})") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / CONFIG}: needs a 'kind' out of {', '.join(sorted(KINDS))}; found {error}"
        ) from error
    return config


def load_part(directory: str | os.PathLike, name: str, f0: str = "fcpe") -> Any:
    """One part of a checkpoint directory, of the class that its "kind" says; `f0` is for a part of kind "vqvae".

    Raises:
        CheckpointError: missing, damaged, or of an unknown kind.
    """
    path = find(directory, f"{SPEECH_TOKENIZER}/{name}")
    config = _read_config(path)
    kind = KINDS[config["kind"]]
    arrays = load_arrays(path)
    try:
        return kind.load(config, arrays, f0) if kind is VQVAEPitch else kind.load(config, arrays)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a whole {config['kind']!r} part ({error})") from error


def save_part(directory: str | os.PathLike, part: Any) -> None:
    """Write a part's config.json and arrays as `directory`, whole or not at all, replacing one that is there."""
    with atomic_directory(directory, overwrite=True) as scratch:
        write_file(scratch / CONFIG, json.dumps({"kind": part.kind, **part.config()}, indent=1, sort_keys=True) + "\n")
        save_arrays(scratch, part.arrays())
