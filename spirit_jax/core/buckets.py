"""Objects in Google Cloud Storage, `gs://BUCKET/NAME`, through gcsfs (extra `gcs`).

The rest of the package works on local files: `bucket_cache` gives the inputs in a bucket a local copy, `working_copy`
uploads what a command writes. Orbax and TensorStore read and write checkpoints in the bucket themselves; `connect`
gives them the same settings. `STORAGE_EMULATOR_HOST` names another server than Google's, as the tests do.
"""

import base64
import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

from spirit_jax.core.errors import JobError, SpiritError

SCHEME = "gs://"

EMULATOR = "STORAGE_EMULATOR_HOST"
"""Environment variable with the address of a server that takes the place of Google's, such as http://127.0.0.1:9023."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # Google's rule
_PAGE = 1000  # objects of one answer to a listing
_DOWNLOADS = 4  # attempts to read an object whose connection drops; each repeats its requests itself
_INSTALL = "gs:// needs gcsfs: pip install 'spirit_jax[gcs]'"


class BucketError(SpiritError):
    """A bucket or object that does not exist or may not be used; the message names it."""


class BucketJobError(JobError):
    """A transfer that failed although it was repeated; the message names the object."""


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object of a bucket; every overwrite gives it another generation."""

    name: str
    """Name within the bucket, or relative to the folder that was listed."""
    size: int
    """Bytes."""
    generation: str
    """Number of this version."""
    crc32c: str
    """Checksum as the server computed it, base64; "" if it gives none."""
    updated: float
    """When it was written, in seconds since 1970."""


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(SCHEME)


def split(url: str) -> tuple[str, str]:
    """Bucket and name of an object or folder; the name has no slash at its ends.

    Raises:
        BucketError: a bucket cannot have this name, or a part of the object's name is empty, "." or "..".
    """
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    name = name.strip("/")
    if not bucket or (name and {"", ".", ".."} & set(name.split("/"))):
        raise BucketError(f"{url}: expected gs://BUCKET/NAME, without empty parts, . and ..")
    if not _BUCKET.fullmatch(bucket):
        raise BucketError(
            f"{url}: no bucket can be named {bucket!r}; names have at least 3 characters, of a-z, 0-9, -, _ and ., and "
            "begin and end with a letter or digit"
        )
    return bucket, name


@functools.cache
def connect() -> Any:
    """The file system of gcsfs, after settings that etils, Orbax and TensorStore share.

    Raises:
        BucketError: gcsfs is not installed, or the credentials cannot be read.
    """
    # The kind of a bucket is asked for over gRPC, which no emulator speaks and which blocks for a minute without it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec.config as fsspec_config
        import gcsfs
    except ImportError as error:
        raise BucketError(_INSTALL) from error
    settings: dict[str, Any] = {"use_listings_cache": False}  # other processes write to the same bucket
    if emulator := os.environ.get(EMULATOR):
        settings["token"] = "anon"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # TensorStore asks for a token all the same
    for protocol in ("gs", "gcs"):  # etils makes its own file system with these
        fsspec_config.conf.setdefault(protocol, {}).update(settings)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises, with tracebacks
    with failing("gs://"):
        return gcsfs.GCSFileSystem(**settings)


@contextlib.contextmanager
def failing(url: str) -> Iterator[None]:
    """Turn the errors of gcsfs, which have no common base, into one line that names the object.

    Raises:
        BucketError: there is no such bucket or object, or these credentials may not use it.
        BucketJobError: the server did not answer as it should, although requests were repeated.
    """
    try:
        yield
    except SpiritError:
        raise
    except FileNotFoundError as error:
        raise BucketError(f"{url}: no such bucket or object") from error
    except FileExistsError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        code, kind = getattr(error, "code", None), type(error).__module__
        if code in (401, 403, "401", "403") or reason.startswith("Forbidden") or kind.startswith("google.auth"):
            raise BucketError(
                f"{url}: these credentials may not be used here ({reason}); log in (gcloud auth application-default "
                "login), or ask for the role Storage Object User on the bucket and, for a training run, also Storage "
                "Legacy Bucket Reader"
            ) from error
        if isinstance(error, ValueError | AttributeError | TypeError) and not isinstance(error, UnicodeError):
            if "Bad Request" not in reason:
                raise
            raise BucketError(f"{url}: the server refused the request ({reason})") from error
        raise BucketJobError(
            f"{url}: the transfer failed and repeating it did not help ({type(error).__name__}: {reason}); start the "
            "same command again when the network and the bucket's quota allow it"
        ) from error


def list_objects(url: str) -> dict[str, StoredObject]:
    """All objects in and below a folder by their names relative to it; {} if there are none.

    Raises:
        BucketError, BucketJobError: as `failing`; a bucket that does not exist.
    """
    bucket, prefix = split(url)
    prefix = f"{prefix}/" if prefix else ""
    found, page = {}, None
    with failing(SCHEME + bucket):
        while True:
            options = {"prefix": prefix, "maxResults": _PAGE} | ({"pageToken": page} if page else {})
            answer = _call("GET", "b/{}/o", bucket, json_out=True, **options)
            for item in answer.get("items", ()):
                name = item["name"].removeprefix(prefix)
                if name and not {"", ".", ".."} & set(name.split("/")):  # a console makes objects for empty folders
                    found[name] = _stored(item, name)
            page = answer.get("nextPageToken")
            if not page:
                return found


def find_object(url: str) -> StoredObject | None:
    """An object; None if there is none of this name.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    bucket, name = split(url)
    if not name:
        return None
    with failing(url):
        try:
            return _stored(_call("GET", "b/{}/o/{}", bucket, name, json_out=True), name)
        except FileNotFoundError:
            return None


def check_bucket(url: str) -> None:
    """Check that the bucket of a path exists and may be listed.

    Raises:
        BucketError: it does not exist, or these credentials may not use it.
        BucketJobError: the server does not answer.
    """
    bucket, name = split(url)
    with failing(SCHEME + bucket):
        _call("GET", "b/{}/o", bucket, json_out=True, maxResults=1, prefix=name)


def read_object(url: str) -> bytes:
    """The content of a small object.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    with failing(url):
        return connect().cat_file("/".join(split(url)))


@contextlib.contextmanager
def open_object(url: str) -> Iterator[Any]:
    """Open an object as a binary file, which the block reads from its beginning to its end.

    Raises:
        BucketError, BucketJobError: as `failing`, also where the block reads.
    """
    with failing(url), connect().open("/".join(split(url)), "rb", block_size=2**24) as file:
        yield file


def download(url: str, expected: StoredObject, target: pathlib.Path) -> None:
    """Copy an object into a file, and repeat what a dropped connection or a wrong checksum spoiled.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    with failing(url):
        for attempt in range(_DOWNLOADS):
            problem: Exception
            try:
                connect().get_file("/".join(split(url)), str(target))
            except (TimeoutError, OSError) as error:
                if isinstance(error, FileNotFoundError) or "Forbidden" in str(error):
                    raise
                problem = error
            else:
                if target.stat().st_size == expected.size and expected.crc32c in ("", _crc32c_of(target)):
                    return
                problem = OSError(
                    f"{target.stat().st_size} bytes came, {expected.size} with another checksum are there"
                )
            if attempt + 1 == _DOWNLOADS:
                raise problem
            time.sleep(2**attempt * 0.25)


def write_object(url: str, content: bytes | pathlib.Path, *, if_absent: bool = False) -> StoredObject:
    """Write an object from bytes or a file, and compare the checksum of the server.

    Args:
        if_absent: fail if there is an object of this name, in one atomic request.

    Raises:
        FileExistsError: `if_absent` is true and there is one, or another process has removed the new one already.
        BucketError, BucketJobError: as `failing`.
    """
    place, mode = "/".join(split(url)), "create" if if_absent else "overwrite"
    with failing(url):
        if isinstance(content, bytes):
            connect().pipe_file(place, content, mode=mode)
        else:
            connect().put_file(str(content), place, mode=mode)
        written = find_object(url)
        if written is None:
            raise (FileExistsError if if_absent else OSError)("it was written and is not there")
        checksum = _crc32c(content) if isinstance(content, bytes) else _crc32c_of(content)
        if written.crc32c not in ("", checksum) and not if_absent:
            raise OSError("the server holds other bytes than were sent")
    return written


def remove_object(url: str) -> None:
    """Remove an object; one that is not there is left alone.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    bucket, name = split(url)
    with failing(url), contextlib.suppress(FileNotFoundError):
        _call("DELETE", "b/{}/o/{}", bucket, name)


def move_folder(url: str, target: str) -> None:
    """Move all objects of a folder to another one in the same bucket, one after the other.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    for name in list_objects(url):
        with failing(f"{url}/{name}"):
            connect().cp_file("/".join(split(f"{url}/{name}")), "/".join(split(f"{target}/{name}")))
        remove_object(f"{url}/{name}")


@functools.cache
def is_hierarchical(bucket: str) -> bool:
    """Whether a bucket has real folders, which can be renamed.

    Raises:
        BucketError, BucketJobError: as `failing`.
    """
    with failing(SCHEME + bucket):
        found = _call("GET", "b/{}", bucket, json_out=True)
    return bool(found.get("hierarchicalNamespace", {}).get("enabled"))


def _call(method: str, path: str, *names: str, **options: Any) -> Any:
    return connect().call(method, path, *names, **options)


def _stored(item: dict[str, Any], name: str) -> StoredObject:
    updated = datetime.datetime.fromisoformat(item["updated"]).timestamp()
    return StoredObject(name, int(item["size"]), str(item["generation"]), item.get("crc32c", ""), updated)


def _crc32c_of(path: pathlib.Path) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


def _crc32c(content: bytes) -> str:
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
