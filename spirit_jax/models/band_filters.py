"""Band-pass filters on the mel scale, which a convolution of the waveform may begin with. NumPy alone."""

import numpy as np
from jaxtyping import Float

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.constants import SAMPLE_RATE

PHASES = 3
"""Filters of a band. After GELU, which passes positive values, their sum hardly depends on the phase of the sound."""

_LOWEST_HZ, _HIGHEST_HZ = 100.0, 7600.0  # centers of the first and the last band
_NORM = 16.0  # of a filter; large, so that the norm over time does not drown quiet bands, and steps change it little


def mel_band_filters(width: int, channels: int) -> Float[np.ndarray, "width channels"]:
    """Cosines of `PHASES` equally spaced phases under a Hann window, one band after the other, float32.

    The centers of the bands are equally spaced on the scale 1127 ln(1 + f / 700). Zeghidour et al. 2018 (arXiv
    1711.01161) begin with Gabor filters of the bandwidths of mel filters; these all have that of the window.

    Args:
        width: taps of a filter.
        channels: number of filters. The last band lacks phases if it is no multiple of `PHASES`.
    """
    bands = ceil_div(channels, PHASES)
    low, high = 1127 * np.log1p(np.array([_LOWEST_HZ, _HIGHEST_HZ]) / 700)
    centers_hz = 700 * np.expm1(np.linspace(low, high, bands) / 1127)
    time_w = (np.arange(width) - (width - 1) / 2) / SAMPLE_RATE
    window_w = 0.5 + 0.5 * np.cos(2 * np.pi * time_w * SAMPLE_RATE / width)
    phase_p = 2 * np.pi * (np.arange(PHASES) / PHASES)
    angle_wbp = 2 * np.pi * time_w[:, None, None] * centers_hz[:, None] + phase_p
    filters_wc = (window_w[:, None, None] * np.cos(angle_wbp)).reshape(width, -1)[:, :channels]
    return (_NORM * filters_wc / np.linalg.norm(filters_wc, axis=0)).astype(np.float32)
