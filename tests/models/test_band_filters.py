"""Mel filters of a first convolution: their bands by Fourier transform, and how little phase GELU leaves of them."""

import numpy as np
import pytest

from spirit_jax.models.band_filters import PHASES, mel_band_filters


@pytest.mark.parametrize(("width", "channels"), [(160, 96), (400, 120), (160, 95)])
def test_each_band_passes_its_place_on_the_mel_scale(width, channels):
    filters = mel_band_filters(width, channels)
    assert filters.shape == (width, channels)
    response = np.abs(np.fft.rfft(filters, 16_000, axis=0))  # a bin of 1 Hz
    bands = -(-channels // PHASES)
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (100, 7600))
    expected = 700 * (10 ** (np.linspace(lowest, highest, bands) / 2595) - 1)
    expected = np.repeat(expected, PHASES)[:channels]
    # Below the width of the window's main lobe, the mirror image at negative frequencies moves the peak.
    clear = expected > 2 * 16_000 / width
    np.testing.assert_allclose(response.argmax(0)[clear], expected[clear], atol=25)
    np.testing.assert_allclose(np.linalg.norm(filters, axis=0), 16, rtol=1e-5)


def test_the_rectified_phases_of_a_band_add_up_to_nearly_the_same_for_every_phase_of_a_tone():
    filters, band = mel_band_filters(160, 96), 16
    hertz = np.abs(np.fft.rfft(filters[:, PHASES * band], 16_000)).argmax()
    tones = np.cos(2 * np.pi * hertz * np.arange(160) / 16_000 + np.linspace(0, 2 * np.pi, 50)[:, None])
    passed = np.maximum(tones @ filters[:, PHASES * band : PHASES * (band + 1)], 0).sum(1)
    assert passed.min() > 0.85 * passed.max()
    one = np.maximum(tones @ filters[:, PHASES * band], 0)
    assert one.min() == 0
