"""The loader: endless training batches from the streams of a mixture, prepared in this process or in workers.

Batch N is a function of (config, seed, N): the same for any number of hosts and workers, and however often the run was
resumed. `streams.py` explains how. Workers import NumPy code only and never start JAX.
"""

import gc
import json
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from spirit_jax.core.errors import SpiritError
from spirit_jax.data.config import DataConfig
from spirit_jax.data.packing import BATCH_ARRAYS, HostBatch, empty_batch, fill_row
from spirit_jax.data.sampling import Mixture
from spirit_jax.data.source import Source, open_source
from spirit_jax.data.streams import Stream, StreamLayout
from spirit_jax.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

_MAX_LOGGED_PROBLEMS = 20
"""Skipped records whose reasons are logged; all are counted."""
_MIN_SEQUENCE_LENGTH = 16


class Loader:
    """Endless batches of this host.

    Example::

        with Loader(config, vocabulary, sequence_length=4096, global_batch_size=64, seed=0) as loader:
            batch = next(loader)  # {"inputs": int32 [64, 4096], ...}
            state = loader.state()

    Args:
        config: the mixture.
        vocabulary: of the model; it is sent to the workers.
        sequence_length: slots of a row.
        global_batch_size: rows of a batch over all hosts.
        seed: of the run.
        host_index: number of this host. It gets the rows from `host_index * global_batch_size / host_count` on.
        host_count: number of hosts.
        state: of `state()`, of one host or merged over all hosts; batches continue after the last one taken. The
            streams, sequence length, sources and records must be the same; hosts, workers and batch size may differ.

    Attributes:
        source_names: names of the sources, which the numbers in a batch's `sources` index.
        close: ends the workers; also called at exit and when a `with` block ends.

    Raises:
        SpiritError: counts that do not divide each other, no source in use, or a state that does not fit.
        RecordError: records cannot be opened; while iterating, a record cannot be used.
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
        state: dict[str, dict[str, Any]] | None = None,
    ):
        layout = StreamLayout(config.streams or global_batch_size, sequence_length)
        _check_counts(config, layout, global_batch_size, host_index, host_count)
        self.source_names = config.source_names
        sources = [open_source(config, name, vocabulary, sequence_length, seed) for name in self.source_names]
        mixture = Mixture([config.sources[name].weight for name in self.source_names], seed)
        local = layout.streams // host_count
        self._numbers = list(range(host_index * local, (host_index + 1) * local))  # of this host's streams
        states = {} if state is None else _select_states(state, self._numbers)
        # a state that does not fit is refused here, before any worker starts
        streams = [Stream(sources, mixture, number, layout, states.get(number)) for number in self._numbers]
        self._states = {number: stream.state() for number, stream in zip(self._numbers, streams, strict=True)}
        self._rows = global_batch_size // layout.streams
        self._workers = min(config.workers, local)
        self._problems = 0
        shares = _Shares(sources, mixture, layout, self._numbers, self._rows, states)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain passes its flags to its workers
            options = grain.MultiprocessingOptions(self._workers, config.prefetch)
            shares = shares.mp_prefetch(options, worker_init_fn=_start_worker)
        self._iterator = [iter(shares)]
        self.close = weakref.finalize(self, _close, self._iterator, self._workers > 0)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> HostBatch:
        """The next batch.

        Raises:
            RecordError: a record cannot be used and the config does not skip it.
            ValueError: the loader is closed.
        """
        if not self._iterator:
            raise ValueError("data: the loader is closed")
        shares = [next(self._iterator[0]) for _ in range(max(self._workers, 1))]
        for worker, share in enumerate(shares):
            self._take_report(json.loads(share["report"]), self._numbers[worker :: len(shares)])
        return {name: self._merge([share[name] for share in shares]) for name in (*BATCH_ARRAYS, "sources")}

    def _merge(self, parts: list[np.ndarray]) -> np.ndarray:
        """The rows of all workers in the order of the streams; worker w has every W-th stream, from stream w on."""
        merged = np.empty((len(self._numbers), self._rows, *parts[0].shape[1:]), parts[0].dtype)
        for worker, part in enumerate(parts):
            merged[worker :: len(parts)] = part.reshape(-1, self._rows, *part.shape[1:])
        return merged.reshape(-1, *merged.shape[2:])

    def _take_report(self, report: dict[str, Any], numbers: list[int]) -> None:
        """Keep the states of a worker's streams and log the records that it skipped."""
        self._states.update(zip(numbers, report["states"], strict=True))
        for problem in report["problems"]:
            self._problems += 1
            if self._problems <= _MAX_LOGGED_PROBLEMS:
                _log.warning("skipped: %s", problem)

    def state(self) -> dict[str, dict[str, Any]]:
        """The state of each of this host's streams after the last batch taken, by stream number.

        A state consists of JSON values and takes under 2 kB a stream. The states of all hosts merged (`a | b | ...`)
        restore on any number of hosts.
        """
        return {str(number): state for number, state in self._states.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """Unusable records of each source, each counted once, that this host's streams have met since the run began."""
        return {
            name: sum(state["sources"][name]["skipped"] for state in self._states.values())
            for name in self.source_names
        }

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _check_counts(
    config: DataConfig, layout: StreamLayout, global_batch_size: int, host_index: int, host_count: int
) -> None:
    if not config.source_names:
        raise SpiritError("data: no source with a weight and a fraction above 0")
    if global_batch_size % layout.streams:
        raise SpiritError(f"data: {layout.streams} streams do not divide the global batch of {global_batch_size} rows")
    if layout.streams % host_count:
        raise SpiritError(f"data: {host_count} hosts do not divide the {layout.streams} streams")
    if not 0 <= host_index < host_count:
        raise SpiritError(f"data: host {host_index} of {host_count}")
    if layout.sequence_length < _MIN_SEQUENCE_LENGTH:
        raise SpiritError(
            f"data: a sequence length of {layout.sequence_length} is too short, {_MIN_SEQUENCE_LENGTH} is the least"
        )


def _select_states(state: dict[str, dict[str, Any]], numbers: list[int]) -> dict[int, dict[str, Any]]:
    """The states of some streams out of a saved state."""
    missing = [number for number in numbers if str(number) not in state]
    if missing:
        raise SpiritError(f"data: the saved state has {len(state)} streams, stream {missing[0]} is not among them")
    return {number: state[str(number)] for number in numbers}


class _Shares(grain.IterDataset):
    """Infinite dataset of one worker's shares of the batches: the rows of its streams, and their states after them."""

    def __init__(
        self,
        sources: list[Source],
        mixture: Mixture,
        layout: StreamLayout,
        numbers: list[int],
        rows: int,
        states: dict[int, dict[str, Any]],
    ):
        super().__init__()
        self.numbers = numbers  # of the streams
        self._sources, self._mixture, self._layout, self._rows, self._states = sources, mixture, layout, rows, states

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain calls this to give each worker its part of the streams."""
        self.numbers = self.numbers[sl]

    def __iter__(self) -> "_ShareIterator":
        return _ShareIterator(self)

    def shares(self) -> Iterator[dict[str, Any]]:
        """Yield the arrays of `rows * len(numbers)` rows, stream after stream, and a JSON report."""
        prefix = len(self._sources[0].sequencer.vocabulary.prefix)
        streams = [
            Stream(self._sources, self._mixture, number, self._layout, self._states.get(number))
            for number in self.numbers
        ]
        rows = len(streams) * self._rows
        while True:
            arrays = empty_batch(rows, self._layout.sequence_length)
            arrays["sources"] = np.zeros(rows, np.int32)
            for row in range(rows):
                arrays["sources"][row], documents = streams[row // self._rows].row()
                fill_row(arrays, row, documents, prefix)
            problems = [problem for stream in streams for problem in stream.take_problems()]
            report = json.dumps({"states": [stream.state() for stream in streams], "problems": problems})
            yield {**arrays, "report": report}


class _ShareIterator(grain.DatasetIterator):
    """Adapts `_Shares.shares` to Grain. The states travel with the shares, so Grain keeps none."""

    def __init__(self, dataset: _Shares):
        super().__init__()
        self._shares = dataset.shares()

    def __next__(self) -> dict[str, Any]:
        return next(self._shares)

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        raise RuntimeError("streams are restored from their own states, not through Grain")


def _start_worker(index: int, count: int) -> None:
    """Make a worker ignore signals to the whole process group, since the parent ends it, and end with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # Grain calls this in a worker

    def follow_parent():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _close(iterator: list, has_workers: bool) -> None:
    """Close and forget a Grain iterator.

    If one with workers were left to the interpreter's exit, its parts would print warnings.
    """
    while iterator:
        iterator.pop().close()
    if has_workers:
        gc.collect()
