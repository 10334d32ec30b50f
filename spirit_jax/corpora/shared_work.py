"""The blocks of a job, worked on by any number of processes that share its output directory.

Every process runs the same command. It claims a block that nobody else holds, works on it, stores it, and continues
until all blocks are stored, whoever did them. The blocks of a process that was lost are taken over when its leases
expire. One process, whichever is first, then puts the result in place.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Generic

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.leases import Leases
from spirit_jax.core.locks import LockError
from spirit_jax.corpora.block_store import Block, BlockStore

_RESULT = "result"  # the lease of the process that puts the result in place


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How the processes of a job share its blocks."""

    lease_seconds: float = 120
    """Seconds without a sign of life after which the work of another process is taken over."""
    index: int = 0
    """Number of this process; it only decides with which block the process begins."""
    count: int = 1
    """Number of processes."""


ALONE = Sharing()
"""A process that knows of no other; others may join it."""


class SharedWork(Generic[Block]):
    """The blocks of one job, as one of its processes sees them. Use it as a context manager.

    Args:
        store: the finished blocks.
        count: number of blocks.
        is_done: whether another process has put the result in place.
        sharing: how the processes share the blocks.
    """

    def __init__(self, store: BlockStore[Block], count: int, is_done: Callable[[], bool], sharing: Sharing):
        self._store, self._is_done = store, is_done
        first = sharing.index % max(sharing.count, 1) * ceil_div(count, max(sharing.count, 1))
        self._order = [*range(min(first, count), count), *range(min(first, count))]
        self._leases = Leases(store.folder, sharing.lease_seconds)
        self._poll = min(1.0, sharing.lease_seconds / 4)

    def __enter__(self) -> "SharedWork":
        self._leases.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._leases.__exit__(*error)

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        """Blocks that this process has claimed, each with the one that it will be given next, until all are stored.

        The caller stores each block with `put` before it asks for the next one.
        """
        while not self._is_done():
            stored = self._store.stored()
            missing = [block for block in self._order if block not in stored]
            if not missing:
                return
            pending = iter(missing)
            following = self._claim_next(pending)
            if following is None:  # others hold all that is left
                time.sleep(self._poll)
            while following is not None:
                block, following = following, self._claim_next(pending)
                yield block, following

    def _claim_next(self, pending: Iterator[int]) -> int | None:
        """Claim the first of the blocks that nobody holds; None if there is none."""
        for block in pending:
            if self._leases.claim(str(block)):
                if not self._store.has(block):
                    return block
                self._leases.release(str(block))  # its last holder stored it just before the lease was free
        return None

    def put(self, block: int, finished: Block) -> None:
        """Store a finished block.

        Raises:
            LockError: the output directory was removed meanwhile.
        """
        if not (self._leases.is_there(str(block)) or self._store.has(block) or self._is_done()):
            raise LockError(
                f"{self._store.folder / self._store.name(block)}: the directory was removed while this job worked in "
                "it; start it again"
            )
        self._store.write(block, finished)
        self._leases.release(str(block))

    @contextlib.contextmanager
    def result(self) -> Iterator[bool]:
        """Yield True in the process that is to put the result in place, and False where another one has done so."""
        while not self._is_done():
            if self._leases.claim(_RESULT):
                if self._is_done():  # by the last holder, just before the lease was free
                    break
                yield True
                return
            time.sleep(self._poll)
        yield False
