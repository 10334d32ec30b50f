"""Training batches out of record directories: configuration, the loader, and held-out batches.

Batch N is a function of (config, seed, N): the same for any number of hosts and workers and however often the run was
resumed. See `streams.py` for how.
"""

import dataclasses
import gc
import itertools
import json
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Literal

import grain
import numpy as np
from absl import flags

from spirit_jax.data import streams as data_streams
from spirit_jax.data.packing import ARRAYS, Packer, empty_batch, fill_row
from spirit_jax.data.records import RecordError, RecordSource
from spirit_jax.data.sampling import Mixture, Shuffle
from spirit_jax.data.sequences import RECIPES, Recipe, Sequencer
from spirit_jax.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]
"""`inputs, targets, segment_ids, positions` int32 [B, T], `loss_mask` bool [B, T], `sources` int32 [B]; see `fill_row`."""

_log = logging.getLogger(__name__)
_REPORTED = 20  # skipped records that are named in the log; all are counted


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of training data: a directory of unit records and what to make of them.

    Raises:
        ValueError: a weight, fraction or span length that makes no sense, or an unknown recipe.
    """

    path: str
    """Directory of unit records (`spirit_jax.encode` writes it)."""
    recipe: Recipe = "text"
    """What a record becomes: text, speech, interleaved, transcription, asr, tts or asr_tts (one of the two a draw)."""
    weight: float = 1.0
    """Share of the training tokens, relative to the other sources' weights; 0 leaves the source out."""
    fraction: float = 1.0
    """Part of the records in use, 0 to 1, always the same ones; 0 leaves the source out."""
    split: str = "train"
    """Split of the directory to train on."""
    held_out_split: str | None = None
    """Split to evaluate on; none by default."""
    text_words: tuple[int, int] = (10, 30)
    """Least and most words of a text span (recipe interleaved)."""
    speech_words: tuple[int, int] = (5, 15)
    """Least and most words of a speech span (recipe interleaved)."""

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe {self.recipe!r} is none of {', '.join(RECIPES)}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be 0 or more, found {self.weight}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must lie in 0..1, found {self.fraction}")
        for name in ("text_words", "speech_words"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"{name} must be a range of at least one word, found {least}..{most}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training mixture and how it is read.

    Raises:
        ValueError: no source in use, or a count that makes no sense.
    """

    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    """Sources by name; weights count tokens, whatever the length of the records."""
    streams: int | None = None
    """Logical streams the batch is made of, by default one a row; must divide the rows and be divisible by the hosts.
    Part of what decides the batches: keep it when the batch size changes in the middle of a run."""
    workers: int = 0
    """Processes on each host that prepare batches ahead, at most one a stream; 0 prepares them in the training process,
    when asked for. Does not change the batches."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    on_bad_record: Literal["error", "skip"] = "error"
    """What to do about a record that is corrupt or that the recipe cannot use: stop, or count it, log it and go on."""

    def __post_init__(self):
        for name, least in (("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"streams must be at least 1, found {self.streams}")
        if self.on_bad_record not in ("error", "skip"):
            raise ValueError(f"on_bad_record must be 'error' or 'skip', found {self.on_bad_record!r}")

    @property
    def source_names(self) -> list[str]:
        """Names of the sources in use, in the order of a batch's `sources`."""
        return [name for name, source in self.sources.items() if source.weight and source.fraction]


def _open(config: DataConfig, name: str, vocabulary: Vocabulary, length: int, seed: int, held_out: bool = False):
    """A source's training split, or its held-out split (all of it)."""
    source = config.sources[name]
    split, fraction = (source.held_out_split, 1.0) if held_out else (source.split, source.fraction)
    skip_bad = config.on_bad_record == "skip"
    try:
        records = RecordSource(source.path, split, allow_damaged=skip_bad)
        for problem in records.damaged.values():
            _log.warning("all its records will be skipped: source %r: %s", name, problem)
        if not len(records):
            raise RecordError(f"{source.path}: split {split!r} has no records")
    except RecordError as error:
        raise RecordError(f"source {name!r}: {error}") from error
    sequencer = Sequencer(vocabulary, source.recipe, length + 1, tuple(source.text_words), tuple(source.speech_words))
    order = Shuffle(len(records), seed, name, fraction)
    return data_streams.Source(name, records, order, sequencer, seed, skip_bad)


class _Shares(grain.IterDataset):
    """Infinite dataset of one worker's shares of the batches: the rows of its streams, and their states after them."""

    def __init__(self, sources: list, mixture: Mixture, numbers: list[int], rows: int, make: dict, states: dict):
        super().__init__()
        self.numbers = numbers  # of the streams
        self._sources, self._mixture, self._rows, self._make, self._states = sources, mixture, rows, make, states

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain's protocol for giving each worker its part."""
        self.numbers = self.numbers[sl]

    def __iter__(self) -> "_ShareIterator":
        return _ShareIterator(self)

    def shares(self) -> Iterator[dict]:
        """`rows * len(numbers)` rows at a time, stream after stream."""
        length = self._make["sequence_length"]
        prefix = len(self._sources[0].sequencer.vocabulary.prefix)
        streams = [
            data_streams.Stream(self._sources, self._mixture, n, state=self._states.get(n), **self._make)
            for n in self.numbers
        ]
        while True:
            share = empty_batch(len(streams) * self._rows, length)
            share["sources"] = np.zeros(len(streams) * self._rows, np.int32)
            for row in range(len(streams) * self._rows):
                share["sources"][row], documents = streams[row // self._rows].row()
                fill_row(share, row, documents, prefix)
            problems = [problem for stream in streams for problem in stream.take_problems()]
            share["report"] = json.dumps({"states": [stream.state() for stream in streams], "problems": problems})
            yield share


class _ShareIterator(grain.DatasetIterator):
    """`_Shares.shares` as Grain wants it; the state travels with the shares, so Grain keeps none."""

    def __init__(self, dataset: _Shares):
        super().__init__()
        self._shares = dataset.shares()

    def __next__(self) -> dict:
        return next(self._shares)

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        raise RuntimeError("a stream is made anew from its own state")


def _start_worker(index: int, count: int) -> None:
    """A worker outlives signals sent to the whole process group (the parent ends it) but never its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _close(iterator: list) -> None:
    """Close and forget a Grain iterator; left to the interpreter's exit, its parts would complain one by one."""
    while iterator:
        iterator.pop().close()
    gc.collect()


class Loader:
    """Endless host-local training batches.

    Args:
        config: the mixture.
        vocabulary: of the model; goes to the workers.
        sequence_length: slots of a row.
        global_batch_size: rows of a batch over all hosts.
        seed: of the run.
        host_index, host_count: this host gets rows `host_index * B / host_count ...` of each batch.
        state: of `state()`, of one host or merged over all: batches go on after the last one taken. Needs the same
            streams, sequence length, sources and records, but not the same hosts, workers or batch size.

    Attributes:
        source_names: what the numbers in a batch's `sources` stand for.
        close: call it to end the workers, or use the loader as a context manager; happens at exit at the latest.

    Raises:
        ValueError: counts that do not divide, no source, or a state that does not fit; `RecordError` (a ValueError) for
            records that cannot be opened, and while iterating for one that cannot be used.
    """

    def __init__(
        self,
        config: DataConfig,
        vocabulary: Vocabulary,
        sequence_length: int,
        global_batch_size: int,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
        state: dict | None = None,
    ):
        streams = config.streams or global_batch_size
        if not config.source_names:
            raise ValueError("data: no source with a weight and a fraction above 0")
        if global_batch_size % streams:
            raise ValueError(f"data: {streams} streams do not divide the global batch of {global_batch_size} rows")
        if streams % host_count:
            raise ValueError(f"data: {host_count} hosts do not divide the {streams} streams")
        if not 0 <= host_index < host_count:
            raise ValueError(f"data: host {host_index} of {host_count}")
        if sequence_length < 16:
            raise ValueError(f"data: a sequence length of {sequence_length} is too short, 16 is the least")
        self.source_names = config.source_names
        sources = [_open(config, name, vocabulary, sequence_length, seed) for name in self.source_names]
        mixture = Mixture([config.sources[name].weight for name in self.source_names], seed)
        local = streams // host_count
        self._numbers = list(range(host_index * local, (host_index + 1) * local))
        states = {}
        if state is not None:
            missing = [number for number in self._numbers if str(number) not in state]
            if missing:
                raise ValueError(
                    f"data: the saved state has {len(state)} streams, stream {missing[0]} is not among them"
                )
            states = {number: state[str(number)] for number in self._numbers}
        self._rows, self._length = global_batch_size // streams, sequence_length
        make = {"streams": streams, "sequence_length": sequence_length}
        shares = _Shares(sources, mixture, self._numbers, self._rows, make, states)
        # a state that does not fit is refused here, before any worker starts
        first = [data_streams.Stream(sources, mixture, n, state=states.get(n), **make) for n in self._numbers]
        self._states = {number: stream.state() for number, stream in zip(self._numbers, first, strict=True)}
        self._workers = min(config.workers, local)
        self._reported = 0
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain hands its flags to its workers
            options = grain.MultiprocessingOptions(self._workers, config.prefetch)
            shares = shares.mp_prefetch(options, worker_init_fn=_start_worker)
        self._iterator = [iter(shares)]
        self.close = weakref.finalize(self, _close, self._iterator)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if not self._iterator:
            raise ValueError("data: the loader is closed")
        parts = [next(self._iterator[0]) for _ in range(max(self._workers, 1))]
        batch = {}
        for name in (*ARRAYS, "sources"):
            rows = [part[name].reshape(-1, self._rows, *part[name].shape[1:]) for part in parts]
            # worker w has every W-th stream, from the w-th on
            batch[name] = np.empty((len(self._numbers), *rows[0].shape[1:]), rows[0].dtype)
            for worker, row in enumerate(rows):
                batch[name][worker :: len(rows)] = row
            batch[name] = batch[name].reshape(-1, *batch[name].shape[2:])
        for worker, part in enumerate(parts):
            report = json.loads(part["report"])
            self._states.update(zip(self._numbers[worker :: len(parts)], report["states"], strict=True))
            for problem in report["problems"]:
                self._reported += 1
                if self._reported <= _REPORTED:
                    _log.warning("skipped: %s", problem)
        return batch

    def state(self) -> dict[str, dict]:
        """Where this host's streams stand after the last batch taken, by stream number; JSON-able, under 2 kB a stream.

        The states of all hosts merged (`a | b | ...`) restore on any number of hosts.
        """
        return {str(number): state for number, state in self._states.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """Records of each source that this host's streams have left out since the run began."""
        return {
            name: sum(state["sources"][name]["skipped"] for state in self._states.values())
            for name in self.source_names
        }

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def held_out_batches(
    config: DataConfig,
    vocabulary: Vocabulary,
    sequence_length: int,
    batch_size: int,
    source: str,
    host_index: int = 0,
    host_count: int = 1,
    seed: int = 0,
) -> Iterator[Batch]:
    """This host's rows of every batch of a source's held-out split: each record once, in order, with the draws of epoch 0.

    Finite and the same every time; the last batch is filled up with rows of padding. Unusable records are an error or are
    skipped as in training.

    Raises:
        ValueError: the source has no held-out split, or the hosts do not divide the batch.
    """
    if source not in config.sources or config.sources[source].held_out_split is None:
        raise ValueError(f"data: source {source!r} has no held_out_split")
    if batch_size % host_count:
        raise ValueError(f"data: {host_count} hosts do not divide the batch of {batch_size} rows")
    opened = _open(config, source, vocabulary, sequence_length, seed, held_out=True)
    index = config.source_names.index(source) if source in config.source_names else -1
    rows = _held_out_rows(opened, sequence_length)
    mine = slice(host_index * batch_size // host_count, (host_index + 1) * batch_size // host_count)
    while filled := list(itertools.islice(rows, batch_size)):
        batch = empty_batch(batch_size, sequence_length)
        for number, documents in enumerate(filled):
            fill_row(batch, number, documents, len(vocabulary.prefix))
        batch["sources"] = np.full(batch_size, index, np.int32)
        yield {name: array[mine] for name, array in batch.items()}


def _held_out_rows(source: data_streams.Source, length: int) -> Iterator[Sequence[np.ndarray]]:
    packer = Packer(length)
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
