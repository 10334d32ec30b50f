"""Acoustic features of the from-scratch speech tokenizer: log-mel spectra and F0, in NumPy.

All grids hang on the unit streams: HuBERT unit i covers samples 640 i .. 640 i + 720, so it owns four mel frames, 10 ms apart and
centred on it, and two F0 frames of 20 ms; pitch unit k owns F0 frames 4k .. 4k + 3.
"""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float

from spirit_jax.audio import AudioError
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE

FRAME, RECEPTIVE_FIELD = 640, 720
"""Samples from one HuBERT unit to the next, and samples that one sees (FORMATS section 2)."""

BANDS = 40
"""Mel bands from 0 to 8 kHz: few enough not to resolve the harmonics of a voice, so that the spectrum is an envelope."""

HOP, WINDOW, FFT = 160, 400, 512
"""Mel frames: 10 ms apart, 25 ms long."""

MEL_FRAMES = FRAME // HOP
"""Mel frames of one HuBERT unit."""

LOG_FLOOR = 1e-5
"""Amplitude below which the mel spectrum is not followed (-100 dB, the rounding of 16-bit samples)."""

F0_HOP, F0_WINDOW, F0_RANGE = 320, 800, (60.0, 420.0)
"""F0 frames: 20 ms apart, 50 ms long, searched in this range of Hz."""

_QUIETEST = -8.0  # nats
_F0_FFT = 2048
_VOICED = 0.5  # normalised autocorrelation from which on a frame is voiced; pYAAPT then agrees about most frames
_LAG_PENALTY = 0.1  # taken from the score of the longest lag: breaks ties between a period and its multiples
_QUIET = 10 ** (-45 / 20)  # frames quieter than the loudest by 45 dB are unvoiced


def check_length(audio: np.ndarray) -> None:
    """Raises AudioError unless `audio` is 1-D, finite and at least 1280 samples long."""
    if audio.ndim != 1:
        raise AudioError(f"audio must be 1-D (mono, 16 kHz), found shape {audio.shape}")
    if audio.size < MINIMUM_SAMPLES:
        raise AudioError(f"{audio.size} samples are too short for units: at least {MINIMUM_SAMPLES} (80 ms) are needed")
    if not np.isfinite(audio).all():
        raise AudioError("audio holds samples that are not finite")


def hubert_frames(samples: int) -> int:
    """HuBERT units of a clip: floor((R - 720) / 640) + 1."""
    return (samples - RECEPTIVE_FIELD) // FRAME + 1


def pitch_frames(samples: int) -> int:
    """Pitch units of a clip: (R // 80 + 1) // 16."""
    return (samples // 80 + 1) // 16


def style_frames(samples: int) -> int:
    """Style units of a clip: one for every 50 frames of 20 ms, the last of fewer."""
    return -(-((samples - 400) // 320 + 1) // 50)


@functools.cache
def mel_filters() -> Float[np.ndarray, "bands bins"]:
    """Triangles on Slaney's mel scale from 0 to 8 kHz, each summing to one, so that a band holds the mean power below it.

    librosa's filters up to that scale; importing librosa alone would take longer than the features of the whole mini-corpus.
    """
    mels = np.linspace(0, _mel(SAMPLE_RATE / 2), BANDS + 2)
    corners = np.where(mels < 15, mels / 0.015, 1000 * 6.4 ** ((mels - 15) / 27))
    rising = (_BINS - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - _BINS) / np.diff(corners)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def mel_centres() -> Float[np.ndarray, " bands"]:
    """The middle frequency of each band in Hz."""
    return mel_filters() @ _BINS


_BINS = np.arange(FFT // 2 + 1) * (SAMPLE_RATE / FFT)


def _mel(hertz: float | np.ndarray) -> float | np.ndarray:
    """Slaney's mel scale: linear to 1 kHz (15 mel), then 27 steps for every factor 6.4."""
    return np.where(
        np.less(hertz, 1000), np.multiply(hertz, 0.015), 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4)
    )


@functools.cache
def hann(length: int) -> Float[np.ndarray, " length"]:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _windows(audio: np.ndarray, count: int, hop: int, length: int, centre: float) -> np.ndarray:
    """`count` stretches of `length` samples, `hop` apart, the first one's middle at sample `centre`; zeros outside."""
    left = length // 2 - int(centre)
    right = max(0, (count - 1) * hop + length - left - audio.size)
    padded = np.pad(audio.astype(np.float32, copy=False), (max(left, 0), right))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[: (count - 1) * hop + 1 : hop]


def log_mel(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "frames bands"]:
    """Natural log of the amplitude in each mel band, four frames for each HuBERT unit."""
    units = hubert_frames(audio.size)
    # Middles of the four: symmetric about the middle of the unit's receptive field.
    frames = _windows(audio, units * MEL_FRAMES, HOP, WINDOW, RECEPTIVE_FIELD // 2 - (MEL_FRAMES - 1) * HOP // 2)
    spectrum = scipy.fft.rfft(frames * hann(WINDOW), FFT, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2) / np.sum(hann(WINDOW) ** 2)
    return 0.5 * np.log(np.maximum(power @ mel_filters().T, LOG_FLOOR**2))


def level(spectrum: Float[np.ndarray, "frames bands"]) -> Float[np.ndarray, " bands"]:
    """The mean log spectrum of the frames that hold sound (within 30 dB of the loudest): voice and recording, not words.

    At least -70 dB on average, so that silence stays below it.
    """
    loudness = spectrum.mean(axis=1)
    mean = spectrum[loudness >= loudness.max() - 3.45].mean(axis=0)
    return mean + max(0.0, _QUIETEST - float(mean.mean()))


def f0(audio: Float[np.ndarray, " R"], frames: int) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"]]:
    """F0 in Hz (0 where unvoiced) and voicing of `frames` frames of 20 ms, by normalised autocorrelation."""
    windows = _windows(audio, frames, F0_HOP, F0_WINDOW, F0_HOP // 2)
    windows = windows - windows.mean(axis=1, keepdims=True)
    shortest, longest = int(SAMPLE_RATE / F0_RANGE[1]), int(SAMPLE_RATE / F0_RANGE[0])
    spectrum = scipy.fft.rfft(windows, _F0_FFT, axis=1)
    product = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2, _F0_FFT, axis=1)[:, : longest + 2]
    energy = np.cumsum(windows.astype(np.float64) ** 2, axis=1)
    lags = np.arange(longest + 2)
    head = energy[:, F0_WINDOW - 1 - lags]  # energy of x[: n - lag]
    tail = energy[:, -1:] - np.where(lags > 0, energy[:, lags - 1], 0)  # of x[lag:]
    correlation = product / np.sqrt(head * tail + 1e-6)
    score = correlation - _LAG_PENALTY * lags / longest
    inside = slice(shortest, longest + 1)
    middle = score[:, inside]
    peak = (middle >= score[:, shortest - 1 : longest]) & (middle > score[:, shortest + 1 : longest + 2])
    best = np.argmax(np.where(peak, middle, -np.inf), axis=1) + shortest
    rows = np.arange(frames)
    before, at, after = (score[rows, best + step] for step in (-1, 0, 1))
    curvature = before - 2 * at + after
    shift = np.where(curvature < 0, 0.5 * (before - after) / np.minimum(curvature, -1e-9), 0)
    loudness = np.sqrt(energy[:, -1])
    voiced = peak.any(axis=1) & (correlation[rows, best] > _VOICED) & (loudness > _QUIET * loudness.max())
    pitch = np.where(voiced, SAMPLE_RATE / (best + np.clip(shift, -0.5, 0.5)), 0).astype(np.float32)
    return _without_jumps(pitch, voiced)


def _without_jumps(pitch: np.ndarray, voiced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces voiced values off their running median (7 frames) by more than a third, and drops lone voiced frames."""
    padded = np.pad(np.where(voiced, pitch, np.nan), 3, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 7)
    voiced = voiced & (np.isfinite(around[:, 2:5]).sum(axis=1) > 1)
    if voiced.any():
        median = np.zeros(pitch.size, np.float32)
        median[voiced] = np.nanmedian(around[voiced], axis=1)
        pitch = np.where(np.abs(pitch - median) > median / 3, median, pitch)
    return np.where(voiced, pitch, 0).astype(np.float32), voiced
