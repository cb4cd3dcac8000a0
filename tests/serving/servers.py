"""Starts servers in processes of their own, with clients for them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import openai

from tests.serving import scripted as scripted_server

LISTENING = re.compile(r"listening on (http://\S+)")
KEY = "NEOMESH_API_KEY"
START_SECONDS = 120
END_SECONDS = 60
# Servers are forked from a process that has imported TensorFlow once, as that takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.serving.scripted"])


class Server:
    """A server process.

    Attributes:
        url: its address.
    """

    def __init__(self, process_id: int, wait: Callable[[float], int], output: Path) -> None:
        """Takes a function that waits up to a number of seconds for the process to end, and returns its exit status."""
        self.process_id = process_id
        self._wait = wait
        self._output = output
        self.url = ""

    @property
    def lines(self) -> list[str]:
        """The lines that it has printed so far, errors included."""
        return self._output.read_text().splitlines()

    def wait_until_listening(self) -> None:
        """Waits until clients can connect."""
        end = time.monotonic() + START_SECONDS
        while not (found := LISTENING.search(self._output.read_text())):
            assert time.monotonic() < end and not self.has_ended(), self._output.read_text()[-3000:]
            time.sleep(0.01)
        self.url = found.group(1)

    def has_ended(self) -> bool:
        """Returns whether the process has ended."""
        with contextlib.suppress(TimeoutError):
            self._wait(0.0)
            return True
        return False

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the process."""
        os.kill(self.process_id, number)

    def end(self) -> int:
        """Waits for the process to end; returns its exit status."""
        return self._wait(END_SECONDS)

    def kill(self) -> None:
        """Kills the process if it still runs."""
        if not self.has_ended():
            self.signal(signal.SIGKILL)
            self.end()

    def client(self, key: str = "none", **options: object) -> openai.OpenAI:
        """Returns OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **options})


@contextlib.contextmanager
def _watched(server: Server) -> Iterator[Server]:
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Runs a command that serves, and ends it with the context."""
    with tempfile.NamedTemporaryFile("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

        def wait(seconds: float) -> int:
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError from None

        with _watched(Server(process.pid, wait, Path(output.name))) as server:
            yield server


@contextlib.contextmanager
def scripted(*arguments: object, **environment: str) -> Iterator[Server]:
    """Runs a server with the scripted engine, and ends it with the context."""
    with tempfile.NamedTemporaryFile("w") as output:
        words = tuple(map(str, arguments))
        process = PROCESSES.Process(target=_serve_scripted, args=(words, environment, output.name))
        process.start()

        def wait(seconds: float) -> int:
            process.join(seconds)
            if process.exitcode is None:
                raise TimeoutError
            return process.exitcode

        assert process.pid is not None
        with _watched(Server(process.pid, wait, Path(output.name))) as server:
            yield server


def _serve_scripted(arguments: tuple[str, ...], environment: Mapping[str, str], output: str) -> None:
    """Runs in the new process."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.environ.pop(KEY, None)
    os.environ.update(environment)
    sys.exit(scripted_server.main(arguments))
