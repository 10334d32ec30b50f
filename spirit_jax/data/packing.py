"""Packing of documents into rows of one length: which documents share a row, and the arrays of that row."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

ARRAYS = {
    "inputs": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "loss_mask": np.bool_,
}
"""Arrays [rows, sequence_length] of a batch and their types."""


_CHOICE = 32
"""Documents to choose a row from, at least: the more there are, the fuller it gets."""


def choose(lengths: Sequence[int], capacity: int) -> list[int]:
    """Indices of the documents that fill a row best, in ascending order.

    Always takes document 0 (the one that waits longest, so that none waits for ever) and adds those of the others whose
    lengths sum up to the most that still fits: an exact subset sum, with a big integer as the set of reachable sums.
    Among equally full choices older documents (smaller indices) go first.

    Args:
        lengths: slots of each document, oldest first; the first at most `capacity`.
        capacity: slots of the row.
    """
    space = capacity - lengths[0]
    everything = (1 << (space + 1)) - 1
    reachable = [1]  # bit s of entry i: some of the first i documents sum up to s
    for length in lengths[1:]:
        sums = reachable[-1]
        reachable.append((sums | sums << length) & everything)
        if reachable[-1] >> space:
            break
    total = reachable[-1].bit_length() - 1
    chosen = []
    for index in range(len(reachable) - 1, 0, -1):
        if not reachable[index - 1] >> total & 1:
            chosen.append(index)
            total -= lengths[index]
    return [0, *reversed(chosen)]


class Packer:
    """Documents that wait for a row of `sequence_length` slots, oldest first.

    Args:
        sequence_length: slots of a row.

    Attributes:
        waiting: `(ids, tag)` of each document, in the order added; the tag is the caller's.
    """

    def __init__(self, sequence_length: int):
        self.sequence_length, self.waiting, self._slots = sequence_length, [], 0

    @property
    def is_full(self) -> bool:
        """Whether enough documents wait for a good choice."""
        return len(self.waiting) >= _CHOICE and self._slots >= 2 * self.sequence_length

    def add(self, ids: Int32[np.ndarray, " N"], tag) -> None:
        """Append a document of 2 to `sequence_length + 1` ids."""
        self.waiting.append((ids, tag))
        self._slots += len(ids) - 1

    def take(self) -> list[Int32[np.ndarray, " _N"]]:
        """Remove and return the documents of the next row."""
        chosen = choose([len(ids) - 1 for ids, _ in self.waiting], self.sequence_length)
        documents = [self.waiting[index][0] for index in chosen]
        for index in reversed(chosen):
            del self.waiting[index]
        self._slots -= sum(len(ids) - 1 for ids in documents)
        return documents


def empty_batch(rows: int, sequence_length: int) -> dict[str, np.ndarray]:
    """Rows of padding only: zeros everywhere."""
    return {name: np.zeros((rows, sequence_length), dtype) for name, dtype in ARRAYS.items()}


def fill_row(batch: dict[str, np.ndarray], row: int, documents: Iterable[Int32[np.ndarray, " _N"]], prefix: int) -> int:
    """Lay documents one after another into a row of padding.

    A document of n + 1 ids takes n slots: its inputs are all ids but the last, its targets all but the first, so no target
    is a token of another document. Segments are 1, 2, ... and 0 in padding; positions restart with each document. The loss
    mask is off in padding and where the target is one of the constant ids that open every document (the dummy piece after
    `<s>`), from which there is nothing to learn.

    Args:
        batch: of `empty_batch`, changed in place.
        row: which row.
        documents: int32 ids each, together at most `sequence_length` slots.
        prefix: number of constant ids at the start of each document.

    Returns:
        Slots in use.
    """
    documents = list(documents)
    lengths = [len(document) - 1 for document in documents]
    used = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    np.concatenate([document[:-1] for document in documents], out=batch["inputs"][row, :used])
    np.concatenate([document[1:] for document in documents], out=batch["targets"][row, :used])
    batch["segment_ids"][row, :used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
    batch["positions"][row, :used] = np.arange(used) - np.repeat(starts, lengths)
    batch["loss_mask"][row, :used] = True
    for slot in range(prefix - 1):
        batch["loss_mask"][row, starts + slot] = False
    return used
