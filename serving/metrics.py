"""Metrics for Prometheus: counts and times since the server was started."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import prometheus_client as prometheus

from serving.protocol import Usage
from serving.queue import RequestQueue

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self, queue: RequestQueue, n_rows: int, paths: Mapping[Callable, str]) -> None:
        """Takes the path of each endpoint; requests without an endpoint count as "other"."""
        self._paths = paths
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prometheus.PlatformCollector(registry=registry)
        counter, gauge = (functools.partial(kind, registry=registry) for kind in (prometheus.Counter, prometheus.Gauge))
        histogram = functools.partial(prometheus.Histogram, registry=registry, buckets=SECONDS)
        self._requests = counter("neomesh_requests", "Requests by path and status.", ("path", "status"))
        self._request_latency_seconds = histogram(
            "neomesh_request_latency_seconds", "Seconds from the start of a request to its end.", ("path",)
        )
        self._time_to_first_token_seconds = histogram(
            "neomesh_time_to_first_token_seconds", "Seconds from a valid request to its first token."
        )
        self._sequences = counter("neomesh_answers", "Sequences by the reason of their end.", ("end",))
        self._prompt_tokens = counter("neomesh_prompt_tokens", "Tokens of prompts.")
        self._completion_tokens = counter("neomesh_completion_tokens", "Generated tokens.")
        gauge("neomesh_rows", "Sequences that can be generated at once.").set(n_rows)
        running = gauge("neomesh_num_requests_running", "Sequences that are being generated.")
        running.set_function(lambda: queue.worker.n_running)
        waiting = gauge("neomesh_num_requests_waiting", "Sequences that wait for a row or for their scores.")
        waiting.set_function(lambda: queue.worker.n_waiting)

    def count_request(self, endpoint: Callable | None, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        path = self._paths.get(endpoint, "other")
        self._requests.labels(path, str(status)).inc()
        self._request_latency_seconds.labels(path).observe(seconds)

    def count_first_token(self, seconds: float) -> None:
        """Records the time to the first token of a request."""
        self._time_to_first_token_seconds.observe(seconds)

    def count_sequence(self, end: str) -> None:
        """Counts a sequence that has ended."""
        self._sequences.labels(end).inc()

    def count_tokens(self, usage: Usage) -> None:
        """Counts the tokens of a request."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return prometheus.generate_latest(self._registry)
