"""NumPy values in pickles, and the files that k-means centroids come in: scikit-learn models saved by joblib, `.npy`, `.pt`.

textless-lib, GSLM and TWIST publish their k-means quantizers as a joblib pickle of `sklearn.cluster.MiniBatchKMeans`: a pickle whose
arrays follow, as raw bytes, the objects that stand for them. Only `cluster_centers_` is read; scikit-learn's objects stay names and
attributes (`Record`).
"""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.formats.unpickle import Record, Table, records, unpickle

CENTERS = "cluster_centers_"
"""The name of the centroids, [K, D], in scikit-learn's models."""

_DTYPE = re.compile(r"\|?[biuf](1|2|4|8)")
_ARRAY, _LATER = "numpy.ndarray", "joblib.numpy_pickle.NumpyArrayWrapper"
_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"  # the start of torch.save's older layout: its magic number


def _scalar(dtype: Record, data: bytes) -> bool | int | float:
    return np.frombuffer(_bytes(data), _dtype(dtype), count=1)[0].item()


def _array(data: bytes, dtype: Record, shape: tuple[int, ...], order: str) -> Record:
    return Record(_ARRAY, state=(1, shape, dtype, order == "F", data))


def _named(name: str, function: Callable) -> dict[str, Callable]:
    """NumPy 2 moved `numpy.core` to `numpy._core`."""
    return {f"numpy.{core}.{name}": function for core in ("core", "_core")}


NUMPY: Table = {
    **_named("multiarray._reconstruct", lambda *_: Record(_ARRAY)),
    **_named("numeric._frombuffer", _array),
    **_named("multiarray.scalar", _scalar),
    **records("numpy.dtype"),
    _ARRAY: None,
    "_codecs.encode": lambda text, encoding: {"latin1": text.encode}[encoding]("latin1"),  # bytes in protocol 2
}
"""Arrays and scalars of numbers. An array becomes a `Record`, of which `as_array` makes the array."""

_SKLEARN: Table = {
    **NUMPY,
    **records(
        _LATER,
        *(
            f"sklearn.cluster.{module}.{name}"
            for module in ("_kmeans", "k_means_")
            for name in ("KMeans", "MiniBatchKMeans")
        ),
        # the state of the random generator of a MiniBatchKMeans
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random.__RandomState_ctor",
        "numpy.random.mtrand.RandomState",
        "numpy.random._mt19937.MT19937",
    ),
}


def _bytes(data: Any) -> bytes:
    """Protocol 2 holds bytes as text (latin-1)."""
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _dtype(record: Record) -> np.dtype:
    name = str(record.arguments[0])
    if record.name != "numpy.dtype" or not _DTYPE.fullmatch(name):
        raise TypeError(f"an array of type {name!r}, numbers expected")
    order = record.state[1] if record.state else "|"
    return np.dtype(name).newbyteorder(order if order in ("<", ">") else "=")


def as_array(record: Any) -> np.ndarray:
    """The array that a `Record` stands for."""
    if isinstance(record, Record) and record.name == _ARRAY:
        _, shape, dtype, fortran, data = record.state
        return _shaped(_bytes(data), shape, _dtype(dtype), "F" if fortran else "C")
    if isinstance(record, Record) and record.name == _LATER:
        return record.state
    raise TypeError(f"an array expected, {getattr(record, 'name', type(record).__name__)} found")


def _shaped(data: bytes, shape: tuple[int, ...], dtype: np.dtype, order: str) -> np.ndarray:
    if len(data) != _size(shape, dtype):
        raise ValueError(f"{len(data)} bytes for an array {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _load_joblib(path: pathlib.Path) -> Any:
    with open(path, "rb") as stream:

        def built(record: Record) -> None:
            """joblib writes an array behind the object that announces it, in newer versions after some padding."""
            if record.name != _LATER:
                return
            found = record.attributes
            if found.get("numpy_array_alignment_bytes") is not None:
                stream.read(stream.read(1)[0])
            shape, dtype = found["shape"], _dtype(found["dtype"])
            record.state = _shaped(
                stream.read(_size(shape, dtype)), shape, dtype, "F" if found["order"] == "F" else "C"
            )

        return unpickle(stream, str(path), _SKLEARN, built=built)


def load_centers(path: str | os.PathLike) -> np.ndarray:
    """K-means centroids [K, D], float32 or float64, of a joblib (or plain) pickle of a scikit-learn model or of an array, or of a `.npy`.

    Raises `ConversionError` for a damaged or compressed file, a pickle that names anything but data, or no matrix in it.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        if start.startswith(b"\x93NUMPY"):
            centers = np.load(path, allow_pickle=False)
        elif start.startswith(b"\x80"):
            found = _load_joblib(path)
            kmeans = isinstance(found, Record) and found.name.startswith("sklearn.")
            centers = as_array(found.attributes[CENTERS] if kmeans else found)
        else:
            raise ValueError("joblib files that are compressed must be saved again with compress=0")
    except ConversionError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError) as error:
        raise ConversionError(
            f"{path}: not k-means centroids, or damaged or cut short ({type(error).__name__}: {error})"
        ) from error
    return centers


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file is PyTorch's, by how it begins."""
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_TORCH))
    return start.startswith(b"PK") or start == _LEGACY_TORCH
