"""Reads safetensors files as memory-mapped views and writes them one tensor at a time.

The official loaders copy every tensor. A file is the length of the header in 8 bytes, a JSON header and the tensors
(https://github.com/huggingface/safetensors).
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats.arrays import ReadableArray, as_bytes, checked_shape, map_file, nbytes
from spirit_jax.core.files import atomic_file, parse_json, shown

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
_MAX_HEADER = 100_000_000  # bytes, as in the official library
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a safetensors file: tensors by name, as read-only NumPy views of the mapped file.

    Raises:
        ConversionError: a damaged file, or a tensor that reaches outside it.
    """
    data = map_file(path)
    with reading(path, "a safetensors file"):
        (length,) = struct.unpack_from("<Q", data, 0)
        if length > min(_MAX_HEADER, len(data) - 8):
            raise ValueError(f"the header claims {length} bytes, the file has {len(data)}")
        header = parse_json(bytes(data[8 : 8 + length]).decode(), path, ConversionError)
        header.pop("__metadata__", None)
        body, end = data[8 + length :], 0
        tensors = {name: _view(body, name, entry) for name, entry in header.items()}
        for name, (start, stop) in sorted(
            ((name, entry["data_offsets"]) for name, entry in header.items()), key=lambda item: item[1]
        ):
            if start != end:
                raise ValueError(f"{shown(name)}: begins at byte {start}, the tensor before it ends at {end}")
            end = stop
        if end != len(body):
            raise ValueError(f"the tensors end at byte {end} of {len(body)}")
        return tensors


def _view(body: memoryview, name: str, entry: dict[str, Any]) -> np.ndarray:
    """One tensor; `entry` is its description in the header."""
    unknown = sorted(entry.keys() ^ {"dtype", "shape", "data_offsets"})
    if unknown:
        raise ValueError(f"{shown(name)}: dtype, shape and data_offsets expected, not {shown(unknown)}")
    start, end = entry["data_offsets"]
    shape, kind = checked_shape(entry["shape"]), DTYPES.get(entry["dtype"])
    if kind is None:
        raise ValueError(f"{shown(name)}: unknown dtype {str(entry['dtype'])[:20]}{_advice(entry['dtype'])}")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(body)):
        raise ValueError(f"{shown(name)}: bytes {shown(start)} to {shown(end)} of {len(body)}")
    size = math.prod(shape)
    if size * kind.itemsize != end - start:
        raise ValueError(
            f"{shown(name)}: {entry['dtype']} {list(shape)} takes {size * kind.itemsize} bytes, {end - start} found"
        )
    return np.frombuffer(body, kind, count=size, offset=start).reshape(shape) if size else np.empty(shape, kind)


def _advice(dtype: str) -> str:
    return "; 8-bit floats are not supported: save the weights as bfloat16" if dtype.startswith("F8") else ""


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
