"""Paths that a user types, and links in trees that others made.

The one place that expands `~`, knows buckets from disks, walks folders, and refuses links that leave a tree.
"""

import fnmatch
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from spirit_jax.core import buckets
from spirit_jax.core.errors import SpiritError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class PathError(SpiritError):
    """A path that this program cannot use; the message names the option."""


def local_path(argument: str, option: str) -> str:
    """The path that a user gave for an option, with `~` expanded. An input in a bucket is copied to this machine.

    Example::

        local_path("~/records", "--input")  # "/home/me/records"

    Outputs take `output_path`, `working_copy.output_directory` or `disk_path`.

    Args:
        argument: as the user typed it.
        option: names the argument in messages.

    Raises:
        PathError: it is empty, holds a zero byte, or is an address such as `s3://`.
        BucketError, BucketJobError: it is in a bucket, `gs://`, and cannot be read.
    """
    if buckets.is_bucket(argument):
        from spirit_jax.core.bucket_cache import local_copy  # most commands never need it

        return str(local_copy(argument))
    return disk_path(argument, option)


def disk_path(argument: str, option: str) -> str:
    """The path on this machine that a user gave for an option, with `~` expanded.

    Raises:
        PathError: it is empty, holds a zero byte, or names a bucket or an address.
    """
    scheme = _SCHEME.match(argument)
    if scheme:
        raise PathError(
            f"{option} {argument}: {scheme[1]}:// is not read or written; use a local path, or mount the bucket"
        )
    if not argument or "\0" in argument:
        raise PathError(f"{option} {argument!r}: not a path")
    return os.path.expanduser(argument)


def output_path(argument: str, option: str) -> str:
    """The path of an output for code that writes through `files`, which also takes paths in a bucket.

    Raises:
        PathError: it is empty, holds a zero byte, or is an address such as `s3://`.
        BucketError, BucketJobError: its bucket does not exist or cannot be used.
    """
    if not buckets.is_bucket(argument):
        return disk_path(argument, option)
    buckets.check_bucket(argument)
    return argument.rstrip("/")


def as_path(path: str | os.PathLike) -> Any:
    """A path with the methods of `pathlib.Path`, on this machine or in a bucket, where `resolve` must not be called.

    `pathlib.Path` itself would take one of the two slashes of `gs://` away.
    """
    if not buckets.is_bucket(path):
        return pathlib.Path(path)
    from etils import epath

    buckets.connect()  # etils uses its settings
    return epath.Path(os.fspath(path))


def parent_folder(argument: str, option: str) -> Any:
    """The folder of a file that a user named, for the paths in the file; in a bucket it is the folder's address.

    Raises:
        PathError: not a path.
    """
    return as_path(argument if buckets.is_bucket(argument) else disk_path(argument, option)).parent


def absolute_path(path: str | os.PathLike) -> Any:
    """As `as_path`; a path on this machine is absolute and without links."""
    found = as_path(path)
    return found if buckets.is_bucket(path) else found.resolve()


def file_sizes(directory: str | os.PathLike) -> dict[str, int]:
    """Bytes of each file directly in a directory, by name; {} if there is no such directory."""
    if buckets.is_bucket(directory):
        found = buckets.list_objects(os.fspath(directory))
        return {name: item.size for name, item in found.items() if "/" not in name}
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if _is(entry.is_file)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def entry_names(directory: str | os.PathLike) -> list[str]:
    """Names of what is directly in a directory, readable or not; [] if there is no such directory."""
    if buckets.is_bucket(directory):
        return list(file_sizes(directory))
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk_files(root: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Every file in and below a folder, sorted within each folder. Links are followed, and a loop of links ends.

    A folder or file that is reached by several paths is yielded once, by the first of them.
    """
    seen: set[str] = set()
    pending = [pathlib.Path(root)]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:  # a folder that may not be read holds no files for this user
            continue
        below: list[pathlib.Path] = []
        # real folders come before links, so that a file keeps the path without links where it has one
        for entry in sorted(entries, key=lambda entry: entry.is_symlink()):
            path = folder / entry.name
            if _is(entry.is_dir):
                below.append(path)
            elif _is(entry.is_file):
                target = os.path.realpath(path) if entry.is_symlink() else os.path.join(real, entry.name)
                if target not in seen:
                    seen.add(target)
                    yield path
        pending += reversed(below)


def check_links(path: str | os.PathLike, tree: str | os.PathLike, error: type[SpiritError] = PathError) -> None:
    """Check that no symbolic link at or below a path leads out of the tree that a user named.

    A tree that others made could otherwise name any file of the user's, which a conversion would copy into its result.
    `tree` itself may be a link. In the cache of Hugging Face, `REPOSITORY/snapshots/REVISION`, links into the blobs of
    the same repository are followed.

    Raises:
        error: names the link, its target, and what to do.
    """
    real_tree = os.path.realpath(tree)
    trees = [real_tree, *_blobs(real_tree)]
    seen: set[str] = set()
    pending = [os.fspath(path)]
    while pending:
        place = pending.pop()
        real = os.path.realpath(place)
        if not any(real == root or real.startswith(os.path.join(root, "")) for root in trees):
            raise error(
                f"{place}: is or lies behind a link to {real}, outside {os.fspath(tree)}: refused; put a copy in its "
                "place if you trust it"
            )
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(place) as entries:
                pending += [entry.path for entry in entries if entry.is_symlink() or _is(entry.is_dir)]
        except OSError:  # a file, or a folder that readers cannot open either
            continue


def _blobs(tree: str) -> list[str]:
    """The folder of file contents in Hugging Face's cache, if a tree is a snapshot of a repository there."""
    place = pathlib.Path(tree)
    snapshots = [parent for parent in place.parents if parent.name == "snapshots" and "--" in parent.parent.name]
    return [str(snapshots[0].parent / "blobs")] if snapshots else []


def match_files(pattern: str) -> list[pathlib.Path]:
    """Sorted files and folders that a glob matches; links are followed, each file comes once and a loop of links ends.

    `**` matches any number of folders. As in a shell, `*` and `?` do not match a leading dot.
    """
    parts = pathlib.PurePath(pattern).parts
    magic = next((place for place, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    root = pathlib.Path(*parts[:magic])
    real_root, found = os.path.realpath(root), [root]
    for part in parts[magic:]:
        if part == "**":
            found = [below for folder in found for below in _folders(folder)]
        else:
            found = [path for folder in found for path in _children(folder, part)]
    if parts[magic:] and parts[-1] == "**":
        found = [path for folder in found for path in (folder, *_children(folder, "*"))]
    by_target: dict[str, pathlib.Path] = {}
    for path in sorted(found):
        target = os.path.realpath(path)
        if target == os.path.join(real_root, path.relative_to(root)):  # reached without a link, which is preferred
            by_target[target] = path
        by_target.setdefault(target, path)
    return sorted(by_target.values())


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """A folder and all folders below it, each once."""
    seen, found, pending = set(), [], [root]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real not in seen and os.path.isdir(folder):
            seen.add(real)
            found.append(folder)
            children = [path for path in _children(folder, "*") if path.is_dir()]
            pending += sorted(children, key=lambda path: (path.is_symlink(), path), reverse=True)
    return found


def _children(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files and folders directly in a folder whose names match a pattern."""
    if not re.search(r"[*?[]", pattern):
        return [folder / pattern] if os.path.lexists(folder / pattern) else []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    shown = (name for name in names if not name.startswith(".") or pattern.startswith("."))
    return [folder / name for name in shown if fnmatch.fnmatchcase(name, pattern)]


def _is(question) -> bool:
    """The answer of a directory entry; a link into a loop or to nothing is neither file nor folder."""
    try:
        return question()
    except OSError:
        return False
