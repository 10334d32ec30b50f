"""Files and directories that appear complete or not at all, and the one way to read a text file."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from spirit_jax.core.errors import SpiritError


class FileFormatError(SpiritError):
    """A file that cannot be read or is not in the expected format; the message names it."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and leaves `path` alone if the block raises."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file atomically, text as UTF-8; replaces an existing file."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yield an empty directory to write into; it is renamed to `path` when the block ends.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it, choose another, or allow it to be overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        part.chmod(0o755)
        yield part
        if path.exists():
            discarded = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, discarded / path.name)
            os.rename(part, path)
            shutil.rmtree(discarded)
        else:
            os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_text(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> str:
    """The content of a UTF-8 text file, without a byte-order mark.

    Raises:
        error: the file cannot be read, or is not UTF-8; the message names it.
    """
    try:
        return pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text (byte {problem.start}); convert the file to UTF-8") from problem


def read_json(path: str | os.PathLike, error: type[SpiritError] = FileFormatError) -> Any:
    """The content of a JSON file.

    Raises:
        error: the file cannot be read, is not UTF-8, is not JSON or is nested too deeply; the message names it.
    """
    text = read_text(path, error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not JSON ({problem})") from problem


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
    ):
        raise error(f"{where}: {name!r} is not the name of a file beside it: refused")
    return name
