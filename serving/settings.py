"""Settings of the server: address, API key and limits."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re

from configs.errors import ConfigError, UserError

KEY_VARIABLE = "NEOMESH_API_KEY"
MAX_PORT = 65535
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+")
PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """Address, API key and limits of a server.

    Attributes:
        port: the TCP port; 0: any free one.
        host: a name or address of this machine; 0.0.0.0 for all of them.
        api_key: the key that clients send as `Authorization: Bearer KEY`; None: no key is needed.
        cors_origins: the origins whose pages a browser lets use the server, as it sends them; "*": all.
        n_waiting: how many sequences may wait for a row; further ones are refused.
        n_connections: the most open connections; an idle one is closed for a new one.
        body_bytes: the largest request body.
        head_seconds: time limit for receiving the headers of a request, and of a connection for its first request.
        body_seconds: time limit for receiving a request body.
        keep_alive_seconds: time limit of a connection for its next request; longer than clients keep one.
        write_seconds: time limit for a client to read on.
        answer_seconds: time limit for an answer, the wait for a row included.
        grace_seconds: time limit for running answers when the server shuts down.
    """

    port: int
    host: str = "127.0.0.1"
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    n_waiting: int = 2048
    n_connections: int = 4096
    body_bytes: int = 2 << 20
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    keep_alive_seconds: int = 75
    write_seconds: float = 60.0
    answer_seconds: float = 600.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Checks the port and the origins.

        Raises:
            ConfigError: the port is out of range, or an origin is not one.
        """
        if not 0 <= self.port <= MAX_PORT:
            raise ConfigError(
                f"--serve {self.port}: is not a port; give one from 1 to {MAX_PORT}, or 0 for any free one"
            )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--cors_origins {origin}: is not an origin; give it as a browser sends it, such as "
                    "http://localhost:3000, without a path, several with commas between them, or * for all"
                )


def key_from_environment() -> str | None:
    """Returns the key that clients must send; None if the variable is not set, and no key is needed.

    Raises:
        UserError: a header cannot carry the key.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or key != key.strip()):
        raise UserError(
            f"{KEY_VARIABLE}: is empty, starts or ends with spaces, or has characters that a header cannot carry; set "
            "it to ASCII letters, digits and punctuation, or unset it"
        )
    return key


def check_packages() -> None:
    """Checks that the server's packages are installed, before a model is loaded.

    Raises:
        UserError: a package is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--serve: needs packages that are not installed ({', '.join(missing)}); "
            "pip install -r requirements-serve.txt"
        )
