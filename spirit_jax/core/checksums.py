"""Seals a directory with the size and CRC-32 of each file, so that a reader finds damage before it uses the content.

A directory that is sealed itself is left out of the seal of the directory around it, so that it can be moved and
replaced alone. Several processes may share the work: each writes the checksums of every `count`-th file, and the
directory is sealed when all have done so. CRC-32 detects every single flipped byte.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable

from spirit_jax.core import buckets
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import FileFormatError, open_regular, read_json, shown, write_file
from spirit_jax.core.paths import as_path, entry_names

CHECKSUMS = "checksums-00000-of-00001.json"
"""The file of checksums that a single process writes."""

_NAME = re.compile(r"checksums-(\d{5})-of-(\d{5})\.json")


def is_checksums(name: str) -> bool:
    """Whether a file of this name holds checksums."""
    return _NAME.fullmatch(name) is not None


def write_checksums(
    directory: str | os.PathLike, index: int = 0, count: int = 1, names: Iterable[str] | None = None
) -> None:
    """Write the checksums of one process's share of a complete directory.

    Args:
        index, count: this process and the number of processes; it takes every `count`-th file from `index` on.
        names: relative paths of the files to seal; None for all.
    """
    folder = as_path(directory)
    files = (_files(folder) if names is None else sorted(names))[index::count]
    checksums = dict(zip(files, _checksums(folder / name for name in files), strict=True))
    write_file(folder / f"checksums-{index:05}-of-{count:05}.json", json.dumps(checksums, indent=0))


def read_checksums(directory: str | os.PathLike) -> dict[str, list] | None:
    """Size and CRC-32 of every file of a sealed directory by relative path; None if the directory is not sealed.

    Raises:
        FileFormatError: a file of checksums is there and the operating system cannot read it, or it names a file
            outside the directory.
    """
    names = sorted(filter(is_checksums, entry_names(directory)))
    if not names or len(names) != int(names[0].removesuffix(".json").rsplit("-", 1)[1]):
        return None
    checksums: dict[str, list] = {}
    for path in (as_path(directory) / name for name in names):
        try:
            content = read_json(path)
        except FileFormatError as error:
            if isinstance(error.__cause__, OSError):  # an unreadable disk does not show that the seal is missing
                raise
            return None
        if not isinstance(content, dict) or not all(isinstance(entry, list) for entry in content.values()):
            return None
        for name in content:
            if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts or "\0" in name:
                raise FileFormatError(f"{path}: {name!r} leads outside the directory: refused")
        checksums |= content
    return checksums


def find_damage(
    directory: str | os.PathLike, index: int = 0, count: int = 1, within: str | tuple[str, ...] = ""
) -> str | None:
    """The first file of a sealed directory that is not as it was written, described in a line; None if all are intact.

    Args:
        index, count: look at every `count`-th file from `index` on, so that the processes of a job share the work.
        within: look only at files whose relative path starts with this, or with one of these.
    """
    folder, checksums = as_path(directory), read_checksums(directory)
    if checksums is None:
        return f"{folder}: no checksums, so it was not completely written"
    names = [name for name in sorted(checksums) if name.startswith(within)][index::count]
    for name, found in zip(names, _checksums(folder / name for name in names), strict=True):
        if found != checksums[name]:
            expected = shown(checksums[name])
            return f"{folder / name}: is not as it was written (size and CRC-32 {found}, not {expected})"
    return None


def check_seal(directory: str | os.PathLike, error: type[SpiritError], within: str | tuple[str, ...] = "") -> None:
    """Check the files of a directory, if it is sealed, before its content is used.

    Args:
        within: check only files whose relative path starts with this, or with one of these.

    Raises:
        error: a file is damaged or missing, or a seal cannot be read; the message names it.
    """
    sealed = any(map(is_checksums, entry_names(directory)))
    try:
        problem = find_damage(directory, within=within) if sealed else None
    except FileFormatError as unreadable:
        raise error(str(unreadable)) from unreadable
    if problem:
        raise error(f"{problem}; restore it from a copy, or make it again")


def _files(directory: os.PathLike) -> list[str]:
    """Relative paths of all files but hidden ones, checksums, and those in directories that are sealed themselves."""
    if buckets.is_bucket(directory):  # checkpoints: no folder in them is sealed itself
        names = [name for name in buckets.list_objects(os.fspath(directory)) if "/." not in f"/{name}"]
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("checksums-"))
    found: list[str] = []
    for folder, folders, names in os.walk(directory):
        if folder != os.fspath(directory) and any(map(is_checksums, names)):
            folders.clear()
            continue
        places = (pathlib.Path(folder, name) for name in names if not name.startswith((".", "checksums-")))
        found += [str(path.relative_to(directory)) for path in places if path.is_file()]
    return sorted(found)


def _checksums(paths: Iterable[os.PathLike]) -> list[list]:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:  # zlib releases the interpreter lock
        return list(threads.map(_checksum, paths))


def _checksum(path: os.PathLike) -> list:
    """Size and CRC-32 of a file; both are zero if there is no file."""
    size = crc = 0
    if buckets.is_bucket(path):
        if buckets.find_object(os.fspath(path)) is None:
            return [0, "00000000"]
    elif not os.path.exists(path):  # also where the name is too long for a file
        return [0, "00000000"]
    with buckets.open_object(os.fspath(path)) if buckets.is_bucket(path) else open_regular(path) as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, f"{crc:08x}"]
