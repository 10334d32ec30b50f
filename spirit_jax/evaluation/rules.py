"""Rules that turn the scores of hypotheses into an accuracy, and intervals for it.

ZeroSpeech 2021 (Nguyen et al. 2020, arXiv 2011.11588) counts a tie as half, averages over the voices of an item first
and over items second, and reports frequency bands. slamkit and most papers average over all pairs at once. Both are
here, so that a figure says which rule it follows.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

BANDS = (("oov", 0, 1), ("1-5", 1, 5), ("6-20", 5, 20), ("21-100", 20, 100), (">100", 100, math.inf))
"""ZeroSpeech's bands of a word's frequency in LibriSpeech: name, lowest frequency, first frequency above the band.

The names are those that the official tool prints. It puts a word that occurs 5, 20 or 100 times into the higher band.
"""


_BLOCK = 2**20
"""Drawn items in memory at once."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The scores of hypotheses of which the model should prefer the first."""

    item: Hashable
    """Name of the item. Contrasts of one item differ in their voice only."""
    right: float
    """Score of the hypothesis that should win: a log-likelihood, normalized or not."""
    wrong: float | tuple[float, ...]
    """Score of the other one, or of each of the others."""
    group: str = ""
    """Part of the task that is reported by itself: a phenomenon, a subject."""
    frequency: int | None = None
    """Number of times that the item occurs in the benchmark's training text; None where the task has no frequencies."""

    @property
    def outcome(self) -> float:
        """1 if the right hypothesis has the highest score, 1/n if n hypotheses share the highest score, else 0.

        Raises:
            ValueError: a score is NaN; a model that gives NaN has no accuracy.
        """
        wrong = self.wrong if isinstance(self.wrong, tuple) else (self.wrong,)
        if any(map(math.isnan, (self.right, *wrong))):
            raise ValueError(f"item {self.item!r}: a score is NaN")
        if any(score > self.right for score in wrong):
            return 0.0
        return 1 / (1 + sum(score == self.right for score in wrong))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty."""

    value: float
    """The mean, NaN without values."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    """Upper end."""
    count: int
    """Values that the mean is over: items by ZeroSpeech's rule, pairs by the flat one."""


def item_outcomes(contrasts: Iterable[Contrast]) -> dict[Hashable, float]:
    """The outcome of each item, averaged over its voices, in the order of first occurrence."""
    outcomes: dict[Hashable, list[float]] = defaultdict(list)
    for contrast in contrasts:
        outcomes[contrast.group, contrast.item].append(contrast.outcome)
    return {item: sum(values) / len(values) for item, values in outcomes.items()}


def zerospeech_accuracy(contrasts: Sequence[Contrast], seed: int = 0) -> Estimate:
    """Mean over the voices of an item, then over items."""
    return estimate(list(item_outcomes(contrasts).values()), seed)


def flat_accuracy(contrasts: Sequence[Contrast], seed: int = 0) -> Estimate:
    """Mean over all pairs."""
    return estimate([contrast.outcome for contrast in contrasts], seed)


AVERAGES: Mapping[str, Callable[[Sequence[Contrast], int], Estimate]] = {
    "zerospeech": zerospeech_accuracy,
    "flat": flat_accuracy,
}
"""Averaging rules by the name that results carry."""


def by_group(contrasts: Sequence[Contrast], seed: int = 0, average: str = "zerospeech") -> dict[str, Estimate]:
    """The accuracy of each group, in alphabetical order."""
    groups = sorted({contrast.group for contrast in contrasts})
    return {name: AVERAGES[average]([c for c in contrasts if c.group == name], seed) for name in groups}


def by_frequency(contrasts: Sequence[Contrast], seed: int = 0) -> dict[str, Estimate]:
    """The accuracy of each frequency band that has items, by ZeroSpeech's rule."""
    bands = {}
    for name, low, high in BANDS:
        inside = [c for c in contrasts if c.frequency is not None and low <= c.frequency < high]
        if inside:
            bands[name] = zerospeech_accuracy(inside, seed)
    return bands


def in_vocabulary_accuracy(contrasts: Sequence[Contrast]) -> float:
    """ZeroSpeech's "in vocab": mean of the bands of words that occur, weighted by their items; NaN without any."""
    bands = [accuracy for name, accuracy in by_frequency(contrasts).items() if name != "oov"]
    total = sum(band.count for band in bands)
    return sum(band.value * band.count for band in bands) / total if total else math.nan


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean under resampling of the values; (NaN, NaN) without values."""
    return ratio_interval(values, np.ones(len(values)), seed, resamples, level)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of sum(numerators) / sum(denominators) under resampling of the items.

    It suits error rates and perplexities, whose items have different lengths; (NaN, NaN) without items.
    """
    if not len(numerators):
        return math.nan, math.nan
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // above.size)  # resamples at once
    for first in range(0, resamples, block):
        drawn = rng.integers(above.size, size=(min(block, resamples - first), above.size))
        totals = below[drawn].sum(1)
        means[first : first + block] = np.divide(
            above[drawn].sum(1), totals, out=np.full(len(drawn), math.nan), where=totals != 0
        )
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of values with its interval."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate(sum(values) / len(values), *bootstrap_interval(values, seed), len(values))


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Estimate:
    """The sum of numerators over the sum of denominators with its interval; an error rate over a corpus."""
    total = sum(denominators)
    if not total:
        return Estimate(math.nan, math.nan, math.nan, len(numerators))
    return Estimate(sum(numerators) / total, *ratio_interval(numerators, denominators, seed), len(numerators))
