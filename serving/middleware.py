"""Middleware: names responses, checks the API key, limits the size and time of request bodies, and records metrics."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError, body_timed_out, body_too_large, wrong_key

PUBLIC_PATHS = {"/healthz", "/"}  # for load balancers, which have no key, and for browsers, whose page asks for it
# A body that is too large is read up to this many times the limit, so that the client gets the response.
DRAIN_BODIES = 16


def request_id_header() -> tuple[bytes, bytes]:
    """Returns the header that names a response, with a new name."""
    return b"x-request-id", f"req_{secrets.token_hex(16)}".encode()


class RequestIdMiddleware:
    """Names each response, so that a client can report it; OpenAI's client shows the name."""

    def __init__(self, app: ASGIApp) -> None:
        """Takes the application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), request_id_header()]}
            await send(message)

        await self._app(scope, receive, send_with_id)


class ApiKeyMiddleware:
    """Refuses requests without the API key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        """Takes the application and the key that clients must send."""
        self._app = app
        self._expected = f"bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        is_guarded = scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS
        if is_guarded and not self._has_key(Headers(scope=scope)):
            await wrong_key().response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # In constant time, which does not reveal how many characters are right.
        return hmac.compare_digest(f"{scheme.lower()} {key.strip()}".encode("latin-1", "replace"), self._expected)


class BodyLimitMiddleware:
    """Reads the request body before the application does, within limits on its size and time."""

    def __init__(self, app: ASGIApp, limit_bytes: int, limit_seconds: float) -> None:
        """Takes the application and the limits."""
        self._app = app
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._limit_seconds)
        except asyncio.TimeoutError:  # not the builtin TimeoutError on Python 3.10
            await body_timed_out(self._limit_seconds).response()(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Returns the body; None if the client disconnects."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            size += len(message.get("body", b""))
            if size <= self._limit_bytes:
                parts.append(message.get("body", b""))
            is_last = not message.get("more_body", False)
            if size > self._limit_bytes and (is_last or size > DRAIN_BODIES * self._limit_bytes):
                raise body_too_large(self._limit_bytes)
            if is_last:
                return b"".join(parts)


def _replay(body: bytes | None, receive: Receive) -> Receive:
    """Returns a channel that gives the body that was read, and then what follows it."""
    pending: list[Message] = [] if body is None else [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        if pending:
            return pending.pop()
        return {"type": "http.disconnect"} if body is None else await receive()

    return next_message


class MetricsMiddleware:
    """Reports the endpoint, status and duration of each request."""

    def __init__(self, app: ASGIApp, on_end: Callable[[Callable | None, int, float], None]) -> None:
        """Takes the application, and what is called at the end of each request."""
        self._app = app
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_seconds, status = time.monotonic(), 500  # unless the application responds

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, record_status)
        finally:
            self._on_end(scope.get("endpoint"), status, time.monotonic() - start_seconds)
