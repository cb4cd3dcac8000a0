"""Time to the first token: of the program from its start, and of a warm server.

    python3 benchmarks/first_token.py

The model is trained for one step in a temporary directory. The last line is a JSON object with the figures.
benchmarks/generate.py measures the same with `--start`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving.settings import KEY_VARIABLE

REPOSITORY = Path(__file__).resolve().parent.parent
LISTENING = re.compile(r"listening on http://(\S+)")
PROMPT = "def first_token(model: Model, prompt: str) -> str:"
N_STARTS = 3
N_REQUESTS = 20
N_TOKENS = 8
# Enough raw text for a tokenizer with the model's vocabulary.
TEXTS = [f"{REPOSITORY}/{room}/**/*.py" for room in ("configs", "data", "models", "runtime", "serving", "tests")]


@dataclasses.dataclass(frozen=True)
class StartFigures:
    """Median seconds until the first text appears.

    Attributes:
        program: from the start of `--interactive`, with a prompt waiting on standard input.
        warm_server: from a request to an idle server that has answered one before, on the same connection.
        new_connection: the same, on a connection that is opened for the request.
    """

    program: float
    warm_server: float
    new_connection: float


def measure_start() -> StartFigures:
    """Trains a model and measures all times."""
    with tempfile.TemporaryDirectory() as folder:
        run = _make_run(Path(folder))
        program_seconds = [_program_seconds(run) for _ in range(N_STARTS)]
        with _server(run) as address:
            kept_seconds, new_seconds = _server_seconds(address)
    return StartFigures(*map(statistics.median, (program_seconds, kept_seconds, new_seconds)))


def _server_seconds(address: str) -> tuple[list[float], list[float]]:
    """Returns the seconds of requests on a connection that is kept, and of requests on new ones, measured in turn."""
    kept, new = [], []
    with contextlib.closing(http.client.HTTPConnection(address)) as connection:
        _request_seconds(connection)
        for _ in range(N_REQUESTS):
            kept.append(_request_seconds(connection))
            with contextlib.closing(http.client.HTTPConnection(address)) as other:
                new.append(_request_seconds(other))
    return kept, new


def _make_run(folder: Path) -> Path:
    """Trains for one step; returns the path of the config."""
    config = json.loads((REPOSITORY / "configs" / "benchmark_small.json").read_text())
    del config["no_dataset"]
    dataset = {"id": "sources", "n_vocab": config["n_vocab"], "text": TEXTS, "cache_dir": f"{folder}/data"}
    dataset |= {"eos_id": 0, "padding_id": 1}
    config |= {"train_steps": 1, "train_batch_size": 1, "model_path": f"{folder}/run", "datasets": [dataset]}
    path = folder / "first_token.json"
    path.write_text(json.dumps(config))
    with _started(path) as process:
        _check_exit(process)
    return path


@contextlib.contextmanager
def _started(config: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """Starts the program on a run; its standard error is shown if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    command = [sys.executable, str(REPOSITORY / "main.py"), "--model", str(config), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        open(config.with_suffix(".log"), "w+") as log,
        subprocess.Popen(command, env=environment, stderr=log, **pipes) as process,
    ):
        try:
            yield process
        except EOFError:
            log.seek(0)
            raise SystemExit(log.read()[-3000:]) from None
        finally:
            process.kill()


def _check_exit(process: subprocess.Popen) -> None:
    process.communicate()
    if process.returncode != 0:
        raise EOFError


def _program_seconds(config: Path) -> float:
    start = time.perf_counter()
    with _started(config, "--interactive", "--never_end", "--max_new_tokens", str(N_TOKENS)) as process:
        process.stdin.write(f"{PROMPT}\n".encode())
        process.stdin.flush()
        if not os.read(process.stdout.fileno(), 1):
            raise EOFError
        seconds = time.perf_counter() - start
        _check_exit(process)
    return seconds


@contextlib.contextmanager
def _server(config: Path) -> Iterator[str]:
    """Serves a run; yields the address."""
    with _started(config, "--serve", "0") as process:
        found = (LISTENING.search(line.decode()) for line in process.stdout)
        address = next(filter(None, found), None)
        if address is None:
            raise EOFError
        yield address.group(1)


def _request_seconds(connection: http.client.HTTPConnection) -> float:
    fields = {"model": "first_token", "prompt": PROMPT, "stream": True, "max_tokens": N_TOKENS, "never_end": True}
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(fields), {"content-type": "application/json"})
    with connection.getresponse() as response:
        seconds = [time.perf_counter() - start for line in response if has_text(line)]
    return seconds[0]


def has_text(line: bytes) -> bool:
    """Returns whether a line of a stream holds text."""
    if not line.startswith(b"data: {"):
        return False
    choices: Sequence[dict[str, str]] = json.loads(line.removeprefix(b"data: "))["choices"]
    return any(choice["text"] for choice in choices)


def format_start(figures: StartFigures) -> str:
    """Returns the figures as lines of text."""
    return (
        f"time to first token: program                      {figures.program:>8.2f} s\n"
        f"time to first token: warm server                  {figures.warm_server:>8.4f} s\n"
        f"time to first token: warm server, new connection  {figures.new_connection:>8.4f} s"
    )


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    argparse.ArgumentParser(description="Measure the time to the first token.").parse_args()
    figures = measure_start()
    print(format_start(figures))
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
