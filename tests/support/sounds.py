"""Synthetic sounds whose pitch is known."""

import numpy as np

from spirit_jax.core.constants import SAMPLE_RATE


def buzz(hertz: float | np.ndarray, seconds: float = 1.0) -> np.ndarray:
    """Ten harmonics of a fundamental, float32 [R] at 16 kHz.

    Args:
        hertz: the fundamental, one value or one for each sample.
        seconds: length.
    """
    frequency = np.broadcast_to(hertz, int(seconds * SAMPLE_RATE))
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    return 0.1 * np.sum([np.cos(k * phase) / k for k in range(1, 11)], axis=0).astype(np.float32)
