"""Locks: one process at a time works on a directory, and a second one learns who holds it.

A lock is a file with the host, the process and the time of its holder. The holder also has an advisory lock of the
operating system on it, which ends with the process. So the lock of a process that was killed is taken over. Many shared
file systems do not pass advisory locks between hosts. A lock of another host is taken over only if its holder gives
signs of life, by touching the file, and has given none for some time.
"""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from spirit_jax.core.errors import JobError
from spirit_jax.core.files import process_exists
from spirit_jax.core.shared_folder import LocalFolder

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_LOCAL: set[int] = set()
"""Descriptors of the locks of this process; a child process closes them, so that it never holds its parent's lock."""


class LockError(JobError):
    """Another process holds a lock, or a lock of this process was removed."""


class Lock:
    """The lock that `hold` yields.

    Attributes:
        path: the lock's file.
    """

    def __init__(self, path: pathlib.Path, descriptor: int):
        self.path, self._descriptor = path, descriptor

    def check(self) -> None:
        """Check that the lock still exists, because a user may remove a directory while a job works in it.

        Raises:
            LockError: the lock's file was removed or replaced.
        """
        if not _is_at(self._descriptor, self.path):
            raise LockError(f"{self.path.parent}: was removed or replaced while this job worked in it; start it again")


@contextlib.contextmanager
def hold(path: str | os.PathLike, what: str, *, wait: float = 0.0, stale_after: float | None = None) -> Iterator[Lock]:
    """Hold a lock while the block runs.

    Example::

        with hold("records/.train.lock", "encoding of split train") as lock:
            ...
            lock.check()

    Args:
        path: the lock's file; its folder is made.
        what: what the holder does, for the message of the second one.
        wait: seconds to wait for another holder.
        stale_after: seconds without a sign of life after which the lock of another host counts as left behind. This
            holder then gives such signs, in a thread. None: a lock of another host is never taken over.

    Raises:
        LockError: another process holds the lock; says which, on which host, since when, and what to do.
    """
    path = pathlib.Path(path)
    deadline = time.monotonic() + wait
    while True:
        try:
            descriptor = _acquire(path, what, stale_after)
            break
        except LockError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
    _LOCAL.add(descriptor)
    released = threading.Event()
    if stale_after is not None:
        threading.Thread(target=_give_signs, args=(descriptor, stale_after / 5, released), daemon=True).start()
    try:
        yield Lock(path, descriptor)
    finally:
        released.set()
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):
                path.unlink()
        _LOCAL.discard(descriptor)
        os.close(descriptor)


def _give_signs(descriptor: int, every: float, released: threading.Event) -> None:
    """Touch the lock's file until it is released."""
    while not released.wait(every):
        with contextlib.suppress(OSError):  # the file system may be gone for a while
            os.utime(descriptor)


def _acquire(path: pathlib.Path, what: str, stale_after: float | None) -> int:
    """Descriptor of the lock's file, locked and with this process as its holder."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            locks = _flock(descriptor, path)
            if not _is_at(descriptor, path):  # the holder released it between the two calls
                os.close(descriptor)
                continue
            holder = _holder(descriptor)
            if holder and holder.get("host") != socket.gethostname():
                if stale_after is None or (LocalFolder(path.parent).age(path.name) or 0.0) <= stale_after:
                    raise _refusal(path, holder, stale_after)
            elif holder and not locks and _is_alive(holder):
                raise _refusal(path, holder)
            content = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "user": _user(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "what": what,
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(content).encode(), 0)
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _flock(descriptor: int, path: pathlib.Path) -> bool:
    """Take the advisory lock; False where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise _refusal(path, _holder(descriptor)) from error
        return False
    return True


def _refusal(path: pathlib.Path, holder: dict[str, Any], stale_after: float | None = None) -> LockError:
    if not holder:
        return LockError(f"{path}: another process has just taken this lock; try again")
    who = f"process {holder.get('pid')} of {holder.get('user')} on host {holder.get('host')}"
    remedy = "wait until it ends, or choose another directory"
    if holder.get("host") != socket.gethostname():
        remedy += f"; if that process no longer exists, remove {path}"
        if stale_after is not None:
            remedy += f", or start again {stale_after:.0f} s after it ended"
    return LockError(
        f"{path.parent}: {who} is at work here ({holder.get('what')}, since {holder.get('since')}): {remedy}"
    )


def _holder(descriptor: int) -> dict[str, Any]:
    """Holder named in the lock's file; empty if the file names none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(os.pread(descriptor, 4096, 0))
        return found if isinstance(found, dict) else {}
    return {}


def _is_alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    return isinstance(pid, int) and pid > 0 and process_exists(pid)


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        found, opened = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run a user without a name
        return str(os.getuid())


def _close_in_child() -> None:
    for descriptor in _LOCAL:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _LOCAL.clear()


os.register_at_fork(after_in_child=_close_in_child)
