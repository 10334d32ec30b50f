"""A source of the mixture, opened: the documents of its records, and the order in which they are drawn."""

import dataclasses
import logging
import pathlib
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int32

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.pairs import PairRecords, PairSequencer
from spirit_jax.data.records import RecordSource
from spirit_jax.data.sampling import Shuffle, record_rng
from spirit_jax.data.sequences import Sequencer
from spirit_jax.data.unit_record import RecordError
from spirit_jax.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


class Records(Protocol):
    """Random access to what a split holds: unit records, or pairs."""

    directory: pathlib.Path
    fingerprint: str
    damaged: dict[int, str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class RecordSequencer(Protocol):
    """Makes the documents of what `Records` holds."""

    vocabulary: Vocabulary

    @property
    def is_random(self) -> bool: ...
    def __call__(self, record: Any, rng: np.random.Generator | None, /) -> list[Int32[np.ndarray, " _N"]]: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a source, ready to draw documents from."""

    name: str
    """Name in the mixture."""
    records: Records
    """The split."""
    order: Shuffle
    """Which record is drawn at which position."""
    sequencer: RecordSequencer
    """Makes the documents of a record."""
    seed: int
    """Seed of the run."""
    skip_bad: bool
    """Whether records that cannot be used are counted and left out instead of raising."""

    def documents(self, record: int, epoch: int) -> list[Int32[np.ndarray, " _N"]]:
        """The documents of one record in one epoch.

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


def open_source(
    config: DataConfig, name: str, vocabulary: Vocabulary, sequence_length: int, seed: int, *, held_out: bool = False
) -> Source:
    """Open the training split of a source, or all of its held-out split.

    Damaged record files are logged and their records skipped where the config skips bad records.

    Raises:
        RecordError: names the source; its records cannot be opened, or there are none.
        SpiritError: the source has no held-out split.
    """
    source = config.sources[name]
    split, fraction = (source.held_out_split, 1.0) if held_out else (source.split, source.fraction)
    if split is None:
        raise SpiritError(f"data: source {name!r} has no held_out_split")
    skip_bad = config.on_bad_record == "skip"
    try:
        records: Records
        if source.recipe == "pairs":
            records = PairRecords(source.path, split)
        else:
            records = RecordSource(source.path, split, allow_damaged=skip_bad)
        for problem in records.damaged.values():
            _log.warning("all its records will be skipped: source %r: %s", name, problem)
        if not len(records):
            raise RecordError(f"{source.path}: split {split!r} has no records")
    except RecordError as error:
        raise RecordError(f"source {name!r}: {error}") from error
    return Source(
        name=name,
        records=records,
        order=Shuffle(len(records), seed, name, fraction),
        sequencer=_sequencer(source, vocabulary, sequence_length + 1),
        seed=seed,
        skip_bad=skip_bad,
    )


def _sequencer(source: SourceConfig, vocabulary: Vocabulary, max_ids: int) -> RecordSequencer:
    if source.recipe == "pairs":
        return PairSequencer(vocabulary, source.template, max_ids)
    return Sequencer(
        vocabulary, source.recipe, max_ids, source.text_words, source.speech_words, source.learn == "output"
    )
