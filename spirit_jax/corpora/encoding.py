"""Encoding jobs: speech and a speech tokenizer give unit records; text gives text records.

A job encodes the blocks of a split (`blocks.py`) and stores each in `DIR/.encoding-SPLIT/` until all are there. Then
the blocks become the record files. A job that was killed resumes at its first missing block, and several hosts share
one job. A lock keeps a second process out that would do the same share of the work.
"""

import collections
import dataclasses
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Sequence

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError, SpiritError, printable
from spirit_jax.core.locks import Lock, hold
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.blocks import BlockEncoder, EncodedBlock
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.readers.prepared import open_corpus
from spirit_jax.corpora.summary import EncodingSummary, Totals
from spirit_jax.data.records import (
    METADATA,
    RecordSource,
    RecordWriter,
    check_split_name,
    check_units,
    read_metadata,
    reshard,
)
from spirit_jax.speech import SpeechTokenizer

_LOG = logging.getLogger(__name__)


class EncodingError(JobError):
    """A corpus that cannot be encoded; the message names it."""


class OutputError(SpiritError):
    """An output directory with results of another job; the message says how to replace them."""


@dataclasses.dataclass(frozen=True)
class HostShare:
    """Which blocks this host encodes: every `count`-th, from block `index` on. All hosts share the output directory."""

    index: int = 0
    """Number of this host; host 0 waits for the others and writes the records."""
    count: int = 1
    """Number of hosts."""
    timeout: float = 1800
    """Seconds without a new block from another host after which host 0 gives up."""


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
        LockError: another process does the same work.
    """
    summaries = {}
    for split in splits:
        summary = encode_split(
            open_corpus(corpus, split),
            tokenizer,
            directory,
            shards=shards,
            skip_bad=skip_bad,
            progress=progress,
            overwrite=overwrite,
        )
        assert summary is not None  # this is the only host
        summaries[split] = summary
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
    share: HostShare = HostShare(),
) -> EncodingSummary | None:
    """Encode one opened split; see `encode_corpus`. Calling it again after a kill resumes the job.

    Args:
        share: the part of the work that falls to this host.

    Returns:
        The summary; None on every host but host 0, which writes the records.

    Raises:
        EncodingError: as `encode_corpus`; on host 0 also when another host stays without a new block for
            `share.timeout` seconds. Finished blocks stay, and both hosts resume when they are started again.
        OutputError, RecordError, LockError: as `encode_corpus`.
    """
    directory, units = pathlib.Path(directory), ""
    if corpus.has_speech:
        if tokenizer is None:
            raise EncodingError(f"corpus {corpus.name!r} holds speech: a speech tokenizer is needed to encode it")
        units = tokenizer.fingerprint
    check_split_name(corpus.split)
    check_units(directory, corpus.split, units)
    fingerprint = corpus.fingerprint
    finished = _finished(directory, corpus.split, fingerprint, units, overwrite)
    if finished and shards in (None, RecordSource(directory, corpus.split).shards):
        _LOG.info("%s: split %s is already encoded, nothing to do", directory, corpus.split)
        return finished
    encoder = BlockEncoder(corpus, tokenizer, skip_bad=skip_bad)
    job = {"corpus": fingerprint, "units": units, "block": encoder.size}
    store = BlockStore(directory / f".encoding-{corpus.split}", EncodedBlock, job)
    lock_file = directory / f".encoding-{corpus.split}.host-{share.index}.lock"
    with hold(lock_file, f"encoding of split {corpus.split}") as lock:
        finished = _finished(directory, corpus.split, fingerprint, units, overwrite)
        if finished:  # also where another process finished it just now
            if shards not in (None, RecordSource(directory, corpus.split).shards):
                reshard(directory, corpus.split, shards)
                _LOG.info("%s: split %s is already encoded, written again in %d files", directory, corpus.split, shards)
            return finished
        _clear_other_blocks(store, overwrite)
        _encode_missing_blocks(encoder, store, range(share.index, encoder.count, share.count), corpus, progress, lock)
        if share.index:
            return None
        _await_other_hosts(store, encoder.count, share, lock)
        totals = _write_records(corpus, store, encoder.count, directory, shards or 1, units)
        summary = totals.summary(corpus, units, () if tokenizer is None else tokenizer.unit_counts())
        summary.save(directory)
        shutil.rmtree(store.directory)
    return summary


def _finished(directory: pathlib.Path, split: str, corpus: str, units: str, overwrite: bool) -> EncodingSummary | None:
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
            f"{store.directory}: holds {others} finished blocks of an unfinished job on another input or with another "
            "tokenizer; finish that job, choose another --output, or discard them with --overwrite"
        )
    if others:
        shutil.rmtree(store.directory)


def _encode_missing_blocks(
    encoder: BlockEncoder, store: BlockStore, blocks: Sequence[int], corpus: Input, progress: bool, lock: Lock
) -> None:
    """Encode those of the blocks that are not stored yet, and log what all of them left out."""
    missing = []
    for block in blocks:
        if (stored := store.read(block)) is None:
            missing.append(block)
        else:
            _log_left_out(stored)
    started, samples, bad = time.perf_counter(), 0, 0
    bar = tqdm.tqdm(
        total=sum(len(encoder.indices(block)) for block in missing),
        desc=f"{corpus.name} {corpus.split}",
        unit="utterance",
        disable=not progress,
    )
    with bar, encoder, logging_redirect_tqdm():  # a message gets a line of its own
        for position, block in enumerate(missing):
            for later in missing[position : position + 2]:  # the next block is loaded while this one is encoded
                encoder.load_ahead(later)
            encoded = encoder.encode(block)
            lock.check()
            store.write(block, encoded)
            _log_left_out(encoded)
            samples, bad = samples + encoded.samples, bad + len(encoded.bad)
            bar.update(len(encoder.indices(block)))
            factor = samples / SAMPLE_RATE / (time.perf_counter() - started)
            bar.set_postfix_str(f"{factor:.0f} x real time, {bad} bad" if samples else f"{bad} bad", refresh=False)


def _log_left_out(block: EncodedBlock) -> None:
    for reason in block.bad:
        logging.warning("left out: %s", printable(reason))


def _await_other_hosts(store: BlockStore, count: int, share: HostShare, lock: Lock) -> None:
    """Wait until the blocks of all hosts are stored; every host that lacks some must finish one within the timeout."""
    missing: Sequence[int] = range(count)
    last_progress: dict[int, tuple[int, float]] = {}  # of each host: blocks to go, and since when
    while missing := [block for block in missing if not store.path(block).exists()]:
        lock.check()
        own = next((block for block in missing if block % share.count == share.index), None)
        if own is not None:
            raise EncodingError(f"{store.path(own)}: was removed while the job ran; start the same command again")
        to_go, now = collections.Counter(block % share.count for block in missing), time.monotonic()
        for host, blocks in sorted(to_go.items()):
            known = last_progress.get(host)
            if known is None or known[0] != blocks:
                last_progress[host] = blocks, now
                logging.warning("host %d has %d blocks to go", host, blocks)
            elif now - known[1] >= share.timeout:
                raise EncodingError(
                    f"{store.directory}: host {host} of {share.count} has finished no block for {share.timeout:.0f} s "
                    f"and lacks {blocks}. Start it again (the same command with --host_index {host} --host_count "
                    f"{share.count}), then this one; finished blocks are kept"
                )
        time.sleep(min(5, share.timeout))


def _write_records(
    corpus: Input, store: BlockStore, count: int, directory: pathlib.Path, shards: int, units: str
) -> Totals:
    """Write all blocks as the record files of the split, in the order of the corpus."""
    totals = Totals()
    with RecordWriter(directory, corpus.split, shards, name=corpus.name, units=units) as writer:
        for block in range(count):
            stored = store.read(block)
            if stored is None:
                raise EncodingError(f"{store.path(block)}: was written by another job; run one job a split at a time")
            for record in stored.records:
                writer.write_bytes(record)
            totals.add(stored)
        if not totals.records:
            raise EncodingError(
                f"{corpus.location}: none of {len(corpus)} utterances of split {corpus.split!r} can be used"
            )
    return totals
