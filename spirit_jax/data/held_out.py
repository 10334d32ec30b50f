"""Held-out batches for evaluation."""

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.config import DataConfig
from spirit_jax.data.packing import HostBatch, Packer, empty_batch, fill_row
from spirit_jax.data.source import Source, open_source
from spirit_jax.data.unit_record import RecordError
from spirit_jax.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


def held_out_batches(
    config: DataConfig,
    vocabulary: Vocabulary,
    sequence_length: int,
    batch_size: int,
    source: str,
    host_index: int = 0,
    host_count: int = 1,
    seed: int = 0,
) -> Iterator[HostBatch]:
    """Yield this host's rows of every batch of a source's held-out split.

    Each record occurs once, in order, with the random draws of epoch 0. The batches are finite and the same at every
    call; the last one is filled up with rows of padding. Unusable records are an error or skipped, as in training.

    Args:
        config: the mixture.
        vocabulary: of the model.
        sequence_length: slots of a row.
        batch_size: rows of a batch over all hosts.
        source: name in the mixture.
        host_index: number of this host.
        host_count: number of hosts.
        seed: of the run.

    Raises:
        SpiritError: the source has no held-out split, or the hosts do not divide the batch.
        RecordError: the records cannot be opened, or one cannot be used.
    """
    if source not in config.sources:
        raise SpiritError(f"data: source {source!r} has no held_out_split")
    if batch_size % host_count:
        raise SpiritError(f"data: {host_count} hosts do not divide the batch of {batch_size} rows")
    opened = open_source(config, source, vocabulary, sequence_length, seed, held_out=True)
    index = config.source_names.index(source) if source in config.source_names else -1
    rows = _rows(opened, sequence_length)
    of_host = slice(host_index * batch_size // host_count, (host_index + 1) * batch_size // host_count)
    while filled := list(itertools.islice(rows, batch_size)):
        batch = empty_batch(batch_size, sequence_length)
        for number, documents in enumerate(filled):
            fill_row(batch, number, documents, len(vocabulary.prefix))
        batch["sources"] = np.full(batch_size, index, np.int32)
        yield {name: array[of_host] for name, array in batch.items()}


def _rows(source: Source, sequence_length: int) -> Iterator[Sequence[np.ndarray]]:
    """The documents of each row."""
    packer = Packer(sequence_length)
    for record in range(len(source.records)):
        try:
            for ids in source.documents(record, epoch=0):
                packer.add(ids, None)
        except RecordError as error:
            if not source.skip_bad:
                raise
            _log.warning("skipped: %s", error)
        while packer.is_full:
            yield packer.take()
    while packer.waiting:
        yield packer.take()
