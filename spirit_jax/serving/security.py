"""The guard before the application: who may ask, from which page, and how much.

It checks the Host and Origin headers, the API key and the size of bodies, and it sets the headers that browsers obey.
"""

import dataclasses
import hmac
import json
import re
import urllib.parse
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spirit_jax.serving import errors

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine. A server that listens on one of them answers to these Host headers only."""

_CONTENT_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
}
_NEEDS_KEY = re.compile(r"/(v1/|metrics$)")


@dataclasses.dataclass(frozen=True)
class Access:
    """Access rules of the server."""

    api_key: str | None = None
    """Key that `/v1/...` and `/metrics` ask for; None lets everyone in."""
    origins: Sequence[str] = ()
    """Other sites whose pages may use the server, such as https://example.com; "*" allows all."""
    hosts: Sequence[str] | None = LOOPBACK
    """Names that the Host header may have; None allows every name."""

    def allows_key(self, authorization: str) -> bool:
        """Return whether an Authorization header has the key. The time of the comparison does not depend on the key."""
        if self.api_key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.api_key.encode())
        return scheme.lower() == "bearer" and same

    def allows_host(self, host: str) -> bool:
        """Return whether a Host header names this server. This keeps pages out that resolve a name to this machine."""
        return self.hosts is None or (urllib.parse.urlsplit(f"//{host}").hostname or "") in self.hosts

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin may use the server: a page of the server itself, or a listed site."""
        if not origin or "*" in self.origins or origin in self.origins:
            return True
        return urllib.parse.urlsplit(origin).netloc == host


class Guard:
    """ASGI middleware that refuses requests before the application sees them."""

    def __init__(self, app: ASGIApp, access: Access, upload_bytes: int):
        """
        Args:
            upload_bytes: largest body.
        """
        self._app, self._access, self._upload_bytes = app, access, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a connection on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin", "")
        preflight = scope["type"] == "http" and scope["method"] == "OPTIONS"
        sender = _Sender(send, self._cors(origin, host) if origin else {})
        try:
            refusal = self._refusal(scope, headers, host, origin, preflight)
        except ValueError:  # a Host or Origin header that is no address
            refusal = errors.ApiError("malformed Host or Origin header", 400)
        if refusal is not None:
            await _refuse(scope, receive, sender, refusal)
        elif preflight and origin:
            await sender({"type": "http.response.start", "status": 204, "headers": []})
            await sender({"type": "http.response.body", "body": b""})
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._limited(scope, receive, sender)

    def _refusal(
        self, scope: Scope, headers: dict[str, str], host: str, origin: str, preflight: bool
    ) -> errors.ApiError | None:
        """Return why a request is refused, or None."""
        access = self._access
        if not access.allows_host(host):
            return errors.ApiError(
                f"this server does not answer to the name {host!r}; start it with --allowed-hosts", 403
            )
        if not access.allows_origin(origin, host):
            return errors.ApiError(f"pages of {origin} may not use this server; start it with --origins", 403)
        # A WebSocket of a browser cannot send an Authorization header; its first message has the key.
        needs_key = scope["type"] == "http" and not preflight and _NEEDS_KEY.match(scope["path"])
        if needs_key and not access.allows_key(headers.get("authorization", "")):
            return errors.ApiError("a valid API key is needed: Authorization: Bearer KEY", 401, code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or len(length) > 18:
            return errors.ApiError("malformed Content-Length header", 400)
        if int(length) > self._upload_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> errors.ApiError:
        return errors.ApiError(f"the body is larger than {self._upload_bytes} bytes (--limits.upload_mib)", 413)

    async def _limited(self, scope: Scope, receive: Receive, sender: "_Sender") -> None:
        """Run the application, and stop it if more bytes arrive than may."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._upload_bytes:
                raise self._too_large()
            return message

        try:
            await self._app(scope, limited, sender)
        except errors.ApiError as error:
            if sender.started:
                raise
            await _refuse(scope, receive, sender, error)

    def _cors(self, origin: str, host: str) -> dict[str, str]:
        """Return the headers that let a page of another site read the response."""
        if not ("*" in self._access.origins or origin in self._access.origins):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-headers": "authorization, content-type",
            "access-control-allow-methods": "GET, POST",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "Origin",
        }


class _Sender:
    """Sends messages and adds the headers of every response to the first one."""

    def __init__(self, send: Send, extra: dict[str, str]):
        self._send, self._extra = send, extra
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = {name.lower() for name, _ in message["headers"]}
            added = {name.encode(): value.encode("latin-1") for name, value in (_HEADERS | self._extra).items()}
            headers = [*message["headers"], *((name, value) for name, value in added.items() if name not in own)]
            message = {**message, "headers": headers}
        await self._send(message)


async def _refuse(scope: Scope, receive: Receive, sender: "_Sender", refusal: errors.ApiError) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await sender({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
        return
    content = json.dumps(errors.error_body(refusal)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refusal.status == 413:
        headers.append((b"connection", b"close"))
    await sender({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await sender({"type": "http.response.body", "body": content})
