"""Checks and acoustic features that every kind of speech part may use, in NumPy: unit grids and log-mel spectra.

All grids follow the unit streams. HuBERT unit i covers samples 640 i to 640 i + 720, so it owns four mel frames, 10 ms
apart and centered on it, and two F0 frames of 20 ms. Pitch unit k owns F0 frames 4 k to 4 k + 3.
"""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Float

from spirit_jax.audio import AudioError
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE

CHUNK_SAMPLES = 1_600_000
"""Longest audio that is encoded at once, 100 s; longer audio is cut into such chunks (docs/formats.md, "Audio")."""

UNIT_HOP, RECEPTIVE_FIELD = 640, 720
"""Samples from one HuBERT unit to the next, and samples that one unit depends on (docs/formats.md, "HuBERT")."""

MEL_BANDS = 40
"""Mel bands from 0 to 8 kHz: too few to resolve the harmonics of a voice, so a spectrum is an envelope."""

MEL_HOP, MEL_WINDOW, MEL_FFT = 160, 400, 512
"""Mel frames: samples from one to the next (10 ms), length (25 ms), and length of the Fourier transform."""

MEL_FRAMES_PER_UNIT = UNIT_HOP // MEL_HOP
"""Mel frames of one HuBERT unit."""

LOG_FLOOR = 1e-5
"""Smallest amplitude of a mel band (-100 dB, the rounding of 16-bit samples)."""

SOUND_RANGE = 3.45
"""A frame within this many nats (30 dB) of a reference loudness holds sound."""

_QUIETEST = -8.0  # nats (-70 dB)
_BINS = np.arange(MEL_FFT // 2 + 1) * (SAMPLE_RATE / MEL_FFT)  # Hz


def check_length(audio: np.ndarray) -> None:
    """Raise unless audio is 1-D, finite and long enough for a unit of each stream.

    Raises:
        AudioError: another shape, fewer than 1280 samples, or samples that are not finite.
    """
    if audio.ndim != 1:
        raise AudioError(f"audio must be 1-D (mono, 16 kHz), found shape {audio.shape}")
    if audio.size < MINIMUM_SAMPLES:
        raise AudioError(f"{audio.size} samples are too short for units: at least {MINIMUM_SAMPLES} (80 ms) are needed")
    if not np.isfinite(audio).all():
        raise AudioError("audio holds samples that are not finite")


def hubert_frames(samples: int) -> int:
    """Number of HuBERT units of a clip: floor((R - 720) / 640) + 1."""
    return (samples - RECEPTIVE_FIELD) // UNIT_HOP + 1


def pitch_frames(samples: int) -> int:
    """Number of pitch units of a clip: floor((floor(R / 80) + 1) / 16)."""
    return (samples // 80 + 1) // 16


def style_frames(samples: int) -> int:
    """Number of style units of a clip: one for every 50 wav2vec2 frames of 20 ms, or part of them."""
    return -(-((samples - 400) // 320 + 1) // 50)


@functools.cache
def mel_filters() -> Float[np.ndarray, "bands bins"]:
    """Triangles on Slaney's mel scale from 0 to 8 kHz. Each sums to one, so a band holds the mean power under it.

    Up to that scale these are librosa's filters. Importing librosa would take longer than all features of the bundled
    corpus.
    """
    mels = np.linspace(0, _mel(SAMPLE_RATE / 2), MEL_BANDS + 2)
    corners = np.where(mels < 15, mels / 0.015, 1000 * 6.4 ** ((mels - 15) / 27))
    rising = (_BINS - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - _BINS) / np.diff(corners)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def mel_centers() -> Float[np.ndarray, " bands"]:
    """The mean frequency of each band in Hz."""
    return mel_filters() @ _BINS


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear to 1 kHz (15 mel), then 27 steps for every factor of 6.4."""
    return np.where(
        np.less(hertz, 1000), np.multiply(hertz, 0.015), 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4)
    )


@functools.cache
def hann(length: int) -> Float[np.ndarray, " length"]:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def frames_of(
    audio: Float[np.ndarray, " R"], count: int, hop: int, length: int, center: int
) -> Float[np.ndarray, "count length"]:
    """Cut audio into overlapping frames, a read-only view; samples outside the audio are zero.

    Args:
        audio: float [R].
        count: number of frames.
        hop: samples from one frame to the next.
        length: samples of a frame.
        center: the sample in the middle of the first frame.
    """
    left = length // 2 - center
    right = max(0, (count - 1) * hop + length - left - audio.size)
    padded = np.pad(audio.astype(np.float32, copy=False), (max(left, 0), right))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[: (count - 1) * hop + 1 : hop]


def power_spectrum(frames: Float[np.ndarray, "N L"], size: int) -> Float[np.ndarray, "N bins"]:
    """Squared magnitudes of the Fourier transform of each frame, float32, padded with zeros to `size`."""
    spectrum = np.asarray(scipy.fft.rfft(frames, size, axis=1), np.complex64)
    return spectrum.real**2 + spectrum.imag**2


def log_mel(audio: Float[np.ndarray, " R"], count: int | None = None) -> Float[np.ndarray, "frames bands"]:
    """Natural log of the amplitude in each mel band.

    Args:
        audio: float32 [R].
        count: number of frames; None: four for each HuBERT unit.
    """
    if count is None:
        count = hubert_frames(audio.size) * MEL_FRAMES_PER_UNIT
    # The four frames of a unit lie symmetrically about the middle of its receptive field.
    center = RECEPTIVE_FIELD // 2 - (MEL_FRAMES_PER_UNIT - 1) * MEL_HOP // 2
    frames = frames_of(audio, count, MEL_HOP, MEL_WINDOW, center)
    power = power_spectrum(frames * hann(MEL_WINDOW), MEL_FFT) / np.sum(hann(MEL_WINDOW) ** 2)
    return 0.5 * np.log(np.maximum(power @ mel_filters().T, LOG_FLOOR**2))


def level(spectrum: Float[np.ndarray, "frames bands"]) -> Float[np.ndarray, " bands"]:
    """The mean log-mel spectrum of the frames that hold sound: it describes voice and recording, not words.

    Frames within 30 dB of the loudest hold sound. The level is at least -70 dB on average, so silence stays below it.
    """
    loudness = spectrum.mean(axis=1)
    mean = spectrum[loudness >= loudness.max() - SOUND_RANGE].mean(axis=0)
    return mean + max(0.0, _QUIETEST - float(mean.mean()))
