"""Logical streams: each makes rows out of its own share of every source, with a state that is a few numbers.

Stream v of V makes rows v, V + v, 2 V + v, ... of the run. Its k-th draw from a source is position k V + v of that source's
shuffled sequence, so what a stream yields depends on (config, seed, v) and on nothing else: not on hosts, workers or time.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from spirit_jax.data.packing import Packer
from spirit_jax.data.records import RecordError, RecordSource
from spirit_jax.data.sampling import Mixture, Shuffle, record_rng
from spirit_jax.data.sequences import Sequencer

_HOPELESS = 1000  # so many unusable records in a row are a wrong setting, not bad luck


@dataclasses.dataclass(frozen=True)
class Source:
    """One source, ready to draw documents from.

    Args:
        name: in the mixture.
        records: the split.
        order: which record is drawn when.
        sequencer: record to documents.
        seed: of the run.
        skip_bad: count and leave out records that cannot be used instead of raising.
    """

    name: str
    records: RecordSource
    order: Shuffle
    sequencer: Sequencer
    seed: int
    skip_bad: bool

    def documents(self, record: int, epoch: int) -> list[Int32[np.ndarray, " _N"]]:
        """Documents of one record in one epoch.

        Raises:
            RecordError: the record cannot be read or used; names the source.
        """
        try:
            data = self.records[record]
            data.validate()
            rng = record_rng(self.seed, self.name, record, epoch) if self.sequencer.is_random else None
            return self.sequencer(data, rng)
        except RecordError as error:
            raise RecordError(f"source {self.name!r}: {error}") from error


class _Draws:
    """One stream's rows from one source."""

    def __init__(self, source: Source, stream: int, streams: int, sequence_length: int, state: dict | None):
        self.source, self._stream, self._streams = source, stream, streams
        self._packer = Packer(sequence_length)
        self._next, self.skipped, self.problems = 0, 0, []
        if state is not None:
            if state["records"] != source.records.fingerprint:
                raise ValueError(
                    f"source {source.name!r}: {source.records.directory} does not hold the records that the saved data "
                    "state was made with; restore them or start without the state"
                )
            self._next, self.skipped = state["next"], state["skipped"]
        self._to_restore = state["waiting"] if state is not None else []

    def _documents(self, draw: int) -> list[np.ndarray]:
        return self.source.documents(*self.source.order[draw * self._streams + self._stream])

    def row(self) -> list[Int32[np.ndarray, " _N"]]:
        """Documents of the next row."""
        if self._to_restore:
            documents = {draw: self._documents(draw) for draw, _ in self._to_restore}
            for draw, part in self._to_restore:
                self._packer.add(documents[draw][part], (draw, part))
            self._to_restore = []
        in_a_row = 0
        while not self._packer.is_full:
            try:
                for part, ids in enumerate(self._documents(self._next)):
                    self._packer.add(ids, (self._next, part))
                in_a_row = 0
            except RecordError as error:
                if not self.source.skip_bad:
                    raise
                self.skipped += 1
                in_a_row += 1
                self.problems.append(str(error))
                if in_a_row == _HOPELESS:
                    raise RecordError(f"{in_a_row} unusable records in a row, the last: {error}") from error
            self._next += 1
        return self._packer.take()

    def state(self) -> dict:
        return {
            "records": self.source.records.fingerprint,
            "next": self._next,
            "skipped": self.skipped,
            "waiting": self._to_restore or [list(tag) for _, tag in self._packer.waiting],
        }


class Stream:
    """Rows of one logical stream.

    Args:
        sources: of the mixture.
        mixture: source of each row of the run.
        stream, streams: its number, and how many there are.
        sequence_length: slots of a row.
        state: of `state()`, to go on from there.

    Raises:
        ValueError: the state is of other sources, records, streams or sequence length.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        stream: int,
        streams: int,
        sequence_length: int,
        state: dict | None = None,
    ):
        self._mixture, self._stream, self._rows = mixture, stream, 0
        self._shape = {"streams": streams, "sequence_length": sequence_length}
        saved = {}
        if state is not None:
            found = {key: state[key] for key in self._shape}
            if found != self._shape:
                raise ValueError(f"the saved data state is of {found}, this run has {self._shape}")
            saved, names = state["sources"], [source.name for source in sources]
            if sorted(saved) != sorted(names):
                raise ValueError(f"the saved data state has sources {sorted(saved)}, this run has {sorted(names)}")
            self._rows = state["rows"]
        self._draws = [_Draws(source, stream, streams, sequence_length, saved.get(source.name)) for source in sources]

    def row(self) -> tuple[int, list[Int32[np.ndarray, " _N"]]]:
        """`(source, documents)` of the next row; the documents together take at most `sequence_length` slots."""
        source = self._mixture[self._rows * self._shape["streams"] + self._stream]
        documents = self._draws[source].row()
        self._rows += 1
        return source, documents

    def take_problems(self) -> list[str]:
        """What was wrong with the records skipped since the last call."""
        problems = [problem for draws in self._draws for problem in draws.problems]
        for draws in self._draws:
            draws.problems.clear()
        return problems

    def state(self) -> dict:
        """Where the stream stands, JSON-able: rows made, and for each source the draws made and those still waiting."""
        return {**self._shape, "rows": self._rows, "sources": {d.source.name: d.state() for d in self._draws}}
