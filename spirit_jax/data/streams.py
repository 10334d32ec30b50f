"""Logical streams: each makes rows from its own share of every source, and its state is a few numbers.

Stream v of V makes rows v, V + v, 2 V + v, ... of the run. Its k-th draw from a source is position k V + v of that
source's shuffled sequence. So the rows of a stream depend on (config, seed, v) only, and not on hosts, workers or time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.packing import Packer
from spirit_jax.data.sampling import Mixture
from spirit_jax.data.source import Source
from spirit_jax.data.unit_record import RecordError

MAX_CONSECUTIVE_BAD_RECORDS = 1000
"""A stream gives up after so many unusable records of a source in a row: then a setting is wrong."""


@dataclasses.dataclass(frozen=True)
class StreamLayout:
    """Numbers that all streams of a run share; a saved state fits only streams of the same layout."""

    streams: int
    """Number of logical streams."""
    sequence_length: int
    """Slots of a row."""


class Stream:
    """Rows of one logical stream.

    Args:
        sources: of the mixture.
        mixture: source of each row of the run.
        number: of this stream.
        layout: of all streams.
        state: of `state()`, to continue from there.

    Raises:
        SpiritError: the state belongs to other sources, records, streams or another sequence length.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        number: int,
        layout: StreamLayout,
        state: dict[str, Any] | None = None,
    ):
        self._mixture, self._number, self._layout, self._rows = mixture, number, layout, 0
        saved = {}
        if state is not None:
            expected = dataclasses.asdict(layout)
            found = {key: state[key] for key in expected}
            if found != expected:
                raise SpiritError(f"the saved data state is of {found}, this run has {expected}")
            saved, names = state["sources"], [source.name for source in sources]
            if sorted(saved) != sorted(names):
                raise SpiritError(f"the saved data state has sources {sorted(saved)}, this run has {sorted(names)}")
            self._rows = state["rows"]
        self._draws = [_Draws(source, number, layout, saved.get(source.name)) for source in sources]

    def row(self) -> tuple[int, list[Int32[np.ndarray, " _N"]]]:
        """Make the next row.

        Returns:
            `(source, documents)`: the number of the source, and documents that together fit `sequence_length` slots.

        Raises:
            RecordError: a record cannot be used and the source does not skip it, or too many cannot be used.
        """
        source = self._mixture[self._rows * self._layout.streams + self._number]
        documents = self._draws[source].row()
        self._rows += 1
        return source, documents

    def take_problems(self) -> list[str]:
        """Why records were skipped since the last call."""
        problems = [problem for draws in self._draws for problem in draws.problems]
        for draws in self._draws:
            draws.problems.clear()
        return problems

    def state(self) -> dict[str, Any]:
        """The position of the stream as JSON values: rows made, and for each source its draws and waiting documents."""
        sources = {draws.source.name: draws.state() for draws in self._draws}
        return {**dataclasses.asdict(self._layout), "rows": self._rows, "sources": sources}


class _Draws:
    """One stream's draws from one source, packed into rows."""

    def __init__(self, source: Source, stream: int, layout: StreamLayout, state: dict[str, Any] | None):
        self.source, self._stream, self._streams = source, stream, layout.streams
        self._packer = Packer(layout.sequence_length)
        self._next, self.skipped = 0, 0
        self.problems: list[str] = []
        self._to_restore: list[list[int]] = []  # [draw, part] of the documents that waited when the state was saved
        if state is not None:
            if state["records"] != source.records.fingerprint:
                raise SpiritError(
                    f"source {source.name!r}: {source.records.directory} does not hold the records that the saved data "
                    "state was made with; restore them, name the directory that holds them, or start a new run"
                )
            self._next, self.skipped, self._to_restore = state["next"], state["skipped"], state["waiting"]

    def row(self) -> list[Int32[np.ndarray, " _N"]]:
        """The documents of the next row."""
        if self._to_restore:
            documents = {draw: self._documents(draw) for draw, _ in self._to_restore}
            for draw, part in self._to_restore:
                self._packer.add(documents[draw][part], (draw, part))
            self._to_restore = []
        consecutive = 0
        while not self._packer.is_full:
            try:
                for part, ids in enumerate(self._documents(self._next)):
                    self._packer.add(ids, (self._next, part))
                consecutive = 0
            except RecordError as error:
                if not self.source.skip_bad:
                    raise
                consecutive += 1
                _, epoch = self._position(self._next)
                if epoch == 0:  # every record comes once an epoch, so that each is counted once
                    self.skipped += 1
                    self.problems.append(str(error))
                if consecutive == MAX_CONSECUTIVE_BAD_RECORDS:
                    raise RecordError(f"{consecutive} unusable records in a row, the last: {error}") from error
            self._next += 1
        return self._packer.take()

    def state(self) -> dict[str, Any]:
        return {
            "records": self.source.records.fingerprint,
            "next": self._next,
            "skipped": self.skipped,
            "waiting": self._to_restore or [list(tag) for _, tag in self._packer.waiting],
        }

    def _documents(self, draw: int) -> list[Int32[np.ndarray, " _N"]]:
        return self.source.documents(*self._position(draw))

    def _position(self, draw: int) -> tuple[int, int]:
        """Record and epoch of a draw."""
        return self.source.order[draw * self._streams + self._stream]
