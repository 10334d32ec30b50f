"""A run directory belongs to one job at a time."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

from spirit_jax.core.locks import LockError, hold
from spirit_jax.parallel.processes import gather_json, is_primary

LOCK_STALE_AFTER = 120
"""Seconds without a sign of life after which a run of another host counts as ended."""


@contextlib.contextmanager
def hold_run(directory: str | os.PathLike) -> Iterator[Callable[[], None]]:
    """Hold a run directory for this job; yields a function that raises if the directory is removed meanwhile.

    The primary process holds a lock for all processes. A process that is killed leaves nothing that stops the next run.

    Raises:
        LockError: another job trains in the directory; says which, on which host.
    """
    with contextlib.ExitStack() as held:
        lock, problem = None, None
        if is_primary():
            try:
                lock = held.enter_context(
                    hold(pathlib.Path(directory, ".train.lock"), "training", stale_after=LOCK_STALE_AFTER)
                )
            except (LockError, OSError) as error:
                problem = error
        elsewhere = gather_json(None if problem is None else str(problem))[0]
        if problem is not None:
            raise problem
        if elsewhere is not None:
            raise LockError(f"the first process cannot hold the run directory: {elsewhere}")
        yield (lambda: None) if lock is None else lock.check
