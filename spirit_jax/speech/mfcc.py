"""Mel-frequency cepstra as Kaldi computes them, whose clusters label HuBERT's first iteration (arXiv 2106.07447)."""

import functools

import numpy as np
import scipy.fft
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE

HOP, WINDOW = 160, 400
"""Samples from one frame to the next (10 ms), and samples of a frame (25 ms)."""

CEPSTRA = 13
_BANDS, _FFT, _LOWEST_HZ, _LIFTER, _PREEMPHASIS = 23, 512, 20.0, 22.0, 0.97
_REACH = 2  # frames on each side that a difference is taken over


@functools.cache
def _filters() -> Float[np.ndarray, "bands bins"]:
    """Triangles that are equally spaced, and linear, on the scale 1127 ln(1 + f / 700)."""

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    corners = np.linspace(mel(_LOWEST_HZ), mel(SAMPLE_RATE / 2), _BANDS + 2)
    bins = mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT)
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[:, -1] = 0  # Kaldi's filters end below half the sample rate
    return filters


def mfcc(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "frames 13"]:
    """Cepstra of the frames that lie in the audio: [(R - 400) // 160 + 1, 13], float32.

    Kaldi's defaults without dither, with the cepstrum 0 in the place of the energy.
    """
    frames = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float32), WINDOW)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    povey = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
    spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * povey, _FFT, axis=1)
    energies = np.log(np.maximum(np.abs(spectrum) ** 2 @ _filters().T, np.finfo(np.float32).eps))
    cepstra = np.asarray(scipy.fft.dct(energies, type=2, norm="ortho", axis=1))[:, :CEPSTRA]
    lifter = 1 + 0.5 * _LIFTER * np.sin(np.pi * np.arange(CEPSTRA) / _LIFTER)
    return (cepstra * lifter).astype(np.float32)


def differences(x: Float[np.ndarray, "frames C"]) -> Float[np.ndarray, "frames C"]:
    """The slope of a line through each value and the two on each side; values at the ends are repeated outwards."""
    count = len(x)
    padded = np.pad(x, ((_REACH, _REACH), (0, 0)), mode="edge")
    total = sum(n * (padded[_REACH + n :][:count] - padded[_REACH - n :][:count]) for n in range(1, _REACH + 1))
    return np.asarray(total / (2 * sum(n * n for n in range(1, _REACH + 1))), np.float32)


def label_features(audio: Float[np.ndarray, " R"], frames: int, hop: int, field: int) -> Float[np.ndarray, "frames 39"]:
    """Cepstra with their first and second differences, for each frame of an encoder the ones at its middle.

    Args:
        audio: the clip.
        frames: frames of the encoder.
        hop: samples from one of them to the next.
        field: samples that one of them depends on.
    """
    cepstra = mfcc(audio)
    first = differences(cepstra)
    features = np.concatenate([cepstra, first, differences(first)], axis=1)
    middle = (np.arange(frames) * hop + field // 2 - WINDOW // 2 + HOP // 2) // HOP
    return features[np.clip(middle, 0, len(features) - 1)]
