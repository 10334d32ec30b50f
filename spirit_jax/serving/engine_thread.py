"""The thread that owns the device: it runs schedulers, to which other threads submit requests.

Requests join the running batch at the next step (continuous batching). Their tokens do not depend on the requests
beside them (see `inference.steps`). The model and each of its adapters have a scheduler of their own, with slots of its
own; the schedulers that have work take turns, and share the compiled programs.
"""

import collections
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Int

from spirit_jax.core.errors import JobError
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.scheduler import Capacity, Progress, Request, Scheduler
from spirit_jax.serving.metrics import ServerMetrics

FinishReason = Literal["stop", "length", "timeout", "cancelled"]
"""Reason why an answer ended: the document or a stop string, the longest length, the time limit, or the client."""

_POLL_SECONDS = 0.5
_QUIET_SECONDS, _MOST_GATHERING_SECONDS = 0.004, 0.04
"""An idle engine starts when no further request has come for the first of these times, at the latest after the second.
Requests that come together then share their first steps; a step costs about as much for one request as for all slots.
"""


class EngineError(JobError):
    """The engine's thread cannot take a request, or failed while it ran."""


class Ticket:
    """A request in the engine's thread. Iterate over it once for the ids of its answer as they arrive.

    Attributes:
        request: the prompt and how to continue it.
        finish_reason: how the answer ended; None until then.
        adapter: name of the adapter that answers; empty for the model without one.
    """

    def __init__(self, request: Request, deadline: float, adapter: str, cancel: Callable[["Ticket"], None]):
        """
        Args:
            deadline: time by `time.monotonic` at which the answer ends early.
            adapter: the scheduler that runs the request.
            cancel: asks the engine's thread to drop the request.
        """
        self.request, self.deadline, self.adapter = request, deadline, adapter
        self.submitted = time.monotonic()
        self.finish_reason: FinishReason | None = None
        self.request_id = -1
        self.arrived = 0
        self._cancel = cancel
        self._accepted: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[list[int] | Exception | None] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Drop the request, wherever it is; the iteration ends soon after. Any thread may call this, at any time."""
        self._cancel(self)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield new ids as they arrive.

        Raises:
            EngineError: the engine failed.
        """
        while (item := self._arrivals.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _accept(self, error: Exception | None = None) -> None:
        self._accepted.put(error)

    def _wait_until_accepted(self) -> None:
        error = self._accepted.get()
        if error is not None:
            raise error

    def _receive(self, ids: list[int]) -> None:
        if ids:
            self._arrivals.put(ids)

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._arrivals.put(None)

    def _fail(self, error: Exception) -> None:
        self._arrivals.put(error)


class EngineThread:
    """Runs requests of any thread on one scheduler for the model and one for each adapter.

    After an error inside a step, the requests that were there fail, and the thread continues with empty schedulers.
    """

    def __init__(self, engines: Mapping[str, Engine], capacity: Capacity, metrics: ServerMetrics, tokens_per_step: int):
        """
        Args:
            engines: of the model, whose name is empty, and of each adapter. Their networks have the same shape.
            capacity: slots and lengths of each scheduler; the steps are compiled for it.
            tokens_per_step: tokens that each running request generates before they are handed out.
        """
        self.capacity = capacity
        self._engines, self._metrics, self._tokens_per_step = engines, metrics, tokens_per_step
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[tuple[str, int], Ticket] = {}  # by adapter and request id
        self._schedulers: dict[str, Scheduler] = {}  # those of adapters are made when they are first needed
        self._closing = threading.Event()
        self._submission_lock = threading.Lock()  # no submission enters the inbox after the thread's last look
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="spirit-engine", daemon=True)
        metrics.gauge("spirit_slots", "Requests that can run at once.", lambda: capacity.slots * len(engines))
        metrics.gauge("spirit_slots_in_use", "Requests that run.", self._running)
        metrics.gauge(
            "spirit_requests_pending",
            "Requests that wait for a slot.",
            lambda: max(len(self._tickets) - self._running(), 0),
        )

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request, deadline: float, adapter: str = "") -> Ticket:
        """Add a request; it starts when a slot is free. Any thread may call this.

        Args:
            deadline: time by `time.monotonic` at which the answer ends early.
            adapter: name of the adapter that answers; empty for the model without one.

        Raises:
            CapacityError: the request does not fit the slots.
            EngineError: the engine is shutting down.
        """
        ticket = Ticket(
            request, deadline, adapter, lambda ticket: self._inbox.put(functools.partial(self._cancel, ticket))
        )
        with self._submission_lock:
            if self._stopped or self._closing.is_set():
                raise EngineError("the server is shutting down")
            self._inbox.put(functools.partial(self._submit, ticket))
        ticket._wait_until_accepted()
        return ticket

    def close(self, timeout: float) -> None:
        """Take no more requests, let the running ones finish for `timeout` seconds, and end the thread."""
        self._closing.set()
        self._thread.join(timeout)
        if self.alive:
            self._inbox.put(self._cancel_all)
            self._thread.join(timeout=10)

    def _running(self) -> int:
        """Return how many requests run; those beyond the slots of their scheduler wait."""
        counts = collections.Counter(adapter for adapter, _ in list(self._tickets))
        return sum(min(count, self.capacity.slots) for count in counts.values())

    def _scheduler(self, adapter: str) -> Scheduler:
        if adapter not in self._schedulers:
            self._schedulers[adapter] = self._engines[adapter].scheduler(self.capacity)
        return self._schedulers[adapter]

    def _run(self) -> None:
        self._scheduler("")
        try:
            while not self._closing.is_set() or self._tickets:
                self._take_commands()
                try:
                    self._expire()
                    for adapter, scheduler in self._schedulers.items():
                        for progress in scheduler.step(self._tokens_per_step) if scheduler.busy else ():
                            self._deliver(adapter, progress)
                except Exception:
                    logging.exception("the engine failed; its requests are dropped")
                    self._fail_all(EngineError("the engine failed while this request ran; the server's log says why"))
                    self._schedulers.clear()
        finally:
            with self._submission_lock:
                self._stopped = True
            error = EngineError("the server is shutting down")
            while not self._inbox.empty():
                command = self._inbox.get()
                if isinstance(command, functools.partial) and command.func == self._submit:
                    command.args[0]._accept(error)
            self._fail_all(error)

    def _take_commands(self) -> None:
        """Carry out what other threads ask for; wait for it while there is nothing to run."""
        try:
            if not self._tickets:
                self._inbox.get(timeout=_POLL_SECONDS)()
                end = time.monotonic() + _MOST_GATHERING_SECONDS
                while self.capacity.slots > 1 and time.monotonic() < end:
                    self._inbox.get(timeout=_QUIET_SECONDS)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _submit(self, ticket: Ticket) -> None:
        try:
            ticket.request_id = self._scheduler(ticket.adapter).submit(ticket.request)
        except Exception as error:
            ticket._accept(error)
            return
        self._tickets[ticket.adapter, ticket.request_id] = ticket
        self._metrics.prompt_tokens.add(len(ticket.request.prompt.ids))
        ticket._accept()

    def _cancel(self, ticket: Ticket, reason: FinishReason = "cancelled") -> None:
        key = (ticket.adapter, ticket.request_id)
        if self._tickets.get(key) is not ticket:
            return
        self._scheduler(ticket.adapter).cancel(ticket.request_id)
        del self._tickets[key]
        ticket._finish(reason)

    def _cancel_all(self) -> None:
        for ticket in list(self._tickets.values()):
            self._cancel(ticket)

    def _expire(self) -> None:
        """End the answers whose time is over."""
        now = time.monotonic()
        for ticket in [ticket for ticket in self._tickets.values() if ticket.deadline <= now]:
            self._cancel(ticket, "timeout")

    def _deliver(self, adapter: str, progress: Progress) -> None:
        """Hand new ids to the ticket that waits for them."""
        ticket = self._tickets[adapter, progress.request_id]
        new_ids = progress.new_ids[ticket.arrived :].tolist()
        if new_ids and not ticket.arrived:
            self._metrics.first_token.observe(time.monotonic() - ticket.submitted)
        ticket.arrived += len(new_ids)
        self._metrics.tokens.add(len(new_ids))
        ticket._receive(new_ids)
        if progress.finished:
            del self._tickets[adapter, progress.request_id]
            ticket._finish(self._reason(ticket, progress.new_ids))

    def _reason(self, ticket: Ticket, new_ids: Int[np.ndarray, " N"]) -> FinishReason:
        engine = self._engines[ticket.adapter]
        longest = ticket.request.max_new_tokens(engine.config.max_position_embeddings)
        ended = len(new_ids) > 0 and new_ids[-1] in engine.end_ids
        return "length" if len(new_ids) >= longest and not ended else "stop"

    def _fail_all(self, error: Exception) -> None:
        for ticket in self._tickets.values():
            ticket._fail(error)
        self._tickets.clear()
