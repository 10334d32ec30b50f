"""The service: it admits requests, and turns each into a stream of events.

Every admitted request has a thread, which encodes the prompt, waits for the engine's ids, and speaks. The engine's
thread and the event loop never wait for any of it.
"""

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError, SpiritError
from spirit_jax.inference.answers import answer_text, find_stop
from spirit_jax.inference.prompts import EncodedPrompt, Modality, Prompt, PromptError, Segment, segments_of
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Capacity, Request
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.inference.streaming import stream_segments
from spirit_jax.serving.engine_thread import EngineError, EngineThread, FinishReason, Ticket
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.metrics import ServerMetrics
from spirit_jax.serving.stop_filter import StopFilter
from spirit_jax.speech.protocols import DEFAULT_SPEAKER

_MOST_CHARACTERS = 64
"""Characters a token of the slot, beyond which a prompt is refused before it is tokenized."""


class BusyError(JobError):
    """As many requests wait as may; the client should try again later."""


class AnswerError(JobError):
    """An answer that was generated and cannot be turned into segments, such as units that the vocoder does not know."""


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """Request of a client."""

    prompt: Prompt
    """A token string, or segments; audio is encoded when the request runs."""
    output_modality: Modality = "any"
    sampling: SamplingParams = SamplingParams()
    speaker: int | str = DEFAULT_SPEAKER
    stream: bool = False
    """Whether segments come in pieces as they are generated, as from `SpiritLM.stream`; otherwise whole, as from
    `SpiritLM.generate`."""
    adapter: str = ""
    """Name of the adapter that answers; empty for the model without one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Started:
    """The first event: the engine has taken the request."""

    prompt: EncodedPrompt
    segments: list[Segment]
    """The segments of the prompt with their unit tokens; empty for a token string."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event."""

    reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    string: str
    """String form of the answer, cut before a stop string."""
    seconds: float
    """From the request to the end of its answer."""


Event = Started | Segment | Finished
"""Events of a generation: `Started`, then segments or pieces of them, then `Finished`."""


class _Job:
    """A generation that runs, and its cancellation, which may come before there is a ticket."""

    def __init__(self, generation: Generation):
        self.generation, self.admitted = generation, time.monotonic()
        self._lock = threading.Lock()
        self._cancelled = False
        self._ticket: Ticket | None = None

    def set_ticket(self, ticket: Ticket) -> None:
        with self._lock:
            self._ticket = ticket
            cancelled = self._cancelled
        if cancelled:
            ticket.cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            ticket = self._ticket
        if ticket is not None:
            ticket.cancel()


class Service:
    """A model that answers requests of many clients at once.

    Attributes:
        lm: the model; its adapters share its tokenizers.
        adapters: names of the adapters that requests may name.
        limits: what requests may take.
        sampling: decoding options of requests that name none: the checkpoint's, within the capacity.
        metrics: what the server counts.
        engine: the thread that runs the model.
        has_vocoder: whether answers in speech come with audio.
        voices: names of the voices that the vocoder names.
        created: when the service was made, in seconds of Unix time.
    """

    def __init__(
        self,
        lm: SpiritLM,
        capacity: Capacity,
        limits: Limits,
        tokens_per_step: int = 8,
        adapters: Mapping[str, SpiritLM] | None = None,
    ):
        """
        Args:
            capacity: slots and lengths of each scheduler.
            tokens_per_step: tokens that each running request generates before they are handed out.
            adapters: the model with each adapter that requests may name, merged.
        """
        self.lm, self.limits, self.metrics = lm, limits, ServerMetrics()
        self.adapters = tuple(adapters or {})
        engines = {"": lm.engine} | {name: model.engine for name, model in (adapters or {}).items()}
        self.engine = EngineThread(engines, capacity, self.metrics, tokens_per_step)
        self.sampling = lm.sampling.override(max_new_tokens=min(lm.sampling.max_new_tokens, capacity.new_tokens))
        # Parts of the speech tokenizer are loaded when first needed; many threads will need the vocoder at once.
        vocoder = None if lm.speech_tokenizer is None else lm.speech_tokenizer.vocoder
        self.has_vocoder = vocoder is not None
        self.voices: list[str] = list(getattr(vocoder, "speakers", ()))
        self.created = int(time.time())
        self._most = capacity.slots + limits.pending
        self._admitted = 0
        self._lock = threading.Lock()
        self._speech_lock = threading.Lock()  # one prompt's audio is encoded at a time
        self._jobs: set[_Job] = set()
        self._closing = False
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="spirit-request")
        self.metrics.gauge("spirit_requests_admitted", "Requests that wait, run or speak.", lambda: self._admitted)

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self.engine.alive and not self._closing

    @property
    def most_characters(self) -> int:
        """Characters that no prompt can have, whatever the tokenizer makes of them."""
        return _MOST_CHARACTERS * self.engine.capacity.length

    def start(self) -> None:
        """Start the engine's thread."""
        self.engine.start()

    def close(self) -> None:
        """Refuse new requests, let the running ones finish within their time limit, and end all threads."""
        self._closing = True
        self.engine.close(self.limits.seconds)
        for job in list(self._jobs):
            job.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def events(self, generation: Generation) -> AsyncGenerator[Event]:
        """Yield the events of a generation. Closing the iterator early cancels the request.

        Raises:
            BusyError: too many requests wait; raised before the first event, as the following are.
            EngineError: the server is shutting down.
            PromptError, CheckpointError, AudioError, VoiceError, CapacityError: as `SpiritLM.generate` and
                `Scheduler.submit`.
            AnswerError: the answer cannot be spoken.
        """
        job = self._admit(generation)
        loop = asyncio.get_running_loop()
        arrivals: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

        def hand_over(item: Event | Exception | None) -> None:
            try:
                loop.call_soon_threadsafe(arrivals.put_nowait, item)
            except RuntimeError:  # the event loop has ended, and nobody reads any more
                job.cancel()

        def work() -> None:
            try:
                for event in self._run(job):
                    hand_over(event)
            except Exception as error:
                hand_over(error)
            finally:
                self._release(job)
                hand_over(None)

        try:
            self._pool.submit(work)
        except RuntimeError as error:  # the pool is shut down
            self._release(job)
            raise EngineError("the server is shutting down") from error
        try:
            while (item := await arrivals.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.cancel()

    def _admit(self, generation: Generation) -> _Job:
        with self._lock:
            if self._closing:
                raise EngineError("the server is shutting down")
            if self._admitted >= self._most:
                self.metrics.refused.add()
                raise BusyError(f"{self._admitted} requests run or wait, which is as many as may; try again later")
            self._admitted += 1
            job = _Job(generation)
            self._jobs.add(job)
        return job

    def _release(self, job: _Job) -> None:
        with self._lock:
            self._admitted -= 1
            self._jobs.discard(job)

    def _run(self, job: _Job) -> Iterator[Event]:
        """Yield the events of a job, in its own thread."""
        ending = "error"
        try:
            for event in self._answer(job):
                if isinstance(event, Finished):
                    ending = event.reason
                yield event
        finally:
            self.metrics.requests.add(1, "cancelled" if job.cancelled and ending == "error" else ending)
            self.metrics.duration.observe(time.monotonic() - job.admitted)

    def _answer(self, job: _Job) -> Iterator[Event]:
        generation = job.generation
        voice = self.lm.voice(generation.speaker)
        if generation.output_modality != "text":
            voice.check()
        prompt, segments = self._encode(generation)
        request = Request(prompt, self._fitting(prompt, generation.sampling))
        ticket = self.engine.submit(request, job.admitted + self.limits.seconds, generation.adapter)
        job.set_ticket(ticket)
        yield Started(prompt, segments)
        ids: list[int] = []
        spoken = False
        pieces = self._pieces(ticket, generation, ids) if generation.stream else self._whole(ticket, generation, ids)
        for segment in pieces:
            if segment.kind == "speech" and isinstance(segment.content, np.ndarray) and segment.content.size:
                self.metrics.audio_seconds.add(segment.content.size / SAMPLE_RATE)
                if not spoken:
                    self.metrics.first_audio.observe(time.monotonic() - job.admitted)
                    spoken = True
            yield segment
        yield self._finished(ticket, ids, job)

    def _encode(self, generation: Generation) -> tuple[EncodedPrompt, list[Segment]]:
        """Return the prompt as ids, and its segments with their units."""
        prompt = generation.prompt
        parts = [prompt] if isinstance(prompt, str) else [segment.content for segment in segments_of(prompt)]
        length = sum(len(part) for part in parts if isinstance(part, str))
        if length > self.most_characters:
            raise PromptError(f"a prompt of {length} characters does not fit {self.engine.capacity.length} tokens")
        if isinstance(prompt, str):
            return self.lm.encode_prompt(prompt, generation.output_modality), []
        with self._speech_lock:
            segments = [self.lm.prompt_encoder.encode_speech(segment) for segment in segments_of(prompt)]
        return self.lm.encode_prompt(segments, generation.output_modality), segments

    def _fitting(self, prompt: EncodedPrompt, sampling: SamplingParams) -> SamplingParams:
        """Return the options with an answer that ends where the slot does, as it would at the end of the context."""
        room = max(self.engine.capacity.length - len(prompt.ids), 1)
        return sampling.override(max_new_tokens=min(sampling.max_new_tokens, room))

    def _whole(self, ticket: Ticket, generation: Generation, ids: list[int]) -> Iterator[Segment]:
        """Yield the segments of a complete answer."""
        for arrived in ticket:
            ids += arrived
        if ticket.finish_reason == "cancelled":
            return
        request = ticket.request
        try:
            yield from self.lm.decode_answer(
                request.prompt, np.array(ids, np.int32), request.sampling.stop, generation.speaker
            )
        except SpiritError as error:
            raise AnswerError(f"the answer cannot be spoken: {error}") from error

    def _pieces(self, ticket: Ticket, generation: Generation, ids: list[int]) -> Iterator[Segment]:
        """Yield pieces of an answer while it is generated."""
        request, vocabulary = ticket.request, self.lm.vocabulary

        def arrivals() -> Iterator[list[int]]:
            for arrived in ticket:
                ids.extend(arrived)
                yield arrived

        stop = StopFilter(vocabulary, request.prompt, request.sampling.stop)
        passed = stop.filter(arrivals()) if request.sampling.stop else arrivals()
        voice, context = self.lm.voice(generation.speaker), vocabulary.decode(request.prompt.ids)
        try:
            yield from stream_segments(passed, vocabulary, voice, context)
        except EngineError:
            raise
        except SpiritError as error:
            ticket.cancel()
            raise AnswerError(f"the answer cannot be spoken: {error}") from error
        if stop.rest and not stop.rest.startswith("["):
            yield Segment.text(stop.rest)
        if stop.stopped:
            ticket.cancel()
            for _ in ticket:  # until the engine has let go of it
                pass

    def _finished(self, ticket: Ticket, ids: list[int], job: _Job) -> Finished:
        request = ticket.request
        text = answer_text(self.lm.vocabulary, request.prompt, np.array(ids, np.int32))
        end = find_stop(text, request.sampling.stop)
        reason = ticket.finish_reason
        assert reason is not None
        if reason == "cancelled":
            logging.info("a request was cancelled after %d tokens", len(ids))
        return Finished(
            reason="stop" if end is not None else reason,
            prompt_tokens=len(request.prompt.ids),
            new_tokens=len(ids),
            string=text[:end],
            seconds=time.monotonic() - job.admitted,
        )
