"""What Prometheus reads: counts and times since the server was started."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from serving.protocol import Usage
from serving.queue import RequestQueue

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Statistics:
    """Numbers of one server."""

    def __init__(self, desk: RequestQueue, n_rows: int, paths: Mapping[Callable, str]) -> None:
        """Takes the names of what answers; requests that nothing answers are "other"."""
        self._paths = paths
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "neomesh_requests", "Requests by what they were answered with.", ("path", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "neomesh_request_seconds",
            "Seconds from a request to its end.",
            ("path",),
            registry=registry,
            buckets=SECONDS,
        )
        self._first_seconds = Histogram(
            "neomesh_first_text_seconds",
            "Seconds from a request that is understood to the first of its text.",
            registry=registry,
            buckets=SECONDS,
        )
        self._answers = Counter("neomesh_answers", "Sequences by how they ended.", ("end",), registry=registry)
        self._prompt_tokens = Counter("neomesh_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._written_tokens = Counter("neomesh_completion_tokens", "Tokens of answers.", registry=registry)
        Gauge("neomesh_rows", "Sequences that are written at a time.", registry=registry).set(n_rows)
        Gauge("neomesh_running", "Sequences that are being written.", registry=registry).set_function(
            lambda: desk.worker.n_running
        )
        Gauge("neomesh_waiting", "Sequences that wait for a row, or for their scores.", registry=registry).set_function(
            lambda: desk.worker.n_waiting
        )

    def count_request(self, endpoint: Callable | None, status: int, seconds: float) -> None:
        """Counts a request that is over."""
        name = self._paths.get(endpoint, "other")
        self._requests.labels(name, str(status)).inc()
        self._request_seconds.labels(name).observe(seconds)

    def count_first(self, seconds: float) -> None:
        """Notes the time until the first text of a request."""
        self._first_seconds.observe(seconds)

    def count_end(self, end: str, n: int = 1) -> None:
        """Counts sequences that have ended."""
        self._answers.labels(end).inc(n)

    def count_tokens(self, usage: Usage) -> None:
        """Counts what a request has read and written."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._written_tokens.inc(usage.completion_tokens)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)
