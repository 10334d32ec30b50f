"""Accuracies over seeds and items, and differences between conditions, with bootstrap intervals.

Another study would have other seeds and other items. So the bootstrap draws both: the seeds of each condition by
themselves, and the items for all conditions together, because all models answer the same items.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.evaluation.rules import Estimate

_RESAMPLES, _LEVEL = 4000, 0.95

Outcomes = Mapping[str, float]
"""Outcome of each item of a task and direction by its id: 1, or a share for a tie, or 0."""


def outcome_table(models: Sequence[Outcomes], items: Sequence[str]) -> Float[np.ndarray, "S N"]:
    """Outcomes of these items under the models of a condition: [seeds, items]."""
    return np.array([[model[item] for item in items] for model in models])


def common_items(models: Sequence[Outcomes]) -> list[str]:
    """The items that all models have, in the order of the first one."""
    return [item for item in models[0] if all(item in model for model in models[1:])]


def accuracy(outcomes_sn: Float[np.ndarray, "S N"]) -> Estimate:
    """The mean over seeds and items with its interval."""
    items, rng = _drawn_items(outcomes_sn.shape[1])
    return _estimate(outcomes_sn.mean(), _resampled(outcomes_sn, items, rng), outcomes_sn.shape[1])


def difference(first_sn: Float[np.ndarray, "S N"], second_sn: Float[np.ndarray, "S N"]) -> Estimate:
    """The accuracy of a condition less that of another on the same items, with its interval."""
    items, rng = _drawn_items(first_sn.shape[1])
    resampled = _resampled(first_sn, items, rng) - _resampled(second_sn, items, rng)
    return _estimate(first_sn.mean() - second_sn.mean(), resampled, first_sn.shape[1])


def _drawn_items(count: int) -> tuple[Float[np.ndarray, "N R"], np.random.Generator]:
    """How often each item is in each resample, divided by their number."""
    rng = np.random.default_rng(0)
    return rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).T / count, rng


def _resampled(
    outcomes_sn: Float[np.ndarray, "S N"], items_nr: Float[np.ndarray, "N R"], rng: np.random.Generator
) -> Float[np.ndarray, " R"]:
    """The mean of each resample over drawn seeds and these items."""
    seeds = len(outcomes_sn)
    seeds_sr = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES).T / seeds
    return np.sum((outcomes_sn @ items_nr) * seeds_sr, axis=0)


def _estimate(value: float, resampled: Float[np.ndarray, " R"], items: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), items)
