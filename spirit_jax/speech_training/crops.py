"""Crops of the clips of a corpus: row r of step n is a function of (seed, n, r). NumPy alone, no devices.

The clips of an epoch are a random permutation of the corpus. A clip that cannot be used is named, counted and replaced
by another one, whose choice depends on the seed and the position alone. So the rows are the same for any number of
hosts and however often a run was resumed, and the state of the stream is the number of the next step.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spirit_jax.core.errors import SpiritError
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.data.packing import HostBatch
from spirit_jax.parallel.sharding import HostShare

_LOG = logging.getLogger(__name__)

_TRIES = 100  # clips that are drawn for one row until one of them can be used
_MAX_NAMED = 20  # unusable clips that are named; all are counted
_SILENT = 1e-4  # peak of a clip that holds nothing: 3 steps of 16-bit audio

RowFunction = Callable[["Crop", np.random.Generator], Mapping[str, Any]]
"""Makes the arrays of a row, without a batch axis, from a crop; random choices come from the generator."""


class Clips:
    """The clips of a split, decoded when they are asked for and kept in memory up to a limit.

    Args:
        utterances: the split.
        memory: bytes of decoded audio that are kept, the most recently used clips.

    Attributes:
        skipped: why clips cannot be used, by index.
    """

    def __init__(self, utterances: Sequence[Utterance], memory: int = 2**31):
        self.utterances = utterances
        """The split."""
        self._memory = memory
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def utterance(self, index: int) -> Utterance:
        """The utterance of a clip.

        Raises:
            CorpusError: it cannot be read.
        """
        return self.utterances[index]

    def audio(self, index: int) -> Float[np.ndarray, " R"]:
        """The audio of a clip, float32 [R] at 16 kHz, read-only.

        Raises:
            CorpusError: it cannot be read, is silent, or holds samples that are not finite. The first clips
                are logged, all are counted in `skipped`.
        """
        with self._lock:
            if index in self.skipped:
                raise CorpusError(self.skipped[index])
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        try:
            audio = self._load(index)
        except SpiritError as error:
            with self._lock:
                if index not in self.skipped:
                    self.skipped[index] = str(error)
                    if len(self.skipped) <= _MAX_NAMED:
                        _LOG.warning("skipped: %s", error)
            raise
        with self._lock:
            if index not in self._kept:
                self._kept[index] = audio
                self._bytes += audio.nbytes
                while self._bytes > self._memory and len(self._kept) > 1:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return audio

    def _load(self, index: int) -> Float[np.ndarray, " R"]:
        utterance = self.utterances[index]
        audio = utterance.load()
        if not np.isfinite(audio).all():
            raise CorpusError(f"utterance {utterance.id!r}: its audio holds samples that are not finite")
        if np.abs(audio).max() < _SILENT:
            raise CorpusError(f"utterance {utterance.id!r}: its audio is silent")
        audio = np.array(audio)  # a copy, because a part of a long recording would keep all of it in memory
        audio.flags.writeable = False
        return audio

    def usable(self) -> Iterator[tuple[int, Float[np.ndarray, " R"]]]:
        """Every clip that can be used, with its index."""
        for index in range(len(self)):
            try:
                yield index, self.audio(index)
            except SpiritError:
                continue


@dataclasses.dataclass(frozen=True)
class CropShape:
    """Which part of a clip a row holds.

    Raises:
        ValueError: a number that is not positive, or a crop shorter than its minimum.
    """

    samples: int
    """Samples of a row; a shorter clip is padded with zeros."""
    minimum: int
    """Clips with fewer samples are skipped."""
    hop: int = 1
    """A crop begins at a multiple of this many samples, so that it begins with a frame."""
    shift: int = 0
    """Samples that a crop may leave out at the begin of a clip that it could hold in whole."""

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.samples or self.hop < 1 or self.shift < 0:
            raise ValueError(f"a crop of {self.samples} samples, at least {self.minimum}, at multiples of {self.hop}")


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """A part of a clip."""

    index: int
    """Number of the clip in its split."""
    start: int
    """Sample of the clip that the crop begins with."""
    length: int
    """Samples of the clip in it; zeros follow them."""
    audio: Float[np.ndarray, " R"]


def _crop(audio: np.ndarray, index: int, start: int, shape: CropShape) -> Crop:
    part = audio[start : start + shape.samples]
    return Crop(index, start, part.size, np.pad(part, (0, shape.samples - part.size)))


def empty_crop(samples: int) -> Crop:
    """A crop of silence, for the shapes of a row."""
    return Crop(0, 0, samples, np.zeros(samples, np.float32))


class CropBatches:
    """Endless batches of this host's rows, with `weight_b`, which is 1 for each of them.

    Args:
        clips: the split.
        shape: of the crops.
        row: makes the arrays of a row.
        rows: rows of a batch over all hosts.
        seed: of the order of the clips, the crops and what `row` draws.
        share: the share of the rows that this host feeds.
        state: of `state()`, to continue from there.
        workers: threads that make rows; None: one for each core.

    Raises:
        SpiritError: the split is empty; while iterating, a row finds no clip that can be used.
    """

    def __init__(
        self,
        clips: Clips,
        shape: CropShape,
        row: RowFunction,
        *,
        rows: int,
        seed: int,
        share: HostShare,
        state: Mapping[str, Any] | None = None,
        workers: int | None = None,
    ):
        if not len(clips):
            raise SpiritError("the training split has no clips")
        self._clips, self._shape, self._row, self._rows, self._seed = clips, shape, row, rows, seed
        self._own = range(rows * share.index // share.count, rows * (share.index + 1) // share.count)
        self._next = 0 if state is None else int(state["crops"]["next"])
        self._orders: dict[int, np.ndarray] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count(), "crops")

    def __next__(self) -> HostBatch:
        """The next batch."""
        batch = self.batch(self._next)
        self._next += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The number of the next step."""
        return {"crops": {"next": self._next}}

    def batch(self, step: int) -> HostBatch:
        """This host's rows of a step."""
        for epoch in range(
            step * self._rows // len(self._clips), ((step + 1) * self._rows - 1) // len(self._clips) + 1
        ):
            self._order(epoch)  # made here, because the threads below share it
        return _stacked(list(self._pool.map(lambda row: self._made(step * self._rows + row), self._own)))

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known >= epoch - 1}
            self._orders[epoch] = np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._clips))
        return self._orders[epoch]

    def _made(self, position: int) -> dict[str, Any]:
        rng = np.random.default_rng((self._seed, 1, position))
        index = int(self._order(position // len(self._clips))[position % len(self._clips)])
        for _ in range(_TRIES):
            try:
                audio = self._clips.audio(index)
                if audio.size >= self._shape.minimum:
                    shift = min(self._shape.shift, audio.size - self._shape.minimum)
                    starts = max(shift, audio.size - self._shape.samples) // self._shape.hop
                    start = int(rng.integers(starts + 1)) * self._shape.hop
                    return {**self._row(_crop(audio, index, start, self._shape), rng), "weight_b": np.float32(1)}
            except SpiritError:
                pass
            index = int(rng.integers(len(self._clips)))
        raise SpiritError(
            f"{_TRIES} clips in a row cannot be used ({len(self._clips.skipped)} of {len(self._clips)} are known to be "
            f"unusable); they need {self._shape.minimum} samples, a sound, and readable audio"
        )


def held_out_crops(
    clips: Clips, shape: CropShape, row: RowFunction, *, rows: int, seed: int, share: HostShare
) -> Iterator[HostBatch]:
    """One pass over a split: the middle of each clip. The last batch is filled up with rows of `weight_b` 0.

    Args: as for `CropBatches`.
    """

    def made() -> Iterator[dict[str, Any]]:
        for index, audio in clips.usable():
            if audio.size < shape.minimum:
                continue
            start = max(0, audio.size - shape.samples) // 2 // shape.hop * shape.hop
            rng = np.random.default_rng((seed, 2, index))
            try:
                yield {**row(_crop(audio, index, start, shape), rng), "weight_b": np.float32(1)}
            except SpiritError:
                continue

    own = slice(rows * share.index // share.count, rows * (share.index + 1) // share.count)
    waiting: list[dict[str, Any]] = []
    for each in made():
        waiting.append(each)
        if len(waiting) == rows:
            yield _stacked(waiting[own])
            waiting = []
    if waiting:
        waiting += [{**waiting[-1], "weight_b": np.float32(0)}] * (rows - len(waiting))
        yield _stacked(waiting[own])


@dataclasses.dataclass(frozen=True)
class CropData:
    """The crops of both splits, as `part.Prepared` opens them."""

    train: Clips
    held_out: Clips
    shape: CropShape
    train_row: RowFunction
    held_out_row: RowFunction
    rows: int
    """Rows of a batch over all hosts."""
    seed: int

    def batches(self, share: HostShare, state: Mapping[str, Any] | None) -> CropBatches:
        """Endless training batches of a host, from the position that a saved state gives."""
        return CropBatches(
            self.train, self.shape, self.train_row, rows=self.rows, seed=self.seed, share=share, state=state
        )

    def held_out_batches(self, share: HostShare) -> dict[str, Iterator[HostBatch]]:
        """One pass of a host over the held-out split; nothing if it is empty."""
        if not len(self.held_out):
            return {}
        return {
            "clips": held_out_crops(
                self.held_out, self.shape, self.held_out_row, rows=self.rows, seed=self.seed, share=share
            )
        }


def _stacked(rows: Sequence[Mapping[str, Any]]) -> HostBatch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
