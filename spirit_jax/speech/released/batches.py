"""Runs clips of any length through a network that is compiled for a few padded lengths.

Each pair of a padded length and a number of rows is a program of its own, so a platform decides how many there are. A
CPU computes slowly: it gets many lengths, which waste little on padding. HuBERT of full size takes 2.4 CPU seconds to
compile and 0.09 for a second of audio, alone or in a batch of eight, so clips run one at a time where there are few
cores; many cores need batches to be busy, of one size. An accelerator compiles for long and computes fast: it gets
every fourth length and one batch size for each.
"""

import functools
import itertools
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float

from spirit_jax.audio import AudioError
from spirit_jax.core.arithmetic import previous_power_of_two
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.kernels.platform import platform
from spirit_jax.speech.features import CHUNK_SAMPLES

_LOG = logging.getLogger(__name__)

_SECONDS = (
    *(1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22.5, 25),
    *(28, 32, 36, 40, 45, 50, 56, 64, 72, 80, 90, 100),
)

PADDED_LENGTHS = tuple(int(seconds * SAMPLE_RATE) for seconds in _SECONDS)
"""Samples that clips are padded to. From 2 s on, padding adds at most a quarter to a clip, and a twelfth on average."""

_CORES_OF_A_ROW = 4  # cores that one clip keeps busy

MAX_SAMPLES = CHUNK_SAMPLES
"""The longest clip, 100 s, and the most samples of a batch on each device."""

_compiled: weakref.WeakKeyDictionary[Callable, set[tuple[int, ...]]] = weakref.WeakKeyDictionary()
"""The shapes that each network has run, in this process."""

BatchFunction = Callable[[jax.Array, jax.Array], Sequence[ArrayLike]]
"""`(audio float32 [B, R], lengths int32 [B]) -> (outputs [B, N, ...], ..., counts int32 [B])`."""

_Tree = TypeVar("_Tree")


def encode_clips(
    run: BatchFunction, clips: Sequence[Float[np.ndarray, " R"]], minimum: int, what: str
) -> list[tuple[np.ndarray, ...]]:
    """Run a network on clips, in batches of similar length with at most `MAX_SAMPLES` samples a device.

    Args:
        run: the compiled network. The outputs of a clip must not depend on its neighbors or on padding. The rows of a
            batch are split over the local devices. A shape that is run for the first time is logged.
        clips: float32 [R] each.
        minimum: samples that a clip needs.
        what: name of the outputs in error messages.

    Returns:
        The outputs of each clip, cut to its count.

    Raises:
        AudioError: a clip is not 1-D float32, shorter than `minimum` or longer than `MAX_SAMPLES`; says which clip.
    """
    for index, clip in enumerate(clips):
        name = f"clip {index}: " if len(clips) > 1 else ""
        if clip.ndim != 1 or clip.dtype != np.float32:
            raise AudioError(f"{name}audio must be float32 [R] at 16 kHz, found {clip.dtype} {list(clip.shape)}")
        if not minimum <= clip.size <= MAX_SAMPLES:
            raise AudioError(f"{name}{what} need {minimum} to {MAX_SAMPLES} samples (16 kHz), found {clip.size}")

    on_cpu = platform() == "cpu"
    lengths = PADDED_LENGTHS if on_cpu else (*PADDED_LENGTHS[3:-1:4], MAX_SAMPLES)

    def padded_length(index: int) -> int:
        return next(length for length in lengths if length >= clips[index].size)

    devices = jax.local_device_count()
    results: list[tuple[np.ndarray, ...]] = [()] * len(clips)
    for length, group in itertools.groupby(sorted(range(len(clips)), key=padded_length), padded_length):
        waiting = list(group)
        largest = devices * previous_power_of_two(MAX_SAMPLES // length)
        if on_cpu:
            largest = min(largest, devices * previous_power_of_two((os.cpu_count() or 1) // _CORES_OF_A_ROW))
        while waiting:
            # On CPU a row a device for clips that do not fill a batch, so that no row is wasted.
            size = devices if on_cpu and len(waiting) < largest else largest
            batch, waiting = waiting[:size], waiting[size:]
            audio = np.zeros((size, length), np.float32)
            samples = np.empty(size, np.int32)
            for row in range(size):
                clip = clips[batch[row % len(batch)]]  # rows without a clip of their own repeat one
                audio[row, : clip.size], samples[row] = clip, clip.size
            _announce(run, audio.shape, what)
            *outputs, counts = map(np.asarray, run(*shard(audio, samples)))
            for row, index in enumerate(batch):
                results[index] = tuple(output[row, : counts[row]] for output in outputs)
    return results


def _announce(run: BatchFunction, shape: tuple[int, ...], what: str) -> None:
    """Log that a network compiles for a shape, or loads the program that an earlier process has kept."""
    shapes = _compiled.setdefault(run, set())
    if shape not in shapes:
        shapes.add(shape)
        _LOG.info("compiling or loading: %s of %d x %g s of audio", what, shape[0], shape[1] / SAMPLE_RATE)


@functools.cache
def _sharding(*axes: str) -> NamedSharding:
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), auto, devices=jax.local_devices())
    return NamedSharding(mesh, PartitionSpec(*axes))


def shard(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Split the rows of each array [B, ...] over the local devices; B must be a multiple of their number."""
    return tuple(jax.device_put(array, _sharding("data")) for array in arrays)


def replicate(params: _Tree) -> _Tree:
    """Copy a tree of parameters to every local device."""
    return jax.device_put(params, _sharding())


def jit_float32(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with full float32 products. Accelerators round them by default, which would change units."""

    @functools.wraps(function)
    def run(*arguments):
        with jax.default_matmul_precision("float32"):
            return function(*arguments)

    return jax.jit(run, **options)
