"""Answers in speech as files and streams of the formats that OpenAI's clients ask for."""

import io
from typing import Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from spirit_jax.audio import encode_wav
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.serving.errors import ApiError

PCM_RATE = 24_000
"""Sample rate of raw samples in OpenAI's API, which raw samples cannot state."""

SoundFormat = Literal["wav", "flac", "mp3", "opus", "pcm", "pcm16", "aac"]
"""Formats that OpenAI's API names; AAC cannot be written here."""

MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
}
"""Media type of each format that can be written."""

_SOUNDFILE = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}


def pcm16(audio: Float[np.ndarray, " R"]) -> bytes:
    """Return samples [R] in [-1, 1] as 16-bit integers, little-endian."""
    return (np.clip(audio, -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def check_format(sound_format: str) -> None:
    """Check that a format can be written.

    Raises:
        ApiError: it cannot.
    """
    if sound_format not in MEDIA_TYPES:
        raise ApiError(f"{sound_format} cannot be written; use one of {', '.join(MEDIA_TYPES)}", 400, "response_format")


def encode(audio: Float[np.ndarray, " R"], sound_format: str) -> bytes:
    """Return speech [R] at 16 kHz as a file of a format, or as raw samples at 24 kHz.

    Raises:
        ApiError: the format cannot be written.
    """
    check_format(sound_format)
    if sound_format == "wav":
        return encode_wav(audio)
    if sound_format in ("pcm", "pcm16"):
        return pcm16(soxr.resample(audio, SAMPLE_RATE, PCM_RATE))
    container, subtype = _SOUNDFILE[sound_format]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1.0, 1.0), SAMPLE_RATE, format=container, subtype=subtype)
    return buffer.getvalue()


class PcmStream:
    """Turns pieces of speech at 16 kHz into raw samples at 24 kHz, without a seam between them."""

    def __init__(self) -> None:
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, PCM_RATE, 1, dtype="float32")

    def push(self, audio: Float[np.ndarray, " R"], *, last: bool = False) -> bytes:
        """Return the samples that are ready after one more piece; the last piece flushes the rest."""
        return pcm16(self._resampler.resample_chunk(audio.astype(np.float32), last=last))


def wav_head() -> bytes:
    """Return the head of a WAV file of unknown length, mono, 16 bits at 16 kHz: lengths are the largest possible."""
    head = encode_wav(np.zeros(0, np.float32))[:44]
    most = (0xFFFFFFFF).to_bytes(4, "little")
    return head[:4] + most + head[8:40] + most
