"""Files and directories that appear complete or not at all, and the one way to read a file that others wrote."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import struct
import tempfile
import tokenize
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from spirit_jax.core import buckets
from spirit_jax.core.errors import SpiritError, printable
from spirit_jax.core.interrupts import removed_when_ended

MAX_JSON_DEPTH = 100
"""Lists and objects inside each other that `parse_json` accepts; Python's own parser ends the process far beyond it."""

_MAX_NAME = 255  # bytes in the name of a file
_MAX_SHOWN = 200  # characters of a value from a file in a message

DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
)
"""Exceptions that Python and its libraries raise when they read damaged or hostile data."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]')  # strings are matched so that brackets in them are passed over


class FileFormatError(SpiritError):
    """A file that cannot be read or is not in the expected format; the message names it."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and leaves `path` alone if the block raises.

    A file in a bucket is written on this machine and then uploaded.

    Raises:
        OSError: names `path`, also where the disk is full.
        BucketError, BucketJobError: the bucket cannot be written.
    """
    if buckets.is_bucket(path):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            buckets.write_object(os.fspath(path), pathlib.Path(file.name))
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with removed_when_ended(part), naming(path), part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file or object of a bucket atomically, text as UTF-8; replaces an existing one."""
    content = content.encode() if isinstance(content, str) else content
    if buckets.is_bucket(path):
        buckets.write_object(os.fspath(path), content)
        return
    with atomic_file(path) as file:
        file.write(content)


def put_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Move a complete file to its place, on the same disk by a rename, or into a bucket.

    Raises:
        BucketError, BucketJobError: the bucket cannot be written.
    """
    if buckets.is_bucket(target):
        buckets.write_object(os.fspath(target), pathlib.Path(source))
        os.unlink(source)
    else:
        os.replace(source, target)


def remove_file(path: str | os.PathLike) -> None:
    """Remove a file or object, if it is there."""
    if buckets.is_bucket(path):
        buckets.remove_object(os.fspath(path))
    else:
        pathlib.Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yield an empty directory to write into; it is renamed to `path` when the block ends.

    Directories that killed processes left behind while they wrote the same `path` are removed first.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it, choose another, or allow it to be overwritten")
    part = staging_directory(path.parent, path.name)
    try:
        with naming(path):
            yield part
        if path.exists():
            discarded = staging_directory(path.parent, f"{path.name}.old")
            os.rename(path, discarded / path.name)
            os.rename(part, path)
            shutil.rmtree(discarded)
        else:
            os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def staging_directory(parent: str | os.PathLike, name: str) -> pathlib.Path:
    """Make a hidden directory `.NAME.part-HOST-PID-RANDOM` in `parent`, to be renamed or removed by the caller.

    Directories of the same name whose process was killed on this host are removed.

    Raises:
        OSError: names the path that the directory was to be renamed to.
    """
    parent = pathlib.Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    prefix = f".{name}.part-{host}-"
    pattern = re.compile(re.escape(prefix) + r"(\d+)-")
    with contextlib.suppress(OSError):  # a directory that may be written and not listed
        for left in parent.iterdir():
            owner = pattern.match(left.name)
            if owner and not process_exists(int(owner[1])):
                shutil.rmtree(left, ignore_errors=True)
    try:
        part = pathlib.Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))
        part.chmod(0o755)
    except OSError as problem:
        problem.filename = str(parent / name)
        raise
    return part


def process_exists(pid: int) -> bool:
    """Whether a process with this number runs on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def open_regular(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> IO[bytes]:
    """Open a regular file for reading. Devices and pipes, which may never end, are refused before anything is read.

    Raises:
        error: there is no such file, it is not a regular one, or it cannot be opened; the message names it.
    """
    try:
        # a pipe without a writer would block without O_NONBLOCK, which regular files ignore
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    except ValueError as problem:
        raise error(f"{os.fspath(path)!r}: not a path ({problem})") from problem  # it holds a zero byte or a surrogate
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise error(f"{path}: is {kind}, a regular file is needed") from OSError(errno.EINVAL, kind, str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> bytes:
    """The content of a regular file or of an object of a bucket.

    Raises:
        error: the file cannot be read or is not a regular one; the message names it.
        BucketError, BucketJobError: an object cannot be read.
    """
    if buckets.is_bucket(path):
        return buckets.read_object(os.fspath(path))
    with open_regular(path, error) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as problem:
            raise error(f"{path}: cannot be read ({problem.strerror or problem})") from problem
        except (MemoryError, OverflowError) as problem:
            raise error(f"{path}: is too large for the memory of this machine") from problem


def read_text(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> str:
    """The content of a UTF-8 text file, without a byte-order mark.

    Raises:
        error: the file cannot be read, is not a regular one, or is not UTF-8; the message names it.
    """
    return decode_text(read_bytes(path, error), path, error)


def decode_text(content: bytes, where: Any, error: type[SpiritError] = FileFormatError) -> str:
    """UTF-8 bytes as text, without a byte-order mark.

    Raises:
        error: the bytes are not UTF-8; the message begins with `where`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 text (byte {problem.start}); convert the file to UTF-8") from problem


def read_json(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> Any:
    """The content of a JSON file.

    Raises:
        error: the file cannot be read, is not UTF-8, is not JSON or is nested too deeply; the message names it.
    """
    return parse_json(read_text(path, error), path, error)


def parse_json(text: str, where: Any, error: type[SpiritError] = FileFormatError) -> Any:
    """The value of JSON text.

    Raises:
        error: the text is not JSON, or is nested more than `MAX_JSON_DEPTH` deep; the message begins with `where`.
    """
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise error(f"{where}: not JSON that can be read (nested more than {MAX_JSON_DEPTH} deep)")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not JSON ({problem})") from problem


@contextlib.contextmanager
def reading(where: object, expected: str, error: type[SpiritError] = FileFormatError) -> Iterator[None]:
    """Read a file that others wrote: whatever damage in it raises becomes one line in one type of error.

    Example::

        with reading(path, "a PyTorch file"):
            ...

    Args:
        where: the file.
        expected: what the file should be, such as "a PyTorch file".
        error: raised in place of the exceptions of `DAMAGE`; a `SpiritError` stays as it is.
    """
    try:
        yield
    except SpiritError:
        raise
    except DAMAGE as problem:
        raise error(
            f"{where}: not {expected}, or damaged or cut short ({type(problem).__name__}: {shown(problem)})"
        ) from problem


def shown(value: Any) -> str:
    """A value from a file as text for a message: short, printable, in one line."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except DAMAGE:  # an integer of more than 4300 digits has no text
        text = f"a {type(value).__name__}"
    text = printable(" ".join(text.split()))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def plain_name(name: Any, where: Any, error: type[SpiritError] = FileFormatError) -> str:
    """Return `name` if it names a file in the same directory; names read from data are never paths.

    Raises:
        error: `name` is not a string, or leads to another directory.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or pathlib.Path(name).name != name
        or {"\\", "\0"} & set(name)
        or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME
    ):
        raise error(f"{where}: {shown(name)} is not the name of a file beside it: refused")
    return name


def is_encodable(text: str) -> bool:
    """Whether text can be written as UTF-8. A lone surrogate, which JSON can spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Give an `OSError` that names no file, as that of a full disk, the name of the file that was to be written."""
    try:
        yield
    except OSError as problem:
        if problem.filename is None and problem.errno is not None:
            problem.filename = str(path)
        raise


def _depth(text: str) -> int:
    """Greatest number of lists and objects inside each other."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if (token := match[0]) in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in "]}":
            depth -= 1
    return deepest
