"""Reads and writes PyTorch checkpoint files (`.pt`, `.bin`) without PyTorch.

Reading maps the file into memory and returns tensors as read-only NumPy views of it. Nothing is copied and nothing is
executed: `unpickle` knows only plain containers and tensors, never imports a name, and refuses any other name in the
file. Both layouts are read: the zip archive (PyTorch 1.6 and later) and the older stream of pickles.

Writing makes a zip archive, one tensor at a time, that `torch.load(..., weights_only=True)` loads and that `mmap=True`
maps.
"""

import concurrent.futures
import io
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats.arrays import ReadableArray, as_bytes, checked_shape, open_map
from spirit_jax.convert.formats.numpy_pickle import NUMPY_NAMES
from spirit_jax.convert.formats.unpickle import AllowedNames, Stream, data_classes, pairs_as_dict, unpickle
from spirit_jax.core.files import atomic_file, shown

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}

DATA_CLASSES = ("argparse.Namespace", "fairseq.data.dictionary.Dictionary")
"""Classes of objects in fairseq's checkpoints that hold only data; each object becomes a `PickledObject`."""

_MAX_SHARING = 8
_SPARE_BYTES = 64 * 2**20
"""Tensors may share their data, and take this much more memory than the file when they are written out."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ALIGNMENT = 64  # bytes; PyTorch aligns tensors in a zip archive so that the file can be mapped


# ---------------------------------------------------------------- reading


def load_torch(path: str | os.PathLike, *, check_content: bool = True) -> Any:
    """Read a PyTorch file: nested plain containers, with tensors as read-only NumPy views of the mapped file.

    Args:
        check_content: whether to compare tensors with the checksums of the zip archive, for which the whole file is
            read once. The older layout has none.

    Raises:
        ConversionError: a damaged file, a pickle that names anything but data, or a tensor that reaches outside its
            storage.
    """
    stream, where = open_map(path), str(path)
    data = memoryview(stream)
    with reading(where, "a PyTorch file"):
        if bytes(data[:2]) == b"PK":
            return _load_zip(data, where, check_content)
        return _load_legacy(stream, data, where)


def _load_zip(data: memoryview, where: str, check_content: bool) -> Any:
    members: dict[str, memoryview] = {}
    checksums: dict[str, int] = {}
    for name, content, checksum in _zip_members(data, where):
        if name in members:
            raise ConversionError(f"{where}: {shown(name)} is there twice")
        members[name], checksums[name] = content, checksum
    pickles = [name for name in members if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ConversionError(f"{where}: a zip archive without data.pkl, so not a PyTorch file")
    root = pickles[0][: -len("data.pkl")]
    tensors = f"{root}data/"
    _check_content(members, checksums, where, lambda name: check_content or not name.startswith(tensors))
    if bytes(members.get(f"{root}byteorder", b"little")) != b"little":
        raise ConversionError(f"{where}: tensors are stored big-endian; save the file again on a little-endian machine")

    def storage(key: str, dtype: np.dtype, size: int) -> np.ndarray:
        content = members.get(tensors + key)
        if content is None:
            raise ConversionError(f"{where}: tensor data {shown(key)} is missing")
        return _storage(content, key, dtype, size, where)

    return _unpickle(io.BytesIO(members[pickles[0]]), where, storage, len(data))


def _check_content(
    members: Mapping[str, memoryview], checksums: Mapping[str, int], where: str, wanted: Callable[[str], bool]
) -> None:
    """Compare members with the CRC-32 that the archive has of them. A 0 means that PyTorch was told to write none."""
    names = [name for name in members if checksums[name] and wanted(name)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:  # zlib releases the interpreter lock
        for name, found in zip(names, threads.map(lambda name: zlib.crc32(members[name]), names), strict=True):
            if found != checksums[name]:
                raise ConversionError(
                    f"{where}: {shown(name)} is damaged (CRC-32 {found:08x}, {checksums[name]:08x} expected); "
                    "get the file again"
                )


def _storage(content: memoryview, key: str, dtype: np.dtype, size: int, where: str) -> np.ndarray:
    """The first `size` elements of a storage."""
    if size * dtype.itemsize > len(content):
        raise ConversionError(
            f"{where}: tensor data {shown(key)} has {len(content)} bytes, {size * dtype.itemsize} expected"
        )
    return np.frombuffer(content, dtype, count=size) if size else np.empty(0, dtype)


def _zip_members(data: memoryview, where: str) -> Iterator[tuple[str, memoryview, int]]:
    """Names, contents and CRC-32 of the members of a zip archive, which are stored and not compressed."""
    with open(where, "rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ConversionError(
                f"{where}: {' '.join(member.filename.split())} is compressed or encrypted; PyTorch stores its records "
                "plainly"
            )
    if sum(member.file_size for member in members) > len(data):
        raise ConversionError(f"{where}: the members of the archive overlap or are cut short")
    for member in members:
        head = member.header_offset
        if bytes(data[head : head + 4]) != b"PK\x03\x04":
            raise ConversionError(f"{where}: {shown(member.filename)} has no header at byte {head}")
        name_length, extra_length = struct.unpack_from("<HH", data, head + 26)
        start = head + 30 + name_length + extra_length
        if start + member.file_size > len(data):
            raise ConversionError(f"{where}: {shown(member.filename)} reaches past the end of the file")
        yield member.filename, data[start : start + member.file_size], member.CRC


def _load_legacy(stream: mmap.mmap, data: memoryview, where: str) -> Any:
    """Read five pickles (magic number, protocol, facts on the system, the object, storage keys), then the storages."""

    def plain() -> Any:
        return _unpickle(stream, where, _no_storage, 0)

    # A file that does not start as a pickle may be large, so it is refused before it is parsed.
    if bytes(data[:1]) != b"\x80" or plain() != _LEGACY_MAGIC:
        raise ConversionError(f"{where}: not a PyTorch file (neither a zip archive nor the older layout)")
    if plain() != _LEGACY_PROTOCOL:
        raise ConversionError(f"{where}: a layout older than PyTorch 0.4; load and save it with PyTorch once")
    if not plain().get("little_endian", True):
        raise ConversionError(f"{where}: tensors are stored big-endian; save the file again on a little-endian machine")
    # The object names its storages before their places in the file are known, so it is read twice.
    start = stream.tell()
    sizes: dict[str, int] = {}

    def note(key: str, dtype: np.dtype, size: int) -> None:
        sizes[key] = dtype.itemsize

    _unpickle(stream, where, note, 0)
    places = {}
    keys = plain()
    offset = stream.tell()
    for key in keys:
        (size,) = struct.unpack_from("<q", data, offset)
        offset += 8
        end = offset + size * sizes[key]
        if size < 0 or end > len(data):
            raise ConversionError(f"{where}: tensor data {shown(key)} reaches past the end of the file")
        places[key] = data[offset:end]
        offset = end

    def storage(key: str, dtype: np.dtype, size: int) -> np.ndarray:
        return _storage(places[key], key, dtype, size, where)

    stream.seek(start)
    return _unpickle(stream, where, storage, len(data))


def _no_storage(key: str, dtype: np.dtype, size: int) -> np.ndarray:
    raise ConversionError(f"tensor data {shown(key)} where none belongs")


def _unpickle(
    stream: Stream, where: str, storage: Callable[[str, np.dtype, int], np.ndarray | None], length: int
) -> Any:
    """Read one pickle of plain containers and tensors.

    Args:
        storage: `storage(key, dtype, size)` returns tensor data.
        length: bytes of the file.
    """
    left = _SPARE_BYTES + _MAX_SHARING * length

    def persistent(identity: Any) -> Any:
        kind, type_name, key, _, size, *_ = identity
        dtype = STORAGE_DTYPES.get(type_name.rsplit(".", 1)[-1]) if isinstance(type_name, str) else None
        if kind != "storage" or dtype is None or not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ConversionError(f"{where}: not a tensor storage: {shown(identity)}")
        return storage(key, dtype, size)

    def tensor(storage: np.ndarray | None, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray | None:
        nonlocal left
        if storage is None:
            return None  # the first of two readings
        view = _view(storage, offset, shape, strides, where)
        left -= view.nbytes
        if left < 0:
            raise ConversionError(f"{where}: tensors that are far larger than the file when written out: refused")
        return view

    allowed: AllowedNames = {
        "collections.OrderedDict": lambda pairs=(): OrderedDict(pairs_as_dict(pairs)),
        "torch.Size": tuple,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        **dict.fromkeys(f"torch.{name}" for name in STORAGE_DTYPES),
        **data_classes(*DATA_CLASSES),
        **NUMPY_NAMES,
    }
    return unpickle(stream, where, allowed, persistent=persistent)


def _view(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, where: str) -> np.ndarray:
    """A strided view, checked to stay inside its storage. Strides count elements."""
    try:
        shape, strides, (offset,) = checked_shape(shape), checked_shape(strides), checked_shape((offset,))
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    except ValueError as error:
        raise ConversionError(
            f"{where}: a tensor has the shape {shown(shape)}, strides {shown(strides)} and offset {shown(offset)}"
        ) from error
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    if last >= storage.size:
        raise ConversionError(
            f"{where}: a tensor of shape {list(shape)} reaches outside its storage of {storage.size} elements"
        )
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides, writeable=False)


# ---------------------------------------------------------------- writing

_Arrays = dict[int, tuple[str, ReadableArray]]
"""(storage key, array) by the identity of the array."""


def save_torch(path: str | os.PathLike, tree: Any) -> None:
    """Write nested plain containers with arrays as a PyTorch zip archive, atomically.

    Arrays that are the same object share their storage, as tied weights do in PyTorch.

    Raises:
        ConversionError: a value that a PyTorch file cannot hold without code.
    """
    arrays: _Arrays = {}
    pickled = io.BytesIO()
    pickled.write(pickle.PROTO + b"\x02")
    _write_value(pickled.write, tree, arrays)
    pickled.write(pickle.STOP)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def add(name: str, content: bytes | memoryview) -> None:
            member = zipfile.ZipInfo(f"archive/{name}")
            # A private extra field pads the header, so that the content starts at a multiple of the alignment.
            start = file.tell() + 30 + len(member.filename) + 4
            padding = -start % _ALIGNMENT
            member.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            member.file_size = len(content)
            archive.writestr(member, content)

        add("data.pkl", pickled.getvalue())
        add("byteorder", b"little")
        for key, array in arrays.values():
            add(f"data/{key}", as_bytes(array))
        add("version", b"3\n")


def _write_value(write: Callable[[bytes], Any], value: Any, arrays: _Arrays) -> None:
    """Append the opcodes (protocol 2) that build `value`."""
    match value:
        case None:
            write(pickle.NONE)
        case bool():
            write(pickle.NEWTRUE if value else pickle.NEWFALSE)
        case int():
            if -(2**31) <= value < 2**31:
                write(pickle.BININT + struct.pack("<i", value))
            else:
                digits = pickle.encode_long(value)
                write(pickle.LONG1 + bytes([len(digits)]) + digits)
        case float():
            write(pickle.BINFLOAT + struct.pack(">d", value))
        case str():
            text = value.encode("utf-8", "surrogatepass")
            write(pickle.BINUNICODE + struct.pack("<I", len(text)) + text)
        case dict():
            if isinstance(value, OrderedDict):
                write(pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
            else:
                write(pickle.EMPTY_DICT)
            write(pickle.MARK)
            for key, item in value.items():
                _write_value(write, key, arrays)
                _write_value(write, item, arrays)
            write(pickle.SETITEMS)
        case list():
            write(pickle.EMPTY_LIST + pickle.MARK)
            for item in value:
                _write_value(write, item, arrays)
            write(pickle.APPENDS)
        case tuple():
            write(pickle.MARK)
            for item in value:
                _write_value(write, item, arrays)
            write(pickle.TUPLE)
        case ReadableArray() if np.dtype(value.dtype) in STORAGE_NAMES:
            _write_tensor(write, value, arrays)
        case _:
            dtype = f" of {value.dtype}" if isinstance(value, ReadableArray) else ""
            raise ConversionError(f"a PyTorch file cannot hold {type(value).__name__}{dtype}")


def _write_tensor(write: Callable[[bytes], Any], array: ReadableArray, arrays: _Arrays) -> None:
    key, _ = arrays.setdefault(id(array), (str(len(arrays)), array))
    shape = tuple(int(n) for n in array.shape)
    strides = tuple(int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
    write(pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
    write(pickle.MARK)
    _write_value(write, "storage", arrays)
    write(pickle.GLOBAL + f"torch\n{STORAGE_NAMES[np.dtype(array.dtype)]}\n".encode())
    for part in (key, "cpu", int(np.prod(shape, dtype=np.int64))):
        _write_value(write, part, arrays)
    write(pickle.TUPLE + pickle.BINPERSID)
    for part in (0, shape, strides, False, OrderedDict()):
        _write_value(write, part, arrays)
    write(pickle.TUPLE + pickle.REDUCE)
