"""A local directory whose files are uploaded to a folder of a bucket while a command writes them.

A bucket can neither append to an object nor rename a folder. So a command writes to a local directory, and a thread
uploads the files that have changed, at intervals and at the end. A *seal*, the file that makes a reader accept the
others, is uploaded after all other files. Files that the command removes are removed from the bucket last. Hidden
files, such as locks and files that are being written, stay local.

A folder that a command makes in one atomic step must not come back as a part of itself after a kill. So `UPLOADING`
names such folders while they are uploaded, and those that it names are not downloaded. `FINISHED`, by which a command
knows that work is done, is uploaded when all folders are complete.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import local_copy, new_work_directory
from spirit_jax.core.checksums import is_checksums
from spirit_jax.core.errors import SpiritError, name_in_messages
from spirit_jax.core.files import DAMAGE
from spirit_jax.core.paths import disk_path

INTERVAL = 30.0
"""Seconds between two uploads."""

UPLOADING = ".uploading.json"
"""Object that lists the folders whose upload has begun and has not ended."""

FINISHED = "finished.json"
"""Name of the file that tells a command that the work before it is done, in whichever folders its results are."""

_SEALS = ("metadata.json", "config.json")  # beside the files of checksums and the summaries of jobs
_LOG = logging.getLogger(__name__)
_SMALL = 2**22  # bytes of a file that is read into memory before it is uploaded
_TRANSFERS = 16


class WorkingCopy:
    """The local side of an output folder in a bucket. Use `output_directory`, which makes one where it is needed.

    Args:
        url: the folder in the bucket.
        wanted: which files to download, by their relative names.
        atomic: patterns of the folders in it that are downloaded complete or not at all, such as `*/checkpoints/*`; a
            `*` is one name. Of folders inside each other, the outer one counts.

    Attributes:
        directory: the local directory.
        url: the folder in the bucket.
    """

    def __init__(self, url: str, wanted: Callable[[str], bool], atomic: Collection[str] = ()):
        self.url = url.rstrip("/")
        bucket, name = buckets.split(self.url)
        buckets.check_bucket(self.url)
        self._staging = new_work_directory()
        self.directory = self._staging / (name.rsplit("/", 1)[-1] or bucket)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._wanted, self._lock = wanted, threading.Lock()
        self._atomic = [pathlib.PurePosixPath(pattern) for pattern in atomic]
        self._partial, self._begun = frozenset[str](), frozenset[str]()  # folders in UPLOADING; those of this process
        self._left = set[str]()  # objects of folders whose upload was cut short before this process
        self.download()
        self.directory.mkdir(exist_ok=True)
        name_in_messages(self.directory, self.url)

    def download(self) -> None:
        """Bring the wanted files of the bucket into the directory, in place of local ones of the same names.

        A folder whose upload was cut short is left where it is: the command makes it again.
        """
        objects = buckets.list_objects(self.url)
        self._partial = self._uploading(objects) if UPLOADING in objects else frozenset()
        self._left = {name for name in objects if self._unit(name) in self._partial}

        def wanted(name: str) -> bool:
            return self._wanted(name) and name != UPLOADING and name not in self._left

        found = [name for name in objects if wanted(name)]
        if not found:
            return
        source = local_copy(self.url, wanted)
        shutil.copytree(source, self.directory, dirs_exist_ok=True)
        for name in found:
            self._uploaded[name] = _state(self.directory / name)

    def upload(self) -> None:
        """Upload what has changed since the last call, seals last, and remove from the bucket what was removed.

        Raises:
            BucketError, BucketJobError: the bucket cannot be written.
        """
        with self._lock:
            files = {name: _state(self.directory / name) for name in _files(self.directory)}
            changed = [name for name, state in files.items() if self._uploaded.get(name) != state]
            removed = [name for name in self._uploaded if name not in files]
            units = self._begun | self._units([*changed, *removed])
            removed += [name for name in self._left if name not in files and self._unit(name) in units]
            if units:
                self._begun = units
                self._set_uploading(self._partial | units)
            with ThreadPoolExecutor(_TRANSFERS) as threads:
                for stage in (_is_content, is_seal):
                    self._put_all(threads, {name: files[name] for name in changed if stage(name)})
                for name in removed:
                    buckets.remove_object(f"{self.url}/{name}")
                    self._uploaded.pop(name, None)
                if units:
                    self._begun = self._units(name for name in changed if self._uploaded.get(name) != files[name])
                    self._partial = (self._partial - units) | self._begun
                    self._left = {name for name in self._left if self._unit(name) not in units}
                    self._set_uploading(self._partial)
                self._put_all(threads, {name: files[name] for name in changed if _is_finished(name)})

    def _unit(self, name: str) -> str | None:
        """The atomic folder that a file is in, None for a file of its own."""
        path = pathlib.PurePosixPath(name)
        for folder in reversed(path.parents):
            if any(len(each.parts) == len(folder.parts) and folder.match(str(each)) for each in self._atomic):
                return str(folder)
        return None

    def _units(self, names: Iterable[str]) -> frozenset[str]:
        """The atomic folders that files are in."""
        return frozenset(unit for unit in map(self._unit, names) if unit is not None)

    def _uploading(self, names: Iterable[str]) -> frozenset[str]:
        """The folders whose upload has begun and has not ended.

        Args:
            names: all objects of the folder; all their folders are meant where the list cannot be read.
        """
        content = buckets.read_object(f"{self.url}/{UPLOADING}")
        with contextlib.suppress(*DAMAGE):
            return self._units(f"{folder}/file" for folder in json.loads(content))
        return self._units(names)

    def _set_uploading(self, folders: Collection[str]) -> None:
        if folders:
            buckets.write_object(f"{self.url}/{UPLOADING}", json.dumps(sorted(folders)).encode())
        else:
            buckets.remove_object(f"{self.url}/{UPLOADING}")

    def _put_all(self, threads: ThreadPoolExecutor, files: Mapping[str, tuple[int, int]]) -> None:
        """Upload files at once, and note those that were.

        Args:
            threads: where.
            files: the state of each when the files were listed, by relative path.
        """
        for name, done in zip(files, threads.map(self._put, files, files.values()), strict=True):
            if done:
                self._uploaded[name] = files[name]

    def _put(self, name: str, listed: tuple[int, int]) -> bool:
        """Upload a file as it is now, but a seal only as it was listed; returns whether it was uploaded.

        A seal that was written since then may name files that are not uploaded yet.

        Args:
            name: its relative path.
            listed: its state when the files were listed.
        """
        path, url = self.directory / name, f"{self.url}/{name}"
        try:
            before = _state(path)
            content = path.read_bytes() if before[0] <= _SMALL else path
            if not _is_content(name) and _state(path) != listed:
                return False
            try:
                buckets.write_object(url, content)
            except SpiritError:
                if isinstance(content, bytes) or _state(path) == before:
                    raise
                self._put_copy(path, url)  # a log that grew while it was uploaded
        except FileNotFoundError:  # it was removed meanwhile
            return False
        return True

    def _put_copy(self, path: pathlib.Path, url: str) -> None:
        """Upload a copy of a file, which does not change meanwhile."""
        with tempfile.NamedTemporaryFile(dir=self._staging) as copy:
            shutil.copyfile(path, copy.name)
            buckets.write_object(url, pathlib.Path(copy.name))

    def remove(self) -> None:
        """Remove the local directory."""
        shutil.rmtree(self._staging, ignore_errors=True)


def is_seal(name: str) -> bool:
    """Whether readers accept the files beside this one because of it."""
    file = name.rsplit("/", 1)[-1]
    return file in _SEALS or is_checksums(file) or file.startswith("encoding-") or file.endswith(".summary.json")


def _is_finished(name: str) -> bool:
    return name.rsplit("/", 1)[-1] == FINISHED


def _is_content(name: str) -> bool:
    return not (is_seal(name) or _is_finished(name))


@contextlib.contextmanager
def uploading(copy: WorkingCopy) -> Iterator[None]:
    """Upload a working copy at intervals and at the end of the block, also after an error, and then remove it.

    Raises:
        BucketError, BucketJobError: the last upload failed; an earlier one is repeated.
    """
    ended = threading.Event()

    def upload_at_intervals() -> None:
        while not ended.wait(INTERVAL):
            try:
                copy.upload()
            except (SpiritError, OSError) as problem:
                _LOG.warning("not uploaded yet, tried again in %.0f s: %s", INTERVAL, problem)

    thread = threading.Thread(target=upload_at_intervals, daemon=True, name="upload")
    thread.start()
    try:
        try:
            yield
        except Exception:
            with contextlib.suppress(SpiritError, OSError):  # what was written helps to find the error
                copy.upload()
            raise
        copy.upload()
    finally:
        ended.set()
        thread.join()
        copy.remove()


@contextlib.contextmanager
def output_directory(
    argument: str, option: str, wanted: Callable[[str], bool] = lambda name: True, atomic: Collection[str] = ()
) -> Iterator[pathlib.Path]:
    """The local directory to write an output to; one in a bucket is uploaded at intervals and at the end.

    Args:
        argument: a path or `gs://BUCKET/NAME`, as the user typed it.
        option: names the argument in messages.
        wanted: which files of an output that is in a bucket already are needed here, by their relative names.
        atomic: patterns of folders that are taken from the bucket complete or not at all, as for `WorkingCopy`.

    Raises:
        PathError: not a path.
        BucketError, BucketJobError: the bucket cannot be read or written.
    """
    if not buckets.is_bucket(argument):
        yield pathlib.Path(disk_path(argument, option))
        return
    copy = WorkingCopy(argument, wanted, atomic)
    with uploading(copy):
        yield copy.directory


def _files(directory: pathlib.Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, name), directory) for name in names if not name.startswith(".")]
    return sorted(found)


def _state(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of a file; both change when it is written."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
