"""The paths of OpenAI's API: completions, chat completions, speech and transcriptions."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import is_encodable
from spirit_jax.inference.prompts import Segment
from spirit_jax.serving import sound_files, sse
from spirit_jax.serving.errors import ApiError
from spirit_jax.serving.openai_schemas import ChatBody, CompletionBody, SpeechBody, audio_id
from spirit_jax.serving.routes import ModelNames, collect, new_id, unit_string, usage
from spirit_jax.serving.service import Event, Finished, Generation, Service, Started
from spirit_jax.serving.uploads import Recordings

_AUDIO_LIFETIME = 24 * 3600
"""Seconds that OpenAI's clients are told an answer's audio can be referred to; its id never expires here."""

_DONE = sse.message("[DONE]")


def finish_reason(finished: Finished) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return "stop" if finished.reason == "stop" else "length"


def total_usage(answers: Sequence[Finished]) -> dict[str, int]:
    """Return the numbers of tokens of several answers together."""
    each = [usage(finished) for finished in answers]
    return {name: sum(one[name] for one in each) for name in each[0]}


def joined_audio(segments: Sequence[Segment]) -> np.ndarray:
    """Return all speech of an answer as one clip, float32 [R]."""
    clips = [segment.content for segment in segments if isinstance(segment.content, np.ndarray)]
    return np.concatenate(clips) if clips else np.zeros(0, np.float32)


def make_router(service: Service, names: ModelNames) -> APIRouter:
    """Return the routes of OpenAI's API."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/completions", response_model=None)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue text. With `output_modality`, speech comes as unit tokens in the string."""
        adapter = names.adapter(body.model)
        head = {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time())}
        head["model"] = names.full(adapter)
        prompts = body.prompts()
        defaults = service.sampling
        if body.stream:
            generation = body.generation(prompts[0], 0, defaults, adapter)
            events = await started(service, generation)
            return sse.Stream(_completion_stream(events, head, prompts[0] if body.echo else "", body.include_usage))
        asked = [body.generation(prompt, n, defaults, adapter) for prompt in prompts for n in range(body.n or 1)]
        answers = await sse.unless_disconnected(request, _collect_all(service, asked))
        choices = [
            {
                "index": index,
                "text": (prompts[index // (body.n or 1)] if body.echo else "") + finished.string,
                "finish_reason": finish_reason(finished),
                "logprobs": None,
            }
            for index, (_, _, finished) in enumerate(answers)
        ]
        return JSONResponse({**head, "choices": choices, "usage": total_usage([answer[2] for answer in answers])})

    @router.post("/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> Response:
        """Continue a chat of text and speech, as one document."""
        adapter = names.adapter(body.model)
        head = {"id": new_id("chatcmpl"), "object": "chat.completion", "created": int(time.time())}
        head["model"] = names.full(adapter)
        sound = "wav" if body.audio is None else body.audio.format
        if body.output_modality != "text":
            sound_files.check_format(sound)
            if body.stream and sound != "pcm16" and body.audio is not None:
                raise ApiError("a stream has audio.format pcm16", 400, "audio.format")
        prompt = await anyio.to_thread.run_sync(body.prompt, service.limits)
        defaults = service.sampling
        if body.stream:
            events = await started(service, body.generation(prompt, 0, defaults, adapter))
            head["object"] = "chat.completion.chunk"
            return sse.Stream(_chat_stream(events, head, body.include_usage))
        asked = [body.generation(prompt, number, defaults, adapter) for number in range(body.n or 1)]
        answers = await sse.unless_disconnected(request, _collect_all(service, asked))
        choices = await anyio.to_thread.run_sync(
            lambda: [
                {
                    "index": index,
                    "message": _message(segments, sound),
                    "finish_reason": finish_reason(finished),
                    "logprobs": None,
                }
                for index, (_, segments, finished) in enumerate(answers)
            ]
        )
        tokens = total_usage([answer[2] for answer in answers])
        return JSONResponse({**head, "choices": choices, "usage": tokens})

    @router.post("/audio/speech", response_model=None)
    async def speech(body: SpeechBody, request: Request) -> Response:
        """Continue a text in speech. WAV and PCM are sent while they are spoken."""
        adapter = names.adapter(body.model)
        _check_speaks(service)
        sound = body.response_format or "mp3"
        sound_files.check_format(sound)
        defaults = service.sampling
        if body.stream_format == "sse" or sound in ("wav", "pcm"):
            events = await started(service, body.generation(defaults, adapter, stream=True))
            if body.stream_format == "sse":
                return sse.Stream(_speech_events(events))
            return sse.Stream(_speech_bytes(events, sound), sound_files.MEDIA_TYPES[sound])
        asked = collect(service, body.generation(defaults, adapter, stream=False))
        _, segments, _ = await sse.unless_disconnected(request, asked)
        content = await anyio.to_thread.run_sync(sound_files.encode, joined_audio(segments), sound)
        return Response(content, media_type=sound_files.MEDIA_TYPES[sound])

    @router.post("/audio/transcriptions", response_model=None)
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        prompt: Annotated[str, Form()] = "",
        response_format: Annotated[Literal["json", "text", "verbose_json"], Form()] = "json",
        temperature: Annotated[float | None, Form()] = None,
        language: Annotated[str | None, Form()] = None,
        stream: Annotated[bool, Form()] = False,
        max_tokens: Annotated[int | None, Form(ge=1, le=10**6)] = None,
    ) -> Response:
        """Continue a recording in text: a transcript, as far as the model has learned to transcribe.

        `prompt` is text that the transcript continues.
        """
        adapter = names.adapter(model)
        if not is_encodable(prompt):
            raise ApiError("prompt holds half a character, which UTF-8 cannot hold", 400, "prompt")
        content = await file.read()
        recording = await anyio.to_thread.run_sync(Recordings(service.limits).decode, content)
        parts = [recording, Segment.text(prompt)] if prompt else [recording]
        sampling = service.sampling.override(temperature=temperature, max_new_tokens=max_tokens)
        generation = Generation(parts, "text", sampling, stream=stream, adapter=adapter)
        if stream:
            return sse.Stream(_transcript_events(await started(service, generation)))
        _, segments, finished = await sse.unless_disconnected(request, collect(service, generation))
        text = "".join(segment.content for segment in segments if isinstance(segment.content, str))
        if response_format == "text":
            return PlainTextResponse(text + "\n")
        answer: dict[str, Any] = {"text": text, "usage": {"type": "tokens", **_token_usage(finished)}}
        if response_format == "verbose_json":
            length = recording.audio.size / SAMPLE_RATE
            answer |= {"task": "transcribe", "language": language or "", "duration": length, "segments": []}
        return JSONResponse(answer)

    return router


async def started(service: Service, generation: Generation) -> AsyncGenerator[Event]:
    """Return the events of a generation after the engine has taken it. Errors before that are raised here."""
    events = service.events(generation)
    first = await anext(events)
    assert isinstance(first, Started)
    return events


async def _collect_all(service: Service, asked: Sequence[Generation]) -> list[tuple[Started, list[Segment], Finished]]:
    """Return the answers to several generations, which run beside each other."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(collect(service, generation)) for generation in asked]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _check_speaks(service: Service) -> None:
    if not service.has_vocoder:
        raise ApiError("this checkpoint has no vocoder: it answers in units (/v1/generate)", 400)


def _message(segments: Sequence[Segment], sound: str) -> dict[str, Any]:
    """Return an answer as a message; its speech is one file."""
    text = "".join(segment.content for segment in segments if isinstance(segment.content, str))
    units = "".join(unit_string(segment) or "" for segment in segments)
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if units:
        audio = joined_audio(segments)
        message["audio"] = {
            "id": audio_id(units),
            "data": base64.b64encode(sound_files.encode(audio, sound)).decode() if audio.size else "",
            "expires_at": int(time.time()) + _AUDIO_LIFETIME,
            "transcript": "",
        }
    elif not text:
        message["content"] = ""
    return message


async def _completion_stream(
    events: AsyncGenerator[Event], head: dict[str, Any], echo: str, include_usage: bool
) -> AsyncGenerator[bytes]:
    def chunk(text: str, reason: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        return sse.message({**head, "choices": [choice]})

    async with contextlib.aclosing(events):
        if echo:
            yield chunk(echo)
        async for event in events:
            if isinstance(event, Segment):
                text = event.content if isinstance(event.content, str) else unit_string(event)
                yield chunk(text or "")
            elif isinstance(event, Finished):
                yield chunk("", finish_reason(event))
                if include_usage:
                    yield sse.message({**head, "choices": [], "usage": usage(event)})
        yield _DONE


async def _chat_stream(
    events: AsyncGenerator[Event], head: dict[str, Any], include_usage: bool
) -> AsyncGenerator[bytes]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return sse.message({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    pcm, units = sound_files.PcmStream(), ""
    async with contextlib.aclosing(events):
        yield chunk({"role": "assistant", "content": ""})
        async for event in events:
            if isinstance(event, Segment) and isinstance(event.content, str):
                yield chunk({"content": event.content})
            elif isinstance(event, Segment):
                units += unit_string(event) or ""
                if isinstance(event.content, np.ndarray) and (samples := pcm.push(event.content)):
                    yield chunk({"audio": {"data": base64.b64encode(samples).decode()}})
            elif isinstance(event, Finished):
                rest = pcm.push(np.zeros(0, np.float32), last=True)
                if units:
                    expires = int(time.time()) + _AUDIO_LIFETIME
                    yield chunk(
                        {
                            "audio": {
                                "id": audio_id(units),
                                "data": base64.b64encode(rest).decode(),
                                "transcript": "",
                                "expires_at": expires,
                            }
                        }
                    )
                yield chunk({}, finish_reason(event))
                if include_usage:
                    yield sse.message({**head, "choices": [], "usage": usage(event)})
        yield _DONE


async def _pcm_pieces(events: AsyncGenerator[Event]) -> AsyncGenerator[np.ndarray | Finished]:
    """Yield the audio of a generation in speech, then its end."""
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Segment) and isinstance(event.content, np.ndarray) and event.content.size:
                yield event.content
            elif isinstance(event, Finished):
                yield event


async def _speech_bytes(events: AsyncGenerator[Event], sound: str) -> AsyncGenerator[bytes]:
    pcm = sound_files.PcmStream()
    async with contextlib.aclosing(_pcm_pieces(events)) as pieces:
        if sound == "wav":
            yield sound_files.wav_head()
        async for piece in pieces:
            if isinstance(piece, np.ndarray):
                yield sound_files.pcm16(piece) if sound == "wav" else pcm.push(piece)
            elif sound == "pcm":
                yield pcm.push(np.zeros(0, np.float32), last=True)


async def _speech_events(events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    """Yield raw samples at 24 kHz as OpenAI's events."""
    pcm = sound_files.PcmStream()

    def delta(samples: bytes) -> bytes:
        return sse.message({"type": "speech.audio.delta", "audio": base64.b64encode(samples).decode()})

    async with contextlib.aclosing(_pcm_pieces(events)) as pieces:
        async for piece in pieces:
            if isinstance(piece, np.ndarray):
                yield delta(pcm.push(piece))
            else:
                yield delta(pcm.push(np.zeros(0, np.float32), last=True))
                yield sse.message({"type": "speech.audio.done", "usage": _token_usage(piece)})


async def _transcript_events(events: AsyncGenerator[Event]) -> AsyncGenerator[bytes]:
    text = ""
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Segment) and isinstance(event.content, str):
                text += event.content
                yield sse.message({"type": "transcript.text.delta", "delta": event.content})
            elif isinstance(event, Finished):
                usage_ = {"type": "tokens", **_token_usage(event)}
                yield sse.message({"type": "transcript.text.done", "text": text.strip(), "usage": usage_})


def _token_usage(finished: Finished) -> dict[str, int]:
    """Return the numbers of tokens, as OpenAI's audio paths name them."""
    return {
        "input_tokens": finished.prompt_tokens,
        "output_tokens": finished.new_tokens,
        "total_tokens": finished.prompt_tokens + finished.new_tokens,
    }
