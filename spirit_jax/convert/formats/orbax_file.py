"""Writes the `llm/` of a checkpoint directory (Orbax) array by array and block by block, however large the model is.

Orbax saves a tree of whole arrays and copies it. Here Orbax saves the same tree with placeholders of one element.
TensorStore, which Orbax stores arrays with, then replaces each placeholder by an array of the full shape and fills it
block by block. This relies on the names that Orbax gives arrays in its store (`checkpoint.array_spec`); a test loads
the result with Orbax.
"""

import contextlib
import errno
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import LLM, array_spec, flatten, stored_tree, unflatten
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, StackedArray
from spirit_jax.core.files import shown

CHUNK_BYTES = 64 * 2**20
"""Largest block that is copied and written at once, if a row of the array is not larger."""


def save_llm(directory: pathlib.Path, arrays: Mapping[str, ReadableArray], progress: Progress = lambda _: None) -> None:
    """Write arrays by path as the `llm/` of a new directory, each chunk with a checksum.

    The memory needed beyond the sources is a few chunks.

    Raises:
        FileExistsError: `directory` exists.
        OSError: the arrays cannot be written, as on a full disk.
    """
    placeholders = unflatten({path: np.zeros(1, array.dtype) for path, array in arrays.items()})
    directory = directory.resolve()  # Orbax takes absolute paths only
    with _writing(directory):
        ocp.save_checkpointables(str(directory), {LLM: placeholders})
    for path, array in arrays.items():
        with _writing(directory):
            store = _create(directory, path, array)
        for index, piece in _pieces(array):
            place = store[index]
            if place.rank:  # a slice keeps the indices it had, and blocks count from zero
                place = place[tensorstore.d[:].translate_to[0]]
            for block in _blocks(piece.shape, piece.dtype.itemsize):
                values = np.asarray(piece[block], order="C")
                with _writing(directory):
                    place[block].write(values).result()
                progress(values.nbytes)


def add_llm(directory: pathlib.Path, arrays: Mapping[str, ReadableArray], progress: Progress) -> None:
    """`save_llm` into a directory that exists, which Orbax itself refuses."""
    apart = directory / "orbax"
    save_llm(apart, arrays, progress)
    for path in apart.iterdir():
        path.rename(directory / path.name)
    apart.rmdir()


@contextlib.contextmanager
def _writing(directory: pathlib.Path) -> Iterator[None]:
    """Turn the errors of TensorStore and Orbax, which have no common base, into an `OSError` that names `llm/`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"cannot be written ({shown(error)})", str(directory / LLM)) from error


def _pieces(array: ReadableArray) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
    """(index, values) of the pieces that an array consists of."""
    if isinstance(array, StackedArray):
        yield from array.pieces
    else:
        yield (), np.asarray(array)


def _blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array along its first axis into the blocks that are copied and written at once."""
    if not shape:
        yield ()
        return
    rows = _rows(shape, itemsize)
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


def _rows(shape: tuple[int, ...], itemsize: int) -> int:
    """Rows of a block."""
    return max(1, CHUNK_BYTES // max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize))


def _create(directory: pathlib.Path, path: str, array: ReadableArray) -> tensorstore.TensorStore:
    """Create the store of one array; its chunks are the blocks that are written at once."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    index, piece = next(_pieces(array))
    stacked = [isinstance(axis, int) for axis in index] + [False] * (len(shape) - len(index))
    rows = _rows(piece.shape, dtype.itemsize)
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
    """{path: shape} of the arrays of `llm/`, as Orbax lists them."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(stored_tree(directory)).items()}
