"""The connections of a server: how many there may be, and how long each may take to send and to read.

All of this comes before any request is understood, and so before the key is checked: clients that send nothing, send
slowly or do not read are shut out, and no other client is.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import resource
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.errors import ApiError, head_timed_out, not_http, too_many_connections
from serving.middleware import request_id_header
from serving.settings import ServingSettings

RESERVED_FILES = 128  # for everything but connections
# Of one look at a connection: a body in chunks of a byte each takes a while, and other connections have their turn.
READ_BYTES = 4096
DRAIN_SECONDS = 5.0  # beyond the time limit of a body, so that its client gets a response

Stage = Literal["silent", "kept", "sending", "busy"]


class ConnectionPool:
    """All open connections of a server.

    Attributes:
        settings: the limits.
        limit: the most connections.
    """

    def __init__(self, settings: ServingSettings) -> None:
        """Starts empty."""
        self.settings = settings
        self.limit = min(settings.n_connections, _file_limit(settings.n_connections) - RESERVED_FILES)
        # In the order in which they are closed if there are too many; within a stage, the oldest first.
        self._by_stage: dict[Stage, dict[Connection, None]] = {"silent": {}, "kept": {}, "sending": {}, "busy": {}}

    def place(self, connection: Connection, stage: Stage) -> None:
        """Adds a connection, or moves it to another stage."""
        if connection not in self._by_stage[stage]:
            self.remove(connection)
            self._by_stage[stage][connection] = None

    def remove(self, connection: Connection) -> None:
        """Removes a connection if it is there."""
        for connections in self._by_stage.values():
            connections.pop(connection, None)

    def has_room(self) -> bool:
        """Returns whether there is room for another connection, for which an idle one is closed if need be."""
        if sum(map(len, self._by_stage.values())) < self.limit:
            return True
        *idle, _ = self._by_stage.values()
        oldest = next(itertools.chain.from_iterable(idle), None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.transport.abort()
        return True


def _file_limit(n_connections: int) -> int:
    """Returns how many files the process may open, after raising that for this many connections if it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_connections + RESERVED_FILES
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


class Connection(H11Protocol):
    """A connection with a place in the pool."""

    def __init__(self, pool: ConnectionPool, **settings: Any) -> None:
        """Takes the settings of uvicorn as well."""
        super().__init__(**settings)
        self._pool = pool
        self._receiving: str | None = None  # what of a request is awaited, and by when
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Starts the connection, unless there are too many."""
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # asyncio's own attribute
        if not self._pool.has_room():
            self._refuse(too_many_connections(self._pool.limit))
            return
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self._pool.remove(self)
        self._await_until(None, 0.0)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes of requests."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Keeps the connection for its next request."""
        super().on_response_complete()
        self._update()

    def pause_writing(self) -> None:
        """Waits for the client to read."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self._pool.settings.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on, as the client has read."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are no request."""
        self._refuse(not_http())

    def _update(self) -> None:
        """Sets the stage and the deadline after what has happened."""
        if self.transport.is_closing():
            self._await_until(None, 0.0)
            return
        limits, stage = self._pool.settings, self._stage()
        self._pool.place(self, stage)
        if self.conn.their_state is h11.SEND_BODY:
            self._await_until("body", limits.body_seconds + DRAIN_SECONDS)
        elif stage == "silent" or (stage == "kept" and self.conn.trailing_data[0]):
            self._await_until("head", limits.head_seconds)
        elif stage == "kept":
            self._await_until("request", limits.keep_alive_seconds)
        else:
            self._await_until(None, 0.0)

    def _stage(self) -> Stage:
        if self.cycle is None:
            return "silent"
        if self.conn.their_state is h11.SEND_BODY:
            return "sending"
        return "kept" if self.cycle.response_complete else "busy"

    def _await_until(self, receiving: str | None, seconds: float) -> None:
        """Starts the deadline for what is awaited, unless it runs already."""
        if receiving == self._receiving:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._receiving = receiving
        if receiving is not None:
            self._deadline = self.loop.call_later(seconds, self._end_late)

    def _end_late(self) -> None:
        if self._receiving == "head" and self.conn.trailing_data[0]:
            self._refuse(head_timed_out(self._pool.settings.head_seconds))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Sends an error, unless a response is being sent, and closes the connection."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_raw_response(error))
        self.transport.close()


def _raw_response(error: ApiError) -> bytes:
    body = error.body().model_dump_json().encode()
    headers = {
        **error.headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    lines += [b": ".join(request_id_header())]
    status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()
    return b"\r\n".join([status, *lines, b"", body])


def connection_factory(settings: ServingSettings) -> functools.partial[Connection]:
    """Returns what makes the connections of one server, as uvicorn calls it."""
    return functools.partial(Connection, ConnectionPool(settings))
