"""A flat folder of small files that several machines share: on a shared disk, or in a bucket.

Both kinds create a file atomically, which is what the leases of `leases` rest on, and replace one atomically.
"""

import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from spirit_jax.core import buckets
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file


@runtime_checkable
class SharedFolder(Protocol):
    """Files by name. Another machine sees a file complete or not at all."""

    def names(self) -> list[str]:
        """The names of all files."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def age(self, name: str) -> float | None:
        """Seconds since a file was written, by the clock of the folder; None if there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none of this name; returns whether this call wrote it."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def clear(self) -> None:
        """Remove all files."""
        ...

    def __truediv__(self, name: str) -> str:
        """The address of a file, for messages."""
        ...


class _FolderClock:
    """The clock that gives the files of a folder their times. It is the server's, and may differ from this machine's.

    Args:
        write_probe: writes a file, removes it, and returns its time.
    """

    def __init__(self, write_probe: Callable[[str], float]):
        self._write_probe, self._ahead = write_probe, None

    def now(self) -> float:
        """The time in seconds since 1970; by this machine's clock while the folder cannot be written."""
        if self._ahead is None:
            before = time.monotonic()
            try:
                self._ahead = self._write_probe(f".clock.{secrets.token_hex(8)}.part") - before
            except (OSError, SpiritError):  # the folder was removed meanwhile
                return time.time()
        return time.monotonic() + self._ahead


class LocalFolder:
    """A folder on a disk; it is made when the first file is written.

    Args:
        directory: its path; machines that share it share the folder.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        self._clock = _FolderClock(self._write_probe)

    def names(self) -> list[str]:
        """See `SharedFolder`."""
        try:
            return [name for name in os.listdir(self._directory) if not name.endswith(".part")]
        except FileNotFoundError:
            return []

    def has(self, name: str) -> bool:
        """See `SharedFolder`."""
        return (self._directory / name).exists()

    def age(self, name: str) -> float | None:
        """See `SharedFolder`."""
        try:
            written = (self._directory / name).stat().st_mtime
        except FileNotFoundError:
            return None
        return self._clock.now() - written

    def _write_probe(self, name: str) -> float:
        path = self._directory / name
        try:
            path.write_bytes(b"?")
            return path.stat().st_mtime
        finally:
            path.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """See `SharedFolder`."""
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """See `SharedFolder`."""
        write_file(self._directory / name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `SharedFolder`. The content may be missing for a moment after the file appears."""
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            with (self._directory / name).open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """See `SharedFolder`."""
        (self._directory / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """See `SharedFolder`."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def __truediv__(self, name: str) -> str:
        return str(self._directory / name)


class BucketFolder:
    """A folder in a bucket.

    Args:
        url: `gs://BUCKET/NAME`.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self._clock = _FolderClock(self._write_probe)

    def names(self) -> list[str]:
        """See `SharedFolder`."""
        return [name for name in buckets.list_objects(self._url) if not name.endswith(".part")]

    def has(self, name: str) -> bool:
        """See `SharedFolder`."""
        return buckets.find_object(self / name) is not None

    def age(self, name: str) -> float | None:
        """See `SharedFolder`."""
        found = buckets.find_object(self / name)
        return None if found is None else self._clock.now() - found.updated

    def _write_probe(self, name: str) -> float:
        try:
            return buckets.write_object(self / name, b"?").updated
        finally:
            buckets.remove_object(self / name)

    def read(self, name: str) -> bytes | None:
        """See `SharedFolder`."""
        try:
            return buckets.read_object(self / name)
        except buckets.BucketError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """See `SharedFolder`."""
        buckets.write_object(self / name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `SharedFolder`."""
        try:
            buckets.write_object(self / name, content, if_absent=True)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """See `SharedFolder`."""
        buckets.remove_object(self / name)

    def clear(self) -> None:
        """See `SharedFolder`."""
        for name in buckets.list_objects(self._url):
            self.remove(name)

    def __truediv__(self, name: str) -> str:
        return f"{self._url}/{name}"


def shared_folder(path: str | os.PathLike) -> SharedFolder:
    """The folder at a path or address."""
    return BucketFolder(os.fspath(path)) if buckets.is_bucket(path) else LocalFolder(path)
