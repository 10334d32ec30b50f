"""A corpus of audio and a speech tokenizer give unit records; a corpus of text gives text records.

The work is cut into blocks of consecutive utterances. Each finished block lies, whole, in `DIR/.encoding-SPLIT/` until all
are there and become the record files; so a job that was killed goes on where it was, and hosts share out the blocks.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import tqdm

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError
from spirit_jax.core.files import write_file
from spirit_jax.corpora import Utterance, open_corpus
from spirit_jax.corpora.inputs import Input
from spirit_jax.data.records import RecordError, RecordSource, RecordWriter, UnitRecord
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.scratch.kmeans import one_thread
from spirit_jax.units import NAMES, SIZES, SpeechUnits

BLOCK, TEXT_BLOCK = 64, 4096
"""Utterances, or documents of text, that are encoded, written and resumed together."""

_BLOCK_FORMAT = 1


class EncodingError(JobError):
    """A corpus that cannot be encoded; the message names it."""


@dataclasses.dataclass(frozen=True)
class EncodingSummary:
    """What became of one split; kept beside its records as `encoding-SPLIT.json`."""

    corpus: str
    """Fingerprint of the split's files."""
    units: str
    """Fingerprint of the encoders, "" for text."""
    split: str
    records: int
    """Utterances or documents written."""
    bad: int
    """Those left out, each logged with its reason."""
    hours: float
    """Of speech written."""
    words: int
    """Aligned words written, or blank-separated words of text."""
    tokens_per_second: dict[str, float]
    """Of speech, in each stream after deduplication ("Hu", "Pi", "St")."""
    seconds: float
    """That encoding took, summed over hosts and over interruptions."""
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """How often each unit of each stream occurs, at the frame rate."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of speech encoded in a second."""
        return self.hours * 3600 / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        text = f"{self.split}: {self.records} records, {self.words} words"
        if self.hours:
            rates = ", ".join(f"{rate:.1f} {name}" for name, rate in self.tokens_per_second.items())
            text += f", {self.hours:.2f} h of speech at {rates} tokens/s, encoded {self.real_time_factor:.0f} x faster than real time"
        text += f"; {self.bad} bad ones left out" if self.bad else ""
        return "\n".join([text, *(f"  {name} {_describe(counts)}" for name, counts in self.histograms.items())])


def _describe(counts: Sequence[int]) -> str:
    """A histogram in words: how many units are in use, how evenly, and which most."""
    share = np.array(counts) / max(sum(counts), 1)
    used = share[share > 0]
    most = ", ".join(f"{unit} {share[unit]:.1%}" for unit in np.argsort(-share, kind="stable")[:5] if share[unit])
    perplexity = np.exp(-np.sum(used * np.log(used)))
    return f"{len(used)} of {len(share)} units in use, perplexity {perplexity:.0f}; most frequent: {most}"


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

    A split that is there already, made from the same files by the same encoders, is not encoded again.

    Args:
        corpus: name or directory, as for `open_corpus`.
        tokenizer: may be None for a corpus of text.
        directory: of records, made if needed.
        splits: which; they must exist.
        shards: record files a split.
        skip_bad: leave out what cannot be used (logged and counted); otherwise the first such utterance is an error.
        progress: show a bar with the real-time factor.

    Raises:
        CorpusError: no such corpus or split.
        EncodingError: speech without a tokenizer, or nothing usable.
        RecordError: the directory holds other splits with units of another tokenizer.
    """
    return {
        split: encode_split(
            open_corpus(corpus, split), tokenizer, directory, shards=shards, skip_bad=skip_bad, progress=progress
        )
        for split in splits
    }


def encode_split(
    corpus: Input,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    *,
    shards: int = 1,
    skip_bad: bool = True,
    progress: bool = True,
    host: int = 0,
    hosts: int = 1,
    host_timeout: float = 1800,
) -> EncodingSummary | None:
    """Encode one opened split; see `encode_corpus`. Killed and called again, it goes on where it was.

    With several hosts, each is called with its number and the same shared directory and encodes every `hosts`-th block.
    Host 0 waits for the others and writes the records; the others give None.

    Raises:
        EncodingError: as `encode_corpus`, and on host 0 when another host has not finished a block for `host_timeout`
            seconds; finished blocks stay, and both go on when they are called again.
    """
    if corpus.has_speech and tokenizer is None:
        raise EncodingError(f"corpus {corpus.name!r} holds speech: a speech tokenizer is needed to encode it")
    directory, split = pathlib.Path(directory), corpus.split
    units = tokenizer.fingerprint if corpus.has_speech else ""
    fingerprint = corpus.fingerprint
    done = _finished(directory, split)
    if done and (done.corpus, done.units) == (fingerprint, units):
        return done
    blocks = _Blocks(directory / f".encoding-{split}", fingerprint, units, len(corpus))
    tokenizer = tokenizer if corpus.has_speech else None
    _encode_blocks(corpus, tokenizer, blocks, range(host, blocks.count, hosts), skip_bad, progress)
    if host:
        return None
    _await_others(blocks, hosts, host_timeout)
    summary = _gather(corpus, blocks, directory, shards, units)
    write_file(_summary_path(directory, split), json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    shutil.rmtree(blocks.directory)
    return summary


class _Blocks:
    """The finished blocks of one split. Those of other files or other encoders are thrown away."""

    def __init__(self, directory: pathlib.Path, corpus: str, units: str, utterances: int):
        self.size = BLOCK if units else TEXT_BLOCK
        self.directory, self.count, self._utterances = directory, -(-utterances // self.size), utterances
        self._job = {"format": _BLOCK_FORMAT, "corpus": corpus, "units": units, "block": self.size}

    def indices(self, block: int) -> range:
        return range(block * self.size, min((block + 1) * self.size, self._utterances))

    def path(self, block: int) -> pathlib.Path:
        return self.directory / f"{block:08d}.msgpack"

    def read(self, block: int) -> dict[str, Any] | None:
        """A finished block, None where it is not there or is another job's."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            content = msgpack.unpackb(self.path(block).read_bytes())
            if content["job"] == self._job:
                return content
            self.path(block).unlink()
        return None

    def write(self, block: int, content: dict[str, Any]) -> None:
        write_file(self.path(block), msgpack.packb({**content, "job": self._job}))


def _await_others(blocks: _Blocks, hosts: int, timeout: float) -> None:
    """Wait until the blocks of all hosts are there, as long as each host that lacks some goes on finishing others."""
    missing, heard = range(blocks.count), {}
    while missing := [block for block in missing if not blocks.path(block).exists()]:
        left, now = collections.Counter(block % hosts for block in missing), time.monotonic()
        for host, count in sorted(left.items()):
            if heard.get(host, (None, now))[0] != count:
                heard[host] = count, now
                logging.warning("host %d has %d blocks to go", host, count)
            elif now - heard[host][1] >= timeout:
                raise EncodingError(
                    f"{blocks.directory}: host {host} of {hosts} has finished no block for {timeout:.0f} s and lacks {count}. "
                    f"Start it again (the same command with --host_index {host} --host_count {hosts}), then this one; "
                    "finished blocks are kept"
                )
        time.sleep(min(5, timeout))


def _encode_blocks(
    corpus: Input,
    tokenizer: SpeechTokenizer | None,
    blocks: _Blocks,
    mine: Iterable[int],
    skip_bad: bool,
    progress: bool,
) -> None:
    todo = []
    for block in mine:
        if (content := blocks.read(block)) is None:
            todo.append(block)
        else:
            _log_bad(content["bad"])

    def load(index: int) -> tuple[Utterance, np.ndarray | None] | ValueError:
        try:
            utterance = corpus[index]
            if tokenizer is None:
                utterance.check_text()
                return utterance, None
            return utterance, utterance.load()
        except ValueError as error:  # CorpusError, AudioError: they name the utterance
            return error

    started, samples, bad = time.perf_counter(), 0, 0
    bar = tqdm.tqdm(
        total=sum(len(blocks.indices(block)) for block in todo),
        desc=f"{corpus.name} {corpus.split}",
        unit="utterance",
        disable=not progress,
    )
    with bar, one_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: list[list[Future]] = []
        for position, block in enumerate(todo):
            for later in todo[position + len(ahead) : position + 2]:  # files are read while the block before is encoded
                ahead.append([pool.submit(load, index) for index in blocks.indices(later)])
            began = time.perf_counter()
            content = _encode_block([future.result() for future in ahead.pop(0)], tokenizer, skip_bad)
            blocks.write(block, {**content, "seconds": time.perf_counter() - began})
            _log_bad(content["bad"])
            samples, bad = samples + content["samples"], bad + len(content["bad"])
            bar.update(len(blocks.indices(block)))
            factor = samples / SAMPLE_RATE / (time.perf_counter() - started)
            bar.set_postfix_str(f"{factor:.0f} x real time, {bad} bad" if samples else f"{bad} bad", refresh=False)


def _log_bad(reasons: Iterable[str]) -> None:
    for reason in reasons:
        logging.warning("left out: %s", reason)


def _encode_block(
    loaded: Sequence[tuple[Utterance, np.ndarray | None] | ValueError],
    tokenizer: SpeechTokenizer | None,
    skip_bad: bool,
) -> dict[str, Any]:
    """The records of a block, why others were left out, and what the summary counts."""
    errors = [item for item in loaded if isinstance(item, ValueError)]
    if errors and not skip_bad:
        raise errors[0]
    bad = [str(error) for error in errors]
    good = [item for item in loaded if not isinstance(item, ValueError)]
    encoded = tokenizer.encode_batch([audio for _, audio in good]) if tokenizer else [None] * len(good)
    records, samples, words = [], 0, 0
    tokens = np.zeros(len(NAMES), int)
    histograms = [np.zeros(size, int) for size in SIZES]
    for (utterance, audio), units in zip(good, encoded, strict=True):
        record = _record(utterance, audio, units)
        try:
            record.validate()
        except RecordError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
            continue
        records.append(record.to_bytes())
        words += len(record.words or record.text.split())
        if units is not None:
            samples += audio.size
            tokens += np.bincount(units.merged()[0], minlength=len(NAMES))
            for counts, stream in zip(histograms, units.streams, strict=True):
                if stream is not None:
                    counts += np.bincount(stream, minlength=len(counts))
    return {
        "records": records,
        "bad": bad,
        "samples": samples,
        "words": words,
        "tokens": tokens.tolist(),
        "histograms": [counts.tolist() for counts in histograms],
    }


def _record(utterance: Utterance, audio: np.ndarray | None, units: SpeechUnits | None) -> UnitRecord:
    if audio is None:
        return UnitRecord(utterance.id, utterance.text)
    milliseconds = round(audio.size * 1000 / SAMPLE_RATE)
    spans = np.minimum(utterance.spans_ms, milliseconds)
    return UnitRecord(utterance.id, utterance.text, utterance.words, spans, units, milliseconds, utterance.speaker)


def _gather(corpus: Input, blocks: _Blocks, directory: pathlib.Path, shards: int, units: str) -> EncodingSummary:
    """All blocks as the split's record files, in the order of the corpus."""
    samples, words, bad, seconds = 0, 0, 0, 0.0
    tokens, histograms = np.zeros(len(NAMES), int), [np.zeros(size, int) for size in SIZES]
    with RecordWriter(directory, corpus.split, shards, name=corpus.name, units=units) as writer:
        for block in range(blocks.count):
            content = blocks.read(block)
            if content is None:
                raise EncodingError(f"{blocks.path(block)}: was written by another job; run one job a split at a time")
            for record in content["records"]:
                writer.write_bytes(record)
            samples, words = samples + content["samples"], words + content["words"]
            bad, seconds = bad + len(content["bad"]), seconds + content["seconds"]
            tokens += content["tokens"]
            for counts, more in zip(histograms, content["histograms"], strict=True):
                counts += more
        if not writer.count:
            raise EncodingError(
                f"{corpus.directory}: none of {len(corpus)} utterances of split {corpus.split!r} can be used"
            )
    return EncodingSummary(
        corpus=corpus.fingerprint,
        units=units,
        split=corpus.split,
        records=writer.count,
        bad=bad,
        hours=samples / SAMPLE_RATE / 3600,
        words=words,
        tokens_per_second={
            name: count * SAMPLE_RATE / samples for name, count in zip(NAMES, tokens.tolist(), strict=True) if count
        },
        seconds=seconds,
        histograms={name: counts.tolist() for name, counts in zip(NAMES, histograms, strict=True) if counts.any()},
    )


def _summary_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    return directory / f"encoding-{split}.json"


def _finished(directory: pathlib.Path, split: str) -> EncodingSummary | None:
    """The summary of a split whose records are all there."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecordError):
        summary = EncodingSummary(**json.loads(_summary_path(directory, split).read_text()))
        if len(RecordSource(directory, split)) == summary.records:
            return summary
    return None
