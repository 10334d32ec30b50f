"""The server's own API: `/health`, `/metrics`, `/v1/models` and `/v1/generate`."""

import base64
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from spirit_jax.audio import encode_wav
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.inference.prompts import Segment, units_string
from spirit_jax.serving import metrics, sse
from spirit_jax.serving.errors import ApiError
from spirit_jax.serving.schemas import GenerateBody
from spirit_jax.serving.service import Finished, Generation, Service, Started
from spirit_jax.serving.sound_files import pcm16
from spirit_jax.units import SpeechUnits


@dataclasses.dataclass(frozen=True)
class ModelNames:
    """The names under which requests find the model and its adapters."""

    base: str
    """Name of the model without an adapter."""
    adapters: Sequence[str] = ()
    """Names of its adapters. Requests may write NAME or BASE:NAME."""

    def all(self) -> list[str]:
        """Every model as `/v1/models` lists it."""
        return [self.base, *(self.full(adapter) for adapter in self.adapters)]

    def full(self, adapter: str) -> str:
        """The name of the model with an adapter; an empty one is none."""
        return f"{self.base}:{adapter}" if adapter else self.base

    def adapter(self, asked: str | None) -> str:
        """Return the adapter that a request names, empty for none.

        Raises:
            ApiError: it names another model.
        """
        if asked is None or asked == self.base:
            return ""
        found = asked.removeprefix(f"{self.base}:")
        if found not in self.adapters:
            served = ", ".join(map(repr, self.all()))
            raise ApiError(f"there is no model {asked!r}; this server has {served}", 404, "model", "model_not_found")
        return found


def new_id(prefix: str) -> str:
    """Return an id for a response."""
    return f"{prefix}-{secrets.token_hex(8)}"


def unit_string(segment: Segment) -> str | None:
    """Return the unit tokens of a stretch of speech, None for text."""
    if segment.tokens is None and isinstance(segment.content, SpeechUnits):
        return units_string(segment.content)
    return segment.tokens


def describe_segment(segment: Segment) -> dict[str, Any]:
    """Return a whole segment as JSON; audio is a WAV file in base64."""
    if isinstance(segment.content, str):
        return {"kind": "text", "text": segment.content}
    described: dict[str, Any] = {"kind": "speech", "units": unit_string(segment), "audio": None, "seconds": None}
    if isinstance(segment.content, np.ndarray):
        described["audio"] = base64.b64encode(encode_wav(segment.content)).decode()
        described["seconds"] = round(segment.content.size / SAMPLE_RATE, 3)
    return described


def describe_piece(segment: Segment) -> dict[str, Any]:
    """Return a piece of a streamed answer as JSON; audio is 16-bit samples at 16 kHz in base64."""
    if isinstance(segment.content, str):
        return {"type": "text", "text": segment.content}
    audio = None
    if isinstance(segment.content, np.ndarray):
        audio = base64.b64encode(pcm16(segment.content)).decode()
    return {"type": "speech", "units": unit_string(segment), "audio": audio}


def describe_start(started: Started, request_id: str) -> dict[str, Any]:
    """Return the first event of a streamed answer: the prompt as the model reads it, and the units of its segments."""
    return {
        "type": "start",
        "id": request_id,
        "prompt": started.prompt.string,
        "prompt_units": [unit_string(segment) for segment in started.segments],
    }


def describe_end(finished: Finished) -> dict[str, Any]:
    """Return how an answer ended, and what it took."""
    return {
        "finish_reason": finished.reason,
        "seconds": round(finished.seconds, 3),
        "usage": usage(finished),
    }


def usage(finished: Finished) -> dict[str, int]:
    """Return the numbers of tokens, as OpenAI names them."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.new_tokens,
        "total_tokens": finished.prompt_tokens + finished.new_tokens,
    }


async def collect(service: Service, generation: Generation) -> tuple[Started, list[Segment], Finished]:
    """Return all events of a generation. If this is cancelled, the request is too."""
    started: Started | None = None
    segments: list[Segment] = []
    async with contextlib.aclosing(service.events(generation)) as events:
        async for event in events:
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Segment):
                segments.append(event)
            else:
                assert started is not None
                return started, segments, event
    raise AssertionError("a generation ends with Finished or an error")


def make_router(service: Service, names: ModelNames) -> APIRouter:
    """Return the routes of the server's own API."""
    router = APIRouter()

    @router.get("/health", tags=["server"])
    async def health() -> JSONResponse:
        """Whether the server answers requests: 200 or 503."""
        healthy = service.healthy
        return JSONResponse(
            {"status": "ok" if healthy else "unavailable", "model": names.base}, 200 if healthy else 503
        )

    @router.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Counters and times in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @router.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        """The model that is served and its adapters, with voices and limits."""
        return {"object": "list", "data": [describe_model(service, name) for name in names.all()]}

    @router.get("/v1/models/{model}", tags=["OpenAI"])
    async def model(model: str) -> dict[str, Any]:
        """One model."""
        return describe_model(service, names.full(names.adapter(model)))

    @router.post("/v1/generate", tags=["spirit_jax"], response_model=None)
    async def generate(body: GenerateBody, request: Request) -> Response:
        """Continue a prompt of text and speech, at once or as server-sent events.

        Events are JSON with a `type`: `start` (the prompt and its units), `text`, `speech` (16-bit samples at 16 kHz in
        base64, and units), and `end` or `error`.
        """
        adapter = names.adapter(body.model)
        generation = await anyio.to_thread.run_sync(body.generation, service.sampling, service.limits, adapter)
        request_id = new_id("gen")
        if generation.stream:
            return await stream(service, generation, request_id)
        started, segments, finished = await sse.unless_disconnected(request, collect(service, generation))
        described = await anyio.to_thread.run_sync(lambda: [describe_segment(segment) for segment in segments])
        return JSONResponse(
            {
                "id": request_id,
                "model": names.full(adapter),
                "prompt": started.prompt.string,
                "segments": described,
                **describe_end(finished),
            }
        )

    return router


async def stream(service: Service, generation: Generation, request_id: str) -> Response:
    """Return a generation as server-sent events. Errors before the engine took the request are raised."""
    events = service.events(generation)
    first = await anext(events)
    assert isinstance(first, Started)

    async def content() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(events):
            yield sse.message(describe_start(first, request_id))
            async for event in events:
                if isinstance(event, Segment):
                    yield sse.message(describe_piece(event))
                elif isinstance(event, Finished):
                    yield sse.message({"type": "end", **describe_end(event)})

    return sse.Stream(content())


def describe_model(service: Service, name: str) -> dict[str, Any]:
    """Return a model in OpenAI's form, with what a page needs to know of it."""
    lm, capacity = service.lm, service.engine.capacity
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "spirit_jax",
        "variant": lm.vocabulary.variant,
        "hears": lm.speech_tokenizer is not None,
        "speaks": service.has_vocoder,
        "voices": service.voices,
        "context": min(capacity.length, lm.config.max_position_embeddings),
        "max_new_tokens": capacity.new_tokens,
        "max_audio_seconds": service.limits.audio_seconds,
        "defaults": {
            "temperature": service.sampling.temperature,
            "top_k": service.sampling.top_k,
            "top_p": service.sampling.top_p,
            "max_new_tokens": service.sampling.max_new_tokens,
        },
    }
