"""What stands before the server's answers: the key, the size of a body and the time it takes, and the count of both."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Refusal, large_body, slow_body, wrong_key

OPEN_PATHS = {"/healthz"}  # what a load balancer asks, which knows no key
DRAIN_BODIES = 16  # so many limits' worth of a body that is too large are read, so that the client reads its refusal


class KeyGuard:
    """Refuses who does not send the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._is_known(Headers(scope=scope)):
            await wrong_key().response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # In a time that tells nothing of how many characters are right.
        return hmac.compare_digest(f"{scheme.lower()} {key.strip()}".encode("latin-1", "replace"), self._expected)


class BodyGuard:
    """Reads a request's body before anybody looks at it, as far as it may reach and in the time that it may take."""

    def __init__(self, app: ASGIApp, limit_bytes: int, limit_seconds: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; only a POST has a body that is read."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._limit_seconds)
        except asyncio.TimeoutError:  # another class than the builtin one on Python 3.10
            await slow_body(self._limit_seconds).response()(scope, receive, send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, _replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None: the client has gone."""
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            size += len(message.get("body", b""))
            if size <= self._limit_bytes:
                pieces.append(message.get("body", b""))
            is_over = not message.get("more_body", False)
            if size > self._limit_bytes and (is_over or size > DRAIN_BODIES * self._limit_bytes):
                raise large_body(self._limit_bytes)
            if is_over:
                return b"".join(pieces)


def _replayed(body: bytes | None, receive: Receive) -> Receive:
    """Gives a body that was read, and then what comes after it."""
    waiting: list[Message] = [] if body is None else [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        if waiting:
            return waiting.pop()
        return {"type": "http.disconnect"} if body is None else await receive()

    return next_message


class CountGuard:
    """Tells of each request what it was answered with, and how long that took."""

    def __init__(self, app: ASGIApp, tell: Callable[[Callable | None, int, float], None]) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500  # if there is no answer, the program has failed

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._tell(scope.get("endpoint"), status, time.monotonic() - began)
