"""Arrays whose values are read when they are used, so that a conversion never holds a whole model in memory."""

import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spirit_jax.convert.errors import ConversionError
from spirit_jax.core.files import open_regular, shown

_MAX_RANK = 32  # axes of an array, as in NumPy before 2.0

Progress = Callable[[int], Any]
"""Called with the number of bytes that were converted since the last call."""


@runtime_checkable
class ReadableArray(Protocol):
    """An array of known shape and type whose values `numpy.asarray` reads."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray: ...


class SliceableArray(ReadableArray, Protocol):
    """A readable array of which `array[index]` reads a slice."""

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class LazyArray:
    """An array whose values `read` returns, so that a writer holds one array at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.read(), dtype)
        if array.shape != self.shape:
            raise ConversionError(f"an array announced as {list(self.shape)} has the shape {list(array.shape)}")
        return array


@dataclass(frozen=True)
class StackedArray:
    """An array made of several PyTorch tensors, each at an index of it. `numpy.asarray` joins them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[tuple[tuple[int | slice, ...], np.ndarray]]
    """(index in this array, values at that index); read anew each time."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for index, piece in self.pieces:
            whole[index] = piece
        return whole


def nbytes(array: ReadableArray) -> int:
    """Bytes of an array, without reading it."""
    return int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize


def as_bytes(array: ReadableArray) -> memoryview:
    """The values of an array, row-major, as bytes; a copy only where the array is not contiguous."""
    values = np.ascontiguousarray(np.asarray(array)).reshape(-1)
    return values.view(np.uint8).data if values.size else memoryview(b"")


def same_bits(one: ReadableArray, other: ReadableArray) -> bool:
    """Whether two arrays have the same type, shape and bytes, so that equal NaNs are equal and 0 differs from -0."""
    if tuple(one.shape) != tuple(other.shape) or np.dtype(one.dtype) != np.dtype(other.dtype):
        return False
    return as_bytes(one) == as_bytes(other)


def counted(array: ReadableArray, progress: Progress) -> LazyArray:
    """The same array, which reports its bytes to `progress` when it is read."""

    def read() -> np.ndarray:
        values = np.asarray(array)
        progress(values.nbytes)
        return values

    return LazyArray(tuple(array.shape), np.dtype(array.dtype), read)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A shape from a file as a tuple.

    Raises:
        ValueError: anything but a list or tuple of at most 32 sizes.
    """
    sizes = shape if isinstance(shape, list | tuple) and len(shape) <= _MAX_RANK else (None,)
    if not all(isinstance(size, int) and 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"a list of sizes expected, {shown(shape)} found")
    return tuple(shape)


def open_map(path: str | os.PathLike) -> mmap.mmap:
    """Map a file into memory, read-only. The kernel loads a page when it is touched and may drop it again.

    Raises:
        ConversionError: the file is empty, not a regular file, or cannot be read.
    """
    with open_regular(path, ConversionError) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ConversionError(f"{path}: the file is empty, so it was cut short")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def map_file(path: str | os.PathLike) -> memoryview:
    """The bytes of a file, with the properties and errors of `open_map`."""
    return memoryview(open_map(path))
