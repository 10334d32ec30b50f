"""Changes of audio that keep its words: speed, pitch, reverberation and noise. NumPy alone.

Gat et al. 2022 (arXiv 2209.15483) take rooms and noises from recordings. Here an echo is decaying noise, and a noise is
white, pink, or another clip, so that nothing has to be downloaded.
"""

from collections.abc import Callable

import numpy as np
import scipy.signal
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech_training.quantizer_config import AugmentConfig

_WINDOW, _HOP = 512, 128  # of the phase vocoder: 32 ms, a quarter of it


def stretch(audio: Float[np.ndarray, " R"], speed: float) -> Float[np.ndarray, " S"]:
    """The same audio `speed` times as fast, at the same pitch, by a phase vocoder: [round(R / speed)]."""
    wanted = round(audio.size / speed)
    if audio.size < _WINDOW or wanted < 1:
        return np.asarray(scipy.signal.resample(audio, max(1, wanted)), np.float32)
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(audio, (_WINDOW // 2, _WINDOW))
    count = wanted // _HOP + 1
    at = np.minimum((np.arange(count) * _HOP * speed).astype(int), padded.size - _WINDOW - _HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)
    here, later = np.fft.rfft(frames[at] * window), np.fft.rfft(frames[at + _HOP] * window)
    # Each frame continues the phase of the one before by what the audio's phase advances over one output hop.
    advance = np.angle(later[:-1]) - np.angle(here[:-1])
    phase = np.concatenate([np.angle(here[:1]), np.angle(here[:1]) + np.cumsum(advance, axis=0)])
    pieces = np.fft.irfft(np.abs(here) * np.exp(1j * phase), _WINDOW) * window
    out, weight = np.zeros((count - 1) * _HOP + _WINDOW), np.full((count - 1) * _HOP + _WINDOW, 1e-8)
    for number, piece in enumerate(pieces):
        out[number * _HOP : number * _HOP + _WINDOW] += piece
        weight[number * _HOP : number * _HOP + _WINDOW] += window**2
    return (out / weight)[_WINDOW // 2 :][:wanted].astype(np.float32)


def shift(audio: Float[np.ndarray, " R"], semitones: float) -> Float[np.ndarray, " R"]:
    """The same audio at another pitch and the same speed."""
    factor = 2 ** (semitones / 12)
    slower = stretch(audio, 1 / factor)
    return np.asarray(scipy.signal.resample(slower, audio.size), np.float32)


def reverberate(audio: Float[np.ndarray, " R"], seconds: float, rng: np.random.Generator) -> Float[np.ndarray, " R"]:
    """The audio with an echo that falls by 60 dB in some seconds, as loud as before."""
    length = max(1, round(seconds * SAMPLE_RATE))
    decay = np.exp(-6.9 * np.arange(length) / length)
    room = rng.standard_normal(length) * decay
    room *= 0.5 / np.sqrt(np.sum(room**2))
    room[0] = 1.0
    wet = scipy.signal.fftconvolve(audio, room)[: audio.size]
    return (wet * (_rms(audio) / max(_rms(wet), 1e-8))).astype(np.float32)


def add_noise(
    audio: Float[np.ndarray, " R"], other: Float[np.ndarray, " S"], level_db: float
) -> Float[np.ndarray, " R"]:
    """The audio with another sound `level_db` below it."""
    noise = np.resize(other, audio.size)
    gain = _rms(audio) / max(_rms(noise), 1e-8) * 10 ** (-level_db / 20)
    return (audio + gain * noise).astype(np.float32)


def change(
    audio: Float[np.ndarray, " R"],
    config: AugmentConfig,
    rng: np.random.Generator,
    another: Callable[[], Float[np.ndarray, " S"]],
) -> Float[np.ndarray, " S"]:
    """The audio after one of the four changes, chosen at random.

    Args:
        audio: a clip.
        config: the ranges.
        rng: the source of chance.
        another: returns another clip, for babble.
    """
    kind = int(rng.integers(4))
    if kind == 0:
        return stretch(audio, rng.uniform(*config.stretch))
    if kind == 1:
        return shift(audio, rng.uniform(*config.shift))
    if kind == 2:
        return reverberate(audio, rng.uniform(*config.reverberation_s), rng)
    sound = int(rng.integers(3))
    noise = another() if sound == 2 else _noise(audio.size, rng, pink=sound == 1)
    return add_noise(audio, noise, rng.uniform(*config.noise_db))


def _noise(size: int, rng: np.random.Generator, *, pink: bool) -> Float[np.ndarray, " R"]:
    white = rng.standard_normal(size)
    if not pink:
        return white
    spectrum = np.fft.rfft(white)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(spectrum.size), 1)), size)


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
