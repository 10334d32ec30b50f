"""The order of records and of sources: pure functions of a seed and a position.

Nothing here has state, so any position can be computed directly. That makes resuming cheap, for any number of hosts.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle

from spirit_jax.core.errors import SpiritError

_SHUFFLE_ROUNDS = 4
_MAX_TABLE = 1 << 16  # for shorter ranges Grain's shuffle walks a cycle of up to 2^16 steps, so a table is faster
_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MASK_64 = (1 << 64) - 1


@functools.lru_cache(maxsize=256)
def name_key(name: str) -> int:
    """A 64-bit integer that represents a name in seeds, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def record_rng(seed: int, source: str, record: int, epoch: int) -> np.random.Generator:
    """The generator for all random choices within one record in one epoch; it depends on the arguments only.

    Args:
        seed: of the run.
        source: name of the source.
        record: index of the record in its split.
        epoch: pass over the source.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, name_key(source), record, epoch))))


class Permutation:
    """A random permutation of `0..length - 1` with random access.

    Args:
        length: number of elements.
        key: integers that decide the permutation.
    """

    def __init__(self, length: int, *key: int):
        seeds = np.random.SeedSequence(key)
        self._last, self._seed, self._table = length - 1, int(seeds.generate_state(1)[0]), None
        if length <= _MAX_TABLE:
            self._table = np.random.Generator(np.random.Philox(seeds)).permutation(length).astype(np.uint16)

    def __getitem__(self, index: int) -> int:
        """The element at a position."""
        if self._table is not None:
            return int(self._table[index])
        return index_shuffle(index, self._last, self._seed, _SHUFFLE_ROUNDS)


class Shuffle:
    """The infinite sequence of a source's records, shuffled anew in every epoch.

    Args:
        records: number of records.
        seed: of the run.
        source: name of the source; sources of one length are shuffled differently.
        fraction: part of the records in use, 0..1. The records of a smaller fraction are among those of a larger one,
            and they are the same for every seed, so that runs can be compared.

    Attributes:
        length: records in an epoch.

    Raises:
        SpiritError: no record is in use.
    """

    def __init__(self, records: int, seed: int, source: str, fraction: float = 1.0):
        self._seed, self._key = seed, name_key(source)
        self.length = round(records * fraction)
        if self.length < 1:
            raise SpiritError(f"source {source!r}: a fraction {fraction} of {records} records is none")
        self._subset = Permutation(records, self._key) if self.length < records else range(records)
        self._epochs: dict[
            int, Permutation
        ] = {}  # a few recent ones: the streams of a process are in about the same epoch

    def __getitem__(self, position: int) -> tuple[int, int]:
        """`(record, epoch)` at a position of the sequence."""
        epoch, index = divmod(position, self.length)
        if epoch not in self._epochs:
            if len(self._epochs) == 8:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = Permutation(self.length, self._seed, self._key, epoch)
        return self._subset[self._epochs[epoch][index]], epoch


class Mixture:
    """The source of each row, in proportion to the weights.

    The sources divide the unit interval by weight. Row g takes the source in which the point
    `offset + g * golden ratio` (mod 1) falls. Among any n consecutive rows, the share of a source then differs from its
    weight by O(log n / n); independent draws would differ by O(n ** -0.5).

    Args:
        weights: of the sources, not negative, not all 0.
        seed: of the run.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        shares = np.cumsum(weights) / np.sum(weights)
        self._limits = [round(float(share) * 2**64) for share in shares]
        self._offset = int(np.random.SeedSequence((seed, name_key("mixture"))).generate_state(1, np.uint64)[0])

    def __getitem__(self, row: int) -> int:
        """Index of the source of a row, which is counted over the whole run."""
        point = (self._offset + row * _GOLDEN_RATIO) & _MASK_64
        return next(source for source, limit in enumerate(self._limits) if point < limit)
