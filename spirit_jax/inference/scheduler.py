"""The scheduler: it owns the slots of one KV cache and the requests that are pending, being read, or running.

A request is submitted, waits until a slot is free, has its prompt read in chunks (`PrefillJob`), and then runs until
its answer ends. Requests may be submitted and cancelled while others run, and each has its own sampling options.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spirit_jax.core.arithmetic import next_power_of_two
from spirit_jax.core.errors import SpiritError
from spirit_jax.inference import steps
from spirit_jax.inference.grammar import NO_GRAMMAR
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.shapes import bucket, padded_rows
from spirit_jax.inference.steps import IDLE_ROW, DecodeProgram, ModelArrays, PromptChunks, RowOptions
from spirit_jax.parallel.sharding import tracing

PREFILL_CHUNK = 512
"""Longest part of a prompt, in tokens, that is read at once. Running requests continue between two chunks."""
DECODE_BETWEEN_CHUNKS = 8
"""Tokens that running requests generate between two chunks of a long prompt."""
STOP_CHECK_INTERVAL = 16
"""Tokens that are generated between two searches for stop strings."""


class CapacityError(SpiritError):
    """A request that does not fit the scheduler's slots; the message names the limit."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One prompt, and how to continue it."""

    prompt: EncodedPrompt
    sampling: SamplingParams = SamplingParams()

    def max_new_tokens(self, context_length: int) -> int:
        """Return the most tokens that the answer may have: as many as asked for, or as the context has room for."""
        return min(self.sampling.max_new_tokens, context_length - len(self.prompt.ids))


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Capacity of a scheduler. Its steps are compiled for it."""

    slots: int
    """Requests that run at once."""
    length: int
    """Tokens of prompt and answer together that a slot holds."""
    new_tokens: int
    """Tokens of the longest answer."""
    features: SamplingFeatures = SamplingFeatures()
    """Sampling options that requests may use."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise CapacityError(f"slots must be 1 or more, found {self.slots}")

    @classmethod
    def for_requests(cls, requests: Sequence[Request], slots: int, context_length: int) -> "Capacity":
        """Return the smallest capacity that runs all of these requests, with at most this many slots."""
        new_tokens = [request.max_new_tokens(context_length) for request in requests]
        return cls(
            slots=min(slots, len(requests)),
            length=max(len(request.prompt.ids) + new for request, new in zip(requests, new_tokens, strict=True)),
            new_tokens=max(new_tokens),
            features=SamplingFeatures.of([request.sampling for request in requests]),
        )


class Progress(NamedTuple):
    """Output of a running request so far."""

    request_id: int
    new_ids: Int[np.ndarray, " N"]
    """All new ids so far; `</s>` is the last one if the document has ended."""
    finished: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Submission:
    """A request with its id and its row of options."""

    request_id: int
    request: Request
    options: RowOptions


@dataclasses.dataclass(eq=False)
class PrefillJob:
    """A prompt that is being read into a slot."""

    submission: _Submission
    slot: int
    tokens_read: int = 0

    @property
    def finished(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.tokens_read == len(self.submission.request.prompt.ids)


class Scheduler:
    """Runs requests in the slots of one KV cache. `Engine.scheduler` makes one.

    All calls come from one thread. In a job of several processes, every process makes the same calls.
    """

    def __init__(
        self,
        program: DecodeProgram,
        model: ModelArrays,
        capacity: Capacity,
        has_stop: Callable[[Request, Int[np.ndarray, " N"]], bool],
    ):
        """
        Args:
            program: its features must be those of the capacity.
            has_stop: returns whether an answer so far holds one of the stop strings of its request.
        """
        self.capacity = capacity
        self._program, self._model, self._has_stop = program, model, has_stop
        self._slots = padded_rows(capacity.slots, program.mesh)
        self._new_tokens = bucket(capacity.new_tokens)
        self._ids = itertools.count()
        self._pending: dict[int, _Submission] = {}  # by request id, in the order of submission
        self._reading: list[PrefillJob] = []
        self._running: dict[int, _Submission] = {}  # by slot
        # Every token reads the whole cache, so its length is padded in finer steps.
        length = bucket(capacity.length, program.config.max_position_embeddings, steps=4)
        with self._tracing():
            self._state = steps.init_state(
                program, model.params, slots=self._slots, length=length, new_tokens=self._new_tokens
            )

    def _tracing(self):
        return tracing(self._program.mesh, self._program.config.dtype)

    @property
    def busy(self) -> bool:
        """Whether any request is pending, being read, or running."""
        return bool(self._pending or self._reading or self._running)

    def submit(self, request: Request) -> int:
        """Add a request and return its id. It starts in the first `step` that has a free slot for it.

        Raises:
            CapacityError: the request is too long, or uses an option that the steps were not compiled for.
        """
        prompt, capacity = request.prompt, self.capacity
        new_tokens = request.max_new_tokens(self._program.config.max_position_embeddings)
        if len(prompt.ids) + new_tokens > capacity.length or new_tokens > capacity.new_tokens:
            raise CapacityError(
                f"a prompt of {len(prompt.ids)} tokens with up to {new_tokens} new ones does not fit: a slot holds "
                f"{capacity.length} tokens, {capacity.new_tokens} of them new"
            )
        if not capacity.features.cover(request.sampling):
            raise CapacityError(f"the steps are compiled for {capacity.features}, which {request.sampling} exceeds")
        grammar = NO_GRAMMAR
        if request.sampling.grammar:
            speech_only = prompt.output_modality == "speech"
            grammar = self._model.constraints.grammar.start(prompt.ids, speech_only)
        options = RowOptions.of(request.sampling, prompt.output_modality, max_new_tokens=new_tokens, grammar=grammar)
        request_id = next(self._ids)
        self._pending[request_id] = _Submission(request_id, request, options)
        return request_id

    def cancel(self, request_id: int) -> bool:
        """Drop a request, wherever it is, and free its slot. Return false if it has already ended."""
        if self._pending.pop(request_id, None) is not None:
            return True
        for job in self._reading:
            if job.submission.request_id == request_id:
                self._reading.remove(job)
                return True
        for slot, submission in self._running.items():
            if submission.request_id == request_id:
                self._release(slot)
                return True
        return False

    def step(self, max_tokens: int | None = None) -> list[Progress]:
        """Fill free slots, read one chunk of each prompt that is being read, and decode.

        Decoding returns early while long prompts are being read, when a slot becomes free for a pending request, and
        when it is time to search for stop strings.

        Args:
            max_tokens: tokens to generate at most in each running request; None means as many as it takes.

        Returns:
            The progress of every request that runs, in the order of their ids. Finished ones have left their slots.
        """
        self._fill_slots()
        if self._reading:
            self._prefill()
        if not self._running:
            return []
        limits = [self._new_tokens]
        if max_tokens is not None:
            limits.append(max_tokens)
        if self._reading:
            limits.append(DECODE_BETWEEN_CHUNKS)
        if any(submission.request.sampling.stop for submission in self._running.values()):
            limits.append(STOP_CHECK_INTERVAL)
        return self._decode(min(limits))

    def _fill_slots(self) -> None:
        taken = self._running.keys() | {job.slot for job in self._reading}
        free = (slot for slot in range(self._slots) if slot not in taken)
        for slot, request_id in zip(free, list(self._pending), strict=False):
            self._reading.append(PrefillJob(self._pending.pop(request_id), slot))

    def _prefill(self) -> None:
        """Read the next chunk of every prompt that is being read; those that have been read start to run."""
        parts = [
            job.submission.request.prompt.ids[job.tokens_read : job.tokens_read + PREFILL_CHUNK]
            for job in self._reading
        ]
        batch = padded_rows(next_power_of_two(len(parts)), self._program.mesh)
        chunks = PromptChunks(
            tokens_bt=np.zeros((batch, bucket(max(map(len, parts)))), np.int32),
            slots_b=np.full(batch, self._slots, np.int32),
            start_b=np.zeros(batch, np.int32),
            length_b=np.zeros(batch, np.int32),
            is_last_b=np.zeros(batch, bool),
        )
        options = [IDLE_ROW] * batch
        for row, (job, part) in enumerate(zip(self._reading, parts, strict=True)):
            chunks.tokens_bt[row, : len(part)] = part
            chunks.slots_b[row] = job.slot
            chunks.start_b[row] = job.tokens_read
            chunks.length_b[row] = len(part)
            options[row] = job.submission.options
            job.tokens_read += len(part)
            chunks.is_last_b[row] = job.finished
        first = bool((chunks.start_b == 0).all())
        with self._tracing():
            self._state = steps.prefill(
                self._program, self._model, self._state, RowOptions.join(options), chunks, first=first
            )
        self._running |= {job.slot: job.submission for job in self._reading if job.finished}
        self._reading = [job for job in self._reading if not job.finished]

    def _decode(self, max_steps: int) -> list[Progress]:
        """Generate tokens in every running request."""
        rows = [self._running[slot].options if slot in self._running else IDLE_ROW for slot in range(self._slots)]
        with self._tracing():
            self._state = steps.decode(
                self._program,
                self._model,
                self._state,
                RowOptions.join(rows),
                max_steps=np.int32(max_steps),
                until_free=np.bool_(bool(self._pending)),
            )
        result = steps.fetch(self._program, self._state)
        progress = []
        for slot, submission in sorted(self._running.items(), key=lambda item: item[1].request_id):
            new_ids, finished = result.output[slot, : result.count[slot]], bool(result.done[slot])
            if finished:
                del self._running[slot]
            elif submission.request.sampling.stop and self._has_stop(submission.request, new_ids):
                self._release(slot)
                finished = True
            progress.append(Progress(submission.request_id, new_ids, finished))
        return progress

    def _release(self, slot: int) -> None:
        """End the request in a slot before its answer is complete."""
        del self._running[slot]
        self._state = steps.release_slot(self._state, slot)
