"""The ASGI application: the guard, the routes, the page, and the start and end of the service."""

import contextlib
import pathlib
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spirit_jax import __version__
from spirit_jax.serving import errors, openai_routes, routes, sse, websocket
from spirit_jax.serving.security import Access, Guard
from spirit_jax.serving.service import Service

_PAGE = pathlib.Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/api": ("api.html", "text/html; charset=utf-8"),
    **{
        f"/page/{path.name}": (path.name, kind)
        for suffix, kind in (("css", "text/css; charset=utf-8"), ("js", "text/javascript; charset=utf-8"))
        for path in sorted(_PAGE.glob(f"*.{suffix}"))
    },
}


def make_app(service: Service, name: str, access: Access) -> ASGIApp:
    """Return the application. Its lifespan starts and closes the service.

    Args:
        name: of the model; those of its adapters follow from it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(
        title="spirit_jax",
        version=__version__,
        summary="Continues text and speech with text and speech.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    app.add_exception_handler(sse.Disconnected, _nobody_reads)
    names = routes.ModelNames(name, service.adapters)
    app.include_router(routes.make_router(service, names))
    app.include_router(openai_routes.make_router(service, names))
    app.include_router(websocket.make_router(service, names, access))
    for path, (file, kind) in _FILES.items():
        app.add_api_route(path, _page_route(file, kind), methods=["GET"], include_in_schema=False)
    return Guard(_Counted(app, service), access, service.limits.upload_bytes)


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _page_route(file: str, kind: str):
    async def show() -> FileResponse:
        return FileResponse(_PAGE / file, media_type=kind, headers={"cache-control": "no-cache"})

    return show


class _Counted:
    """Counts responses by path and status. Paths that do not exist are counted together."""

    def __init__(self, app: FastAPI, service: Service):
        self._app, self._metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")  # the application has noted the route by now
                self._metrics.responses.add(1, path, str(message["status"]))
            await send(message)

        await self._app(scope, receive, counting)
