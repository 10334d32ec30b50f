"""Pitch bins and style statistics against direct computations."""

import numpy as np
import pytest

from spirit_jax.speech.features import level
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics, octaves_of_units, style_features


def _floats(values) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("mean", [7.0, np.nan], ids=["voice", "no voice"])
def test_style_statistics_cover_each_second_and_its_neighbors(mean):
    """Computed frame by frame (mel 10 ms, F0 20 ms) on 6.5 s whose pitch, noise and pace change every second."""
    random = np.random.default_rng(0)
    seconds = np.arange(650) // 100
    spectrum = (random.normal(0, 0.1 + 0.1 * seconds, (40, 650)).T - 2).astype(np.float32)
    spectrum[:, 20:] += 0.3 * seconds[:, None] % 1
    spectrum[random.random(650) < 0.2] -= 20  # pauses
    octaves = (np.arange(325) // 50 * 0.25 + random.normal(0, 0.02, 325)).astype(np.float32)
    octaves[random.random(325) < 0.3] = np.nan
    octaves[0 if np.isnan(mean) else 200 :] = np.nan  # no voice in seconds 5 and 6 and the ones next to them
    relative = spectrum - level(spectrum)
    expected = []
    for unit in range(7):
        mel = [frame for frame in range(650) if abs(frame // 100 - unit) <= 1 and relative[frame].mean() > -3.45]
        pitch = [octaves[frame] for frame in range(325) if abs(frame // 50 - unit) <= 1]
        voiced = [value for value in pitch if np.isfinite(value)]
        register = (7.2 if np.isnan(mean) else mean) + (np.mean(voiced) if voiced else 0.0)
        brightness = np.mean([relative[frame, 20:].mean() - relative[frame, :20].mean() for frame in mel])
        pace = np.mean([np.abs(relative[frame] - relative[max(frame - 1, 0)]).mean() for frame in mel])
        expected.append((register, brightness, pace))
    np.testing.assert_allclose(style_features(spectrum, octaves, mean, 7), expected, rtol=1e-5, atol=1e-6)
    assert (np.diff(expected, axis=0) != 0).any(axis=1).all()  # the statistics of any two seconds differ


def test_pitch_bins_are_equally_frequent():
    random = np.random.default_rng(0)
    contours = [np.repeat(random.normal(0, 0.2, 500), 4).astype(np.float32) for _ in range(8)]
    part = F0Quantiles.fit(contours, 16)
    counts = np.bincount(np.concatenate([part.quantize(contour) for contour in contours]), minlength=16)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:], 4000 / 15, rtol=0.02)
    assert (np.diff(part.octaves[1:]) > 0).all()


def test_a_pitch_unit_is_voiced_if_half_of_its_frames_are():
    """An edge belongs to the bin above it, in training and in encoding."""
    none = np.nan
    part = F0Quantiles(edges=_floats([-0.5, 0.25]), octaves=_floats([0, -1, 0, 1]))
    frames = [[0, 0, none, none], [0, none, none, none], [none, 0, 0, 0], [0.25] * 4, [-0.5] * 4, [-0.6] * 4]
    assert part.quantize(_floats(frames).reshape(-1)).tolist() == [2, 0, 2, 3, 2, 1]
    values = np.repeat(_floats([1, 2, 3, 4, 5]), 4)  # the median is the edge between two bins
    two = F0Quantiles.fit([values], 3)
    assert two.edges.tolist() == [3]
    np.testing.assert_allclose(two.octaves, [0, 1.5, 4])
    assert two.quantize(values).tolist() == [1, 1, 2, 2, 2]


def test_units_of_any_encoder_get_the_mean_pitch_of_their_voiced_frames():
    none = np.nan
    contours = [_floats([1, 1, 2, none, none, none, none, 3]), _floats([none] * 4), _floats([4, 4, none, none])]
    octaves = octaves_of_units([np.array([2, 0]), np.array([0]), np.array([2])], contours, 4)
    np.testing.assert_allclose(octaves, [none, none, 12 / 5, none])


def test_styles_do_not_depend_on_the_scale_of_a_statistic():
    """Scaling a statistic by a power of two, which is exact in float32, gives the same clusters."""
    random = np.random.default_rng(0)
    features = (random.normal(0, 1, (300, 3)) + 6 * random.integers(0, 2, (300, 3))).astype(np.float32)
    scales = _floats([1, 1024, 1 / 64])
    styles = [VoiceStatistics.fit([x], 8, seed=0).quantize(x) for x in (features, features * scales)]
    np.testing.assert_array_equal(styles[0], styles[1])
    assert len(set(styles[0].tolist())) == 8
