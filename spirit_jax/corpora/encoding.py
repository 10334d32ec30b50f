"""Encoding jobs: speech and a speech tokenizer give unit records; text gives text records.

A job encodes the blocks of a split (`blocks.py`) and stores each in `DIR/.encoding-SPLIT/` until all are there. Then
the blocks become the record files. A job that was killed resumes at its first missing block, and any number of
processes, on one host or on several, share one job (`shared_work.py`). `DIR` may be in a bucket.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError, SpiritError, printable
from spirit_jax.core.paths import as_path
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.blocks import BlockEncoder, EncodedBlock
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.readers.prepared import open_corpus
from spirit_jax.corpora.shared_work import ALONE, SharedWork, Sharing
from spirit_jax.corpora.summary import EncodingSummary, Totals
from spirit_jax.data.records import (
    METADATA,
    RecordWriter,
    check_split_name,
    check_units,
    count_files,
    read_metadata,
    reshard,
)
from spirit_jax.speech import SpeechTokenizer

_LOG = logging.getLogger(__name__)


class EncodingError(JobError):
    """A corpus that cannot be encoded; the message names it."""


class OutputError(SpiritError):
    """An output directory with results of another job; the message says how to replace them."""


def encode_corpus(
    corpus: str | os.PathLike,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    splits: Sequence[str] = ("train", "validation"),
    *,
    shards: int | None = None,
    skip_bad: bool = True,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, EncodingSummary]:
    """Encode splits of a bundled corpus or a prepared TFDS directory into a directory of unit records.

    A finished split is not encoded again while the input and the encoders stay the same.

    Args:
        corpus: name or directory, as for `open_corpus`.
        tokenizer: may be None for a corpus of text.
        directory: directory of records; created if needed.
        splits: names of the splits.
        shards: record files of a split; a finished split is written again if it has another number. None keeps a
            finished split as it is, and is one file for a new one.
        skip_bad: whether unusable utterances are left out, logged and counted; otherwise the first one is an error.
        progress: whether to show a progress bar.
        overwrite: whether to replace records, and finished blocks of an unfinished job, of another input or tokenizer.

    Returns:
        The summary of each split.

    Raises:
        CorpusError: there is no such corpus or split.
        EncodingError: speech without a tokenizer, or no usable utterance.
        OutputError: the directory holds results of another job, and `overwrite` is false.
        RecordError: the directory holds other splits with units of another tokenizer, or records cannot have a split of
            this name.
        LockError: the directory was removed while the job ran.
        BucketError, BucketJobError: the directory is in a bucket that cannot be used.
    """
    summaries = {}
    for split in splits:
        summaries[split] = encode_split(
            open_corpus(corpus, split),
            tokenizer,
            directory,
            shards=shards,
            skip_bad=skip_bad,
            progress=progress,
            overwrite=overwrite,
        )
    return summaries


def encode_split(
    corpus: Input,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    *,
    shards: int | None = None,
    skip_bad: bool = True,
    progress: bool = True,
    overwrite: bool = False,
    sharing: Sharing = ALONE,
    store_blocks: Callable[[list[int]], None] | None = None,
) -> EncodingSummary:
    """Encode one opened split; see `encode_corpus`. Calling it again after a kill resumes the job.

    Processes that call it at the same time share the work, and each returns when the records are in place.

    Args:
        sharing: how they share it.
        store_blocks: encodes and stores blocks elsewhere, such as `beam.BeamWorkers`; this process does what is left.

    Raises:
        EncodingError, OutputError, RecordError, LockError, BucketError, BucketJobError: as `encode_corpus`.
    """
    output, units = as_path(directory), ""
    if corpus.has_speech:
        if tokenizer is None:
            raise EncodingError(f"corpus {corpus.name!r} holds speech: a speech tokenizer is needed to encode it")
        units = tokenizer.fingerprint
    check_split_name(corpus.split)
    check_units(output, corpus.split, units)
    fingerprint = corpus.fingerprint
    finished = _finished(output, corpus.split, fingerprint, units, overwrite)
    if finished and (shards is None or shards == count_files(output, corpus.split)):
        _LOG.info("%s: split %s is already encoded, nothing to do", output, corpus.split)
        return finished
    if finished and shards is not None:
        reshard(output, corpus.split, shards)
        _LOG.info("%s: split %s is already encoded, written again in %d files", output, corpus.split, shards)
        return finished
    encoder = BlockEncoder(corpus, tokenizer, skip_bad=skip_bad)
    store = block_store(corpus, tokenizer, output, encoder.size)
    _clear_other_blocks(store, overwrite)
    if store_blocks is not None and (missing := sorted({*range(encoder.count)} - store.stored())):
        store_blocks(missing)

    def result() -> EncodingSummary | None:
        return _finished(output, corpus.split, fingerprint, units, True)

    with SharedWork(store, encoder.count, lambda: result() is not None, sharing) as work:
        _encode_blocks(encoder, work, store, corpus, progress)
        with work.result() as is_ours:
            if is_ours:
                totals = _write_records(corpus, store, encoder.count, output, shards or 1, units)
                summary = totals.summary(corpus, units, () if tokenizer is None else tokenizer.unit_counts())
                summary.save(output)
    summary = result()
    if summary is None:
        raise EncodingError(f"{output}: was removed or replaced while the job ran; start the same command again")
    store.folder.clear()
    return summary


def block_store(
    corpus: Input, tokenizer: SpeechTokenizer | None, directory: str | os.PathLike, size: int
) -> BlockStore[EncodedBlock]:
    """The finished blocks of a split, with `size` utterances each, beside its records."""
    units = tokenizer.fingerprint if tokenizer is not None and corpus.has_speech else ""
    job = {"corpus": corpus.fingerprint, "units": units, "block": size}
    return BlockStore(as_path(directory) / f".encoding-{corpus.split}", EncodedBlock, job)


def _finished(directory: Any, split: str, corpus: str, units: str, overwrite: bool) -> EncodingSummary | None:
    """The summary of a split that this job has finished; None if there is work to do.

    Raises:
        OutputError: there are records of another job, and `overwrite` is false.
    """
    summary = EncodingSummary.load(directory, split)
    if summary and (summary.corpus, summary.units) == (corpus, units):
        return summary if summary.is_complete(directory) else None
    if not overwrite and (directory / METADATA).exists() and split in read_metadata(directory)["splits"]:
        other = "another tokenizer" if summary and summary.corpus == corpus else "another input"
        raise OutputError(
            f"{directory}: holds records of split {split!r} from {other}; choose another --output or another --split, "
            "or replace them with --overwrite"
        )
    return None


def _clear_other_blocks(store: BlockStore, overwrite: bool) -> None:
    others = store.blocks_of_another_job()
    if others and not overwrite:
        raise OutputError(
            f"{store.folder / ''}: holds {others} finished blocks of an unfinished job on another input or with "
            "another tokenizer; finish that job, choose another --output, or discard them with --overwrite"
        )
    if others:
        store.folder.clear()


def _encode_blocks(encoder: BlockEncoder, work: SharedWork, store: BlockStore, corpus: Input, progress: bool) -> None:
    """Encode blocks until all are stored, and log what they leave out."""
    stored = set()
    for block in sorted(store.stored()):
        if (finished := store.read(block)) is not None:
            stored.add(block)
            _log_left_out(finished)
        else:  # damaged: encoded again
            store.folder.remove(store.name(block))
    started, samples, bad = time.perf_counter(), 0, 0
    bar = tqdm.tqdm(
        total=sum(len(encoder.indices(block)) for block in range(encoder.count) if block not in stored),
        desc=f"{corpus.name} {corpus.split}",
        unit="utterance",
        disable=not progress,
    )
    with bar, encoder, logging_redirect_tqdm():  # a message gets a line of its own
        for block, following in work.blocks():
            for later in (block, following):  # the next block is loaded while this one is encoded
                if later is not None:
                    encoder.load_ahead(later)
            encoded = encoder.encode(block)
            work.put(block, encoded)
            _log_left_out(encoded)
            samples, bad = samples + encoded.samples, bad + len(encoded.bad)
            bar.update(len(encoder.indices(block)))
            factor = samples / SAMPLE_RATE / (time.perf_counter() - started)
            bar.set_postfix_str(f"{factor:.0f} x real time, {bad} bad" if samples else f"{bad} bad", refresh=False)


def _log_left_out(block: EncodedBlock) -> None:
    for reason in block.bad:
        logging.warning("left out: %s", printable(reason))


def _write_records(corpus: Input, store: BlockStore, count: int, directory: Any, shards: int, units: str) -> Totals:
    """Write all blocks as the record files of the split, in the order of the corpus."""
    totals = Totals()
    with RecordWriter(directory, corpus.split, shards, name=corpus.name, units=units) as writer:
        for block in range(count):
            stored = store.read(block)
            if stored is None:
                raise EncodingError(
                    f"{store.folder / store.name(block)}: was written by another job; run one job a split at a time"
                )
            for record in stored.records:
                writer.write_bytes(record)
            totals.add(stored)
        if not totals.records:
            raise EncodingError(
                f"{corpus.location}: none of {len(corpus)} utterances of split {corpus.split!r} can be used"
            )
    return totals
