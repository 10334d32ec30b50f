"""What every file format here shares: the error, arrays read late, files written whole or not at all, memory maps."""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirit_jax.core.errors import SpiritError


class ConversionError(SpiritError):
    """A checkpoint that cannot be converted. The message names the file, the key, what was expected and what was found."""


@dataclass(frozen=True)
class LazyArray:
    """An array whose values are read when asked for (`numpy.asarray`), so that a writer holds one at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.read(), dtype)
        if array.shape != self.shape:
            raise ConversionError(f"an array announced as {list(self.shape)} has the shape {list(array.shape)}")
        return array


def nbytes(array: Any) -> int:
    """Bytes of an array or `LazyArray`, without reading it."""
    return int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize


def as_bytes(array: Any) -> memoryview:
    """The values of an array, row-major, as bytes; a copy only where the array is not contiguous."""
    values = np.ascontiguousarray(np.asarray(array)).reshape(-1)
    return memoryview(values.view(np.uint8)) if values.size else memoryview(b"")


def map_file(path: str | os.PathLike) -> memoryview:
    """The whole file, read-only, mapped: pages come in when touched and leave under pressure."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ConversionError(f"{path}: the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def counted(array: Any, progress: Callable[[int], Any]) -> LazyArray:
    """The array, telling `progress` its bytes when it is read."""

    def read() -> np.ndarray:
        values = np.asarray(array)
        progress(values.nbytes)
        return values

    return LazyArray(tuple(array.shape), np.dtype(array.dtype), read)
