"""Leases: machines that share a folder divide work, and the work of a lost machine is done by the others.

A lease is a file `NAME.lease` with its holder. A thread rewrites it while it is held. A lease that was not rewritten
for `timeout` seconds has expired, and so has one whose process ended on this host. Whoever finds it removes it and
claims the name. Two machines may rarely hold one name for a moment, so that work under a lease must give the same
result whoever does it, and replace it atomically.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from spirit_jax.core.buckets import is_bucket
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import process_exists
from spirit_jax.core.locks import LockError, hold
from spirit_jax.core.shared_folder import SharedFolder, shared_folder

SUFFIX = ".lease"
"""Ending of a lease's file."""


class Leases:
    """The leases of this process in a shared folder. Use it as a context manager: it keeps them and releases them.

    Example::

        with Leases(folder, timeout=120) as leases:
            if leases.claim("block-7"):
                ...
                leases.release("block-7")

    Args:
        folder: where the leases lie.
        timeout: seconds without a sign of life after which a lease has expired.
    """

    def __init__(self, folder: SharedFolder, timeout: float):
        self.timeout = timeout
        self._folder, self._held = folder, set[str]()
        self._lock, self._ended = threading.Lock(), threading.Event()
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        self._content = json.dumps(holder).encode()
        self.lost = set[str]()
        """Names whose lease was removed, or taken by another process because this one gave no sign of life in time."""

    def __enter__(self) -> "Leases":
        self._thread = threading.Thread(target=self._keep, daemon=True, name="leases")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        for name in [*self._held]:
            with contextlib.suppress(OSError, SpiritError):  # it expires
                self.release(name)

    def claim(self, name: str) -> bool:
        """Take a name that nobody holds; returns whether this process holds it now."""
        file = name + SUFFIX
        if not self._folder.create(file, self._content) and self._folder.read(file) != self._content:
            if self.holder(name) is not None:  # the content is this one's after a repeated request
                return False
            self._folder.remove(file)
            if not self._folder.create(file, self._content):
                return False
        with self._lock:
            self._held.add(name)
        return True

    def holder(self, name: str) -> dict[str, Any] | None:
        """Host and process that hold a name, None if nobody does or the lease has expired."""
        file = name + SUFFIX
        age = self._folder.age(file)
        if age is None or age > self.timeout:
            return None
        holder: Any = {}
        with contextlib.suppress(ValueError):  # it is being written
            holder = json.loads(self._folder.read(file) or b"{}")
        if not isinstance(holder, dict):
            return {}
        same_host, pid = holder.get("host") == socket.gethostname(), holder.get("pid")
        return None if same_host and isinstance(pid, int) and not process_exists(pid) else holder

    def is_there(self, name: str) -> bool:
        """Whether the file of a lease exists, so that its folder was not removed."""
        return self._folder.has(name + SUFFIX)

    def release(self, name: str) -> None:
        """Give a name back, unless another process has taken it."""
        with self._lock:
            self._held.discard(name)
            if self._folder.read(name + SUFFIX) == self._content:
                self._folder.remove(name + SUFFIX)

    def _keep(self) -> None:
        while not self._ended.wait(self.timeout / 4):
            for name in [*self._held]:
                with contextlib.suppress(OSError, SpiritError), self._lock:  # the next round tries again
                    if name not in self._held:
                        continue
                    if self._folder.read(name + SUFFIX) not in (b"", self._content):
                        self._held.discard(name)
                        self.lost.add(name)
                        continue
                    self._folder.write(name + SUFFIX, self._content)


@contextlib.contextmanager
def hold_lease(
    folder: SharedFolder, name: str, what: str, timeout: float, wait: float = 0.0
) -> Iterator[Callable[[], None]]:
    """Hold one lease as a lock, as `locks.hold` does on a disk; yields a function that raises if it was lost.

    Args:
        folder: where the lease lies.
        name: its name.
        what: what the holder does, for the message of the second one.
        timeout: seconds without a sign of life after which the lease has expired.
        wait: seconds to wait for another holder.

    Raises:
        LockError: another process holds it; says which, on which host.
    """
    deadline = time.monotonic() + wait
    with Leases(folder, timeout) as leases:
        while not leases.claim(name):
            if time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            holder = leases.holder(name) or {}
            raise LockError(
                f"{folder / name}: process {holder.get('pid')} on host {holder.get('host')} is at work here ({what}): "
                f"wait until it ends, choose another directory, or start again {timeout:.0f} s after it was lost"
            )

        def check() -> None:
            if name in leases.lost:
                raise LockError(
                    f"{folder / name}: this lease was removed, or another process has taken it because this one gave "
                    "no sign of life; start the same command again"
                )

        yield check


@contextlib.contextmanager
def hold_anywhere(
    directory: str | os.PathLike, name: str, what: str, *, wait: float = 0.0, stale_after: float | None = None
) -> Iterator[Callable[[], None]]:
    """Hold a lock in a directory, by `locks.hold` on a disk and by a lease in a bucket; yields a check that it is held.

    Args:
        directory: where the lock lies.
        name: its file, hidden.
        what: what the holder does, for the message of the second one.
        wait: seconds to wait for another holder.
        stale_after: seconds without a sign of life after which the lock of another host counts as left behind; None
            for never, which a bucket takes for two minutes.

    Raises:
        LockError: another process holds the lock; says which.
    """
    if is_bucket(directory):
        with hold_lease(
            shared_folder(f"{os.fspath(directory)}/{name}"), "held", what, stale_after or 120, wait
        ) as check:
            yield check
    else:
        path = os.path.join(os.fspath(directory), name)
        with hold(path, what, wait=wait, stale_after=stale_after) as lock:
            yield lock.check
