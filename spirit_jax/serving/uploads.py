"""Recordings in requests: bytes become audio, within limits, and nothing else on the machine is opened.

FFmpeg picks a format by the content, and some formats make it open other files or addresses (playlists). `load_audio`
forbids that to all contents. Here, contents that begin as none of the sound formats below do not even reach a decoder.
"""

import base64
import binascii
import re

import numpy as np

from spirit_jax.audio import AudioError, AudioLimits, load_audio
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE
from spirit_jax.inference.prompts import Segment
from spirit_jax.serving.limits import Limits

_FORMATS = re.compile(
    rb"RIFF....WAVE|RF64....WAVE|fLaC|OggS|ID3|\xff[\xe0-\xff]|FORM....AIF[FC]|caff|\.snd|....ftyp|\x1a\x45\xdf\xa3",
    re.DOTALL,
)
"""First bytes of WAV, FLAC, Ogg, MP3, AIFF, CAF, AU, MP4 and WebM files."""


class Recordings:
    """Decodes the recordings of one request, which together may be as long as one recording may be."""

    def __init__(self, limits: Limits):
        self._limits, self._seconds = limits, limits.audio_seconds

    def decode(self, content: bytes) -> Segment:
        """Return the segment of a sound file.

        Raises:
            AudioError: it is no sound file, or is too short, too long, or has too many channels.
        """
        if not _FORMATS.match(content):
            raise AudioError("the audio is not WAV, FLAC, Ogg, MP3, AIFF, CAF, AU, MP4 or WebM")
        most = AudioLimits(seconds=self._seconds, channels=self._limits.channels)
        audio = load_audio(content, limits=most)
        if audio.size < MINIMUM_SAMPLES:
            raise AudioError(
                f"the audio has {audio.size} samples (16 kHz), at least {MINIMUM_SAMPLES} (80 ms) are needed"
            )
        self._seconds -= audio.size / SAMPLE_RATE
        return Segment.speech(audio)

    def decode_base64(self, text: str) -> Segment:
        """Return the segment of a sound file in base64, with or without the head of a data address.

        Raises:
            AudioError: as `decode`, or the text is not base64.
        """
        if text.startswith("data:"):
            _, _, text = text.partition(",")
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise AudioError(f"the audio is not base64: {error}") from error
        return self.decode(content)


def pcm_segment(pcm: bytes, limits: Limits) -> Segment:
    """Return the segment of raw samples, 16 bits, little-endian, mono, 16 kHz.

    Raises:
        AudioError: too few or too many samples.
    """
    audio = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768
    if not MINIMUM_SAMPLES <= audio.size <= limits.audio_seconds * SAMPLE_RATE:
        raise AudioError(
            f"the audio has {audio.size} samples (16 kHz); from {MINIMUM_SAMPLES} (80 ms) to "
            f"{limits.audio_seconds:g} s are read"
        )
    return Segment.speech(audio)
