"""Scoring rules against sums done by hand."""

import math

import numpy as np
import pytest

from spirit_jax.evaluation.rules import (
    Contrast,
    bootstrap_interval,
    by_frequency,
    by_group,
    flat_accuracy,
    in_vocabulary_accuracy,
    ratio_estimate,
    zerospeech_accuracy,
)

# Two items: the first in three voices (right, tie, wrong), the second in one (right).
VOICES = [Contrast("a", -1, -2), Contrast("a", -3, -3), Contrast("a", -5, -4), Contrast("b", -1, -9)]


def test_ties_count_half_and_voices_are_averaged_before_items():
    assert zerospeech_accuracy(VOICES).value == ((1 + 0.5 + 0) / 3 + 1) / 2
    assert zerospeech_accuracy(VOICES).count == 2


def test_flat_rule_averages_over_pairs():
    assert flat_accuracy(VOICES).value == (1 + 0.5 + 0 + 1) / 4
    assert flat_accuracy(VOICES).count == 4


def test_an_item_belongs_to_its_group():
    pairs = [Contrast(1, 1, 0, "x"), Contrast(1, 0, 1, "y"), Contrast(2, 1, 0, "y")]
    assert {name: accuracy.value for name, accuracy in by_group(pairs).items()} == {"x": 1.0, "y": 0.5}
    assert zerospeech_accuracy(pairs).value == pytest.approx(2 / 3)


def test_frequency_bands_are_those_of_the_official_tool_and_the_weighted_mean_leaves_unknown_words_out():
    """pandas.cut with right=False puts the upper edge of a band into the next one."""
    counts = (0, 1, 4, 5, 19, 20, 99, 100, 10**6)
    pairs = [Contrast(i, float(i % 2), 0.5, frequency=count) for i, count in enumerate(counts)]
    assert {name: accuracy.count for name, accuracy in by_frequency(pairs).items()} == {
        "oov": 1, "1-5": 2, "6-20": 2, "21-100": 2, ">100": 2,
    }  # fmt: skip
    assert in_vocabulary_accuracy(pairs) == pytest.approx(4 / 8)  # of the eight, those with an odd index are right
    assert math.isnan(in_vocabulary_accuracy(VOICES))


def test_a_tie_of_several_hypotheses_counts_as_a_guess_among_them():
    assert Contrast("a", 1.0, (1.0, 0.0, 1.0)).outcome == 1 / 3
    assert Contrast("a", 1.0, (0.0, 0.5, 0.9)).outcome == 1
    assert Contrast("a", 1.0, (0.0, 1.5, 0.9)).outcome == 0


def test_error_rates_weigh_items_by_their_length():
    rate = ratio_estimate([1, 0, 4], [10, 2, 4])
    assert rate.value == 5 / 16
    assert rate.low <= rate.value <= rate.high
    assert math.isnan(ratio_estimate([], []).value)


def test_nan_is_an_error_instead_of_a_wrong_answer():
    with pytest.raises(ValueError, match="'a'.*NaN"):
        flat_accuracy([Contrast("a", math.nan, 0)])


def test_infinite_scores_compare():
    assert Contrast("a", 0, -math.inf).outcome == 1
    assert Contrast("a", -math.inf, -math.inf).outcome == 0.5


def test_interval_agrees_with_the_normal_approximation_and_repeats():
    values = [1.0] * 600 + [0.0] * 400
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    # 1000 resamples place an end of the interval to about 3 % of its width
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.004), pytest.approx(0.6 + half, abs=0.004))
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert np.isnan(bootstrap_interval([])).all()
