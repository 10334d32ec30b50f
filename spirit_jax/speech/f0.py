"""F0 and voicing by normalized autocorrelation, in NumPy."""

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.features import frames_of, power_spectrum

F0_HOP, F0_WINDOW, F0_RANGE = 320, 800, (60.0, 420.0)
"""Samples from one F0 frame to the next (20 ms), samples of a frame (50 ms), and the range of F0 in Hz."""

CONTOUR_HOP = 80
"""Samples from one frame of a pitch quantizer's contour to the next: 200 Hz."""

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
    parts = (audio[at : at + _STRETCH] for at in _starts(audio.size))
    return any(bool(f0(part, -(-part.size // F0_HOP))[1].any()) for part in parts)


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


def contour(
    audio: Float[np.ndarray, " R"], interpolate: bool
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """F0 in Hz and voicing (0 or 1) at 200 Hz, float32 [R // 80 + 1] each, as a pitch quantizer reads them.

    Voicing is that of the nearest frame of 20 ms. F0 is on the line between voiced frames; where nothing is voiced it
    is 0.

    Args:
        audio: float32 [R] at 16 kHz.
        interpolate: give unvoiced frames the line between their voiced neighbors, and hold the nearest voiced value at
            the ends; otherwise their F0 is 0.
    """
    count, frames = audio.size // CONTOUR_HOP + 1, audio.size // F0_HOP + 1
    parts = [f0(audio[at : at + _STRETCH], -(-min(_STRETCH, audio.size - at) // F0_HOP)) for at in _starts(audio.size)]
    pitch, voiced = (np.concatenate(each)[:frames] for each in zip(*parts, strict=True))
    if not voiced.any():
        return np.zeros(count, np.float32), np.zeros(count, np.float32)
    centers = np.arange(len(pitch)) * F0_HOP + F0_HOP // 2
    times = np.arange(count) * CONTOUR_HOP
    is_voiced_t = voiced[np.minimum(times // F0_HOP, len(voiced) - 1)]
    line = np.interp(times, centers[voiced], pitch[voiced])
    return (line if interpolate else np.where(is_voiced_t, line, 0)).astype(np.float32), is_voiced_t.astype(np.float32)


def _starts(samples: int) -> range:
    """Where the stretches of a clip begin that are searched for a voice at once."""
    return range(0, samples, _STRETCH)
