"""Directories of unit records (`unit_record.py`), with their writer and reader: ArrayRecord files with random access.

A directory holds `{split}-00000-of-0000N.array_record` and `metadata.json`.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] - a compiled module

from spirit_jax.core.bucket_cache import local_copy, new_work_directory
from spirit_jax.core.buckets import is_bucket
from spirit_jax.core.errors import JobError
from spirit_jax.core.files import (
    plain_name,
    put_file,
    read_json,
    remove_file,
    staging_directory,
    write_file,
)
from spirit_jax.core.leases import hold_anywhere
from spirit_jax.core.paths import absolute_path, as_path, file_sizes
from spirit_jax.data.unit_record import RecordError, UnitRecord

METADATA = "metadata.json"
"""The file that lists the splits and files of a record directory."""

_WRITER_OPTIONS = "group_size:1"  # one record a group, for random access
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_SPLIT = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+]*")
_FILE = re.compile(rf"({_SPLIT.pattern})-\d{{5,}}-of-\d{{5,}}\.array_record")
_MAX_COUNT = 1 << 53
_LOCK_SECONDS = 60


class RecordWriteError(JobError, RecordError):
    """A record file that cannot be written, as on a full disk; the message names it."""


def shard_names(split: str, shards: int) -> list[str]:
    """File names of a split: `train-00000-of-00002.array_record` and so on."""
    return [f"{split}-{shard:05d}-of-{shards:05d}.array_record" for shard in range(shards)]


def read_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """Read `metadata.json` of a record directory.

    Returns:
        `name` of the corpus, `units` (fingerprint of the encoders), `splits` (number of records of each) and `files`
        (records and bytes of each).

    Raises:
        RecordError: there is no such file, or `RecordWriter` did not write it.
    """
    path = as_path(directory) / METADATA
    if not path.exists():
        raise RecordError(f"{path}: not found; is {directory} a directory of unit records?")
    metadata = read_json(path, RecordError)
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(k), dict) for k in ("splits", "files")):
        raise RecordError(f"{path}: expected an object with 'splits' and 'files'")
    for key in ("name", "units"):
        if not isinstance(metadata.get(key, ""), str):
            raise RecordError(f"{path}: {key!r} must be a string, found {metadata[key]!r}")
    for split, count in metadata["splits"].items():
        if not _SPLIT.fullmatch(split) or not _is_count(count):
            raise RecordError(
                f"{path}: 'splits' must give the number of records of each split, found {split!r}: {count!r}"
            )
    for file, entry in metadata["files"].items():
        if not _FILE.fullmatch(plain_name(file, path, RecordError)):
            raise RecordError(f"{path}: {file!r} is not the name of a file of records")
        if not isinstance(entry, dict) or not all(_is_count(entry.get(key)) for key in ("records", "bytes")):
            raise RecordError(f"{path}: needs the numbers of records and bytes of {file}, found {entry!r}")
    return metadata


def check_split_name(split: str) -> None:
    """Check that records can have a split of this name.

    Raises:
        RecordError: the name is empty, begins with a dot, or has other characters than letters, digits, `_`, `.`, `+`.
    """
    if not _SPLIT.fullmatch(split):
        raise RecordError(
            f"split {split!r}: use letters, digits, '_', '.' and '+'"
            + (f", such as {fitting!r}" if (fitting := re.sub(r"[^A-Za-z0-9_.+]+", "_", split).lstrip(".")) else "")
        )


def check_units(directory: str | os.PathLike, split: str, units: str) -> None:
    """Check that a directory of records can take a split with units of these encoders.

    Args:
        directory: need not exist.
        split: name of the split; its own records do not count, because they are replaced.
        units: fingerprint of the encoders, "" for text.

    Raises:
        RecordError: another split has units of other encoders, or `metadata.json` is damaged.
    """
    if (as_path(directory) / METADATA).exists():
        found = read_metadata(directory)
        others = {other for other in found["splits"] if other != split}
        if others and units and found.get("units") and found["units"] != units:
            raise RecordError(
                f"{directory}: holds units of {found['units'][:12]}, these are of {units[:12]}; "
                "choose another directory"
            )


def count_files(directory: str | os.PathLike, split: str) -> int:
    """Number of record files of a split.

    Raises:
        RecordError: there is no such directory of records.
    """
    return sum(_split_of(file) == split for file in read_metadata(directory)["files"])


def check_files(directory: str | os.PathLike, split: str) -> int:
    """Check that the files of a split are there with the sizes that they were written with; returns its records.

    Raises:
        RecordError: there is no such split, or a file is missing or has another size.
    """
    metadata = read_metadata(directory)
    if split not in metadata["splits"]:
        raise RecordError(f"{directory}: no split {split!r}, it has {sorted(metadata['splits'])}")
    files = {file: entry for file, entry in metadata["files"].items() if _split_of(file) == split}
    sizes = file_sizes(directory)
    for file, entry in files.items():
        if sizes.get(file) != entry["bytes"]:
            raise RecordError(f"{directory}/{file}: {sizes.get(file)} bytes, {entry['bytes']} were written")
    return sum(entry["records"] for entry in files.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _max_open_files() -> int:
    """Number of record files that may be open at once: a quarter of what the system allows this process."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if allowed == resource.RLIM_INFINITY else max(4, allowed // 4)


class RecordWriter:
    """Writes one split of a record directory, which appears or is replaced when the writer is closed.

    An exception inside the `with` block leaves the directory as it was. Records go to the shards in turn. Several
    processes may add different splits to one directory at the same time.

    Example::

        with RecordWriter("records", "train") as writer:
            writer.write(UnitRecord("page-1", "One fine day."))

    Args:
        directory: created if needed.
        split: name of letters, digits, `_`, `.` and `+`.
        shards: number of files.
        name: of the corpus; by default the name of the directory.
        units: fingerprint of the encoders (sha256 hex or any string), "" for text.

    Attributes:
        count: number of records written.

    Raises:
        RecordError: the name of the split has other characters, or the directory holds units of another fingerprint.
    """

    def __init__(
        self, directory: str | os.PathLike, split: str, shards: int = 1, *, name: str | None = None, units: str = ""
    ):
        check_split_name(split)
        if shards < 1:
            raise RecordError(f"shards must be at least 1, found {shards}")
        self.directory, self.split, self.count = as_path(directory), split, 0
        self._name, self._units = name, units
        check_units(directory, split, units)
        self._names = shard_names(split, shards)
        # files of a bucket are written on this machine first
        self._part = new_work_directory() if is_bucket(directory) else staging_directory(self.directory, split)
        # with more shards than files that may be open, records go to one file first
        self._spool = self._part / "records" if shards > _max_open_files() else None
        self._paths = [self._part / file for file in self._names]
        self._writers = [self._open(path) for path in ([self._spool] if self._spool else self._paths)]

    def write(self, record: UnitRecord) -> None:
        """Add one record.

        Raises:
            RecordError: the record is not valid (`UnitRecord.validate`).
        """
        record.validate()
        self.write_bytes(record.to_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Add a serialized record without checking it.

        Raises:
            RecordWriteError: it cannot be written.
        """
        with self._writing():
            self._writers[self.count % len(self._writers)].write(data)
        self.count += 1

    def close(self) -> None:
        """Put the split in place: first the files, then `metadata.json`, each by one rename.

        Raises:
            RecordWriteError: a file could not be written.
            RecordError: another process added units of other encoders.
        """
        try:
            for writer in self._writers:
                self._finish(writer)
            if self._spool:
                self._distribute(self._spool)
            with hold_anywhere(self.directory, ".metadata.lock", f"adding split {self.split}", wait=_LOCK_SECONDS):
                self._put_in_place()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def _put_in_place(self) -> None:
        check_units(self.directory, self.split, self._units)
        found: dict[str, Any] = {"splits": {}, "files": {}}
        if (self.directory / METADATA).exists():
            found = read_metadata(self.directory)
        old = [file for file in found["files"] if _split_of(file) == self.split and file not in self._names]
        files = {file: entry for file, entry in found["files"].items() if _split_of(file) != self.split}
        for shard, (file, part) in enumerate(zip(self._names, self._paths, strict=True)):
            files[file] = {"records": len(range(shard, self.count, len(self._names))), "bytes": part.stat().st_size}
            put_file(part, self.directory / file)
        metadata = {
            **found,
            "name": self._name or found.get("name") or absolute_path(self.directory).name,
            "units": self._units or found.get("units", ""),
            "splits": {**found["splits"], self.split: self.count},
            "files": files,
        }
        write_file(self.directory / METADATA, json.dumps(metadata, indent=1, sort_keys=True) + "\n")
        for file in old:
            remove_file(self.directory / file)

    def _distribute(self, spool: pathlib.Path) -> None:
        """Write the shards one after another from the file that holds all records."""
        reader = array_record_module.ArrayRecordReader(str(spool), _READER_OPTIONS)
        for shard, path in enumerate(self._paths):
            writer = self._open(path)
            with self._writing():
                for index in range(shard, self.count, len(self._paths)):
                    writer.write(reader.read([index])[0])
            self._finish(writer)

    def _open(self, path: pathlib.Path) -> array_record_module.ArrayRecordWriter:
        with self._writing():
            return array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def _finish(self, writer: array_record_module.ArrayRecordWriter) -> None:
        with self._writing():
            whole = writer.ok()
            writer.close()
        if not whole:
            raise RecordWriteError(f"{self.directory}: could not write split {self.split!r}; is the disk full?")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the split in the errors of the library, which have no common base."""
        try:
            yield
        except Exception as error:  # pybind raises RuntimeError, ValueError, ...
            reason = " ".join(str(error).split())[:200]
            raise RecordWriteError(f"{self.directory}: cannot write split {self.split!r} ({reason})") from error

    def abort(self) -> None:
        """Discard all records written."""
        for writer in self._writers:
            with contextlib.suppress(Exception):  # its file may be on a full disk, and is removed
                writer.close()
        shutil.rmtree(self._part, ignore_errors=True)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        self.abort() if kind else self.close()


def _split_of(file: str) -> str:
    return file.rsplit("-", 3)[0]


class RecordSource:
    """Random access to the records of one split.

    Files open on first use, so a source can be pickled, and used after a fork.

    Example::

        source = RecordSource("records", "train")
        source[0].text, len(source)

    Args:
        directory: a directory that `RecordWriter` wrote, also in a bucket.
        split: name of the split.
        allow_damaged: whether to open the split although files are missing or truncated; their records raise when read.

    Attributes:
        directory: the directory.
        split: name of the split.
        name: of the corpus.
        units: fingerprint of the encoders, "" for text.
        shards: number of files of the split.
        fingerprint: sha256 (hex) of the names, counts and sizes of the split's files.
        damaged: number of each damaged file -> what is wrong with it.

    Raises:
        RecordError: there is no such split, or a file is missing or has another size than when it was written.
    """

    def __init__(self, directory: str | os.PathLike, split: str, *, allow_damaged: bool = False):
        metadata = read_metadata(directory)
        if split not in metadata["splits"]:
            raise RecordError(f"{directory}: no split {split!r}, it has {sorted(metadata['splits'])}")
        if is_bucket(directory):  # random access needs a local copy; its files are read ahead of the first record
            files = {file for file in metadata["files"] if _split_of(file) == split}
            directory = local_copy(os.fspath(directory), lambda name: name == METADATA or name in files)
        self.directory, self.split, self.name = pathlib.Path(directory), split, metadata.get("name") or ""
        files = sorted((file, entry) for file, entry in metadata["files"].items() if _split_of(file) == split)
        self.units, self.shards = metadata.get("units") or "", len(files)
        self._paths = [str(self.directory / file) for file, _ in files]
        counts = [entry["records"] for _, entry in files]
        self.damaged: dict[int, str] = {}
        for shard, (path, (_, entry)) in enumerate(zip(self._paths, files, strict=True)):
            if not os.path.exists(path):
                self.damaged[shard] = f"{path}: missing, {METADATA} lists it"
            elif os.path.getsize(path) != entry["bytes"]:
                self.damaged[shard] = (
                    f"{path}: {os.path.getsize(path)} bytes, {entry['bytes']} were written; truncated?"
                )
        if self.damaged and not allow_damaged:
            raise RecordError(next(iter(self.damaged.values())))
        self._starts = [0, *np.cumsum(counts).tolist()]
        if self._starts[-1] != metadata["splits"][split]:
            raise RecordError(
                f"{directory}: {METADATA} counts {metadata['splits'][split]} and {self._starts[-1]} records"
            )
        self.fingerprint = hashlib.sha256(json.dumps([self.name, split, files], sort_keys=True).encode()).hexdigest()
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}}

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard in self.damaged:
            raise RecordError(self.damaged[shard])
        if self._pid != os.getpid():  # a reader's file position must not be shared with a parent process
            self._readers, self._pid = {}, os.getpid()
        if shard not in self._readers:
            path = self._paths[shard]
            try:
                reader = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
                found = reader.num_records()
            except Exception as error:  # pybind raises RuntimeError, ValueError, ...
                raise RecordError(f"{path}: cannot be opened as ArrayRecord ({error})") from error
            expected = self._starts[shard + 1] - self._starts[shard]
            if found != expected:
                raise RecordError(f"{path}: {found} records, {METADATA} says {expected}")
            while len(self._readers) >= _max_open_files():
                self._readers.pop(next(iter(self._readers)), None)
            self._readers[shard] = reader
        return self._readers[shard]

    def written_order(self) -> Iterator[int]:
        """Indices of all records in the order in which `RecordWriter` wrote them, to the shards in turn."""
        return iter(sorted(range(len(self)), key=self._place))

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return index - self._starts[shard], shard

    def read_bytes(self, index: int) -> bytes:
        """The serialized record at an index.

        Raises:
            RecordError: the file or the record is damaged; names the file and the record's row in it.
            IndexError: the index is not in 0..len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        reader, row = self._reader(shard), index - self._starts[shard]
        try:
            return reader.read([row])[0]
        except Exception as error:
            self._readers.pop(shard, None)  # a reader that failed once stays failed
            raise RecordError(f"{self._paths[shard]}: record {row} cannot be read ({error})") from error

    def __getitem__(self, index: int) -> UnitRecord:
        """The record at an index, not yet validated.

        Raises:
            RecordError: the file or the record is damaged; names the file and the record's row in it.
            IndexError: the index is not in 0..len - 1.
        """
        data = self.read_bytes(index)
        try:
            return UnitRecord.from_bytes(data)
        except RecordError as error:
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            raise RecordError(f"{self._paths[shard]}: record {index - self._starts[shard]}: {error}") from error


def read_records(directory: str | os.PathLike, split: str) -> Sequence[UnitRecord]:
    """Read all records of a small split into memory and validate each.

    Raises:
        RecordError: a record cannot be read or is not valid.
    """
    source = RecordSource(directory, split)
    records = [source[index] for index in range(len(source))]
    for record in records:
        record.validate()
    return records


def reshard(directory: str | os.PathLike, split: str, shards: int) -> None:
    """Write a split again with another number of files; the records and their order stay.

    Raises:
        RecordError: there is no such split, or a file is damaged.
    """
    source = RecordSource(directory, split)
    with RecordWriter(directory, split, shards, name=source.name, units=source.units) as writer:
        for index in source.written_order():
            writer.write_bytes(source.read_bytes(index))
