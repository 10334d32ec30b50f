"""Ends a hung run with a message."""

import faulthandler
import os
import sys
import threading
import time

import jax

from spirit_jax.core.errors import FAILED_JOB


class Watchdog:
    """A context in which `alive` must be called at least every `timeout` seconds.

    Otherwise the process ends with exit code 1, one line and the stacks of its threads. The job's other processes end
    when they miss its heartbeats.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._doing, self._since = "starting", time.monotonic()
        self._stopped = threading.Event()

    def alive(self, doing: str) -> None:
        """Give a sign of life, and say what the process does next."""
        self._doing, self._since = doing, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.alive("starting")
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._timeout / 10, 10.0)):
            silence = time.monotonic() - self._since
            if silence > self._timeout:
                faulthandler.dump_traceback(all_threads=True)
                print(
                    f"error: process {jax.process_index()} of {jax.process_count()}: {self._doing} for "
                    f"{silence:.0f} s, more than faults.hang_timeout; ending the job, the last checkpoint is intact",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(FAILED_JOB)
