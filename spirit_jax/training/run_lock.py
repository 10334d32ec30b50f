"""A run directory belongs to one job at a time."""

import contextlib
import os
from collections.abc import Callable, Iterator

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.leases import hold_anywhere
from spirit_jax.core.locks import LockError
from spirit_jax.parallel.processes import gather_json, is_primary

LOCK_STALE_AFTER = 120
"""Seconds without a sign of life after which a run of another host counts as ended."""


@contextlib.contextmanager
def hold_run(directory: str | os.PathLike) -> Iterator[Callable[[], None]]:
    """Hold a run directory for this job; yields a function that raises if the directory is removed meanwhile.

    The directory may be in a bucket. The primary process holds a lock for all processes. A process that is killed
    leaves nothing that stops the next run.

    Raises:
        LockError: another job trains in the directory; says which, on which host.
    """
    with contextlib.ExitStack() as held:
        check, problem = _nothing, None
        if is_primary():
            try:
                lock = hold_anywhere(directory, ".train.lock", "training", stale_after=LOCK_STALE_AFTER)
                check = held.enter_context(lock)
            except (SpiritError, OSError) as error:
                problem = error
        elsewhere = gather_json(None if problem is None else str(problem))[0]
        if problem is not None:
            raise problem
        if elsewhere is not None:
            raise LockError(f"the first process cannot hold the run directory: {elsewhere}")
        yield check


def _nothing() -> None:
    """The check of a process that does not hold the lock itself."""
