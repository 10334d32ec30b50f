"""Ending a run early without losing what it has done."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Within it, SIGTERM (what a preempted machine sends) and SIGINT (Ctrl-C) ask the loop to save and stop.

    A process alone notes the signal; a second one ends it at once. Where `jax.distributed` joins processes, JAX's preemption
    service catches SIGTERM, tells all of them, and lets them agree on one poll: the first that none has passed.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._joined = jax.distributed.is_initialized()
        self._polls = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT,) if self._joined else (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self) -> bool:
        """Whether to stop here. All processes must poll at the same places, and get the same answer."""
        self._polls += 1
        if self._joined and self.signal is None and multihost_utils.reached_preemption_sync_point(self._polls):
            self.signal = "SIGTERM to one of the processes"
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._previous[number])
        if self._joined:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = signal.Signals(number).name
