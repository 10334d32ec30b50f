"""Log-mel spectra against librosa and known sounds."""

import librosa
import numpy as np
import pytest

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech import features


def test_mel_filters_equal_librosas():
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=features.MEL_FFT, n_mels=features.MEL_BANDS, norm=None)
    np.testing.assert_allclose(features.mel_filters(), filters / filters.sum(axis=1, keepdims=True), atol=1e-6)


def test_log_mel_of_noise_is_its_power_in_each_band():
    # White noise of deviation 0.1 has power 0.01 in every band; 4 s average the fluctuation to a few percent.
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
    power = np.exp(2 * features.log_mel(noise)).mean(axis=0)
    np.testing.assert_allclose(power, 0.01, rtol=0.2)


@pytest.mark.parametrize("unit", [0, 1, 7, 23])
def test_mel_frames_are_centered_on_their_unit(unit):
    # A click in the middle of a unit's receptive field is equally loud in two frames and softer in the outer ones.
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio[unit * 640 + 360] = 1.0
    loud = features.log_mel(audio).mean(axis=1).reshape(-1, 4)
    assert np.argmax(loud.sum(axis=1)) == unit
    np.testing.assert_allclose(loud[unit, 1], loud[unit, 2], atol=0.05)
    assert loud[unit, 0] < loud[unit, 1]
    assert loud[unit, 3] < loud[unit, 2]
