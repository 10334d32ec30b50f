"""Our `llm/` written array by array, slice by slice, however large the model is.

Orbax saves a tree of whole arrays and copies it. Here it saves the same tree with placeholders of one element; then TensorStore,
which Orbax stores arrays with, replaces each by an array of the full shape and fills it slice by slice. What this relies on is how Orbax
names arrays in its store (their path joined by "."): a test loads the result with Orbax itself.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import LLM, array_spec, unflatten
from spirit_jax.convert.table import Stacked, shapes_of

CHUNK_BYTES = 64 * 2**20


def save_llm(
    directory: pathlib.Path, arrays: Mapping[str, Any], progress: Callable[[int], Any] = lambda _: None
) -> None:
    """Writes arrays by path (NumPy, `LazyArray` or `Stacked`) as the checkpoint's `llm/`. `directory` must not exist.

    The memory needed beyond the sources is a few chunks. Each chunk carries a checksum.
    """
    placeholders = unflatten({path: np.zeros(1, array.dtype) for path, array in arrays.items()})
    directory = directory.resolve()  # Orbax takes absolute paths only
    ocp.save_checkpointables(directory, {LLM: placeholders})
    for path, array in arrays.items():
        store = _create(directory, path, array)
        for index, piece in _pieces(array):
            place = store[index]
            place = (
                place[tensorstore.d[:].translate_to[0]] if place.rank else place
            )  # slices keep their indices otherwise
            for block in _blocks(np.shape(piece), np.dtype(array.dtype).itemsize):
                part = np.asarray(piece[block], order="C")
                place[block].write(part).result()
                progress(part.nbytes)


def _pieces(array: Any) -> Iterator[tuple[tuple, Any]]:
    if isinstance(array, Stacked):
        yield from array.pieces
    else:
        yield (), np.asarray(array)


def _blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cuts an array along its first axis into what is written, and copied, at once."""
    if not shape:
        yield ()
        return
    rows = _rows(shape, itemsize)
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


def _rows(shape: tuple[int, ...], itemsize: int) -> int:
    return max(1, CHUNK_BYTES // max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize))


def _create(directory: pathlib.Path, path: str, array: Any) -> tensorstore.TensorStore:
    """The store of one array, its chunks the blocks that are written at once."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    index, piece = next(_pieces(array))
    stacked = [isinstance(axis, int) for axis in index] + [False] * (len(shape) - len(index))
    rows = _rows(np.shape(piece), dtype.itemsize)
    chunk, first = [], True
    for size, is_stacked in zip(shape, stacked, strict=True):
        chunk.append(1 if is_stacked else min(size, rows) if first else size)
        first = first and is_stacked
    metadata = {
        "shape": list(shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    spec = array_spec(directory, path, "zarr3") | {"metadata": metadata, "dtype": dtype.name}
    return tensorstore.open(spec, create=True, delete_existing=True).result()


def stored_shapes(directory: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """{path: shape} of `llm/`, as Orbax lists it."""
    return shapes_of(ocp.metadata(directory.resolve(), LLM).metadata)
