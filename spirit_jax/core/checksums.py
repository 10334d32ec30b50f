"""Seals a directory with the size and CRC-32 of each file, so that a reader finds damage before it uses the content.

Several processes may share the work: each writes the checksums of every `count`-th file, and the directory is sealed
when all have done so. CRC-32 detects every single flipped byte.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable

from spirit_jax.core.files import FileFormatError, read_json, write_file


def write_checksums(directory: str | os.PathLike, index: int = 0, count: int = 1) -> None:
    """Write the checksums of one process's share of a complete directory.

    Args:
        index, count: this process and the number of processes; it takes every `count`-th file from `index` on.
    """
    directory = pathlib.Path(directory)
    files = _files(directory)[index::count]
    checksums = dict(zip(files, _checksums(directory / name for name in files), strict=True))
    write_file(directory / f"checksums-{index:05}-of-{count:05}.json", json.dumps(checksums, indent=0))


def read_checksums(directory: str | os.PathLike) -> dict[str, list] | None:
    """Size and CRC-32 of every file of a sealed directory by relative path; None if the directory is not sealed.

    Raises:
        FileFormatError: a file of checksums is there and the operating system cannot read it.
    """
    found = sorted(pathlib.Path(directory).glob("checksums-*-of-*.json"))
    if not found or len(found) != int(found[0].stem.rsplit("-", 1)[1]):
        return None
    checksums: dict[str, list] = {}
    for path in found:
        try:
            checksums |= read_json(path)
        except FileFormatError as error:
            if isinstance(error.__cause__, OSError):  # an unreadable disk does not show that the seal is missing
                raise
            return None
    return checksums


def find_damage(directory: str | os.PathLike, index: int = 0, count: int = 1, within: str = "") -> str | None:
    """The first file of a sealed directory that is not as it was written, described in a line; None if all are intact.

    Args:
        index, count: look at every `count`-th file from `index` on, so that the processes of a job share the work.
        within: look only at files whose relative path starts with this.
    """
    directory, checksums = pathlib.Path(directory), read_checksums(directory)
    if checksums is None:
        return f"{directory}: no checksums, so it was not completely written"
    names = [name for name in sorted(checksums) if name.startswith(within)][index::count]
    for name, found in zip(names, _checksums(directory / name for name in names), strict=True):
        if found != checksums[name]:
            return f"{directory / name}: is not as it was written (size and CRC-32 {found}, not {checksums[name]})"
    return None


def _files(directory: pathlib.Path) -> list[str]:
    """Relative paths of all files but hidden ones and the checksums themselves."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in paths if not path.name.startswith(("checksums-", ".")))


def _checksums(paths: Iterable[pathlib.Path]) -> list[list]:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:  # zlib releases the interpreter lock
        return list(threads.map(_checksum, paths))


def _checksum(path: pathlib.Path) -> list:
    """Size and CRC-32 of a file; both are zero if there is no file."""
    size = crc = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, f"{crc:08x}"]
