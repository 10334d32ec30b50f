"""Reads NumPy values in pickles, and k-means centroids from scikit-learn models that joblib saved or from `.npy` files.

textless-lib, GSLM and TWIST publish their k-means quantizers as a joblib pickle of `sklearn.cluster.MiniBatchKMeans`.
In such a pickle, the raw bytes of each array follow the object that announces it. Only `cluster_centers_` is used;
scikit-learn's objects are never created (`PickledObject`).
"""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from spirit_jax.convert.errors import reading
from spirit_jax.convert.formats.arrays import checked_shape, map_file, open_map
from spirit_jax.convert.formats.unpickle import AllowedNames, PickledObject, data_classes, unpickle
from spirit_jax.core.files import shown

CENTERS = "cluster_centers_"
"""Name of the centroids, [K, D], in scikit-learn's models."""

_DTYPE = re.compile(r"\|?[biuf](1|2|4|8)")
_ARRAY, _JOBLIB_ARRAY = "numpy.ndarray", "joblib.numpy_pickle.NumpyArrayWrapper"
# torch.save's older layout starts with a magic number.
_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"


def _scalar(dtype: PickledObject, data: bytes) -> bool | int | float:
    return np.frombuffer(_bytes(data), _dtype(dtype), count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which protocol 2 holds as latin-1 text."""
    if encoding != "latin1":
        raise ValueError("text in another encoding than latin1")
    return text.encode("latin1")


def _array(data: bytes, dtype: PickledObject, shape: tuple[int, ...], order: str) -> PickledObject:
    return PickledObject(_ARRAY, state=(1, shape, dtype, order == "F", data))


def _under_both_names(name: str, function: Callable) -> dict[str, Callable]:
    """A name of `numpy.core`, which NumPy 2 moved to `numpy._core`."""
    return {f"numpy.{core}.{name}": function for core in ("core", "_core")}


NUMPY_NAMES: AllowedNames = {
    **_under_both_names("multiarray._reconstruct", lambda *_: PickledObject(_ARRAY)),
    **_under_both_names("numeric._frombuffer", _array),
    **_under_both_names("multiarray.scalar", _scalar),
    **data_classes("numpy.dtype"),
    _ARRAY: None,
    "_codecs.encode": _encode,
}
"""Names in pickles of NumPy arrays and scalars. `as_array` makes an array of the `PickledObject`."""

_SKLEARN_NAMES: AllowedNames = {
    **NUMPY_NAMES,
    **data_classes(
        _JOBLIB_ARRAY,
        *(
            f"sklearn.cluster.{module}.{name}"
            for module in ("_kmeans", "k_means_")
            for name in ("KMeans", "MiniBatchKMeans")
        ),
        # A MiniBatchKMeans holds the state of its random generator.
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random.__RandomState_ctor",
        "numpy.random.mtrand.RandomState",
        "numpy.random._mt19937.MT19937",
    ),
}


def _bytes(data: Any) -> bytes:
    """Bytes from a pickle; protocol 2 holds them as latin-1 text."""
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _dtype(pickled: PickledObject) -> np.dtype:
    name = pickled.arguments[0]
    if pickled.name != "numpy.dtype" or not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise TypeError(f"an array of type {shown(name)}, numbers expected")
    order = pickled.state[1] if pickled.state else "|"
    return np.dtype(name).newbyteorder(order if order in ("<", ">") else "=")


def as_array(value: Any) -> np.ndarray:
    """The array that a pickled value describes.

    Raises:
        TypeError: the value is not an array of numbers.
    """
    if isinstance(value, PickledObject) and value.name == _ARRAY:
        _, shape, dtype, fortran, data = value.state
        return _shaped(_bytes(data), shape, _dtype(dtype), "F" if fortran else "C")
    if isinstance(value, PickledObject) and value.name == _JOBLIB_ARRAY:
        return value.state
    found = value.name if isinstance(value, PickledObject) else type(value).__name__
    raise TypeError(f"an array expected, {found} found")


def _shaped(data: bytes, shape: tuple[int, ...], dtype: np.dtype, order: Literal["C", "F"]) -> np.ndarray:
    if len(data) != _size(shape, dtype):
        raise ValueError(f"{len(data)} bytes for an array {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(checked_shape(shape), dtype=object)) * dtype.itemsize


def _load_joblib(path: pathlib.Path) -> Any:
    stream = open_map(path)

    def built(pickled: PickledObject) -> None:
        """Read the array that joblib writes after the object that announces it; newer versions pad it first."""
        if pickled.name != _JOBLIB_ARRAY:
            return
        found = pickled.attributes
        if found.get("numpy_array_alignment_bytes") is not None:
            stream.read(stream.read(1)[0])
        shape, dtype = found["shape"], _dtype(found["dtype"])
        pickled.state = _shaped(stream.read(_size(shape, dtype)), shape, dtype, "F" if found["order"] == "F" else "C")

    return unpickle(stream, str(path), _SKLEARN_NAMES, built=built)


def load_centers(path: str | os.PathLike) -> np.ndarray:
    """K-means centroids [K, D], float32 or float64, from a `.npy` file or a pickle of a scikit-learn model or an array.

    Raises:
        ConversionError: a damaged or compressed file, a pickle that names anything but data, or no matrix in the file.
    """
    path = pathlib.Path(path)
    start = bytes(map_file(path)[:16])
    with reading(path, "k-means centroids"):
        if start.startswith(b"\x93NUMPY"):
            return _load_npy(path)
        if start.startswith(b"\x80"):
            found = _load_joblib(path)
            is_model = isinstance(found, PickledObject) and found.name.startswith("sklearn.")
            return as_array(found.attributes[CENTERS] if is_model else found)
        raise ValueError("joblib files that are compressed must be saved again with compress=0")


def _load_npy(path: pathlib.Path) -> np.ndarray:
    """An array of numbers; `numpy.load` would allocate whatever shape the header claims."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"version {version} of the .npy format, 1.0 or 2.0 expected")
        shape, fortran, dtype = headers[version](file)
        if dtype.kind not in "biuf":
            raise TypeError(f"an array of {dtype}, numbers expected")
        return _shaped(file.read(), shape, dtype, "F" if fortran else "C")


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file is a PyTorch file, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_TORCH))
    return start.startswith(b"PK") or start == _LEGACY_TORCH
