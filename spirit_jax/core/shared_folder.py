"""A flat folder of small files that several machines share: on a shared disk, or in a bucket.

Both kinds create a file atomically, which is what the leases of `leases` rest on, and replace one atomically.
"""

import contextlib
import os
import pathlib
import shutil
import time
from typing import Protocol, runtime_checkable

from spirit_jax.core import buckets
from spirit_jax.core.files import write_file


@runtime_checkable
class SharedFolder(Protocol):
    """Files by name. Another machine sees a file complete or not at all."""

    def ages(self) -> dict[str, float]:
        """Seconds since each file was written, by name."""
        ...

    def age(self, name: str) -> float | None:
        """Seconds since a file was written, None if there is none."""
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


class LocalFolder:
    """A folder on a disk; it is made when the first file is written.

    Args:
        directory: its path; machines that share it share the folder.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)

    def ages(self) -> dict[str, float]:
        """See `SharedFolder`."""
        found, now = {}, time.time()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another machine removed it
                    if not entry.name.endswith(".part"):
                        found[entry.name] = now - entry.stat().st_mtime
        return found

    def age(self, name: str) -> float | None:
        """See `SharedFolder`."""
        try:
            return time.time() - (self._directory / name).stat().st_mtime
        except FileNotFoundError:
            return None

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

    def ages(self) -> dict[str, float]:
        """See `SharedFolder`. The clocks of the server and of this machine are taken to agree."""
        now = time.time()
        return {name: now - found.updated for name, found in buckets.list_objects(self._url).items()}

    def age(self, name: str) -> float | None:
        """See `SharedFolder`. The clocks of the server and of this machine are taken to agree."""
        found = buckets.find_object(self / name)
        return None if found is None else time.time() - found.updated

    def read(self, name: str) -> bytes | None:
        """See `SharedFolder`."""
        if buckets.find_object(self / name) is None:
            return None
        return buckets.read_object(self / name)

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
