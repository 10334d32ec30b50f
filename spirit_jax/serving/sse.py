"""Server-sent events, and answers that end when the client goes away."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spirit_jax.serving import errors

_Result = TypeVar("_Result")


class Disconnected(Exception):
    """The client went away before its answer was complete."""


def message(data: dict[str, Any] | str) -> bytes:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


class Stream(Response):
    """A response whose body is an asynchronous iterator of bytes. The iterator is closed when the client goes away.

    An error of the iterator after the first bytes becomes a last event.
    """

    def __init__(self, content: AsyncGenerator[bytes], media_type: str = "text/event-stream"):
        self.content, self.media_type, self.status_code, self.background = content, media_type, 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the content."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self.content.aclose()
        if not sending.cancelled() and sending.exception() is not None:
            logging.warning("a response ended early: %s", sending.exception())

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for part in self.content:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:
            errors.respond(error)  # logs a bug
            if self.media_type == "text/event-stream":
                part = message({"type": "error", **errors.error_body(error)})
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(request: Request, work: Awaitable[_Result]) -> _Result:
    """Return the result of `work`, which is cancelled when the client goes away.

    Raises:
        Disconnected: the client went away.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Disconnected
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
