"""Encoding jobs: speech and a speech tokenizer give unit records; text gives text records.

A job encodes the blocks of a split (`blocks.py`) and stores each in `DIR/.encoding-SPLIT/` until all are there. Then
the blocks become the record files. A job that was killed resumes at its first missing block, and several hosts share
one job.
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

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.blocks import BlockEncoder, EncodedBlock
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.readers.prepared import open_corpus
from spirit_jax.corpora.summary import EncodingSummary, Totals
from spirit_jax.data.records import RecordWriter
from spirit_jax.speech import SpeechTokenizer


class EncodingError(JobError):
    """A corpus that cannot be encoded; the message names it."""


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
    shards: int = 1,
    skip_bad: bool = True,
    progress: bool = True,
) -> dict[str, EncodingSummary]:
    """Encode splits of a bundled corpus or a prepared TFDS directory into a directory of unit records.

    A finished split is not encoded again while the input and the encoders stay the same.

    Args:
        corpus: name or directory, as for `open_corpus`.
        tokenizer: may be None for a corpus of text.
        directory: directory of records; created if needed.
        splits: names of the splits.
        shards: record files of a split.
        skip_bad: whether unusable utterances are left out, logged and counted; otherwise the first one is an error.
        progress: whether to show a progress bar.

    Returns:
        The summary of each split.

    Raises:
        CorpusError: there is no such corpus or split.
        EncodingError: speech without a tokenizer, or no usable utterance.
        RecordError: the directory holds other splits with units of another tokenizer.
    """
    summaries = {}
    for split in splits:
        summary = encode_split(
            open_corpus(corpus, split), tokenizer, directory, shards=shards, skip_bad=skip_bad, progress=progress
        )
        assert summary is not None  # this is the only host
        summaries[split] = summary
    return summaries


def encode_split(
    corpus: Input,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    *,
    shards: int = 1,
    skip_bad: bool = True,
    progress: bool = True,
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
    """
    directory, units = pathlib.Path(directory), ""
    if corpus.has_speech:
        if tokenizer is None:
            raise EncodingError(f"corpus {corpus.name!r} holds speech: a speech tokenizer is needed to encode it")
        units = tokenizer.fingerprint
    fingerprint = corpus.fingerprint
    finished = EncodingSummary.load_finished(directory, corpus.split)
    if finished and (finished.corpus, finished.units) == (fingerprint, units):
        return finished
    encoder = BlockEncoder(corpus, tokenizer, skip_bad=skip_bad)
    job = {"corpus": fingerprint, "units": units, "block": encoder.size}
    store = BlockStore(directory / f".encoding-{corpus.split}", EncodedBlock, job)
    _encode_missing_blocks(encoder, store, range(share.index, encoder.count, share.count), corpus, progress)
    if share.index:
        return None
    _await_other_hosts(store, encoder.count, share)
    totals = _write_records(corpus, store, encoder.count, directory, shards, units)
    summary = totals.summary(corpus, units)
    summary.save(directory)
    shutil.rmtree(store.directory)
    return summary


def _encode_missing_blocks(
    encoder: BlockEncoder, store: BlockStore, blocks: Sequence[int], corpus: Input, progress: bool
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
    with bar, encoder:
        for position, block in enumerate(missing):
            for later in missing[position : position + 2]:  # the next block is loaded while this one is encoded
                encoder.load_ahead(later)
            encoded = encoder.encode(block)
            store.write(block, encoded)
            _log_left_out(encoded)
            samples, bad = samples + encoded.samples, bad + len(encoded.bad)
            bar.update(len(encoder.indices(block)))
            factor = samples / SAMPLE_RATE / (time.perf_counter() - started)
            bar.set_postfix_str(f"{factor:.0f} x real time, {bad} bad" if samples else f"{bad} bad", refresh=False)


def _log_left_out(block: EncodedBlock) -> None:
    for reason in block.bad:
        logging.warning("left out: %s", reason)


def _await_other_hosts(store: BlockStore, count: int, share: HostShare) -> None:
    """Wait until the blocks of all hosts are stored; every host that lacks some must finish one within the timeout."""
    missing: Sequence[int] = range(count)
    last_progress: dict[int, tuple[int, float]] = {}  # of each host: blocks to go, and since when
    while missing := [block for block in missing if not store.path(block).exists()]:
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
