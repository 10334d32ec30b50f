"""What every file format here shares: the error, arrays read late, files written whole or not at all, memory maps."""

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np


class ConversionError(ValueError):
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


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a binary file that appears under `path` complete, when the block ends, or never."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or `ConversionError`."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: {error if isinstance(error, OSError) else f'not JSON ({error})'}") from error


def plain_name(name: Any, where: Any) -> str:
    """`name`, if it is that of a file right here: names found in a checkpoint never lead anywhere else."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise ConversionError(f"{where}: {name!r} is not the name of a file beside it: refused")
    return name


def counted(array: Any, progress: Callable[[int], Any]) -> LazyArray:
    """The array, telling `progress` its bytes when it is read."""

    def read() -> np.ndarray:
        values = np.asarray(array)
        progress(values.nbytes)
        return values

    return LazyArray(tuple(array.shape), np.dtype(array.dtype), read)
