"""Synthetic audio for the benchmarks."""

import numpy as np

from spirit_jax.core.constants import SAMPLE_RATE


def speech(seconds: float, seed: int) -> np.ndarray:
    """A voice: F0 around 120 Hz with harmonics and a little noise, in syllables of a quarter of a second."""
    rng, time_ = np.random.default_rng(seed), np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time_ + seed)) / SAMPLE_RATE
    harmonics = np.sum([np.sin(k * phase) / k for k in range(1, 20)], axis=0)
    voice = harmonics * (np.sin(2 * np.pi * 2 * time_) > -0.5)
    return (0.1 * voice + 0.01 * rng.normal(size=time_.size)).astype(np.float32)
