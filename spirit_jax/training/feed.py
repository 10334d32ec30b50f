"""The next batch, made while a step runs."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from spirit_jax.training.step import Batch


class Batches(Protocol):
    """A stream of this host's batches that can say where it stands."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...


class Feed:
    """Takes batches from a loader in a thread of its own, one ahead, so that waiting for one can be given up.

    Attributes:
        state: the loader's after the last batch given out.
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
        except BaseException as error:  # raised where the batch is asked for
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def next(self, give_up: Callable[[], bool]) -> Batch | None:
        """The next batch; None if `give_up()` becomes true before there is one.

        Raises:
            What the loader raises.
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
        """Seconds that were waited for batches since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Take no more batches; the one that is being made is waited for a moment, so that the loader can be closed."""
        self._stopped.set()
        self._thread.join(timeout=5.0)
