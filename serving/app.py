"""The HTTP server: listens, wires the application together, and shuts down gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from configs.errors import UserError
from runtime.training.signals import handled
from serving.completions import Service
from serving.connections import connection_factory
from serving.engine import warm_up
from serving.errors import EXCEPTION_HANDLERS
from serving.metrics import ServerMetrics
from serving.middleware import ApiKeyMiddleware, BodyLimitMiddleware, MetricsMiddleware, RequestIdMiddleware
from serving.model import ServedModel
from serving.queue import RequestQueue
from serving.routes import ROUTES
from serving.settings import KEY_VARIABLE, ServingSettings
from serving.spelled_tokens import SpelledTokens

FLUSH_SECONDS = 2  # for the last responses to reach their clients
POLL_SECONDS = 0.05
URGENT = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 4096  # connections that wait until they are accepted


def serve(model: ServedModel, settings: ServingSettings) -> int:
    """Answers requests until a signal that ends training arrives; returns the exit status.

    The first signal refuses new requests and lets running ones finish within the grace period; a second Ctrl-C or
    SIGTERM ends them. The status is 0 if every response was complete.

    Raises:
        UserError: the server cannot listen on the address.
    """
    with listen(settings) as listener:
        warm_up(model.engine)
        _tame_garbage_collection()
        return asyncio.run(_serve(model, settings, listener))


def _tame_garbage_collection() -> None:
    """Lets the garbage collector stop the server less often, and never for long: what is there now stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def listen(settings: ServingSettings) -> socket.socket:
    """Returns a socket to which clients can already connect."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
        # Connections inherit it. Without it, answers on a kept connection wait for the client's ACK, up to 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--serve {settings.port} --host {settings.host}: cannot listen there: {error}; give another port, or "
            "0 for any free one, and a name or address of this machine"
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn_if_open(listener: socket.socket, settings: ServingSettings) -> None:
    host = listener.getsockname()[0]
    if settings.api_key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        print(
            f"warning: --host {settings.host}: anyone who reaches this machine can use the server, as there is no key; "
            f"set {KEY_VARIABLE}",
            file=sys.stderr,
        )


def build_app(service: Service, settings: ServingSettings) -> ASGIApp:
    """Returns the application that answers requests."""
    api_key = [] if settings.api_key is None else [Middleware(ApiKeyMiddleware, settings.api_key)]
    middleware = [
        Middleware(MetricsMiddleware, service.metrics.count_request),
        *api_key,
        Middleware(BodyLimitMiddleware, settings.body_bytes, settings.body_seconds),
    ]
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=EXCEPTION_HANDLERS)
    app.state.service, app.state.has_key = service, settings.api_key is not None
    return RequestIdMiddleware(_with_cors(app, settings.cors_origins))


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of these origins use the application in a browser, which asks without the key first."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
    )


class _Server(uvicorn.Server):
    """A server that shuts down gracefully: running requests finish, and new ones are refused.

    Attributes:
        status: the exit status: 0, or 128 + the signal if a response was cut off.
    """

    def __init__(self, config: uvicorn.Config, queue: RequestQueue, grace_seconds: float) -> None:
        super().__init__(config)
        self._queue = queue
        self._grace_seconds = grace_seconds
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self.status = 0

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:
        """Handles what ends other programs too: a closed terminal, and the signals of job schedulers."""
        return handled(self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal, which may arrive between any two instructions."""
        self._loop.call_soon_threadsafe(self._on_signal, sig)

    def handle_failure(self) -> None:
        """Stops the server, as the engine is gone."""
        self.should_exit = True

    def _on_signal(self, signal_number: int) -> None:
        if self._queue.is_closed:
            if signal_number in URGENT:  # others come in pairs, from the terminal and its shell
                self._abort(signal_number)
            return
        self._queue.is_closed = True
        print(f"stopping; unfinished sequences: {self._queue.n_open}", flush=True)
        self._closing = asyncio.ensure_future(self._close(signal_number))

    async def _close(self, signal_number: int) -> None:
        end_seconds = self._loop.time() + self._grace_seconds
        while self._queue.n_open and self._loop.time() < end_seconds:
            await asyncio.sleep(POLL_SECONDS)
        self._abort(signal_number)

    def _abort(self, signal_number: int) -> None:
        if self._queue.n_open:
            self.status = 128 + signal_number
        self._queue.abort()
        self.should_exit = True


async def _serve(model: ServedModel, settings: ServingSettings, listener: socket.socket) -> int:
    queue = RequestQueue(model, settings, lambda: server.handle_failure())
    metrics = ServerMetrics(queue, model.engine.n_rows, {route.endpoint: route.path for route in ROUTES})
    app = build_app(Service(model, queue, metrics, SpelledTokens(), int(time.time())), settings)
    config = uvicorn.Config(
        app,
        http=connection_factory(settings),
        ws="none",
        lifespan="off",
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    server = _Server(config, queue, settings.grace_seconds)
    _warn_if_open(listener, settings)
    print(f"listening on {_url(listener)}", flush=True)
    with queue.worker:
        await server.serve(sockets=[listener])
    if queue.failure is not None:
        raise queue.failure
    return server.status
