"""Errors as OpenAI's API writes them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from spirit_jax.core.errors import SpiritError
from spirit_jax.serving.engine_thread import EngineError
from spirit_jax.serving.limits import LimitError
from spirit_jax.serving.service import AnswerError, BusyError

RETRY_SECONDS = 1
"""When a client that was refused with status 429 or 503 should try again."""


class ApiError(Exception):
    """A refusal with a status of its own.

    Args:
        message: one line for the client.
        status: of the response.
        param: the field of the request that is wrong.
        code: a word for programs, such as "model_not_found".
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code


def error_status(error: BaseException) -> int:
    """Return the status that an error gives a response."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, BusyError):
        return 429
    if isinstance(error, LimitError):
        return 413
    if isinstance(error, EngineError):
        return 503
    if isinstance(error, SpiritError) and not isinstance(error, AnswerError):
        return 400
    return 500


def error_body(error: BaseException) -> dict[str, Any]:
    """Return an error in OpenAI's form. The message of a bug stays in the log."""
    status = error_status(error)
    known = isinstance(error, SpiritError | ApiError)
    message = " ".join(str(error).split()) if known else "internal error; the server's log says more"
    param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
    return body(message, status, param, code)


def body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's form of an error with this message."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(error: BaseException) -> JSONResponse:
    """Return the response for an error; a bug is logged."""
    status = error_status(error)
    if status == 500 and not isinstance(error, SpiritError):
        logging.error("a request failed", exc_info=error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(error_body(error), status, headers)


def install(app: FastAPI) -> None:
    """Make every error of the application come in OpenAI's form."""

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = describe(error.errors())
        return JSONResponse(body(message, 400, param), 400)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = error.detail if error.status_code != 404 else f"there is no {request.method} {request.url.path}"
        return JSONResponse(body(message, error.status_code), error.status_code, error.headers)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return respond(error)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(SpiritError, failed)
    app.add_exception_handler(ApiError, failed)
    app.add_exception_handler(Exception, failed)


def describe(problems: Sequence[Any]) -> tuple[str, str | None]:
    """Return one line about the first problem that pydantic found, and the field that it is in."""
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    reason = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where or 'body'}: {reason}{more}", where or None
