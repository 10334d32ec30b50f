"""Preferences: prompts with a better and a worse answer, `DIR/SPLIT.jsonl`, and batches of them.

    {"id": "a", "input": ["text:Say hello."], "chosen": ["units:[Hu3][Hu7]"], "rejected": ["units:[Hu9]"]}

Segments, templates and what is learned are those of `data.pairs`. Each row holds two documents of their own, the prompt
with either answer: arrays of a batch are [rows, 2, sequence_length], the chosen one first.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.packing import HostBatch, empty_batch, fill_row
from spirit_jax.data.pairs import LineFile, Pair, PairSequencer, Turn, has_content, name_of, segments, split_file
from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.data.sampling import Shuffle
from spirit_jax.data.unit_record import RecordError
from spirit_jax.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_NAME = "preferences"  # of the source, which decides the order and names the values in the log
_MAX_LOGGED = 20


class Preferences:
    """Every usable preference of a split as a pair of documents.

    Attributes:
        skipped: number of preferences that cannot be used.
        fingerprint: sha256 (hex) of the file.
        units: fingerprint of the speech tokenizer that encoded the units, "" where the file names none.

    Raises:
        RecordError: there is no such split, a preference cannot be used and the config does not skip it, or none is
            left; names the file and the line.
    """

    def __init__(self, config: PreferenceData, split: str, vocabulary: Vocabulary, sequence_length: int):
        lines = LineFile(split_file(config.path, split))
        self.fingerprint, self.units, self.skipped = lines.fingerprint, lines.units, 0
        self._prefix = len(vocabulary.prefix)
        self._length = sequence_length
        sequencer = PairSequencer(vocabulary, config.template, sequence_length + 1)
        self._documents: list[tuple[Int32[np.ndarray, " _N"], Int32[np.ndarray, " _M"]]] = []
        for index in range(len(lines)):
            try:
                chosen, rejected = read_preference(*lines.entry(index))
                self._documents.append((sequencer(chosen)[0], sequencer(rejected)[0]))
            except RecordError as error:
                if config.on_bad_record == "error":
                    raise
                self.skipped += 1
                if self.skipped <= _MAX_LOGGED:
                    _log.warning("skipped: %s", error)
        if not self._documents:
            raise RecordError(f"{lines.path}: no preference in it can be used")

    def __len__(self) -> int:
        return len(self._documents)

    def batch(self, indices: list[int | None]) -> HostBatch:
        """Rows of these preferences, each array [rows, 2, sequence_length]; None is a row of padding."""
        flat = empty_batch(2 * len(indices), self._length)
        for row, index in enumerate(indices):
            if index is not None:
                for side, ids in enumerate(self._documents[index]):
                    fill_row(flat, 2 * row + side, [ids], self._prefix)
        return {name: array.reshape(len(indices), 2, self._length) for name, array in flat.items()}


def read_preference(where: str, entry: dict[str, Any]) -> tuple[Pair, Pair]:
    """The two pairs of a line: the input with the chosen answer, and with the rejected one.

    Args:
        where: the place of the line, for messages.
        entry: its object.

    Raises:
        RecordError: a side is missing, malformed or empty, or both answers are equal; names the line.
    """
    name = name_of(where, entry)
    read = {key: segments(entry.get(key), key, name) for key in ("input", "chosen", "rejected")}
    for key in ("chosen", "rejected"):
        if not has_content(read[key]):
            raise RecordError(f'{name}: "{key}" is empty')
    if read["chosen"] == read["rejected"]:
        raise RecordError(f'{name}: "chosen" and "rejected" are equal: neither is preferred')
    chosen, rejected = (Pair(name, (Turn(read["input"], read[key]),)) for key in ("chosen", "rejected"))
    return chosen, rejected


class PreferenceBatches:
    """Endless batches of this host's rows, in an order that depends on the seed alone; implements `task.Batches`.

    Args:
        preferences: those of the training split.
        rows: rows of a batch over all hosts.
        seed: of the run.
        host_index, host_count: this host and the number of hosts.
        state: of `state()`, to continue from there.

    Raises:
        SpiritError: the hosts do not divide the rows, or the state belongs to other preferences.
    """

    def __init__(
        self,
        preferences: Preferences,
        rows: int,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
        state: dict[str, Any] | None = None,
    ):
        if rows % host_count:
            raise SpiritError(f"data: {host_count} hosts do not divide the batch of {rows} rows")
        self._preferences, self._rows, self._next = preferences, rows, 0
        self._order = Shuffle(len(preferences), seed, _NAME)
        self._own = range(host_index * rows // host_count, (host_index + 1) * rows // host_count)
        if state is not None:
            saved = state[_NAME]
            if saved["file"] != preferences.fingerprint or saved["usable"] != len(preferences):
                raise SpiritError(
                    "preferences: the file is not the one that the saved data state was made with; restore it"
                )
            self._next = saved["next"]

    def __iter__(self) -> "PreferenceBatches":
        return self

    def __next__(self) -> HostBatch:
        """The next batch."""
        batch = self._preferences.batch([self._order[self._next + row][0] for row in self._own])
        self._next += self._rows
        return batch

    @property
    def source_names(self) -> list[str]:
        """The name under which skipped preferences are counted."""
        return [_NAME]

    def __enter__(self) -> "PreferenceBatches":
        return self

    def __exit__(self, *_) -> None:
        """Nothing is open."""

    @property
    def skipped(self) -> dict[str, int]:
        """Number of preferences that cannot be used."""
        return {_NAME: self._preferences.skipped}

    def state(self) -> dict[str, Any]:
        """The position after the last batch, as JSON; it is the same on all hosts."""
        preferences = self._preferences
        return {_NAME: {"file": preferences.fingerprint, "usable": len(preferences), "next": self._next}}


def held_out_preferences(
    preferences: Preferences, rows: int, host_index: int = 0, host_count: int = 1
) -> Iterator[HostBatch]:
    """Yield this host's rows of each batch of a held-out split, in order; the last one is filled up with padding."""
    own = slice(host_index * rows // host_count, (host_index + 1) * rows // host_count)
    for start in range(0, len(preferences), rows):
        indices = [index if index < len(preferences) else None for index in range(start, start + rows)]
        yield preferences.batch(indices[own])
