"""A conversation over a WebSocket: audio in and out while it is spoken.

The client sends JSON messages with a `type`, and binary messages of 16-bit samples at 16 kHz:

| message | effect |
|---|---|
| `{"type": "start", ...}` | first: options of `/v1/generate`, and `api_key` if there is no header with the key |
| binary | continues the recording that is open |
| `{"type": "text", "text": "..."}` | ends the recording, and adds text |
| `{"type": "units", "units": "[Hu1]..."}` | ends the recording, and adds speech as units |
| `{"type": "generate"}` | ends the recording, and lets the model continue the conversation |
| `{"type": "cancel"}` | ends the answer that is being generated |
| `{"type": "clear"}` | forgets the conversation |

The server answers `ready`, then for each `generate` the events of `/v1/generate`. Samples of speech come as a binary
message after their `speech` event. What was generated becomes part of the conversation.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Literal

import anyio.to_thread
import numpy as np
from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from spirit_jax.core.errors import SpiritError
from spirit_jax.inference.prompts import Modality, Segment
from spirit_jax.serving import errors
from spirit_jax.serving.errors import ApiError
from spirit_jax.serving.limits import LimitError
from spirit_jax.serving.routes import ModelNames, describe_end, describe_start, new_id, unit_string
from spirit_jax.serving.schemas import Body, SamplingBody, Text, Units, units_segment
from spirit_jax.serving.security import Access
from spirit_jax.serving.service import Finished, Generation, Service, Started
from spirit_jax.serving.sound_files import pcm16
from spirit_jax.serving.uploads import pcm_segment
from spirit_jax.speech.protocols import DEFAULT_SPEAKER

_MOST_SEGMENTS = 1000
_POLICY_VIOLATION = 1008


class StartMessage(SamplingBody):
    """The first message: how answers are to be."""

    type: Literal["start"]
    model: Text | None = None
    api_key: str | None = None
    output_modality: Literal["text", "speech", "any"] = "any"
    voice: int | Text = DEFAULT_SPEAKER


class TextMessage(Body):
    """Text that continues the conversation."""

    type: Literal["text"]
    text: Text


class UnitsMessage(Body):
    """Speech that continues the conversation, as units."""

    type: Literal["units"]
    units: Units


class GenerateMessage(Body):
    """The model's turn."""

    type: Literal["generate"]
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    """Replaces the seed of `start`."""
    output_modality: Modality | None = None
    """Replaces the modality of `start`."""


class OtherMessage(Body):
    """A message without options."""

    type: Literal["cancel", "clear"]


_Message = Annotated[
    StartMessage | TextMessage | UnitsMessage | GenerateMessage | OtherMessage, Field(discriminator="type")
]
_MESSAGES: TypeAdapter[Any] = TypeAdapter(_Message)


def make_router(service: Service, names: ModelNames, access: Access) -> APIRouter:
    """Return the WebSocket's route."""
    router = APIRouter()

    @router.websocket("/v1/stream")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed while we sent
            await Conversation(socket, service, names, access).run()

    return router


class Conversation:
    """One connection: what was said so far, and the answer that is being generated."""

    def __init__(self, socket: WebSocket, service: Service, names: ModelNames, access: Access):
        self._socket, self._service, self._names, self._access = socket, service, names, access
        self._options: StartMessage | None = None
        self._segments: list[Segment] = []
        self._recording = bytearray()
        self._answer: asyncio.Task | None = None
        self._most_bytes = int(service.limits.audio_seconds * 32_000)

    async def run(self) -> None:
        """Read messages until the client goes away, is refused, or is silent for longer than a request may take."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._service.limits.seconds):
                        message = await self._socket.receive()
                except TimeoutError:
                    await self._socket.close(1001, "no message for too long")
                    return
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    await self._handle(message)
                except (SpiritError, ApiError) as error:
                    await self._send(error_event(error))
                    if errors.error_status(error) in (401, 413):
                        await self._socket.close(_POLICY_VIOLATION)
                        return
        finally:
            await self._cancel()

    async def _handle(self, message: Any) -> None:
        if message.get("bytes") is not None:
            if self._options is None:
                raise ApiError('the first message is {"type": "start", ...}')
            self._recording += message["bytes"]
            if len(self._recording) > self._most_bytes:
                raise LimitError(f"a recording may have {self._service.limits.audio_seconds:g} s")
            return
        try:
            parsed = _MESSAGES.validate_json(message.get("text") or "")
        except ValidationError as error:
            reason, param = errors.describe(error.errors())
            raise ApiError(reason, 400, param) from error
        if isinstance(parsed, StartMessage):
            await self._start(parsed)
        elif self._options is None:
            raise ApiError('the first message is {"type": "start", ...}')
        elif isinstance(parsed, TextMessage):
            self._add(Segment.text(parsed.text))
        elif isinstance(parsed, UnitsMessage):
            self._add(units_segment(parsed.units))
        elif isinstance(parsed, GenerateMessage):
            await self._generate(self._options, parsed)
        else:
            await self._cancel()
            if parsed.type == "clear":
                self._segments.clear()
                self._recording.clear()

    async def _start(self, options: StartMessage) -> None:
        header = self._socket.headers.get("authorization", f"Bearer {options.api_key or ''}")
        if not self._access.allows_key(header):
            raise ApiError("a valid API key is needed: api_key in the start message", 401, code="invalid_api_key")
        name = self._names.full(self._names.adapter(options.model))
        options.sampling(self._service.sampling)
        self._options = options
        await self._send({"type": "ready", "model": name})

    def _add(self, segment: Segment) -> None:
        """End the recording that is open, and add a segment."""
        self._end_recording()
        if len(self._segments) >= _MOST_SEGMENTS:
            raise LimitError(f"a conversation may have {_MOST_SEGMENTS} segments; start another one")
        if sum(map(_characters, [*self._segments, segment])) > self._service.most_characters:
            most = self._service.most_characters
            raise LimitError(f"a conversation may have {most} characters of text and units; start another one")
        self._segments.append(segment)

    def _end_recording(self) -> None:
        if self._recording:
            recorded = bytes(self._recording)
            self._recording.clear()
            kept = sum(s.content.size for s in self._segments if isinstance(s.content, np.ndarray))
            if 2 * kept + len(recorded) > self._most_bytes:
                raise LimitError(f"a turn may have {self._service.limits.audio_seconds:g} s of recordings")
            self._segments.append(pcm_segment(recorded, self._service.limits))

    async def _generate(self, options: StartMessage, message: GenerateMessage) -> None:
        if self._answer is not None and not self._answer.done():
            raise ApiError("an answer is being generated; cancel it first")
        self._end_recording()
        sampling = options.sampling(self._service.sampling).override(seed=message.seed)
        modality = message.output_modality or options.output_modality
        adapter = self._names.adapter(options.model)
        generation = Generation(list(self._segments), modality, sampling, options.voice, stream=True, adapter=adapter)
        self._answer = asyncio.create_task(self._stream(generation))

    async def _stream(self, generation: Generation) -> None:
        """Send the events of an answer, and add it to the conversation."""
        answer: list[Segment] = []
        try:
            async with contextlib.aclosing(self._service.events(generation)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        # Units take the place of recordings, so that none is kept or encoded again.
                        units = [segment if segment.kind == "text" else as_units(segment) for segment in event.segments]
                        self._segments[: len(units)] = units
                        await self._send(describe_start(event, new_id("gen")))
                    elif isinstance(event, Segment):
                        answer.append(event)
                        await self._send_piece(event)
                    elif isinstance(event, Finished):
                        self._segments += joined(answer)
                        await self._send({"type": "end", **describe_end(event)})
        except asyncio.CancelledError:
            self._segments += joined(answer)
            raise
        except WebSocketDisconnect:
            raise
        except Exception as error:
            errors.respond(error)  # logs a bug
            await self._send(error_event(error))

    async def _send_piece(self, piece: Segment) -> None:
        if isinstance(piece.content, str):
            await self._send({"type": "text", "text": piece.content})
            return
        audio = piece.content if isinstance(piece.content, np.ndarray) else np.zeros(0, np.float32)
        await self._send({"type": "speech", "units": unit_string(piece), "samples": audio.size})
        if audio.size:
            await self._socket.send_bytes(await anyio.to_thread.run_sync(pcm16, audio))

    async def _cancel(self) -> None:
        if self._answer is not None:
            cancelled = self._answer.cancel()
            await asyncio.gather(self._answer, return_exceptions=True)
            self._answer = None
            if cancelled:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await self._send({"type": "end", "finish_reason": "cancelled"})

    async def _send(self, event: dict[str, Any]) -> None:
        await self._socket.send_json(event)


def _characters(segment: Segment) -> int:
    """Return the length of a text or of the unit string of speech; a recording that is not encoded has none."""
    return len(segment.content if isinstance(segment.content, str) else segment.tokens or "")


def joined(pieces: list[Segment]) -> list[Segment]:
    """Return the segments of a streamed answer: neighboring pieces of one kind are one segment, speech as units."""
    result: list[Segment] = []
    for piece in pieces:
        content = piece.content if isinstance(piece.content, str) else unit_string(piece) or ""
        if result and result[-1].kind == piece.kind:
            before = result.pop()
            content = (before.content if isinstance(before.content, str) else before.tokens or "") + content
        if content:
            result.append(Segment.text(content) if piece.kind == "text" else units_segment(content))
    return result


def as_units(segment: Segment) -> Segment:
    """Return speech without its samples."""
    return units_segment(segment.tokens or "")


def error_event(error: BaseException) -> dict[str, Any]:
    """Return the event for an error."""
    return {"type": "error", **errors.error_body(error)}
