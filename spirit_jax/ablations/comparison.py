"""Accuracies over seeds and items, and differences between conditions, with bootstrap intervals.

Another study would have other seeds and other items. So the bootstrap draws both: the seeds of each condition by
themselves, and the items for all conditions together, because all models answer the same items.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.evaluation.rules import Estimate

_RESAMPLES, _LEVEL = 4000, 0.95
_BLOCK = 1 << 22  # counts of items in memory at once

Outcomes = Mapping[Hashable, float]
"""Outcome of each item of a task and direction: 1, or a share for a tie, or 0."""


def outcome_table(models: Sequence[Outcomes], items: Sequence[Hashable]) -> Float[np.ndarray, "S N"]:
    """Outcomes of these items under the models of a condition: [seeds, items]."""
    return np.array([[model[item] for item in items] for model in models])


def common_items(models: Sequence[Outcomes]) -> list[Hashable]:
    """The items that all models have, in the order of the first one."""
    return [item for item in models[0] if all(item in model for model in models[1:])]


def accuracy(outcomes_sn: Float[np.ndarray, "S N"]) -> Estimate:
    """The mean over seeds and items with its interval."""
    (resampled,) = _resampled(outcomes_sn)
    return _estimate(outcomes_sn.mean(), resampled, outcomes_sn.shape[1])


def difference(first_sn: Float[np.ndarray, "S N"], second_sn: Float[np.ndarray, "S N"]) -> Estimate:
    """The accuracy of a condition less that of another on the same items, with its interval."""
    first, second = _resampled(first_sn, second_sn)
    return _estimate(first_sn.mean() - second_sn.mean(), first - second, first_sn.shape[1])


def _resampled(*conditions: Float[np.ndarray, "S N"]) -> list[Float[np.ndarray, " R"]]:
    """The mean of each condition in each resample: over items drawn for all of them, and seeds drawn for each."""
    rng, count = np.random.default_rng(0), conditions[0].shape[1]
    of_seeds = [np.empty((len(outcomes_sn), _RESAMPLES)) for outcomes_sn in conditions]
    block = max(1, _BLOCK // count)  # resamples at once
    for first in range(0, _RESAMPLES, block):
        size = min(block, _RESAMPLES - first)
        weights_nr = rng.multinomial(count, np.full(count, 1 / count), size=size).T / count
        for outcomes_sn, means_sr in zip(conditions, of_seeds, strict=True):
            means_sr[:, first : first + size] = outcomes_sn @ weights_nr
    found = []
    for means_sr in of_seeds:
        seeds = len(means_sr)
        weights_sr = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES).T / seeds
        found.append(np.sum(means_sr * weights_sr, axis=0))
    return found


def _estimate(value: float, resampled: Float[np.ndarray, " R"], items: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), items)
