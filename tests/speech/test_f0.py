"""F0 by autocorrelation on sounds whose pitch is known."""

import numpy as np
import pytest

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.f0 import f0
from tests.support.sounds import buzz


@pytest.mark.parametrize("hertz", [75.0, 110.0, 223.0, 390.0])
def test_f0_of_a_steady_buzz_is_exact(hertz):
    pitch, voiced = f0(buzz(hertz), 50)
    assert voiced.all()
    np.testing.assert_allclose(pitch[1:-1], hertz, rtol=0.005)
    np.testing.assert_allclose(pitch, hertz, rtol=0.02)  # the outermost windows reach into zeros


def test_f0_follows_a_glide_and_is_unvoiced_after_it():
    glide = np.geomspace(100, 300, SAMPLE_RATE)
    audio = np.concatenate([buzz(glide), np.zeros(SAMPLE_RATE // 2, np.float32)])
    pitch, voiced = f0(audio, 75)
    assert voiced[:48].all()
    assert not voiced[52:].any()
    np.testing.assert_allclose(pitch[2:48], glide[160::320][2:48], rtol=0.02)
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    assert f0(noise, 50)[1].mean() < 0.05
