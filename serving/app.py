"""The server: from a model to answers over HTTP, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from configs.errors import UserError
from serving.completions import Service
from serving.errors import EXCEPTION_HANDLERS
from serving.metrics import Statistics
from serving.middleware import BodyGuard, CountGuard, KeyGuard
from serving.model import ServedModel
from serving.queue import RequestQueue
from serving.routes import ROUTES
from serving.settings import KEY_VARIABLE, ServingSettings
from serving.token_engine import warm

LAST_SECONDS = 2  # for what is written already to reach who has asked for it
LOOK_SECONDS = 0.05


def serve(model: ServedModel, settings: ServingSettings) -> int:
    """Answers requests until SIGTERM or Ctrl-C; returns the exit status.

    The first signal lets running answers end, in the time that they may take, and refuses others; the second one ends
    them. The status is 0 where every answer was given whole.

    Raises:
        UserError: it cannot listen where it should.
    """
    with _listening(settings) as listener:
        warm(model.engine)
        return asyncio.run(_serve(model, settings, listener))


def _listening(settings: ServingSettings) -> socket.socket:
    """A socket on which clients may already knock."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--serve {settings.port} --host {settings.host}: cannot listen there: {error}; give another port, or "
            "0 for any that is free, and a name or an address of this machine"
        ) from error
    return listener


def _describe(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn_of_strangers(listener: socket.socket, settings: ServingSettings) -> None:
    host = listener.getsockname()[0]
    if settings.api_key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        print(
            f"warning: --host {settings.host}: anyone who reaches this machine may ask, for there is no key; set "
            f"{KEY_VARIABLE}",
            file=sys.stderr,
        )


def build_app(service: Service, settings: ServingSettings) -> Starlette:
    """The application that answers requests."""
    key_guard = [] if settings.api_key is None else [Middleware(KeyGuard, settings.api_key)]
    guards = [
        Middleware(CountGuard, service.statistics.count_request),
        *key_guard,
        Middleware(BodyGuard, settings.body_bytes, settings.body_seconds),
    ]
    app = Starlette(routes=ROUTES, middleware=guards, exception_handlers=EXCEPTION_HANDLERS)
    app.state.service, app.state.has_key = service, settings.api_key is not None
    return app


class _Server(uvicorn.Server):
    """A server that goes on for a while when it is told to stop: running answers end, and others are refused.

    Attributes:
        status: what the process ends with: 0, or 128 and the signal where an answer was cut short.
    """

    def __init__(self, config: uvicorn.Config, desk: RequestQueue, grace_seconds: float) -> None:
        super().__init__(config)
        self._desk = desk
        self._grace_seconds = grace_seconds
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self.status = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Is called at every signal, between any two steps of the program."""
        self._loop.call_soon_threadsafe(self._hear, sig)

    def handle_failure(self) -> None:
        """Ends it, since nothing can be answered any more."""
        self.should_exit = True

    def _hear(self, signal_number: int) -> None:
        if self._desk.is_closed:
            self._cut_short(signal_number)
            return
        self._desk.is_closed = True
        print(f"stopping; sequences that are still being written: {self._desk.n_open}", flush=True)
        self._closing = asyncio.ensure_future(self._close(signal_number))

    async def _close(self, signal_number: int) -> None:
        end_seconds = self._loop.time() + self._grace_seconds
        while self._desk.n_open and self._loop.time() < end_seconds:
            await asyncio.sleep(LOOK_SECONDS)
        self._cut_short(signal_number)

    def _cut_short(self, signal_number: int) -> None:
        if self._desk.n_open:
            self.status = 128 + signal_number
        self._desk.cut_short()
        self.should_exit = True


async def _serve(model: ServedModel, settings: ServingSettings, listener: socket.socket) -> int:
    desk = RequestQueue(model, settings, lambda: server.handle_failure())
    statistics = Statistics(desk, model.engine.n_rows, {route.endpoint: route.path for route in ROUTES})
    app = build_app(Service(model, desk, statistics, int(time.time())), settings)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = _Server(config, desk, settings.grace_seconds)
    _warn_of_strangers(listener, settings)
    print(f"listening on {_describe(listener)}", flush=True)
    with desk.worker:
        await server.serve(sockets=[listener])
    if desk.failure is not None:
        raise desk.failure
    return server.status
