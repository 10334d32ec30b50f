"""Shuffling and mixing: permutations, fractions, and bounds on the mixture."""

import numpy as np
import pytest

from spirit_jax.data.sampling import Mixture, Permutation, Shuffle, record_rng


@pytest.mark.parametrize("records", [1, 2, 7, 100])
def test_every_epoch_is_a_new_permutation(records):
    order = Shuffle(records, seed=3, source="speech")
    epochs = [[order[epoch * records + index] for index in range(records)] for epoch in range(5)]
    for number, epoch in enumerate(epochs):
        assert sorted(record for record, _ in epoch) == list(range(records))
        assert {e for _, e in epoch} == {number}
    if records == 100:
        assert len({tuple(record for record, _ in epoch) for epoch in epochs}) == 5


def test_long_permutations_have_every_index_once():
    """More than 2^16 records have no table."""
    permutation = Permutation(70_000, 1, 2)
    shuffled = [permutation[index] for index in range(70_000)]
    assert sorted(shuffled) == list(range(70_000))
    assert np.corrcoef(shuffled, np.arange(70_000))[0, 1] < 0.02  # 5 standard deviations
    assert Permutation(70_000, 1, 3)[0] != shuffled[0]


def test_order_depends_on_seed_and_source_only():
    def drawn(seed, source):
        order = Shuffle(50, seed, source)
        return [order[position] for position in range(120)]

    assert drawn(1, "a") == drawn(1, "a")
    assert len({tuple(drawn(seed, source)) for seed in (1, 2) for source in "ab"}) == 4
    order = Shuffle(50, 1, "a")
    assert [order[position] for position in reversed(range(120))] == drawn(1, "a")[::-1]  # any access order


def test_fractions_are_nested_and_the_same_for_every_seed():
    def used(fraction, seed=0):
        order = Shuffle(200, seed, "aligned", fraction)
        return {order[position][0] for position in range(order.length)}

    sizes = {fraction: len(used(fraction)) for fraction in (0.1, 0.25, 0.5, 1.0)}
    assert sizes == {0.1: 20, 0.25: 50, 0.5: 100, 1.0: 200}
    assert used(0.1) < used(0.25) < used(0.5) < used(1.0)
    assert used(0.25, seed=1) == used(0.25, seed=2)
    assert used(0.5) != set(range(100))  # spread over the files
    with pytest.raises(ValueError, match="source 'aligned': a fraction 0.001 of 200 records is none"):
        Shuffle(200, 0, "aligned", 0.001)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 3), (0.1, 0.2, 0.7), (5,)])
def test_mixture_follows_the_weights_in_every_window(weights):
    shares = np.array(weights) / np.sum(weights)
    for seed in range(4):
        mixture = Mixture(weights, seed)
        drawn = np.array([mixture[row] for row in range(20_000)])
        for window in (8, 100, 1000, 20_000):
            for start in range(0, 20_000 - window + 1, max(window // 3, 97)):
                counts = np.bincount(drawn[start : start + window], minlength=len(weights))
                # golden ratio sequences have discrepancy below 2 + log2(n) points; independent draws would have sqrt(n)
                assert (np.abs(counts - window * shares) <= 2 + np.log2(window) / 2).all()


def test_seeds_shift_the_mixture():
    starts = {tuple(Mixture((1, 1), seed)[row] for row in range(16)) for seed in range(20)}
    assert len(starts) > 8


def test_record_rng_depends_on_every_part_of_its_key():
    keys = [
        (seed, source, record, epoch) for seed in (0, 1) for source in "ab" for record in (0, 1) for epoch in (0, 1)
    ]
    draws = {tuple(record_rng(*key).integers(0, 2**32, 4).tolist()) for key in keys}
    assert len(draws) == len(keys)
