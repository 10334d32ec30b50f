"""Packing of documents into rows of one length: which documents share a row, and the arrays of that row."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

HostBatch = dict[str, np.ndarray]
"""Arrays of one host's rows: those of `BATCH_ARRAYS`, and `sources` int32 [rows], the number of each row's source."""

BATCH_ARRAYS = {
    "inputs": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "loss_mask": np.bool_,
}
"""Arrays [rows, sequence_length] of a batch and their types; `fill_row` describes them."""

_MIN_CHOICE = 32
"""Documents to choose a row from, at least. The more there are, the fuller the row gets."""


def choose_documents(lengths: Sequence[int], capacity: int) -> list[int]:
    """Choose the documents that fill a row best.

    Document 0, which waits longest, is always taken, so that no document waits forever. The others are chosen so that
    the sum of the lengths is the largest that fits: an exact subset sum, with the bits of a big integer as the
    reachable sums. Among equally full choices, older documents (smaller indices) come first.

    Args:
        lengths: slots of each document, oldest first; the first has at most `capacity`.
        capacity: slots of the row.

    Returns:
        Indices in ascending order.
    """
    space = capacity - lengths[0]
    everything = (1 << (space + 1)) - 1
    reachable = [1]  # bit s of entry i: some of the documents 1..i sum up to s
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
        waiting: `(ids, tag)` of each document in the order added; the tag is any value of the caller.
    """

    def __init__(self, sequence_length: int):
        self.sequence_length = sequence_length
        self.waiting: list[tuple[Int32[np.ndarray, " _N"], Any]] = []
        self._slots = 0  # of all waiting documents

    @property
    def is_full(self) -> bool:
        """Whether enough documents wait for a good choice."""
        return len(self.waiting) >= _MIN_CHOICE and self._slots >= 2 * self.sequence_length

    def add(self, ids: Int32[np.ndarray, " N"], tag: Any) -> None:
        """Add a document of 2 to `sequence_length + 1` ids."""
        self.waiting.append((ids, tag))
        self._slots += len(ids) - 1

    def take(self) -> list[Int32[np.ndarray, " _N"]]:
        """Remove and return the documents of the next row."""
        chosen = choose_documents([len(ids) - 1 for ids, _ in self.waiting], self.sequence_length)
        documents = [self.waiting[index][0] for index in chosen]
        for index in reversed(chosen):
            del self.waiting[index]
        self._slots -= sum(len(ids) - 1 for ids in documents)
        return documents


def empty_batch(rows: int, sequence_length: int) -> HostBatch:
    """Rows of padding: zeros in every array of `BATCH_ARRAYS`."""
    return {name: np.zeros((rows, sequence_length), dtype) for name, dtype in BATCH_ARRAYS.items()}


def only_read(ids: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
    """Mark ids of a document that the model reads and does not learn: `fill_row` turns their loss off.

    A marked id is stored as its complement, which is below 0.
    """
    return np.minimum(ids, ~ids)


def fill_row(batch: HostBatch, row: int, documents: Iterable[Int32[np.ndarray, " _N"]], prefix: int) -> int:
    """Put documents one after another into a row of padding.

    A document of n + 1 ids takes n slots: `inputs` are all ids but the last, `targets` all but the first, so no target
    is a token of another document. `segment_ids` are 1, 2, ... and 0 in padding, and `positions` restart with each
    document. `loss_mask` is off in padding, where the target is marked by `only_read`, and where it is one of the
    constant ids that open every document (the dummy piece after `<s>`), which the model need not learn.

    Args:
        batch: from `empty_batch`; changed in place.
        row: index of the row.
        documents: int32 [N] each, together at most `sequence_length` slots.
        prefix: number of constant ids at the start of each document.

    Returns:
        Number of slots in use.
    """
    documents = list(documents)
    lengths = [len(document) - 1 for document in documents]
    used = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    np.concatenate([document[:-1] for document in documents], out=batch["inputs"][row, :used])
    np.concatenate([document[1:] for document in documents], out=batch["targets"][row, :used])
    batch["segment_ids"][row, :used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
    batch["positions"][row, :used] = np.arange(used) - np.repeat(starts, lengths)
    batch["loss_mask"][row, :used] = batch["targets"][row, :used] >= 0
    for name in ("inputs", "targets"):  # a marked id is the complement of the id
        ids = batch[name][row, :used]
        np.maximum(ids, ~ids, out=ids)
    for slot in range(prefix - 1):
        batch["loss_mask"][row, starts + slot] = False
    return used
