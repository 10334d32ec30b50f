"""Reads safetensors files as memory-mapped views and writes them one tensor at a time.

The official loaders copy every tensor. A file is the length of the header in 8 bytes, a JSON header and the tensors
(https://github.com/huggingface/safetensors).
"""

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import ReadableArray, as_bytes, map_file, nbytes
from spirit_jax.core.files import atomic_file

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a safetensors file: tensors by name, as read-only NumPy views of the mapped file.

    Raises:
        ConversionError: a damaged file, or a tensor that reaches outside it.
    """
    data = map_file(path)
    try:
        (length,) = struct.unpack_from("<Q", data, 0)
        if 8 + length > len(data):
            raise ValueError(f"the header claims {length} bytes, the file has {len(data)}")
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        body = data[8 + length :]
        return {name: _view(body, name, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise ConversionError(f"{path}: not a safetensors file, or damaged or cut short ({error})") from error


def _view(body: memoryview, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    start, end = data_offsets
    if dtype not in DTYPES:
        raise ValueError(f"{name}: unknown dtype {dtype}")
    kind = DTYPES[dtype]
    if not all(isinstance(n, int) and n >= 0 for n in (start, end, *shape)) or not start <= end <= len(body):
        raise ValueError(f"{name}: bytes {start} to {end} of {len(body)}")
    size = int(np.prod(shape, dtype=object))
    if size * kind.itemsize != end - start:
        raise ValueError(f"{name}: {dtype} {shape} takes {size * kind.itemsize} bytes, {end - start} found")
    return np.frombuffer(body, kind, count=size, offset=start).reshape(shape) if size else np.empty(shape, kind)


def save_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, ReadableArray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name, atomically. `metadata` defaults to the entry that `transformers` requires.

    Raises:
        ConversionError: an array of a type that the format lacks.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, array in tensors.items():
        dtype = np.dtype(array.dtype)
        if dtype not in DTYPE_NAMES:
            raise ConversionError(f"{path}: {name}: safetensors cannot hold {dtype}")
        end = offset + nbytes(array)
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": [int(n) for n in array.shape],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(as_bytes(array))
