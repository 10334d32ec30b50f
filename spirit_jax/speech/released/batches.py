"""Clips of any length through a network that is compiled for a few padded shapes."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float

from spirit_jax.audio import AudioError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.kernels.platform import platform

_SECONDS = (
    *(1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22.5, 25),
    *(28, 32, 36, 40, 45, 50, 56, 64, 72, 80, 90, 100),
)

PADDED_LENGTHS = tuple(int(seconds * SAMPLE_RATE) for seconds in _SECONDS)
"""Samples that clips are padded to: from 2 s on at most a sixth more than they have, on average a sixteenth. Accelerators, which
compile for long and compute fast, take every fourth of them."""

MAX_SAMPLES = PADDED_LENGTHS[-1]
"""The longest clip (100 s): longer audio is cut into chunks of this (FORMATS.md section 1)."""


def encode_clips(
    run: Callable, clips: Sequence[Float[np.ndarray, " R"]], minimum: int, what: str
) -> list[tuple[np.ndarray, ...]]:
    """Run a network on clips in batches of similar length, each with at most `MAX_SAMPLES` samples a device.

    Args:
        run: `(audio float32 [B, R], lengths int32 [B]) -> (outputs [B, N, ...], ..., counts [B])`, jitted; a clip's
            outputs must not depend on its neighbours or on padding. Batches are split over the local devices.
        clips: float32 [R] each.
        minimum: samples that a clip needs.
        what: what the network gives, for error messages.

    Returns:
        For each clip its outputs, cut to its count.

    Raises:
        AudioError: a clip is not 1-D float32, is shorter than `minimum` or longer than `MAX_SAMPLES`; says which.
    """
    for index, clip in enumerate(clips):
        name = f"clip {index}: " if len(clips) > 1 else ""
        if clip.ndim != 1 or clip.dtype != np.float32:
            raise AudioError(f"{name}audio must be float32 [R] at 16 kHz, found {clip.dtype} {list(clip.shape)}")
        if not minimum <= clip.size <= MAX_SAMPLES:
            raise AudioError(f"{name}{what} need {minimum} to {MAX_SAMPLES} samples (16 kHz), found {clip.size}")

    on_cpu = platform() == "cpu"
    lengths = PADDED_LENGTHS if on_cpu else (*PADDED_LENGTHS[3:-1:4], MAX_SAMPLES)

    def padded(index: int) -> int:
        return next(length for length in lengths if length >= clips[index].size)

    devices = jax.local_device_count()
    results: list[tuple[np.ndarray, ...]] = [()] * len(clips)
    for length, group in itertools.groupby(sorted(range(len(clips)), key=padded), padded):
        rows = list(group)
        largest = devices << (MAX_SAMPLES // length).bit_length() - 1
        while rows:
            # A power of two a device, so that there are few shapes, none of them padded with clips: 7 are 4, 2 and 1.
            # On accelerators one shape a length.
            fitting = devices << max(0, (len(rows) // devices).bit_length() - 1)
            size = min(largest, fitting) if on_cpu else largest
            batch, rows = rows[:size], rows[size:]
            audio = np.zeros((size, length), np.float32)
            samples = np.empty(size, np.int32)
            for row in range(size):
                clip = clips[batch[row % len(batch)]]  # fewer than rows: some repeat
                audio[row, : clip.size], samples[row] = clip, clip.size
            *outputs, counts = map(np.asarray, run(*shard(audio, samples)))
            for row, index in enumerate(batch):
                results[index] = tuple(output[row, : counts[row]] for output in outputs)
    return results


@functools.cache
def _sharding(*axes: str) -> NamedSharding:
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), auto, devices=jax.local_devices())
    return NamedSharding(mesh, PartitionSpec(*axes))


def shard(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    """Batches [B, ...] with their rows split over the local devices; B must be a multiple of their number."""
    return tuple(jax.device_put(array, _sharding("data")) for array in arrays)


def replicate(params):
    """Parameters on every local device."""
    return jax.device_put(params, _sharding())


def exact(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with float32 products everywhere, which accelerators round by default: units and audio must not depend on it."""

    @functools.wraps(function)
    def run(*arguments):
        with jax.default_matmul_precision("float32"):
            return function(*arguments)

    return jax.jit(run, **options)
