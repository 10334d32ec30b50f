"""Local copies of inputs that lie in a bucket.

A folder or file becomes a *tree* in the cache: the same names, the content of one moment. The files of a tree are hard
links to a pool that holds each version of each object once, so that a tree is opened again, or after a change of some
of its objects, without reading the others. A tree appears by one rename, so that a download that is cut short is never
taken for complete. `SPIRIT_BUCKET_CACHE` names the directory, `SPIRIT_BUCKET_CACHE_GIB` its size.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Container

from spirit_jax.core import buckets
from spirit_jax.core.buckets import SCHEME, BucketError, StoredObject
from spirit_jax.core.errors import name_in_messages
from spirit_jax.core.files import process_exists, staging_directory

DIRECTORY = "SPIRIT_BUCKET_CACHE"
"""Environment variable with the directory of local copies."""
SIZE = "SPIRIT_BUCKET_CACHE_GIB"
"""Environment variable with the size up to which copies are kept, in GiB."""

_DEFAULT_GIB = 100.0
_TRANSFERS = 16  # objects that are read at once
_USED = ".used-by-"

_ORIGINS: dict[pathlib.Path, str] = {}
"""Local copies of this process -> the addresses that they were copied from."""


def cache_directory() -> pathlib.Path:
    """The directory of local copies: `$SPIRIT_BUCKET_CACHE`, by default `~/.cache/spirit_jax/buckets`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get(DIRECTORY) or pathlib.Path(caches, "spirit_jax", "buckets")).absolute()


def new_work_directory() -> pathlib.Path:
    """A new directory for files that are written before they are uploaded; those of killed processes are removed."""
    return staging_directory(cache_directory() / "work", "files")


def local_copy(url: str, wanted: Callable[[str], bool] = lambda name: True) -> pathlib.Path:
    """Copy a file or folder of a bucket into the cache, and return its path there.

    The copy has the name of the original, and its files have the times of the objects. It is read-only by convention.

    Args:
        url: `gs://BUCKET/NAME`.
        wanted: which objects of a folder to copy, by their relative names.

    Raises:
        BucketError: nothing is there or may be read, or it does not fit in the cache.
        BucketJobError: a transfer failed.
    """
    bucket, name = buckets.split(url)
    root, prefix = cache_directory(), f"{name}/"
    if (single := buckets.find_object(url)) is not None:
        objects, prefix = {"": single}, name
    else:
        objects = {path: item for path, item in buckets.list_objects(url).items() if wanted(path)}
    if not objects:
        raise BucketError(f"{url}: nothing is there")
    versions = sorted((path, item.generation) for path, item in objects.items())
    key = hashlib.sha256(repr((url, versions)).encode()).hexdigest()[:24]
    tree = root / "trees" / key
    copy = tree / (name.rsplit("/", 1)[-1] or bucket)
    _ORIGINS[copy] = f"{SCHEME}{bucket}/{name}".rstrip("/")
    name_in_messages(copy, _ORIGINS[copy])
    if not copy.exists():
        pool = {path: _pool_file(root, bucket, prefix + path, item) for path, item in objects.items()}
        needed = sum(item.size for path, item in objects.items() if not pool[path].exists())
        _make_room(root, needed, url, keep={*pool.values()})
        with concurrent.futures.ThreadPoolExecutor(_TRANSFERS) as threads:
            transfers = [
                threads.submit(_fetch, f"{SCHEME}{bucket}/{prefix}{path}", item, pool[path])
                for path, item in objects.items()
            ]
            try:
                for transfer in concurrent.futures.as_completed(transfers):
                    transfer.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        _link(tree, copy.name, pool)
    mark_used(tree)
    return copy


def address_of(path: str | os.PathLike) -> str | None:
    """The address in a bucket that a file was copied from by `local_copy` in this process; None for any other file."""
    path = pathlib.Path(path)
    for place in (path, *path.parents):
        if place in _ORIGINS:
            return "/".join((_ORIGINS[place], *path.relative_to(place).parts))
    return None


def mark_used(tree: pathlib.Path) -> None:
    """Keep a tree in the cache while this process lives, and note that it was used last."""
    with contextlib.suppress(OSError):
        (tree / f"{_USED}{os.getpid()}").touch()
        os.utime(tree)


def _pool_file(root: pathlib.Path, bucket: str, name: str, item: StoredObject) -> pathlib.Path:
    return root / "objects" / hashlib.sha256(f"{bucket}/{name}#{item.generation}".encode()).hexdigest()


def _fetch(url: str, item: StoredObject, target: pathlib.Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        buckets.download(url, item, part)
        os.utime(part, (item.updated, item.updated))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _link(tree: pathlib.Path, name: str, pool: dict[str, pathlib.Path]) -> None:
    """Build a tree beside its place and rename it; another process may have done the same."""
    part = staging_directory(tree.parent, tree.name)
    try:
        for path, source in pool.items():
            target = part / name / path if path else part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        os.rename(part, tree)
    except OSError:
        if not (tree / name).exists():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_room(root: pathlib.Path, needed: int, url: str, keep: Container[pathlib.Path]) -> None:
    """Remove the trees that were not used for the longest time, and objects of no tree, until `needed` bytes fit.

    Args:
        root: the cache.
        needed: bytes to read.
        url: what needs them, for the message.
        keep: objects that are needed too, and were read before.

    Raises:
        BucketError: the copies that running processes use leave too little room.
    """
    limit = _size_limit()
    pool = [path for path in (root / "objects").glob("*") if not path.name.endswith(".part")]
    total = sum(path.stat().st_size for path in pool) if needed else 0
    trees = sorted((root / "trees").glob("[!.]*"), key=lambda tree: tree.stat().st_mtime)
    while total + needed > limit:
        unused = next((tree for tree in trees if not _is_used(tree)), None)
        if unused is not None:
            trees.remove(unused)
            shutil.rmtree(unused, ignore_errors=True)
        for path in pool[:]:
            if path in keep:
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_nlink > 1:
                    continue
                total -= path.stat().st_size
                path.unlink()
            pool.remove(path)
        if unused is None:
            if total + needed > limit:
                raise BucketError(
                    f"{url}: {needed / 2**30:.1f} GiB to copy do not fit beside the {total / 2**30:.1f} GiB in use in "
                    f"{root}, which may hold {limit / 2**30:.1f} GiB; allow more with {SIZE}, or name a larger disk "
                    f"with {DIRECTORY}"
                )
            return


def _size_limit() -> float:
    """Bytes that the cache may hold.

    Raises:
        BucketError: the environment variable is not a number.
    """
    value = os.environ.get(SIZE) or str(_DEFAULT_GIB)
    try:
        return float(value) * 2**30
    except ValueError as error:
        raise BucketError(f"{SIZE} {value!r}: a number of GiB expected") from error


def _is_used(tree: pathlib.Path) -> bool:
    """Whether a process that lives on this machine uses a tree."""
    owners = (path.name.removeprefix(_USED) for path in tree.glob(f"{_USED}*"))
    return any(owner.isdigit() and process_exists(int(owner)) for owner in owners)
