"""Threads of numerical libraries."""

import contextlib


def one_thread() -> contextlib.AbstractContextManager:
    """Limit BLAS and OpenMP to one thread while the returned context is open.

    Sums over several threads depend on their order, so results would not be reproducible; small products are also
    faster on one thread.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
