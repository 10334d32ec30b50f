"""Ends a run early without losing what it has done."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interruption:
    """A context in which SIGTERM (sent to a preempted machine) and SIGINT (Ctrl-C) ask the loop to save and stop.

    A process alone notes the signal; a second signal ends it at once. If `jax.distributed` joins several processes,
    JAX's preemption service catches SIGTERM, informs all processes and lets them agree on one poll that none of them
    has passed. Before the first step is done, there is nothing to save: Ctrl-C then does what it did outside.

    Attributes:
        signal: name of the signal that was received; None before.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._joined = jax.distributed.is_initialized()
        self._polls = 0
        self._previous: dict[int, Any] = {}
        self._received: set[int] = set()

    def __enter__(self) -> "Interruption":
        if not self._joined:
            self._catch(signal.SIGTERM)
        return self

    def first_step_is_done(self) -> None:
        """From now on, Ctrl-C asks to save and stop."""
        if signal.SIGINT not in self._previous:
            self._catch(signal.SIGINT)

    def _catch(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._receive)

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self) -> bool:
        """Return whether to stop here. All processes must poll at the same places; they get the same answer."""
        self._polls += 1
        if self._joined and self.signal is None and multihost_utils.reached_preemption_sync_point(self._polls):
            self.signal = "SIGTERM to one of the processes"
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in self._received:
            self._end(number, frame)
            return
        self._received.add(number)
        if self._joined:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = signal.Signals(number).name

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Do at the second signal what the process would have done without this context."""
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, previous)
            os.kill(os.getpid(), number)
