"""Prepares the next batch while a step runs."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from spirit_jax.data.packing import HostBatch
from spirit_jax.training.task import Batches


class Feed:
    """Takes batches from a stream in a thread of its own, one ahead, so that waiting for a batch can be given up.

    Attributes:
        state: the stream's state after the last batch that `next` returned.
    """

    def __init__(self, batches: Batches):
        self.state, self._waited = batches.state(), 0.0
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(batches,), daemon=True, name="feed")
        self._thread.start()

    def _take(self, batches: Batches) -> None:
        try:
            while not self._stopped.is_set():
                self._put((next(batches), batches.state()))
        except BaseException as error:  # `next` raises it where the batch is asked for.
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def next(self, give_up: Callable[[], bool]) -> HostBatch | None:
        """Return the next batch, or None if `give_up()` becomes true before there is one.

        Raises:
            Exception: the error that the stream raised.
        """
        began = time.perf_counter()
        while True:
            try:
                item = self._ready.get(timeout=0.1)
                break
            except queue.Empty:
                if give_up():
                    return None
            finally:
                self._waited += time.perf_counter() - began
                began = time.perf_counter()
        if isinstance(item, BaseException):
            raise item
        batch, self.state = item
        return batch

    def take_waited(self) -> float:
        """Return the seconds spent waiting for batches since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Take no more batches, and wait up to 5 s for the one in preparation, so that the stream can be closed."""
        self._stopped.set()
        self._thread.join(timeout=5.0)
