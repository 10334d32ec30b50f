"""F0 and voicing by normalized autocorrelation, in NumPy."""

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.features import frames_of, power_spectrum

F0_HOP, F0_WINDOW, F0_RANGE = 320, 800, (60.0, 420.0)
"""Samples from one F0 frame to the next (20 ms), samples of a frame (50 ms), and the range of F0 in Hz."""

_FFT = 2048
_STRETCH = 10 * SAMPLE_RATE  # samples that are searched for a voice at once, which bounds the memory
_VOICED = 0.5  # normalized autocorrelation of a voiced frame; most frames then agree with pYAAPT
_LAG_PENALTY = 0.1  # taken from the score of the longest lag, so that a period wins over its multiples
_QUIET = 10 ** (-45 / 20)  # frames 45 dB below the loudest are unvoiced


def f0(audio: Float[np.ndarray, " R"], frames: int) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"]]:
    """F0 in Hz (0 where unvoiced) and voicing of frames of 20 ms.

    Args:
        audio: float32 [R] at 16 kHz.
        frames: number of frames; those beyond the audio are unvoiced.
    """
    windows = frames_of(audio, frames, F0_HOP, F0_WINDOW, F0_HOP // 2)
    windows = windows - windows.mean(axis=1, keepdims=True)
    shortest, longest = int(SAMPLE_RATE / F0_RANGE[1]), int(SAMPLE_RATE / F0_RANGE[0])
    lags = np.arange(longest + 2)
    product = np.asarray(scipy.fft.irfft(power_spectrum(windows, _FFT), _FFT, axis=1))[:, : longest + 2]
    # For each lag, the energy of the two stretches of the window that the product compares.
    energy = np.cumsum(windows.astype(np.float64) ** 2, axis=1)
    head = energy[:, F0_WINDOW - 1 - lags]
    tail = energy[:, -1:] - np.where(lags > 0, energy[:, lags - 1], 0)
    correlation = product / np.sqrt(head * tail + 1e-6)
    score = correlation - _LAG_PENALTY * lags / longest

    middle = score[:, shortest : longest + 1]
    is_peak = (middle >= score[:, shortest - 1 : longest]) & (middle > score[:, shortest + 1 : longest + 2])
    best = np.argmax(np.where(is_peak, middle, -np.inf), axis=1) + shortest
    rows = np.arange(frames)
    # The top of a parabola through the best lag and its neighbors.
    before, at, after = (score[rows, best + step] for step in (-1, 0, 1))
    curvature = before - 2 * at + after
    shift = np.where(curvature < 0, 0.5 * (before - after) / np.minimum(curvature, -1e-9), 0)

    loudness = np.sqrt(energy[:, -1])
    voiced = is_peak.any(axis=1) & (correlation[rows, best] > _VOICED) & (loudness > _QUIET * loudness.max())
    pitch = np.where(voiced, SAMPLE_RATE / (best + np.clip(shift, -0.5, 0.5)), 0).astype(np.float32)
    return _without_jumps(pitch, voiced)


def is_voiced(audio: Float[np.ndarray, " R"]) -> bool:
    """Whether any frame of a clip has a pitch. Silence and noise have none."""
    starts = range(0, audio.size, _STRETCH)
    return any(bool(f0(part, -(-part.size // F0_HOP))[1].any()) for part in (audio[s : s + _STRETCH] for s in starts))


def _without_jumps(pitch: np.ndarray, voiced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace voiced values that differ from their running median (7 frames) by a third; drop lone voiced frames."""
    padded = np.pad(np.where(voiced, pitch, np.nan), 3, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 7)
    voiced = voiced & (np.isfinite(around[:, 2:5]).sum(axis=1) > 1)
    if voiced.any():
        median = np.zeros(pitch.size, np.float32)
        median[voiced] = np.nanmedian(around[voiced], axis=1)
        pitch = np.where(np.abs(pitch - median) > median / 3, median, pitch)
    return np.where(voiced, pitch, 0).astype(np.float32), voiced
