"""What a server is told beside the model: where it listens, who may ask, and how much."""

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
    """How a server behaves.

    Attributes:
        port: where it listens; 0: any free one.
        host: a name or an address of this machine; 0.0.0.0 is all of them.
        api_key: what a client must send as `Authorization: Bearer KEY`; None: nothing.
        n_waiting: sequences that may wait for a row; more are refused.
        body_bytes: largest body of a request.
        body_seconds: that a client may take to send it.
        answer_seconds: that an answer may take, the wait for a row included.
        grace_seconds: that running answers may take once the server is to stop.
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
        """Refuses what can never be served.

        Raises:
            ConfigError: a value is out of range.
        """
        if not 0 <= self.port <= MAX_PORT:
            raise ConfigError(
                f"--serve {self.port}: is no port; give one of 1 to {MAX_PORT}, or 0 for any that is free"
            )


def key_from_environment() -> str | None:
    """The key that clients must send; None: the variable is not set, and anyone may ask.

    Raises:
        UserError: it is set to what no header can carry.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or key != key.strip()):
        raise UserError(
            f"{KEY_VARIABLE}: is empty, or holds spaces around it or characters that a header cannot carry; set it "
            "to letters, digits and signs of ASCII, or unset it"
        )
    return key


def check_packages() -> None:
    """Finds that a package is missing before a model is loaded for nothing.

    Raises:
        UserError: one is.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--serve: needs packages that are not installed ({', '.join(missing)}); "
            "pip install -r requirements-serve.txt"
        )
