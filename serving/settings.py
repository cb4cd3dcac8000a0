"""Settings of the server: address, API key and limits."""

from __future__ import annotations

import dataclasses
import importlib.util
import os

from configs.errors import ConfigError, UserError

KEY_VARIABLE = "NEOMESH_API_KEY"
MAX_PORT = 65535
PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


@dataclasses.dataclass(frozen=True)
class ServingSettings:
    """Address, API key and limits of a server.

    Attributes:
        port: the TCP port; 0: any free one.
        host: a name or address of this machine; 0.0.0.0 for all of them.
        api_key: the key that clients send as `Authorization: Bearer KEY`; None: no key is needed.
        n_waiting: how many sequences may wait for a row; further ones are refused.
        body_bytes: the largest request body.
        body_seconds: time limit for receiving a request body.
        answer_seconds: time limit for an answer, the wait for a row included.
        grace_seconds: time limit for running answers when the server shuts down.
    """

    port: int
    host: str = "127.0.0.1"
    api_key: str | None = None
    n_waiting: int = 256
    body_bytes: int = 2 << 20
    body_seconds: float = 30.0
    answer_seconds: float = 600.0
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Checks the port.

        Raises:
            ConfigError: it is out of range.
        """
        if not 0 <= self.port <= MAX_PORT:
            raise ConfigError(
                f"--serve {self.port}: is not a port; give one from 1 to {MAX_PORT}, or 0 for any free one"
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
