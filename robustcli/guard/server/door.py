"""The door of the server: who may come in, how much they may bring, and what no reply ever says."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from robustcli.guard.server.refusal import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Of every reply. Pages load only what this server sends, and nobody frames them.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OPEN = ("/health",)  # a probe has no token


@dataclass(frozen=True)
class Rules:
    """Who may come in, and with how much.

    Args:
        token: asked for as `Authorization: Bearer`, or as the password of HTTP Basic, which browsers ask
            their user for. "" asks for none.
        hosts: names in the header Host. () allows all. A page of another site whose name leads to this
            machine (DNS rebinding) has another one.
        body: bytes of a request at most.
    """

    token: str
    hosts: tuple[str, ...]
    body: int


class Door:
    """Middleware in front of all routes.

    Args:
        app: what stands behind.
        rules: who may come in.
        failed: told of an exception that nobody foresaw; the client gets a 500 without its text.
        replied: told the status of each reply.
    """

    def __init__(
        self, app: App, rules: Rules, failed: Callable[[Exception], None], replied: Callable[[int], None]
    ) -> None:
        self._app, self._rules, self._failed, self._replied = app, rules, failed, replied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = Reply(send, self._replied)
        try:
            self._let_in(scope)
            await self._app(scope, Bounded(receive, self._rules.body), reply)
        except Refused as refused:
            await reply.refuse(scope, receive, refused)
        except Exception as error:
            self._failed(error)
            await reply.refuse(scope, receive, Refused(500, "internal error"))

    def _let_in(self, scope: Scope) -> None:
        """Raises Refused for a request that must not come in."""
        headers = dict(scope["headers"])
        host = _name(headers.get(b"host", b"").decode("latin-1"))
        if self._rules.hosts and host not in self._rules.hosts:
            raise Refused(421, "unknown Host")
        if self._rules.token and scope["path"] not in _OPEN and not self._knows_token(headers):
            raise Refused(401, "a token is needed")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._rules.body:
            raise _too_long(self._rules.body)

    def _knows_token(self, headers: dict[bytes, bytes]) -> bool:
        given = token_in(headers.get(b"authorization", b""))
        return hmac.compare_digest(given, self._rules.token.encode())


def token_in(authorization: bytes) -> bytes:
    """The token of `Bearer TOKEN`, or of `Basic base64(anybody:TOKEN)`; b"" where there is none."""
    kind, _, value = authorization.partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _name(host: str) -> str:
    """The header Host without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _too_long(limit: int) -> Refused:
    return Refused(413, f"the request is larger than {limit} bytes")


class Bounded:
    """The messages of a request, until they hold more than `limit` bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._left = receive, limit, limit

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_long(self._limit)
        return message


class Reply:
    """The messages of a reply, with the security headers in front."""

    def __init__(self, send: Send, replied: Callable[[int], None]) -> None:
        self._send, self._replied, self._started = send, replied, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message["headers"] = [*message.get("headers", ()), *_encoded(SECURITY_HEADERS.items())]
            self._replied(message["status"])
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, refused: Refused) -> None:
        """One line as JSON, unless a reply has begun."""
        if not self._started:
            await refusal(refused)(scope, receive, self)


def refusal(refused: Refused) -> JSONResponse:
    """The reply that says what is wrong."""
    headers = refused.headers
    if refused.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="robustcli guard", charset="UTF-8"'
    return JSONResponse({"error": refused.text}, refused.status, headers)


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers]
